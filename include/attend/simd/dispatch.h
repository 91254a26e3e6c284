// SPDX-License-Identifier: MIT
#pragma once

#include <attend/simd/avx2.h>
#include <attend/simd/avx512.h>
#include <attend/simd/avx512_bf16.h>
#include <attend/simd/instruction_set.h>
#include <attend/simd/neon.h>
#include <attend/simd/neon_bf16.h>
#include <attend/simd/portable.h>
#include <attend/version.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::simd {

/// A list of instruction sets, the best one first.
template <class First, class... Rest>
struct IsaList {
  /// Calls action(Isa::VectorIsa{}) for the instruction set of this name. A name that is not in the list means the last
  /// one.
  template <class Action>
  static decltype(auto) visit(InstructionSet set, const Action& action) {
    if constexpr (sizeof...(Rest) == 0) {
      return action(typename First::VectorIsa{});
    } else {
      if (set == First::kInstructionSet) return action(typename First::VectorIsa{});
      return IsaList<Rest...>::visit(set, action);
    }
  }

  /// Calls action(Isa{}), which returns a pointer. Null if the set has no dot products of bfloat16.
  template <class Pointer, class Action>
  static Pointer visit_bf16(InstructionSet set, const Action& action) {
    if constexpr (First::kHasBf16Dot)
      if (set == First::kInstructionSet) return action(First{});
    if constexpr (sizeof...(Rest) == 0)
      return nullptr;
    else
      return IsaList<Rest...>::template visit_bf16<Pointer>(set, action);
  }

  /// The first instruction set that this processor supports.
  static InstructionSet best() {
    if constexpr (sizeof...(Rest) == 0)
      return First::kInstructionSet;
    else
      return First::is_supported() ? First::kInstructionSet : IsaList<Rest...>::best();
  }

  static bool is_supported(InstructionSet set) {
    return (set == First::kInstructionSet && First::is_supported()) ||
           (... || (set == Rest::kInstructionSet && Rest::is_supported()));
  }

  static constexpr bool has_bf16_dot(InstructionSet set) {
    return (set == First::kInstructionSet && First::kHasBf16Dot) ||
           (... || (set == Rest::kInstructionSet && Rest::kHasBf16Dot));
  }
};

/// All instruction sets of the architecture. A new one is a header and an entry here.
#if defined(__x86_64__)
using AllIsas = IsaList<Avx512Bf16, Avx512, Avx2, Portable>;
#elif defined(ATTEND_HAS_NEON_BF16)
using AllIsas = IsaList<NeonBf16, Neon, Portable>;
#elif defined(__aarch64__)
using AllIsas = IsaList<Neon, Portable>;
#else
using AllIsas = IsaList<Portable>;
#endif

/// Calls action(Isa{}), where Isa is the instruction set that vector operations are compiled for. Every table of
/// functions is chosen by it:
///   const Operations& operations(InstructionSet set) {
///     return for_isa(set, [](auto isa) -> const Operations& { return kOperations<decltype(isa)>; });
///   }
template <class Action>
decltype(auto) for_isa(InstructionSet set, const Action& action) {
  return AllIsas::visit(set, action);
}

/// The same for tables that need dot products of bfloat16. action(Isa{}) returns a pointer. Null if the set has no such
/// products.
template <class Pointer, class Action>
Pointer for_bf16_isa(InstructionSet set, const Action& action) {
  return AllIsas::visit_bf16<Pointer>(set, action);
}

/// The best instruction set that this processor supports.
inline InstructionSet best_instruction_set() {
  static const InstructionSet best = AllIsas::best();
  return best;
}

/// Whether this processor supports the instruction set, and this build has code for it.
inline bool is_supported(InstructionSet set) { return AllIsas::is_supported(set); }

/// Whether the instruction set has dot products of bfloat16.
constexpr bool has_bf16_dot(InstructionSet set) { return AllIsas::has_bf16_dot(set); }

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::simd
