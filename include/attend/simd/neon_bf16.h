// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/simd/instruction_set.h>
#include <attend/simd/neon.h>
#include <attend/version.h>

// The assembler of clang knows bfloat16 from version 16 on.
#if defined(__aarch64__) && defined(__linux__) && (!defined(__clang__) || __clang_major__ >= 16)
#define ATTEND_HAS_NEON_BF16

#include <sys/auxv.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// NEON with dot products of bfloat16 numbers (FEAT_BF16).
struct NeonBf16 : Neon {
  static constexpr InstructionSet kInstructionSet = InstructionSet::kNeonBf16;
  static constexpr bool kHasBf16Dot = true;
  using VectorIsa = Neon;
  static bool is_supported() {
    constexpr unsigned long kBf16 = 1UL << 14;  // HWCAP2_BF16, which older headers of Linux lack
    return (getauxval(AT_HWCAP2) & kBf16) != 0;
  }

  /// sums += a₀ b₀ + a₁ b₁, where each word of a and b holds two bfloat16 numbers.
  ///
  /// This is assembly, because the intrinsic needs a flag of the compiler.
  template <class Sums, class Words>
  static ATTEND_ALWAYS_INLINE void add_dot(Sums& sums, const Words& a, const Words& b) {
    asm(".arch_extension bf16\n\tbfdot %0.4s, %1.8h, %2.8h" : "+w"(sums) : "w"(a), "w"(b));
  }
};

template <class Operation>
struct CompiledFor<NeonBf16, Operation> {
  template <class... Arguments>
  [[gnu::flatten]] static auto call(Arguments... arguments) {
    return Operation::template run<NeonBf16>(arguments...);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd

#endif
