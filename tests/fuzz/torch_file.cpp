// SPDX-License-Identifier: MIT
#include "torch_file.h"

/// Any bytes are refused with a FileError, or give tensors that lie in storages that lie in the file.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  check_torch_file({reinterpret_cast<const char*>(data), size});
  return 0;
}
