// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

// A user's build targets the baseline of its architecture and does not know the processor that will run it. So each
// operation on vectors is compiled once per instruction set, and the program chooses at run time (dispatch.h). Code
// around the operations is ordinary code.
//
// An instruction set is a struct in a header of its own:
//   struct Avx2 {
//     static constexpr InstructionSet kInstructionSet = InstructionSet::kAvx2;
//     static constexpr int kVectorBytes = 32;     // the size of a register
//     static constexpr int kPanelRows = 6;        // product.h keeps a panel of this many rows
//     static constexpr int kPanelVectors = 2;     // of this many vectors in registers
//     static constexpr bool kHasBf16Dot = false;  // whether it has dot products of bfloat16: add_dot()
//     using VectorIsa = Avx2;                     // the set without add_dot(), for all other operations
//     static bool is_supported();                 // by this processor
//   };
// and a specialization of CompiledFor.

/// The name of an instruction set.
enum class InstructionSet {
  kPortable,    ///< the baseline of the architecture
  kNeon,        ///< aarch64
  kNeonBf16,    ///< aarch64 with dot products of bfloat16
  kAvx2,        ///< x86-64 with AVX2 and FMA
  kAvx512,      ///< x86-64 with AVX-512 F, BW, DQ and VL
  kAvx512Bf16,  ///< kAvx512 with AVX512_BF16
};

/// An operation compiled for one instruction set: CompiledFor<Avx2, Operation>::call(arguments…).
///
/// Operation is a struct with `template <class Isa> static ATTEND_ALWAYS_INLINE void run(…);`. All functions that run()
/// calls must be inlined. Arguments must not be vectors, because their calling convention depends on the instruction
/// set.
template <class Isa, class Operation>
struct CompiledFor;

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
