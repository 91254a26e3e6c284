// SPDX-License-Identifier: MIT
#pragma once

#include <attend/simd/dispatch.h>
#include <attend/version.h>

#include <ATen/Version.h>
#include <c10/core/ScalarType.h>

#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The instruction set that the kernels use: the one that LibTorch itself uses on this processor, so that its variable
/// ATEN_CPU_CAPABILITY (default, avx2, avx512) applies to both.
inline simd::InstructionSet available_instruction_set() {
  static const simd::InstructionSet available = [] {
    const simd::InstructionSet best = simd::best_instruction_set();
#if defined(__x86_64__)
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") return best;
    const bool has_avx2 = capability == "AVX2" && simd::is_supported(simd::InstructionSet::kAvx2);
    return has_avx2 ? simd::InstructionSet::kAvx2 : simd::InstructionSet::kPortable;
#else
    return best;
#endif
  }();
  return available;
}

/// Whether the speed of the kernels was measured with this instruction set. kAuto prefers them there only.
inline bool is_measured(simd::InstructionSet set) { return set >= simd::InstructionSet::kAvx2; }

/// The end of a sentence of explain(): "with AVX2 instructions."
inline std::string with_instructions(at::ScalarType dtype) {
  const simd::InstructionSet set = available_instruction_set();
  const bool has_bf16_dot = dtype == at::kBFloat16 && simd::has_bf16_dot(set);
  switch (set) {
    case simd::InstructionSet::kNeon:
    case simd::InstructionSet::kNeonBf16:
      return has_bf16_dot ? "with NEON and BF16 instructions." : "with NEON instructions.";
    case simd::InstructionSet::kAvx2:
      return "with AVX2 instructions.";
    case simd::InstructionSet::kAvx512:
    case simd::InstructionSet::kAvx512Bf16:
      return has_bf16_dot ? "with AVX-512 and AVX512_BF16 instructions." : "with AVX-512 instructions.";
    case simd::InstructionSet::kPortable:
      break;
  }
  return "as portable code, without AVX2 or AVX-512 instructions.";
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
