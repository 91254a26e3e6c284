// SPDX-License-Identifier: MIT
#pragma once

#include <attend/simd/instruction_set.h>
#include <attend/version.h>

#if defined(__x86_64__)

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// AVX-512 with the extensions F, BW, DQ and VL.
struct Avx512 {
  static constexpr InstructionSet kInstructionSet = InstructionSet::kAvx512;
  static constexpr int kVectorBytes = 64;
  static constexpr int kPanelRows = 4;
  static constexpr int kPanelVectors = 4;
  static constexpr bool kHasBf16Dot = false;
  using VectorIsa = Avx512;
  static bool is_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
};

template <class Operation>
struct CompiledFor<Avx512, Operation> {
  template <class... Arguments>
  [[gnu::flatten, gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]] static auto call(
      Arguments... arguments) {
    return Operation::template run<Avx512>(arguments...);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd

#endif
