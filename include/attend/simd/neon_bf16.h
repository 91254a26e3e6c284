// SPDX-License-Identifier: MIT
#pragma once

#include <attend/simd/instruction_set.h>
#include <attend/macros.h>
#include <attend/simd/neon.h>
#include <attend/version.h>

#if defined(__aarch64__) && defined(__linux__)

#include <sys/auxv.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// clang demands this mark on every function on the way to the instruction.
#define ATTEND_TARGET_BF16 __attribute__((target("arch=armv8.2-a+bf16")))

/// NEON with products of bfloat16 (FEAT_BF16).
struct NeonBf16 : Neon {
  static constexpr InstructionSet kInstructionSet = InstructionSet::kNeonBf16;
  static constexpr bool kHasBf16Dot = true;
  static bool is_supported() {
    constexpr unsigned long kBf16 = 1UL << 14;  // HWCAP2_BF16, which older headers of Linux lack
    return (getauxval(AT_HWCAP2) & kBf16) != 0;
  }

  /// Adds a₀ b₀ + a₁ b₁ of each word's two bfloat16 numbers to the sums.
  template <class Sums, class Words>
  ATTEND_TARGET_BF16 static ATTEND_ALWAYS_INLINE void add_dot(Sums& sums, const Words& a, const Words& b) {
    asm("bfdot %0.4s, %1.8h, %2.8h" : "+w"(sums) : "w"(a), "w"(b));
  }
};

template <class Operation>
struct CompiledFor<NeonBf16, Operation> {
  template <class... Arguments>
  [[gnu::flatten, gnu::target("arch=armv8.2-a+bf16")]] static auto call(Arguments... arguments) {
    return Operation::template run<NeonBf16>(arguments...);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd

#endif
