// SPDX-License-Identifier: MIT
#pragma once

// Checkpoints for the tests and the fuzzer of their reader.

#include <attend/io/detail/checkpoint_bytes.h>

#include <string>
#include <utility>

namespace attend::test {

/// The file with the checksum of its bytes, or unchanged if it is too short to have one.
inline std::string with_right_checksum(std::string file) {
  if (file.size() < detail::kDigitsBegin + detail::kZeroDigits.size()) return file;
  file.replace(detail::kDigitsBegin, detail::kZeroDigits.size(), detail::kZeroDigits);
  detail::Checksum checksum;
  checksum.add(file.data(), file.size());
  return file.replace(detail::kDigitsBegin, detail::kZeroDigits.size(), detail::digits_of(checksum));
}

/// A small checkpoint of several dtypes.
inline std::string small_checkpoint() {
  detail::SafetensorsHeader header;
  header.metadata = {{"!first", "é"}, {"epoch", "3"}};
  header.tensors = {{"model.weight", {detail::SafetensorsDtype::kF32, {2, 2}}},
                    {"loss_sum", {detail::SafetensorsDtype::kF64, {}}},
                    {"optimizer", {detail::SafetensorsDtype::kU8, {5}}}};
  std::string file = detail::write_checkpoint_header(header);
  return with_right_checksum(std::move(file) + std::string(8, '\x01') + std::string(16, '\x02') + "bytes");
}

}  // namespace attend::test
