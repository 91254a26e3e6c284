// SPDX-License-Identifier: MIT
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <map>
#include <string>
#include <vector>

namespace attend::test {

/// The largest difference; infinite where one has a NaN and the other none.
inline double max_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]))) continue;
    const double difference = std::abs(a[i] - b[i]);
    largest = std::isnan(difference) ? std::numeric_limits<double>::infinity() : std::max(largest, difference);
  }
  return largest;
}

/// The largest finite number, or 1 if that is more.
inline double size_of(const std::vector<double>& numbers) {
  double largest = 1;
  for (const double number : numbers)
    if (std::isfinite(number)) largest = std::max(largest, std::abs(number));
  return largest;
}

/// The house rule: the error is at most twice that of the dense formula in the same dtype, and 1e-6.
///
/// Where the largest error is that of a few scores, the dense formula's may be small by luck. So results with fewer
/// than 64 numbers, of fewer than 64 queries, or of large scores are compared by the largest and the mean error that
/// results of their kind had in all calls, relative to their size.
class Accuracy {
 public:
  void check(const std::string& kind, bool has_few_errors, const std::vector<double>& dense,
             const std::vector<double>& result, const std::vector<double>& exact) {
    const double ours = max_difference(result, exact), theirs = max_difference(dense, exact);
    CHECK(theirs < std::numeric_limits<double>::infinity());  // or anything would do
    if (result.size() >= 64 && !has_few_errors) {
      CHECK(ours <= 2 * theirs + 1e-6);
      return;
    }
    Errors& errors = few_[kind];
    errors.ours = std::max(errors.ours, ours / size_of(exact));
    errors.dense = std::max(errors.dense, theirs / size_of(exact));
    errors.sum_of_ours += ours / size_of(exact);
    errors.sum_of_dense += theirs / size_of(exact);
    ++errors.count;
  }

  void check_results_of_few_numbers() const {
    for (const auto& [kind, errors] : few_) {
      CAPTURE(kind);
      CHECK(errors.ours <= 2 * errors.dense + 1e-6);
      CHECK(errors.sum_of_ours <= 2 * errors.sum_of_dense + 1e-6 * errors.count);
    }
  }

 private:
  struct Errors {
    double ours = 0, dense = 0, sum_of_ours = 0, sum_of_dense = 0;
    int count = 0;
  };
  std::map<std::string, Errors> few_;
};

}  // namespace attend::test
