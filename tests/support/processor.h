// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>

#include <ATen/Version.h>

#include <string>

namespace attend::test {

/// Whom kAuto takes in float32 for what both can do: our kernels where this processor has the instructions for them
/// (and LibTorch's variable ATEN_CPU_CAPABILITY allows it to use them), else ATen's.
inline Backend fastest_backend() {
  const std::string capability = at::get_cpu_capability();
  return capability == "AVX2" || capability == "AVX512" ? Backend::kCpu : Backend::kSdpa;
}

}  // namespace attend::test
