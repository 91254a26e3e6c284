// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/elementary.h>
#include <attend/version.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

// A user's ordinary build knows nothing of the processor that it will run on. So what the kernels do to a whole tile of
// scores is compiled once for each instruction set, and a table of functions (tile_operations.h) is chosen at run time.
// All around it is ordinary code.

#if defined(__clang__)
#define ATTEND_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)  // nvcc hands the pragma on to g++, so the code is the same, but warns that it does not know it
#define ATTEND_UNROLL \
  _Pragma("nv_diagnostic push") _Pragma("nv_diag_suppress 1675") _Pragma("GCC unroll 16") _Pragma("nv_diagnostic pop")
#else
#define ATTEND_UNROLL _Pragma("GCC unroll 16")
#endif

/// Each has what those before it have.
enum class InstructionSet { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

/// What every processor of this kind has.
struct Baseline {
  static constexpr InstructionSet kSet = InstructionSet::kBaseline;
  static constexpr int kVectorBytes = 16;
  static constexpr int kPanelVectors = 2;  // of a matrix product's sums: 4 rows of so many vectors fill the registers
};

struct Avx2 {
  static constexpr InstructionSet kSet = InstructionSet::kAvx2;
  static constexpr int kVectorBytes = 32;
  static constexpr int kPanelVectors = 2;
};

struct Avx512 {
  static constexpr InstructionSet kSet = InstructionSet::kAvx512;
  static constexpr int kVectorBytes = 64;
  static constexpr int kPanelVectors = 4;
};

/// And multiplies bfloat16 (pairs.h).
struct Avx512Bf16 : Avx512 {
  static constexpr InstructionSet kSet = InstructionSet::kAvx512Bf16;
};

#if defined(__x86_64__)
#define ATTEND_TARGET_AVX2 gnu::target("avx2,fma")
#define ATTEND_TARGET_AVX512 gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define ATTEND_TARGET_AVX512_BF16 gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#else  // other processors have the baseline only; the names below must exist, and are not called
#define ATTEND_TARGET_AVX2 gnu::flatten
#define ATTEND_TARGET_AVX512 gnu::flatten
#define ATTEND_TARGET_AVX512_BF16 gnu::flatten
#endif

/// A function compiled for one instruction set. Operation is a struct with
///   template <class Set> static ATTEND_ALWAYS_INLINE void run(…);
/// of which all that it calls is drawn in: what is not would be compiled for the baseline. Arguments must not be
/// vectors, whose calling convention differs.
template <class Set, class Operation>
struct On;

template <class Operation>
struct On<Baseline, Operation> {
  template <class... Arguments>
  [[gnu::flatten]] static auto call(Arguments... arguments) {
    return Operation::template run<Baseline>(arguments...);
  }
};

template <class Operation>
struct On<Avx2, Operation> {
  template <class... Arguments>
  [[gnu::flatten, ATTEND_TARGET_AVX2]] static auto call(Arguments... arguments) {
    return Operation::template run<Avx2>(arguments...);
  }
};

template <class Operation>
struct On<Avx512, Operation> {
  template <class... Arguments>
  [[gnu::flatten, ATTEND_TARGET_AVX512]] static auto call(Arguments... arguments) {
    return Operation::template run<Avx512>(arguments...);
  }
};

template <class Operation>
struct On<Avx512Bf16, Operation> {
  template <class... Arguments>
  [[gnu::flatten, ATTEND_TARGET_AVX512_BF16]] static auto call(Arguments... arguments) {
    return Operation::template run<Avx512Bf16>(arguments...);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
