// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/cpu/instruction_set.h>
#include <attend/version.h>

#include <ATen/Version.h>

#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// What the kernels may use: what LibTorch itself uses on this processor, so that its variable ATEN_CPU_CAPABILITY
/// (default, avx2, avx512) holds for both.
inline cpu::InstructionSet available_instruction_set() {
  static const cpu::InstructionSet available = [] {
    const std::string capability = at::get_cpu_capability();
#if defined(__x86_64__)
    if (capability == "AVX512")
      return __builtin_cpu_supports("avx512bf16") ? cpu::InstructionSet::kAvx512Bf16 : cpu::InstructionSet::kAvx512;
    if (capability == "AVX2") return cpu::InstructionSet::kAvx2;
#endif
    return cpu::InstructionSet::kBaseline;
  }();
  return available;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
