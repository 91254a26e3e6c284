// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/sequence.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

/// Starts to copy rows `first` and on of a head into a SharedTile or Tf32Tile, by kThreads threads. Rows outside of
/// `rows` and columns from `columns` on become 0. has_aligned_rows() must be true for the tensor.
template <int kThreads, class SharedTile>
ATTEND_HOST_DEVICE void copy_rows(const ConstTensorView4d& tensor, std::int32_t batch, std::int32_t head,
                                  std::int32_t first, const KeyRange& rows, std::int32_t columns,
                                  const SharedTile& to) {
  const auto* const data =
      static_cast<const typename SharedTile::Number*>(tensor.data) + row_place(tensor.strides, batch, head, 0);
  const auto stride = static_cast<std::int32_t>(tensor.strides[2]);
  to.template copy_from<kThreads>(
      [&](int row) {
        const std::int32_t i = first + row;
        return i >= rows.begin && i < rows.end ? data + std::int64_t{i} * stride : nullptr;
      },
      columns);
}

/// The same for rows of `key` or `value`, which may be in pages if kMayHavePages.
template <int kThreads, bool kMayHavePages, class SharedTile>
ATTEND_HOST_DEVICE void copy_key_rows(const Call& call, const ConstTensorView4d& tensor, std::int32_t batch,
                                      std::int32_t kv_head, std::int32_t first, const KeyRange& rows,
                                      std::int32_t columns, const SharedTile& to) {
  if (!kMayHavePages || call.block_table == nullptr) {
    copy_rows<kThreads>(tensor, batch, kv_head, first, rows, columns, to);
    return;
  }
  const auto* const data = static_cast<const typename SharedTile::Number*>(tensor.data);
  to.template copy_from<kThreads>(
      [&](int row) {
        const std::int32_t j = first + row;
        return j >= rows.begin && j < rows.end ? data + key_place(call, tensor, batch, kv_head, j) : nullptr;
      },
      columns);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
