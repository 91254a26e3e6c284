// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/kernels/cpu/head_view.h>
#include <attend/macros.h>
#include <attend/simd/product.h>
#include <attend/version.h>

#include <algorithm>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// The keys or values of one head of one batch entry: a HeadView, or pages of HeadViews that a table lists.
template <class T>
struct KeyRows {
  HeadView<T> page;           // without a table all rows, otherwise page 0
  const std::int32_t* table;  // the page of each `page_size` rows; null: none
  std::int32_t page_size;
  std::int64_t page_stride;  // in numbers

  /// Calls action(rows, i, n) for each run of rows with one stride. Its rows 0 … n − 1 are the rows first + i … first +
  /// i + n − 1 of the head.
  template <class Action>
  ATTEND_ALWAYS_INLINE void for_each_run(std::int64_t first, int count, const Action& action) const {
    HeadView<T> run = page;
    if (table == nullptr) {
      run.data += first * page.row * page.number_size();
      return action(run, 0, count);
    }
    for (int i = 0; i < count;) {
      const int n = static_cast<int>(std::min<std::int64_t>(page_size - (first + i) % page_size, count - i));
      run.data = row_of_page(first + i);
      action(run, i, n);
      i += n;
    }
  }

  /// The memory of a row, found by the table of pages.
  char* row_of_page(std::int64_t row) const {
    return page.data + (table[row / page_size] * page_stride + row % page_size * page.row) * page.number_size();
  }

  /// HeadView::rows(). Rows of several pages are copied into `scratch`.
  Strided<T> rows(std::int64_t first, int count, int width, T* scratch) const {
    Strided<T> result{scratch, width, 1};
    for_each_run(first, count, [&](const HeadView<T>& run, int i, int n) {
      if (n == count)
        result = run.rows(0, n, width, scratch);
      else
        run.read(0, n, width, scratch + i * width, width);
    });
    return result;
  }

  /// HeadView::pairs(). Rows of several pages are copied into `scratch`.
  Strided<Bf16x2> pairs(std::int64_t first, int count, int width, Bf16x2* scratch) const {
    const int pairs = (width + 1) / 2;
    Strided<Bf16x2> result{scratch, pairs, 1};
    for_each_run(first, count, [&](const HeadView<T>& run, int i, int n) {
      if (n == count)
        result = run.pairs(0, n, width, scratch);
      else
        run.copy_pairs(0, n, width, scratch + i * pairs);
    });
    return result;
  }

  /// HeadView::read()
  void read(std::int64_t first, int count, int width, T* to, std::int64_t to_row) const {
    for_each_run(first, count,
                 [&](const HeadView<T>& run, int i, int n) { run.read(0, n, width, to + i * to_row, to_row); });
  }
};

/// Keys or values in the caller's memory: (N, G, S, D), or pages (num_pages, G, page_size, D) and a table.
template <class T>
class KeyTensor {
 public:
  KeyTensor(const ConstTensorView4d& view, const AttentionParams& params, bool is_bfloat16)
      : tensor_(view, is_bfloat16),
        table_(params.block_table),
        table_stride_(params.block_table_stride),
        page_stride_(view.strides[0]),
        page_size_(static_cast<std::int32_t>(params.page_size)) {}

  KeyRows<T> of(std::int64_t batch, std::int64_t head) const {
    if (table_ == nullptr) return {tensor_.of(batch, head), nullptr, 0, 0};
    return {tensor_.of(0, head), table_ + batch * table_stride_, page_size_, page_stride_};
  }

 private:
  HeadTensor<T> tensor_;
  const std::int32_t* table_;
  std::int64_t table_stride_, page_stride_;
  std::int32_t page_size_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
