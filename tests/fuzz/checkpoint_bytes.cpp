// SPDX-License-Identifier: MIT
#include <attend/io/detail/checkpoint_bytes.h>
#include <attend/io/file_error.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "io/checkpoint_files.h"

/// Any bytes are refused with a FileError, or give tensors that lie in the file. The checksum is made right first,
/// because no random change would get past it.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace attend::detail;
  const std::string file = attend::test::with_right_checksum({reinterpret_cast<const char*>(data), size});
  try {
    for (const auto& [name, entry] : read_checkpoint_header(file, "fuzz").tensors)
      if (entry.begin > entry.end || entry.end > size) std::abort();
  } catch (const attend::FileError&) {
  }
  return 0;
}
