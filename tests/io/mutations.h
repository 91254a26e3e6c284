// SPDX-License-Identifier: MIT
#pragma once

// Damaged copies of files, for the tests of readers.

#include <attend/io/detail/utf8.h>
#include <attend/io/file_error.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "support/heap_peak.h"

namespace attend::test {

/// Memory that a reader may allocate beyond the size of the file, for the parts and messages of a small file.
inline constexpr std::int64_t kSmallMemory = 16 * 1024;

/// Calls read(bytes). It must return, or throw a FileError whose message is UTF-8, and hold no more memory at once than
/// the size of the file and kSmallMemory. Returns whether it returned.
template <class Read>
bool accepts(std::string_view file, Read&& read) {
  // Memory of exactly this size, so that the address sanitizer sees each byte that is read beyond the end.
  const std::unique_ptr<char[]> memory(new char[file.size()]);
  std::memcpy(memory.get(), file.data(), file.size());
  const HeapPeak heap;
  bool is_accepted = true;
  try {
    read(std::string_view(memory.get(), file.size()));
  } catch (const FileError& error) {
    is_accepted = false;
    if (!detail::is_utf8(error.what())) FAIL("the message is not UTF-8: " << error.what());
  }
  if (heap.peak() > static_cast<std::int64_t>(file.size()) + kSmallMemory)
    FAIL("a file of " << file.size() << " bytes took " << heap.peak() << " bytes of memory");
  return is_accepted;
}

/// Reads every beginning of the file. Returns how many are accepted, without the file itself.
template <class Read>
int accepted_truncations(std::string_view file, Read&& read) {
  int accepted = 0;
  for (std::size_t size = 0; size < file.size(); ++size) accepted += accepts(file.substr(0, size), read);
  return accepted;
}

/// Reads the file with every change of a single byte. Returns the number of bytes with a change that is accepted.
template <class Read>
int bytes_with_accepted_change(const std::string& file, Read&& read) {
  int accepted = 0;
  std::string changed = file;
  for (std::size_t i = 0; i < file.size(); ++i) {
    bool is_accepted = false;
    for (int difference = 1; difference < 256; ++difference) {
      changed[i] = static_cast<char>(file[i] ^ difference);
      is_accepted = accepts(changed, read) || is_accepted;
    }
    changed[i] = file[i];
    accepted += is_accepted;
  }
  return accepted;
}

/// A copy of one of the files with up to four changes: other bytes, numbers and characters with a meaning, and pieces
/// that are removed, repeated, moved, cut off, or taken from another file.
inline std::string mutated(const std::vector<std::string>& files, std::mt19937_64& random) {
  const auto below = [&](std::size_t end) { return static_cast<std::size_t>(random() % end); };
  const auto any_of = [&](const auto& list) { return list[below(std::size(list))]; };
  std::string file = any_of(files);
  for (std::size_t changes = 1 + below(4); changes > 0; --changes) {
    const std::size_t begin = below(file.size() + 1);
    const std::size_t size = below(std::min<std::size_t>(file.size() - begin, 64) + 1);
    static const std::string_view kTexts[] = {"{",
                                              "}",
                                              "[",
                                              "]",
                                              ",",
                                              ":",
                                              "\"",
                                              "\\",
                                              "\\u",
                                              "\\uD800",
                                              "0",
                                              "-1",
                                              "1e9",
                                              "null",
                                              "[[[[",
                                              "{\"\":",
                                              "2147483648",
                                              "4294967296",
                                              "9223372036854775807",
                                              "9223372036854775808",
                                              "18446744073709551615",
                                              " ",
                                              "\xFF",
                                              "\xC3",
                                              "BOOL",
                                              "F4",
                                              "F6_E2M3",
                                              "U8",
                                              "U64",
                                              "[0,0]"};
    static const std::uint64_t kNumbers[] = {0,
                                             1,
                                             7,
                                             8,
                                             0x7F,
                                             0xFF,
                                             0x7FFF,
                                             0xFFFF,
                                             0x7FFFFFFF,
                                             0xFFFFFFFF,
                                             100'000'000,
                                             100'000'001,
                                             0x7FFFFFFFFFFFFFFF,
                                             0xFFFFFFFFFFFFFFF0,
                                             ~std::uint64_t{0}};
    switch (below(9)) {
      case 0:
        if (begin < file.size()) file[begin] = static_cast<char>(file[begin] ^ (1 << below(8)));
        break;
      case 1:
        if (begin < file.size()) file[begin] = static_cast<char>(below(256));
        break;
      case 2:
        file.erase(begin, size);
        break;
      case 3:
        file.insert(begin, file.substr(begin, size));
        break;
      case 4:
        file.insert(begin, any_of(kTexts));
        break;
      case 5:
        file.replace(begin, size, any_of(kTexts));
        break;
      case 6: {
        const std::uint64_t number = any_of(kNumbers);
        const std::size_t width = std::min(std::size_t{1} << below(4), file.size() - begin);
        std::memcpy(file.data() + begin, &number, width);
        break;
      }
      case 7: {
        const std::string& other = any_of(files);
        const std::size_t at = below(other.size() + 1);
        file.replace(begin, size, other.substr(at, below(64)));
        break;
      }
      default:
        if (below(4) == 0) file.resize(begin);
        if (below(4) == 0) file.insert(below(file.size() + 1), file.substr(0, size));
    }
  }
  return file;
}

/// Reads `count` mutated files. The same ones in each run. Returns how many are accepted.
template <class Read>
int accepted_mutations(const std::vector<std::string>& files, int count, Read&& read) {
  std::mt19937_64 random(1);
  int accepted = 0;
  for (int i = 0; i < count; ++i) accepted += accepts(mutated(files, random), read);
  return accepted;
}

}  // namespace attend::test
