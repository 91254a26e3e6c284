// SPDX-License-Identifier: MIT
#pragma once

#include <attend/simd/instruction_set.h>
#include <attend/version.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// The baseline of the architecture, with vectors of any width. The compiler splits vectors that are wider than its
/// registers. So tests run the code of every width on every processor.
template <int kBytes, int kPanel = 2>
struct PortableOf {
  static constexpr InstructionSet kInstructionSet = InstructionSet::kPortable;
  static constexpr int kVectorBytes = kBytes;
  static constexpr int kPanelVectors = kPanel;
  static constexpr bool kHasBf16Dot = false;
  using VectorIsa = PortableOf;
  static bool is_supported() { return true; }
};

/// The baseline of the architecture, with vectors of 16 bytes.
using Portable = PortableOf<16>;

template <int kBytes, int kPanel, class Operation>
struct CompiledFor<PortableOf<kBytes, kPanel>, Operation> {
  template <class... Arguments>
  [[gnu::flatten]] static auto call(Arguments... arguments) {
    return Operation::template run<PortableOf<kBytes, kPanel>>(arguments...);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
