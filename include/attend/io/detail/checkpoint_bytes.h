// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/detail/checksum.h>
#include <attend/io/detail/safetensors_header.h>
#include <attend/io/file_error.h>
#include <attend/version.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

// A checkpoint is a safetensors file. Its metadata begins with the checksum of the whole file, which is computed with
// zeros in place of the digits of the checksum:
//
//   length of the header (8 bytes)   {"__metadata__":{"attend.crc":"0123456789abcdef","attend.format":"1", …

inline constexpr std::string_view kCheckpointBegin = R"({"__metadata__":{"attend.crc":")";
inline constexpr std::string_view kZeroDigits = "0000000000000000";
inline constexpr std::size_t kDigitsBegin = sizeof(std::uint64_t) + kCheckpointBegin.size();
inline constexpr std::string_view kCheckpointFormat = "1";

/// The digits of a checksum.
inline std::string digits_of(const Checksum& checksum) {
  std::string digits;
  for (int shift = 60; shift >= 0; shift -= 4) digits += "0123456789abcdef"[checksum.value() >> shift & 15];
  return digits;
}

/// The bytes before the first tensor of a checkpoint, with zeros in place of the checksum.
///
/// @param header With dtypes, shapes and metadata, as write_safetensors_header() needs them. The function sets the
/// positions of the tensors, so header.by_position() then has their order.
inline std::string write_checkpoint_header(SafetensorsHeader& header) {
  header.metadata["attend.format"] = kCheckpointFormat;
  std::string bytes = write_safetensors_header(header);
  const std::string entry = R"("attend.crc":")" + std::string(kZeroDigits) + "\",";  // 32 bytes: tensors stay aligned
  bytes.insert(kDigitsBegin - std::strlen(R"("attend.crc":")"), entry);
  const std::uint64_t length = bytes.size() - sizeof(length);
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes;
}

/// Checks the checksum of a checkpoint, then reads its header. Throws FileError if anything is wrong.
///
/// @param file The whole file.
/// @param path For FileError.
/// @return The header. Its metadata has only the entries of the user.
inline SafetensorsHeader read_checkpoint_header(std::string_view file, const std::string& path) {
  const auto fail = [&](const std::string& problem, bool is_damaged) {
    throw FileError("attend::load_checkpoint", path, problem, is_damaged);
  };
  const std::size_t digits_end = kDigitsBegin + kZeroDigits.size();
  if (file.size() < digits_end || file.substr(sizeof(std::uint64_t), kCheckpointBegin.size()) != kCheckpointBegin)
    fail("expected a checkpoint of attend, found another file or a damaged one", /*is_damaged=*/true);
  Checksum checksum;
  checksum.add(file.data(), kDigitsBegin);
  checksum.add(kZeroDigits.data(), kZeroDigits.size());
  checksum.add(file.data() + digits_end, file.size() - digits_end);
  const std::string_view expected = file.substr(kDigitsBegin, kZeroDigits.size());
  if (digits_of(checksum) != expected)
    fail("the file is damaged: expected the checksum " + detail::quoted(expected) + ", found " +
             detail::quoted(digits_of(checksum)),
         /*is_damaged=*/true);
  SafetensorsHeader header = read_safetensors_header(file, path);
  header.metadata.erase("attend.crc");
  const auto format = header.metadata.extract("attend.format");
  if (format.empty() || format.mapped() != kCheckpointFormat)
    fail("expected the checkpoint format " + std::string(kCheckpointFormat) + ", found " +
             (format.empty() ? "none" : detail::quoted(format.mapped())) + ", probably of another version of attend",
         /*is_damaged=*/false);
  return header;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
