// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/detail/utf8.h>
#include <attend/io/file_error.h>
#include <attend/version.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Appends the text, which must be UTF-8, to `out` as a JSON string.
inline void append_json_string(std::string& out, std::string_view text) {
  constexpr std::string_view kHex = "0123456789abcdef", kShort = "\b\t\n\f\r\"\\", kShortNames = "btnfr\"\\";
  out += '"';
  for (const char c : text) {
    if (const std::size_t i = kShort.find(c); i != kShort.npos) {
      out += {'\\', kShortNames[i]};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += {'\\', 'u', '0', '0', kHex[static_cast<unsigned char>(c) >> 4], kHex[c & 15]};
    } else {
      out += c;
    }
  }
  out += '"';
}

/// The beginning of the text as a JSON string, for an error message. Bytes that are not UTF-8 are shown as '?'.
///
/// It is an object and not a function, because argument-dependent lookup would find std::quoted as well.
inline constexpr auto quoted = [](std::string_view text) {
  constexpr std::size_t kLongest = 100;
  std::string shown;
  while (!text.empty() && shown.size() < kLongest) {
    const std::size_t length = utf8_character(text);
    shown += length == 0 ? "?" : text.substr(0, length);
    text.remove_prefix(length == 0 ? 1 : length);
  }
  std::string out;
  append_json_string(out, shown);
  return text.empty() ? out : out + "…";
};

/// Reads a JSON text from front to back. The caller says what must come next, and anything else is a FileError. So
/// memory is needed for the results only. Only skip() is recursive, up to a fixed depth.
///
/// attend has its own reader, so that users need no JSON library for two kinds of small files. These files also need
/// limits on depth, numbers and duplicates that JSON libraries do not have by default.
///
/// Example, for {"sizes": [2, 3]}:
///   JsonReader json(text, "load", path);
///   json.object([&](const std::string& name) {
///     if (name == "sizes") json.array([&] { sizes.push_back(json.integer()); });
///     else json.skip();
///   });
///   json.end();
class JsonReader {
 public:
  static constexpr int kMaxDepth = 64;  ///< of objects and arrays within each other

  /// @param text UTF-8, which the reader does not copy.
  /// @param function, path For FileError.
  JsonReader(std::string_view text, std::string function, std::string path)
      : text_(text), function_(std::move(function)), path_(std::move(path)) {}

  /// Reads an object. `member(name)` is called for each member and must read its value. It may throw for a duplicate.
  template <class Member>
  void object(Member&& member) {
    enter('{', "an object");
    if (next() != '}') {
      do {
        std::string name = string();
        expect(':', "':'");
        member(std::move(name));
      } while (take(','));
    }
    expect('}', "',' or '}'");
    --depth_;
  }

  /// Reads an array. `element()` is called for each element and must read it.
  template <class Element>
  void array(Element&& element) {
    enter('[', "an array");
    if (next() != ']') {
      do element();
      while (take(','));
    }
    expect(']', "',' or ']'");
    --depth_;
  }

  /// Reads a string.
  std::string string() {
    expect('"', "a string");
    std::string text;
    text.reserve(length_of_string());
    for (;;) {
      const char c = at(position_);
      if (c == '"') break;
      if (c == '\\') {
        ++position_;
        append_escaped(text);
      } else {
        const std::size_t length = utf8_character(text_.substr(position_));
        if (length == 0) fail_here("a character in UTF-8");
        text.append(text_, position_, length);
        position_ += length;
      }
    }
    ++position_;
    return text;
  }

  /// Reads an integer from 0 to 2^63 − 1, without sign, fraction or exponent.
  std::int64_t integer() {
    constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
    const char* const expected = "an integer from 0 to 2^63 - 1";
    next();
    const std::size_t begin = position_;
    skip_digits(expected);
    if (std::string_view(".eE").find(at(position_)) != std::string_view::npos) fail_here(expected);
    std::int64_t value = 0;
    for (const char c : text_.substr(begin, position_ - begin)) {
      const int digit = c - '0';
      if (value > (kMax - digit) / 10) {
        position_ = begin;
        fail_here(expected);
      }
      value = 10 * value + digit;
    }
    return value;
  }

  /// Reads a number, which becomes the nearest double.
  double number() {
    next();
    const std::size_t begin = position_;
    skip_number();
    double value = 0;
    if (std::from_chars(text_.data() + begin, text_.data() + position_, value).ec != std::errc()) {
      position_ = begin;
      fail_here("a number that a double can hold");
    }
    return value;
  }

  /// Reads any value and forgets it. The members of an object may have equal names here.
  void skip() {
    switch (next()) {
      case '{':
        return object([this](const std::string&) { skip(); });
      case '[':
        return array([this] { skip(); });
      case '"':
        string();
        return;
      case 't':
        return skip_word("true");
      case 'f':
        return skip_word("false");
      case 'n':
        return skip_word("null");
      default:
        return skip_number();
    }
  }

  /// Checks that nothing but white space is left.
  void end() {
    if (next(); position_ < text_.size()) fail_here("the end");
  }

  /// Sets the part of the file that error messages name first, as in `tensor "a": …`. With an empty kind they name no
  /// part.
  ///
  /// @param kind, name Not copied.
  void set_part(std::string_view kind, std::string_view name) {
    part_ = kind;
    part_name_ = name;
  }

  [[noreturn]] void fail(const std::string& problem) const {
    const std::string part = part_.empty() ? "" : std::string(part_) + ' ' + quoted(part_name_) + ": ";
    throw FileError(function_, path_, part + problem);
  }

 private:
  /// The character at the position, or NUL at the end of the text. A JSON text may not contain NUL.
  char at(std::size_t position) const { return position < text_.size() ? text_[position] : '\0'; }

  /// Skips white space and returns the character after it, without skipping that.
  char next() {
    while (position_ < text_.size() && std::string_view(" \t\n\r").find(text_[position_]) != std::string_view::npos)
      ++position_;
    return at(position_);
  }

  bool take(char c) {
    if (next() != c) return false;
    ++position_;
    return true;
  }

  void expect(char c, const char* expected) {
    if (!take(c)) fail_here(expected);
  }

  void enter(char c, const char* expected) {
    expect(c, expected);
    if (++depth_ > kMaxDepth) fail_here("at most 64 objects and arrays within each other");
  }

  /// The number of bytes up to the quotation mark that ends the string.
  std::size_t length_of_string() {
    std::size_t end = position_;
    while (at(end) != '"') {
      if (static_cast<unsigned char>(at(end)) < 0x20) {
        position_ = std::min(end, text_.size());
        fail_here("the end of a string");
      }
      end += at(end) == '\\' ? 2 : 1;
    }
    return end - position_;
  }

  void append_escaped(std::string& text) {
    constexpr std::string_view kNames = "\"\\/bfnrt", kCharacters = "\"\\/\b\f\n\r\t";
    const char name = at(position_);
    if (const std::size_t i = kNames.find(name); i != kNames.npos) {
      ++position_;
      text += kCharacters[i];
      return;
    }
    if (name != 'u') fail_here("an escape sequence of JSON");
    std::uint32_t code = code_unit();
    if (code >= 0xD800 && code < 0xE000) {
      const bool is_pair = code < 0xDC00 && at(position_) == '\\' && at(position_ + 1) == 'u';
      if (is_pair) ++position_;
      const std::uint32_t low = is_pair ? code_unit() : 0;
      if (low < 0xDC00 || low >= 0xE000) fail_here("a pair of surrogates");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(text, code);
  }

  /// Reads uXXXX.
  std::uint32_t code_unit() {
    ++position_;
    std::uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++position_) {
      const char c = at(position_);
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail_here("a hexadecimal digit");
      code = 16 * code + static_cast<std::uint32_t>(digit);
    }
    return code;
  }

  static void append_utf8(std::string& text, std::uint32_t code) {
    const auto last_bits = [code](int shift) { return static_cast<char>(0x80 | ((code >> shift) & 0x3F)); };
    if (code < 0x80) {
      text += static_cast<char>(code);
    } else if (code < 0x800) {
      text += {static_cast<char>(0xC0 | (code >> 6)), last_bits(0)};
    } else if (code < 0x10000) {
      text += {static_cast<char>(0xE0 | (code >> 12)), last_bits(6), last_bits(0)};
    } else {
      text += {static_cast<char>(0xF0 | (code >> 18)), last_bits(12), last_bits(6), last_bits(0)};
    }
  }

  bool has_digit() const { return at(position_) >= '0' && at(position_) <= '9'; }

  /// Skips 0, or digits that do not begin with 0.
  void skip_digits(const char* expected) {
    if (!has_digit()) fail_here(expected);
    const bool is_zero = at(position_++) == '0';
    if (is_zero && has_digit()) fail_here("no digit after 0");
    while (has_digit()) ++position_;
  }

  void skip_number() {
    take('-');
    skip_digits("a value");
    const auto skip_more = [this] {
      if (!has_digit()) fail_here("a digit");
      while (has_digit()) ++position_;
    };
    if (at(position_) == '.') {
      ++position_;
      skip_more();
    }
    if (at(position_) == 'e' || at(position_) == 'E') {
      ++position_;
      if (at(position_) == '+' || at(position_) == '-') ++position_;
      skip_more();
    }
  }

  void skip_word(std::string_view word) {
    if (text_.substr(position_, word.size()) != word) fail_here("a value");
    position_ += word.size();
  }

  [[noreturn]] void fail_here(const std::string& expected) const {
    const std::string found = position_ < text_.size() ? quoted(text_.substr(position_, 1)) : "the end of the text";
    fail("JSON text, byte " + std::to_string(position_) + ": expected " + expected + ", found " + found);
  }

  std::string_view text_;
  std::string function_, path_;
  std::string_view part_, part_name_;
  std::size_t position_ = 0;
  int depth_ = 0;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
