// SPDX-License-Identifier: MIT
#pragma once

// The environment variables that select random calls and an instruction set. CONTRIBUTING.md describes them.

#include <cstdint>
#include <cstdlib>
#include <string>

namespace attend::test {

/// Numbers of random calls, from begin to end - 1.
struct CallNumbers {
  std::uint32_t begin, end;
  bool are_all;  // false: accuracy over all calls cannot be checked
};

/// 0 to count - 1, or those that ATTEND_TEST_CONFIGURATION names, as "7" or "0-19".
inline CallNumbers wanted_calls(std::uint32_t count) {
  const char* const given = std::getenv("ATTEND_TEST_CONFIGURATION");
  if (given == nullptr) return {0, count, true};
  char* end = nullptr;
  const auto first = static_cast<std::uint32_t>(std::strtoul(given, &end, 10));
  const auto last = *end == '-' ? static_cast<std::uint32_t>(std::strtoul(end + 1, nullptr, 10)) : first;
  return {first, last + 1, first == 0 && last + 1 == count};
}

/// How to run one of the calls alone, for the message of a failure.
inline std::string replay(std::uint32_t number) {
  return "ATTEND_TEST_CONFIGURATION=" + std::to_string(number) + " runs this call alone";
}

/// Whether ATTEND_TEST_ISA is not set, or names this instruction set: portable16, portable32, portable64, avx2, avx512,
/// avx512_bf16, neon or neon_bf16.
inline bool is_wanted_isa(const std::string& name) {
  const char* const given = std::getenv("ATTEND_TEST_ISA");
  return given == nullptr || name == given;
}

/// Makes LibTorch, and attend with it, use the instruction set that ATTEND_TEST_ISA names. Must be called first in
/// main(). LibTorch has no name for AVX-512 without dot products of bfloat16.
inline void pin_isa_of_libtorch() {
  const char* const given = std::getenv("ATTEND_TEST_ISA");
  if (given == nullptr) return;
  const std::string name = given;
  const char* const capability = name == "avx2"                   ? "avx2"
                                 : name.rfind("avx512", 0) == 0   ? "avx512"
                                 : name.rfind("portable", 0) == 0 ? "default"
                                                                  : nullptr;
  if (capability != nullptr) ::setenv("ATEN_CPU_CAPABILITY", capability, /*overwrite=*/1);
}

}  // namespace attend::test
