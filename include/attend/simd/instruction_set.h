// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

// A user's build targets the baseline of its architecture, and does not know the processor that will run it. So each
// operation on vectors is compiled once per instruction set, and the program chooses at run time (dispatch.h). Code
// around the operations is ordinary code.
//
// An instruction set is a struct, in a header of its own:
//   struct Avx2 {
//     static constexpr InstructionSet kInstructionSet = InstructionSet::kAvx2;
//     static constexpr int kVectorBytes = 32;     // of one register
//     static constexpr int kPanelVectors = 2;     // a matrix product keeps 4 rows of so many vectors in registers
//     using Vectors = Avx2;                       // the set that operations without bfloat16 products are compiled for
//     static constexpr bool kHasBf16Dot = false;  // whether it multiplies bfloat16 numbers (product_bf16.h)
//     static bool is_supported();                 // by this processor
//   };
// and a specialization of CompiledFor.

/// The name of an instruction set.
enum class InstructionSet {
  kPortable,    ///< what every processor of the architecture has
  kNeon,        ///< aarch64
  kNeonBf16,    ///< aarch64 with products of bfloat16
  kAvx2,        ///< x86-64 with AVX2 and FMA
  kAvx512,      ///< x86-64 with AVX-512 F, BW, DQ and VL
  kAvx512Bf16,  ///< the same with AVX512_BF16
};

/// An operation compiled for one instruction set: CompiledFor<Avx2, Operation>::call(arguments…).
///
/// Operation is a struct with `template <class Isa> static ATTEND_ALWAYS_INLINE void run(…);`. Everything that run()
/// calls must be inlined. Arguments must not be vectors, because their calling convention depends on the instruction
/// set.
template <class Isa, class Operation>
struct CompiledFor;

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
