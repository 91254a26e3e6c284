// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>

namespace attend::detail {

/// Calls work(t) for t = 0 … threads − 1, on torch's own threads. Exceptions come through.
///
/// at::parallel_for is a template, and silently runs serially in a translation unit that is compiled without -fopenmp;
/// a TensorIterator's loop over as many elements as there are threads is run in parallel by LibTorch itself.
template <class Work>
void parallel(int threads, const Work& work) {
  if (threads == 1) return work(0);
  at::Tensor element_of_each = at::empty({threads}, at::kByte);
  const auto* first = static_cast<const char*>(element_of_each.const_data_ptr());
  at::TensorIterator iterator = at::TensorIterator::borrowing_nullary_op(element_of_each);
  iterator.for_each(
      [&](char** data, const std::int64_t*, std::int64_t count, std::int64_t /*rows: one*/) {
        for (std::int64_t i = 0; i < count; ++i) work(static_cast<int>(data[0] - first + i));
      },
      /*grain_size=*/1);
}

}  // namespace attend::detail
