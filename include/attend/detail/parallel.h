// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Calls work(begin, end) for ranges that make up 0 … count − 1, at least `grain` each but for the last, on torch's own
/// threads. Exceptions come through.
///
/// at::parallel_for is a template, and silently runs serially in a translation unit that is compiled without -fopenmp;
/// a TensorIterator's loop over as many elements is run in parallel by LibTorch itself.
template <class Work>
void parallel_ranges(std::int64_t count, std::int64_t grain, const Work& work) {
  at::Tensor elements = at::empty({count}, at::kByte);
  const auto* first = static_cast<const char*>(elements.const_data_ptr());
  at::TensorIterator iterator = at::TensorIterator::borrowing_nullary_op(elements);
  iterator.for_each([&](char** data, const std::int64_t*, std::int64_t size,
                        std::int64_t /*rows: one*/) { work(data[0] - first, data[0] - first + size); },
                    grain);
}

/// Calls work(t) for t = 0 … threads − 1, each on a thread of its own as far as there are so many.
template <class Work>
void parallel(int threads, const Work& work) {
  if (threads == 1) return work(0);
  parallel_ranges(threads, /*grain=*/1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) work(static_cast<int>(t));
  });
}

/// to[i] = Σ_t sums[t · row + i] for i = 0 … count − 1: what each thread has added up for itself, in their order.
inline void add_sums_of_threads(const float* sums, std::int64_t row, int threads, std::int64_t count, float* to) {
  parallel_ranges(count, /*grain=*/1 << 15, [&](std::int64_t begin, std::int64_t end) {
    std::copy(sums + begin, sums + end, to + begin);
    for (int t = 1; t < threads; ++t)
      for (std::int64_t i = begin; i < end; ++i) to[i] += sums[t * row + i];
  });
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
