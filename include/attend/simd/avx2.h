// SPDX-License-Identifier: MIT
#pragma once

#include <attend/simd/instruction_set.h>
#include <attend/version.h>

#if defined(__x86_64__)

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// AVX2 and FMA.
struct Avx2 {
  static constexpr InstructionSet kInstructionSet = InstructionSet::kAvx2;
  static constexpr int kVectorBytes = 32;
  static constexpr int kPanelRows = 6;
  static constexpr int kPanelVectors = 2;
  static constexpr bool kHasBf16Dot = false;
  using VectorIsa = Avx2;
  static bool is_supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
};

template <class Operation>
struct CompiledFor<Avx2, Operation> {
  template <class... Arguments>
  [[gnu::flatten, gnu::target("avx2,fma")]] static auto call(Arguments... arguments) {
    return Operation::template run<Avx2>(arguments...);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd

#endif
