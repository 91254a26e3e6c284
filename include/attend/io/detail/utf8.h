// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <cstddef>
#include <string_view>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The number of bytes, 1 to 4, of the UTF-8 character at the beginning of the text. 0 if the text is empty or does not
/// begin with a character in its shortest encoding. Surrogates are not characters.
inline std::size_t utf8_character(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto continues = [&](std::size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const unsigned first = byte(0);
  if (first < 0x80) return text.empty() ? 0 : 1;
  if (first < 0xC2) return 0;
  if (first < 0xE0) return continues(1) ? 2 : 0;
  if (first < 0xF0) {
    const bool fits = first == 0xE0 ? byte(1) >= 0xA0 : first == 0xED ? byte(1) < 0xA0 : true;
    return fits && continues(1) && continues(2) ? 3 : 0;
  }
  const bool fits = first == 0xF0 ? byte(1) >= 0x90 : first == 0xF4 ? byte(1) < 0x90 : first < 0xF4;
  return fits && continues(1) && continues(2) && continues(3) ? 4 : 0;
}

/// Whether the text consists of UTF-8 characters.
inline bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t length = utf8_character(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
