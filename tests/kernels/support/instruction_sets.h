// SPDX-License-Identifier: MIT
#pragma once

#include "support/environment.h"

#include <attend/kernels/cpu/plan.h>
#include <attend/simd/dispatch.h>

#include <string>
#include <utility>
#include <vector>

namespace attend::test {

/// The instruction sets besides portable code, the best one last.
inline constexpr std::pair<const char*, simd::InstructionSet> kNamedSets[] = {
    {"avx2", simd::InstructionSet::kAvx2},
    {"avx512", simd::InstructionSet::kAvx512},
    {"avx512_bf16", simd::InstructionSet::kAvx512Bf16},
    {"neon", simd::InstructionSet::kNeon},
    {"neon_bf16", simd::InstructionSet::kNeonBf16},
};

/// The functions that a test runs: those of an instruction set of this processor, or those for vectors of some width,
/// which the compiler emulates.
template <class T>
struct NamedTables {
  std::string name;
  cpu::KernelTables<T> tables;
  simd::InstructionSet set;  // kPortable for emulated widths
};

/// All that this processor can run; only the one that the environment variable ATTEND_TEST_ISA names, if it is set.
template <class T>
std::vector<NamedTables<T>> instruction_sets() {
  using simd::InstructionSet;
  using simd::PortableOf;
  std::vector<NamedTables<T>> all;
  const auto add = [&](const char* name, const cpu::KernelTables<T>& tables, InstructionSet set) {
    if (is_wanted_isa(name)) all.push_back({name, tables, set});
  };
  using Tables = cpu::KernelTables<T>;
  add("portable16", Tables(cpu::kTileOperations<T, PortableOf<16>>), InstructionSet::kPortable);
  add("portable32", Tables(cpu::kTileOperations<T, PortableOf<32>>), InstructionSet::kPortable);
  add("portable64", Tables(cpu::kTileOperations<T, PortableOf<64, 4>>), InstructionSet::kPortable);
  for (const auto& [name, set] : kNamedSets)
    if (simd::is_supported(set)) add(name, Tables(set), set);
  return all;
}

}  // namespace attend::test
