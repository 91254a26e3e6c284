// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>

#include <ATen/Version.h>

#include <string>

namespace attend::test {

/// The backend of kAuto in float32 for a call that kCpu and kSdpa can run. It is kCpu if this processor has the
/// instructions for our kernels and LibTorch's variable ATEN_CPU_CAPABILITY allows them. Otherwise it is kSdpa.
inline Backend fastest_backend() {
  const std::string capability = at::get_cpu_capability();
  return capability == "AVX2" || capability == "AVX512" ? Backend::kCpu : Backend::kSdpa;
}

}  // namespace attend::test
