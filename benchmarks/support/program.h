// SPDX-License-Identifier: MIT
#pragma once

// Common parts of the benchmark programs: the name of the compiler, and numbers in the command line.

#include <charconv>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace benchmark {

#ifdef __clang__
inline constexpr const char* kCompiler = "clang " __clang_version__;
#else
inline constexpr const char* kCompiler = "g++ " __VERSION__;
#endif

/// Converts `text` to a whole number of at least 1. Throws std::invalid_argument for anything else.
inline std::int64_t positive(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1)
    throw std::invalid_argument("expected a whole number of at least 1, got \"" + std::string(text) + "\"");
  return value;
}

}  // namespace benchmark
