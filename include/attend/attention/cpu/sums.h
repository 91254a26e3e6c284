// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// The gradient of what the scores read, which threads add up. Many small numbers may come together in one sum: hence
/// float64.
///
/// Small sums have a row for each thread, as far as all rows together take 1 MiB at most. Larger ones have two rows;
/// more than two threads share them, and add atomically. Then the order of the additions may differ from run to run. A
/// sum of float32 numbers whose magnitudes are within a factor of 2^28 / (how many there are) is exact in float64, so
/// its bits do not depend on the order.
struct Sums {
  double* data = nullptr;  // null where no gradient is wanted
  std::int64_t size = 0;   // of a row
  int rows = 0;
  bool is_shared = false;  // some row belongs to several threads

  static int rows_for(std::int64_t size, int threads) {
    constexpr std::int64_t kSmall = (1 << 20) / sizeof(double);
    return static_cast<int>(
        std::min<std::int64_t>(threads, std::max<std::int64_t>(2, kSmall / std::max<std::int64_t>(size, 1))));
  }

  /// What one thread adds to.
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

  Row of(int thread) const { return {data + thread % rows * size, is_shared}; }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
