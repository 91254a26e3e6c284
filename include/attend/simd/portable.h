// SPDX-License-Identifier: MIT
#pragma once

#include <attend/simd/instruction_set.h>
#include <attend/version.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// The baseline of the architecture, with vectors of any width and panels of any size. The compiler splits vectors that
/// are wider than its registers. So tests run the code of every width on every processor.
template <int kBytes, int kVectors = 2, int kRows = 4>
struct PortableOf {
  static constexpr InstructionSet kInstructionSet = InstructionSet::kPortable;
  static constexpr int kVectorBytes = kBytes;
  static constexpr int kPanelRows = kRows;
  static constexpr int kPanelVectors = kVectors;
  static constexpr bool kHasBf16Dot = false;
  using VectorIsa = PortableOf;
  static bool is_supported() { return true; }
};

/// The baseline of the architecture, with vectors of 16 bytes.
using Portable = PortableOf<16>;

template <int kBytes, int kVectors, int kRows, class Operation>
struct CompiledFor<PortableOf<kBytes, kVectors, kRows>, Operation> {
  template <class... Arguments>
  [[gnu::flatten]] static auto call(Arguments... arguments) {
    return Operation::template run<PortableOf<kBytes, kVectors, kRows>>(arguments...);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
