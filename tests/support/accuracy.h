// SPDX-License-Identifier: MIT
#pragma once

#include <doctest/doctest.h>
#include <torch/types.h>

#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <utility>

namespace attend::test {

/// The largest difference of two tensors of the same shape, in float64. It is infinite if one has a NaN where the other
/// has none.
inline double max_difference(const torch::Tensor& a, const torch::Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  if (a.numel() == 0) return 0.0;
  const torch::Tensor x = a.detach().cpu().to(torch::kDouble), y = b.detach().cpu().to(torch::kDouble);
  if (!x.isnan().equal(y.isnan())) return std::numeric_limits<double>::infinity();
  return (x - y).nan_to_num().abs().max().item<double>();
}

/// The largest finite number of a tensor, or 1 if that is more. Relative errors refer to it.
inline double size_of(const torch::Tensor& tensor) {
  if (tensor.numel() == 0) return 1.0;
  const torch::Tensor numbers = tensor.detach().cpu().to(torch::kDouble).abs();
  return std::max(1.0, numbers.masked_fill(numbers.isfinite().logical_not(), 0.0).max().item<double>());
}

/// The rule of equality for float64.
inline void check_equal_in_float64(const torch::Tensor& result, const torch::Tensor& exact) {
  CHECK(max_difference(result, exact) <= 1e-12 * size_of(exact));
}

/// The rule of equality for float32 and lower: the error against the exact (float64) result is at most twice that of
/// the plain dense formula in the same dtype, plus 1e-6.
///
/// The gradients of ATen's fused kernels do not always satisfy it. With kAtensFactor they are held to the factor that
/// PyTorch's own tests allow (5, the default `fudge` of test_transformers.py).
inline constexpr double kOurFactor = 2.0, kAtensFactor = 5.0;

inline void check_as_accurate_as(const torch::Tensor& dense, const torch::Tensor& result, const torch::Tensor& exact,
                                 double factor = kOurFactor) {
  CHECK((result.scalar_type() == dense.scalar_type()));
  CHECK(max_difference(dense, exact) < std::numeric_limits<double>::infinity());  // otherwise any result would pass
  CHECK(max_difference(result, exact) <= factor * max_difference(dense, exact) + 1e-6);
}

/// The same rule over many calls. For a single number, such as the gradient of a slope, the dense formula's error may
/// be close to zero by chance: of two errors of one distribution, one is more than twice the other in 59 % of all
/// pairs. Results with fewer than 64 numbers are therefore compared by the largest and the mean relative error of their
/// kind and dtype in all calls.
class Accuracy {
 public:
  void check(const std::string& kind, const torch::Tensor& dense, const torch::Tensor& result,
             const torch::Tensor& exact, double factor = kOurFactor) {
    if (result.numel() >= 64) return check_as_accurate_as(dense, result, exact, factor);
    CHECK((result.scalar_type() == dense.scalar_type()));
    CHECK(max_difference(dense, exact) < std::numeric_limits<double>::infinity());
    Errors& errors = few_[{kind, result.scalar_type()}];
    const double ours = max_difference(result, exact) / size_of(exact),
                 theirs = max_difference(dense, exact) / size_of(exact);
    errors.ours = std::max(errors.ours, ours);
    errors.dense = std::max(errors.dense, theirs);
    errors.sum_of_ours += ours;
    errors.sum_of_dense += theirs;
    ++errors.count;
    errors.factor = factor;
  }

  /// Must be called after the last call.
  void check_results_of_few_numbers() const {
    CHECK_FALSE(few_.empty());
    for (const auto& entry : few_) {
      CAPTURE(entry.first.first);
      CAPTURE(entry.first.second);
      const Errors& errors = entry.second;
      CHECK(errors.ours <= errors.factor * errors.dense + 1e-6);
      CHECK(errors.sum_of_ours <= errors.factor * errors.sum_of_dense + 1e-6 * errors.count);
    }
  }

 private:
  struct Errors {
    double ours = 0.0, dense = 0.0, sum_of_ours = 0.0, sum_of_dense = 0.0, factor = kOurFactor;
    int count = 0;
  };
  std::map<std::pair<std::string, at::ScalarType>, Errors> few_;
};

}  // namespace attend::test
