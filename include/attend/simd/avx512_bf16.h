// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/simd/avx512.h>
#include <attend/simd/instruction_set.h>
#include <attend/version.h>

#if defined(__x86_64__)

#define ATTEND_AVX512_BF16_TARGET gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#if defined(__clang__)
#define ATTEND_AVX512_BF16_DOT [[ATTEND_AVX512_BF16_TARGET]] static
#else
#define ATTEND_AVX512_BF16_DOT static ATTEND_ALWAYS_INLINE
#endif

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// AVX-512 with the extension AVX512_BF16: dot products of bfloat16 numbers.
struct Avx512Bf16 : Avx512 {
  static constexpr InstructionSet kInstructionSet = InstructionSet::kAvx512Bf16;
  static constexpr bool kHasBf16Dot = true;
  using VectorIsa = Avx512;
  static bool is_supported() { return Avx512::is_supported() && __builtin_cpu_supports("avx512bf16"); }

  /// sums += a₀ b₀ + a₁ b₁, where each word of a and b holds two bfloat16 numbers.
  ///
  /// This is assembly, because the intrinsic needs a flag of the compiler. clang checks the size of the operands
  /// against the target of the function, and refuses always_inline in functions with another target. It inlines the
  /// function into CompiledFor::call nevertheless, because both have the same target. g++ keeps the sums in registers
  /// only with always_inline.
  template <class Sums, class Words>
  ATTEND_AVX512_BF16_DOT void add_dot(Sums& sums, const Words& a, const Words& b) {
    asm("{vdpbf16ps %2, %1, %0|vdpbf16ps %0, %1, %2}" : "+v"(sums) : "v"(a), "v"(b));
  }
};

template <class Operation>
struct CompiledFor<Avx512Bf16, Operation> {
  template <class... Arguments>
  [[gnu::flatten, ATTEND_AVX512_BF16_TARGET]] static auto call(Arguments... arguments) {
    return Operation::template run<Avx512Bf16>(arguments...);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd

#undef ATTEND_AVX512_BF16_TARGET
#undef ATTEND_AVX512_BF16_DOT

#endif
