// SPDX-License-Identifier: MIT
#pragma once

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cmath>
#include <limits>

namespace attend::test {

/// The largest difference of two tensors of the same shape, in float64; infinite where one has a NaN and the other
/// none.
inline double max_difference(const torch::Tensor& a, const torch::Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  if (a.numel() == 0) return 0.0;
  const torch::Tensor x = a.detach().cpu().to(torch::kDouble), y = b.detach().cpu().to(torch::kDouble);
  if (!x.isnan().equal(y.isnan())) return std::numeric_limits<double>::infinity();
  return (x - y).nan_to_num().abs().max().item<double>();
}

/// The rule of equality for float32 and lower: the error against the exact (float64) result is at most twice that of
/// the plain dense formula in the same dtype, and 1e-6.
///
/// The gradients of ATen's fused kernels do not always keep it: they are held to the factor that PyTorch's own tests
/// allow them (5, the default `fudge` of test_transformers.py), by who says so with kAtensFactor.
inline constexpr double kOurFactor = 2.0, kAtensFactor = 5.0;

inline void check_as_accurate_as(const torch::Tensor& dense, const torch::Tensor& result, const torch::Tensor& exact,
                                 double factor = kOurFactor) {
  CHECK((result.scalar_type() == dense.scalar_type()));
  CHECK(max_difference(result, exact) <= factor * max_difference(dense, exact) + 1e-6);
}

}  // namespace attend::test
