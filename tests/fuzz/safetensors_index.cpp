// SPDX-License-Identifier: MIT
#include <attend/io/detail/safetensors_index.h>
#include <attend/io/file_error.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

/// Any bytes are refused with a FileError, or give an index that, written and read again, is the same.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace attend::detail;
  try {
    const SafetensorsIndex index = read_safetensors_index({reinterpret_cast<const char*>(data), size}, "fuzz");
    if (read_safetensors_index(write_safetensors_index(index, size), "fuzz") != index) std::abort();
  } catch (const attend::FileError&) {
  }
  return 0;
}
