// SPDX-License-Identifier: MIT

// What the tokenizer of BERT needs of Unicode: reading UTF-8, classes of characters, text without case and accents.
#pragma once

#include "unicode_tables.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <span>
#include <string>
#include <string_view>

namespace unicode {

/// The text as code points. Bytes that are not UTF-8 become U+FFFD, which the tokenizer removes.
inline std::u32string decoded(std::string_view text) {
  std::u32string points;
  points.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = [&](std::size_t k) { return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0u; };
    const unsigned first = byte(0);
    const std::size_t length = first < 0x80   ? 1
                               : first < 0xC2 ? 0
                               : first < 0xE0 ? 2
                               : first < 0xF0 ? 3
                               : first < 0xF5 ? 4
                                              : 0;
    char32_t point = length == 1 ? first : first & (0x7Fu >> length);
    bool is_valid = length > 0;
    for (std::size_t k = 1; k < length; ++k) {
      is_valid = is_valid && (byte(k) & 0xC0) == 0x80;
      point = point << 6 | (byte(k) & 0x3F);
    }
    is_valid = is_valid && (length < 3 || point >= (length == 3 ? 0x800 : 0x10000)) && point <= 0x10FFFF &&
               (point < 0xD800 || point > 0xDFFF);
    points += is_valid ? point : U'\uFFFD';
    i += is_valid ? length : 1;
  }
  return points;
}

/// Appends a code point to a text in UTF-8.
inline void append_encoded(std::string& text, char32_t point) {
  const auto byte = [&](char32_t bits) { text += static_cast<char>(bits); };
  if (point < 0x80) {
    byte(point);
    return;
  }
  const int following = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
  byte((0xF0u << (3 - following) & 0xFFu) | point >> (6 * following));
  for (int k = following - 1; k >= 0; --k) byte(0x80 | (point >> (6 * k) & 0x3F));
}

/// The entry of a sorted table that has the character, or nullptr.
template <class Entry>
const Entry* found(std::span<const Entry> ranges, char32_t c) {
  const auto after = std::ranges::upper_bound(ranges, c, {}, &Entry::first);
  return after != ranges.begin() && c <= std::prev(after)->last ? &*std::prev(after) : nullptr;
}

inline bool is_dropped(char32_t c) {
  if (c >= 0x20 && c < 0x7F) return false;
  return found<Range>(kDropped, c) != nullptr;
}

inline bool is_space(char32_t c) {
  return c == ' ' || (c >= '\t' && c <= '\r') || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

inline bool is_punctuation(char32_t c) {
  if (c < 0x80) return (c > ' ' && c < '0') || (c > '9' && c < 'A') || (c > 'Z' && c < 'a') || (c > 'z' && c < 0x7F);
  return found<Range>(kPunctuation, c) != nullptr;
}

/// Whether the character is an ideograph of Chinese, by the ranges of BERT.
inline bool is_ideograph(char32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0xF900 && c <= 0xFAFF) ||
         (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
         (c >= 0x2F800 && c <= 0x2FA1F);
}

/// The canonical combining class. Neighbours with classes other than 0 have no fixed order, so decomposition sorts
/// them.
inline int combining_class(char32_t c) {
  if (c < 0x300) return 0;
  const ClassRange* range = found<ClassRange>(kCombiningClasses, c);
  return range ? range->combining_class : 0;
}

/// Builds a text in lower case, decomposed (NFD) and without accents and other marks.
class PlainText {
 public:
  void append(char32_t c) {
    if (c < 0x80) {
      add(c >= 'A' && c <= 'Z' ? c + 0x20 : c, /*combining_class=*/0);
    } else if (c >= 0xAC00 && c <= 0xD7A3) {  // a syllable of Korean is two or three letters
      const char32_t index = c - 0xAC00, last = index % 28;
      add(0x1100 + index / 588, 0);
      add(0x1161 + index % 588 / 28, 0);
      if (last > 0) add(0x11A7 + last, 0);
    } else if (found<Range>(kMarks, c)) {
      if (combining_class(c) == 0) sorted_from_ = text_.size();
    } else if (const auto mapping = std::ranges::lower_bound(kMappings, c, {}, &Mapping::from);
               mapping != std::end(kMappings) && mapping->from == c) {
      for (const char32_t part : mapping->to) add(part, combining_class(part));
    } else {
      add(c, combining_class(c));
    }
  }

  const std::u32string& text() const { return text_; }

 private:
  void add(char32_t c, int combining_class) {
    std::size_t place = text_.size();
    if (combining_class == 0)
      sorted_from_ = place + 1;
    else
      while (place > sorted_from_ && unicode::combining_class(text_[place - 1]) > combining_class) --place;
    text_.insert(place, 1, c);
  }

  std::u32string text_;
  std::size_t sorted_from_ = 0;  // behind the last character of class 0
};

}  // namespace unicode
