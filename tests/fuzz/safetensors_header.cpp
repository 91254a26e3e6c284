// SPDX-License-Identifier: MIT
#include <attend/io/detail/safetensors_header.h>
#include <attend/io/file_error.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

/// Any bytes are refused with a FileError, or give tensors that lie in the file without overlaps and that, written and
/// read again, are the same.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace attend::detail;
  try {
    SafetensorsHeader header = read_safetensors_header({reinterpret_cast<const char*>(data), size}, "fuzz");
    std::uint64_t bytes = 0;
    for (const auto& [name, entry] : header.tensors) {
      if (entry.begin > entry.end || entry.end > size) std::abort();
      bytes += entry.end - entry.begin;
    }
    if (bytes > size) std::abort();
    std::string file = write_safetensors_header(header);
    file.resize(file.size() + bytes);
    const SafetensorsHeader again = read_safetensors_header(file, "fuzz");
    if (again.metadata != header.metadata || again.tensors.size() != header.tensors.size()) std::abort();
    for (const auto& [name, entry] : again.tensors) {
      const SafetensorsEntry& written = header.tensors.at(name);
      if (entry.dtype != written.dtype || entry.shape != written.shape || entry.begin != written.begin) std::abort();
    }
  } catch (const attend::FileError&) {
  }
  return 0;
}
