// SPDX-License-Identifier: MIT
#pragma once

#include <attend/simd/instruction_set.h>
#include <attend/macros.h>
#include <attend/simd/avx512.h>
#include <attend/version.h>

#if defined(__x86_64__)

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// clang demands this mark on every function on the way to the instruction.
#define ATTEND_TARGET_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))

/// AVX-512 and the products of AVX512_BF16.
struct Avx512Bf16 : Avx512 {
  static constexpr InstructionSet kInstructionSet = InstructionSet::kAvx512Bf16;
  static constexpr bool kHasBf16Dot = true;
  static bool is_supported() { return Avx512::is_supported() && __builtin_cpu_supports("avx512bf16"); }

  /// Adds a₀ b₀ + a₁ b₁ of each word's two bfloat16 numbers to the sums. By assembly, because an intrinsic would need
  /// the target at the place where the header is included.
  template <class Sums, class Words>
  ATTEND_TARGET_BF16 static ATTEND_ALWAYS_INLINE void add_dot(Sums& sums, const Words& a, const Words& b) {
    asm("{vdpbf16ps %2, %1, %0|vdpbf16ps %0, %1, %2}" : "+v"(sums) : "v"(a), "v"(b));
  }
};

template <class Operation>
struct CompiledFor<Avx512Bf16, Operation> {
  template <class... Arguments>
  [[gnu::flatten, gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]] static auto call(Arguments... arguments) {
    return Operation::template run<Avx512Bf16>(arguments...);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd

#endif
