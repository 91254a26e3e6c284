// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/version.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// The gradient of a tensor that the scores read. Threads add it up in float64, because a sum may have many small
/// summands.
///
/// If the rows of all threads take at most 1 MiB, each thread has a row of its own. Otherwise there are fewer rows, at
/// least two, and threads that share a row add atomically. Then the order of the additions may differ from run to run.
/// That does not change the bits of a sum of n float32 numbers whose magnitudes are within a factor of 2^28 / n,
/// because it is exact in float64.
struct Sums {
  double* data = nullptr;       // the first row; null if no gradient is wanted
  double* more_rows = nullptr;  // the others
  std::int64_t size = 0;        // of a row
  int rows = 0;
  bool is_shared = false;  // some row belongs to several threads

  static int rows_for(std::int64_t size, int threads) {
    constexpr std::int64_t kSmall = (1 << 20) / sizeof(double);
    return static_cast<int>(
        std::min<std::int64_t>(threads, std::max<std::int64_t>(2, kSmall / std::max<std::int64_t>(size, 1))));
  }

  /// The row of one thread.
  struct Row {
    double* data;
    bool is_shared;

    void add(std::int64_t place, double value) const {
      if (is_shared)
        add_atomically(data[place], value);
      else
        data[place] += value;
    }
  };

  static void add_atomically(double& sum, double value) {
    std::atomic_ref<double>(sum).fetch_add(value, std::memory_order_relaxed);
  }

  Row of(int thread) const {
    const int row = thread % rows;
    return {row == 0 ? data : more_rows + (row - 1) * size, is_shared};
  }
};

/// The memory of Sums: the first row is the caller's.
class SumRows {
 public:
  SumRows(const SummedGradient& gradient, int threads) {
    if (gradient.data == nullptr) return;
    const int rows = Sums::rows_for(gradient.size, threads);
    more_rows_.resize(static_cast<std::size_t>((rows - 1) * gradient.size));
    sums_ = {gradient.data, more_rows_.data(), gradient.size, rows, /*is_shared=*/rows < threads};
  }

  /// Its data is null if no gradient is wanted.
  const Sums& sums() const { return sums_; }

  void set_to_zero() {
    if (sums_.data != nullptr) std::fill_n(sums_.data, sums_.size, 0.0);
    std::fill(more_rows_.begin(), more_rows_.end(), 0.0);
  }

  /// Adds all rows to the first.
  void finish() {
    for (int row = 1; row < sums_.rows; ++row)
      for (std::int64_t i = 0; i < sums_.size; ++i) sums_.data[i] += sums_.more_rows[(row - 1) * sums_.size + i];
  }

 private:
  std::vector<double> more_rows_;
  Sums sums_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
