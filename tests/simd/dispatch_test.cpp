// SPDX-License-Identifier: MIT
#include "simd/isas.h"

#include <attend/simd/dispatch.h>

#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <string>

using namespace attend::simd;

namespace {

#if defined(__x86_64__)
/// The features of the first processor in /proc/cpuinfo.
std::string processor_features() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("flags", 0) == 0) return line + " ";
  return "";
}
#endif

constexpr InstructionSet kAll[] = {InstructionSet::kPortable, InstructionSet::kNeon,   InstructionSet::kNeonBf16,
                                   InstructionSet::kAvx2,     InstructionSet::kAvx512, InstructionSet::kAvx512Bf16};

}  // namespace

TEST_CASE("is_supported: the features that Linux names") {
  CHECK(is_supported(InstructionSet::kPortable));
#if defined(__x86_64__)
  const std::string features = processor_features();
  REQUIRE(features != "");
  const auto has = [&](const char* feature) {
    return features.find(std::string(" ") + feature + " ") != std::string::npos;
  };
  const bool has_avx512 = has("avx512f") && has("avx512bw") && has("avx512dq") && has("avx512vl");
  CHECK(is_supported(InstructionSet::kAvx2) == (has("avx2") && has("fma")));
  CHECK(is_supported(InstructionSet::kAvx512) == has_avx512);
  CHECK(is_supported(InstructionSet::kAvx512Bf16) == (has_avx512 && has("avx512_bf16")));
  CHECK(!is_supported(InstructionSet::kNeon));
#elif defined(__aarch64__)  // an emulator shows the /proc/cpuinfo of the machine, so only NEON is checked
  CHECK(is_supported(InstructionSet::kNeon));
  CHECK(!is_supported(InstructionSet::kAvx2));
#endif
}

TEST_CASE("best_instruction_set: the last supported one of the enumeration") {
  InstructionSet best = InstructionSet::kPortable;
  for (const InstructionSet set : kAll)
    if (is_supported(set)) best = set;
  CHECK(best_instruction_set() == best);
  MESSAGE("best_instruction_set() = " << static_cast<int>(best));
}

TEST_CASE("has_bf16_dot: true for the instruction sets whose names end in Bf16") {
  for (const InstructionSet set : kAll) {
    const bool expected =
#if defined(__x86_64__)
        set == InstructionSet::kAvx512Bf16;
#elif defined(ATTEND_HAS_NEON_BF16)
        set == InstructionSet::kNeonBf16;
#else
        false;
#endif
    CHECK(has_bf16_dot(set) == expected);
  }
}

TEST_CASE("for_isa: the set of that name without dot products of bfloat16; the baseline for a foreign name") {
  const auto compiled = [](InstructionSet set) {
    return for_isa(set, [](auto isa) { return decltype(isa)::kInstructionSet; });
  };
  CHECK(compiled(InstructionSet::kPortable) == InstructionSet::kPortable);
#if defined(__x86_64__)
  CHECK(compiled(InstructionSet::kAvx2) == InstructionSet::kAvx2);
  CHECK(compiled(InstructionSet::kAvx512) == InstructionSet::kAvx512);
  CHECK(compiled(InstructionSet::kAvx512Bf16) == InstructionSet::kAvx512);
  CHECK(compiled(InstructionSet::kNeon) == InstructionSet::kPortable);
#elif defined(__aarch64__)
  CHECK(compiled(InstructionSet::kNeon) == InstructionSet::kNeon);
  CHECK(compiled(InstructionSet::kAvx2) == InstructionSet::kPortable);
#endif
}

TEST_CASE("for_bf16_isa: the set itself, and null without dot products of bfloat16") {
  for (const InstructionSet set : kAll) {
    const auto* compiled =
        for_bf16_isa<const InstructionSet*>(set, [](auto isa) { return &decltype(isa)::kInstructionSet; });
    CHECK((compiled != nullptr) == has_bf16_dot(set));
    if (compiled != nullptr) CHECK(*compiled == set);
  }
}

TEST_CASE("is_supported: the tests of simd/ run on every instruction set that is_supported") {
  if (std::getenv("ATTEND_TEST_ISA") != nullptr) return;
  int tested = 0, supported = 0;
  attend::test::for_each_isa([&](auto isa) { tested += is_supported(decltype(isa)::kInstructionSet); });
  attend::test::for_each_bf16_isa([&](auto) { ++tested; });
  for (const InstructionSet set : kAll) supported += is_supported(set);
  CHECK(tested == supported + 2);  // the baseline is tested with three widths
}
