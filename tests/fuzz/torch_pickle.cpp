// SPDX-License-Identifier: MIT
#include "../io/torch_files.h"
#include "torch_file.h"

#include <string>

/// The same as torch_file, with the bytes as the pickle in a whole archive with two storages.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string pickle(reinterpret_cast<const char*>(data), size);
  check_torch_file(attend::test::torch_archive(pickle, {std::string(24, '\1'), ""}));
  return 0;
}
