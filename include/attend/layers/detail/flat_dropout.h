// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/instruction_set.h>
#include <attend/detail/torch/autocast.h>
#include <attend/kernels/cpu/flat_dropout.h>
#include <attend/simd/dispatch.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Dropout with this probability, with a seed from LibTorch's generator.
inline cpu::FlatDropout draw_flat_dropout(double probability) {
  if (probability == 0.0) return {};
  const at::Tensor seed = at::empty({1}, at::kLong).random_();
  return cpu::flat_dropout(probability, static_cast<std::uint64_t>(*static_cast<std::int64_t*>(seed.data_ptr())));
}

/// The factors by which dropout multiplies the rows of `x` (…, columns), float32 on the CPU.
inline at::Tensor flat_dropout_factors(const cpu::FlatDropout& dropout, const at::Tensor& x) {
  constexpr int kGroup = cpu::FlatDropout::kGroup;
  const at::Tensor factors = at::empty(x.sizes(), x.options());
  auto* const to = static_cast<float*>(factors.data_ptr());
  const std::int64_t columns = x.size(-1);
  for (std::int64_t i = 0; i < x.numel() / columns; ++i)
    for (std::int64_t group = 0; group * kGroup < columns; ++group) {
      float some[kGroup];
      cpu::FlatDropoutFactors::run<simd::Portable>(dropout, i, group, some);
      std::copy_n(some, std::min<std::int64_t>(kGroup, columns - group * kGroup), to + i * columns + group * kGroup);
    }
  return factors;
}

/// Whether attend's kernels read the tensor as it is: float32 numbers on the CPU, not under autocast, without a
/// tangent.
inline bool is_plain_float(const at::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kFloat && dtype_under_autocast(x) == at::kFloat &&
         x.layout() == at::kStrided && !x.is_neg() && !x._fw_grad(/*level=*/0).defined() && x.numel() > 0;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
