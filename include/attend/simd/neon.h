// SPDX-License-Identifier: MIT
#pragma once

#include <attend/simd/instruction_set.h>
#include <attend/version.h>

#if defined(__aarch64__)

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// NEON, which every aarch64 processor has. Its 32 registers hold twice the sums of PortableOf<16>.
struct Neon {
  static constexpr InstructionSet kInstructionSet = InstructionSet::kNeon;
  static constexpr int kVectorBytes = 16;
  static constexpr int kPanelRows = 4;
  static constexpr int kPanelVectors = 4;
  static constexpr bool kHasBf16Dot = false;
  using VectorIsa = Neon;
  static bool is_supported() { return true; }
};

template <class Operation>
struct CompiledFor<Neon, Operation> {
  template <class... Arguments>
  [[gnu::flatten]] static auto call(Arguments... arguments) {
    return Operation::template run<Neon>(arguments...);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd

#endif
