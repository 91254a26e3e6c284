// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/binder.h>
#include <attend/score/flash_mask.h>
#include <attend/score/mask_mod.h>
#include <attend/score/mask_operators.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <cstdint>
#include <limits>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A mask_mod given as ranges of queries that may not attend to a key, as in FlashMask.
///
/// The numbers of key j in `startend_row_indices`:
///
/// | is_causal | numbers | query i may not attend to key j if |
/// | --- | --- | --- |
/// | false | 4: a, b, c, d | a ≤ i < b or c ≤ i < d |
/// | false | 2: a, d | a ≤ i or i < d |
/// | true | 2: a, b | a ≤ i < b, or the key is after the query's position |
/// | true | 1: a | a ≤ i, or the key is after the query's position |
///
/// On the CPU, blocks of scores that are completely masked are not computed. The memory of the mask grows with S, not
/// with L · S. The tensor is copied, so later changes in place have no effect.
///
/// @throws c10::ValueError for other shapes.
/// @throws c10::TypeError for a tensor that does not hold integers.
///
/// Source: Wang et al., "FlashMask: Efficient and Rich Mask Extension of FlashAttention", 2024. The layout is that of
/// flashmask_attention in PaddlePaddle.
///
/// @code
/// torch::Tensor ends = torch::tensor({2, 2, 5, 5, 5}).view({1, 1, 5, 1});  // two causal documents, 2 and 3 long
/// torch::Tensor y =
///     attend::flex_attention(q, k, v, attend::Unchanged{}, attend::FlashMask(ends, /*is_causal=*/true));
/// @endcode
class FlashMask : public detail::MaskOperators {
 public:
  /// @param startend_row_indices Integers, (N, H, S, 4), (N, H, S, 2) or (N, H, S, 1), as in the table above. The size
  /// N may be 1. The size H may be any divisor of the number of query heads, such as the number of key heads or 1.
  /// @param is_causal Whether the keys after a query's position are masked too, as in Causal. Default: false.
  explicit FlashMask(const at::Tensor& startend_row_indices, bool is_causal = false) : is_causal_(is_causal) {
    const at::Tensor& given = startend_row_indices;
    const std::int64_t numbers = given.defined() && given.dim() == 4 ? given.size(3) : 0;
    TORCH_CHECK_VALUE(numbers == 2 || numbers == (is_causal ? 1 : 4),
                      "attend::FlashMask: startend_row_indices must be (N, H, S, ", is_causal ? "1 or 2" : "2 or 4",
                      "), got ", given.defined() ? c10::str(given.sizes()) : "an undefined tensor");
    TORCH_CHECK_TYPE(at::isIntegralType(given.scalar_type(), /*includeBool=*/false),
                     "attend::FlashMask: startend_row_indices must be integers, got ", given.scalar_type());
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
    const at::Tensor read = given.to(at::kCPU, at::kLong).clamp(0, kMost).to(at::kInt);
    const auto column = [&](std::int64_t k) { return read.narrow(3, k, 1); };
    const at::Tensor none = at::zeros_like(column(0)), no_end = at::full_like(column(0), kMost);
    const at::Tensor rows = numbers == 4 ? read.contiguous()
                            : is_causal  ? at::cat({column(0), numbers == 2 ? column(1) : no_end, none, none}, 3)
                                         : at::cat({column(0), no_end, none, column(1)}, 3);
    const std::int64_t keys = rows.size(2), blocks = (keys + FlashMaskView::kBlock - 1) / FlashMaskView::kBlock;
    const at::Tensor bounds = at::empty({rows.size(0), rows.size(1), blocks, 8}, at::kInt);
    for (std::int64_t head = 0; head < rows.size(0) * rows.size(1); ++head)
      flash_mask_bounds(rows.const_data_ptr<std::int32_t>() + head * keys * 4, keys,
                        bounds.mutable_data_ptr<std::int32_t>() + head * blocks * 8);
    rows_ = rows.to(given.device());
    bounds_ = bounds.to(given.device());
  }

  /// Called by attention: checks the tensors against the sizes of the call.
  ///
  /// @param binder Gives the sizes of the call and the views.
  /// @return The struct that is called for each query and key.
  /// @throws c10::ValueError for a tensor that does not fit the sizes, or is not on the device of query.
  FlashMaskView bind(Binder& binder) const {
    const AttentionSizes& sizes = binder.sizes();
    TORCH_CHECK_VALUE((rows_.size(0) == 1 || rows_.size(0) == sizes.batch_size) && rows_.size(1) > 0 &&
                          sizes.num_heads % rows_.size(1) == 0 && rows_.size(2) == sizes.key_length,
                      "attend::FlashMask: startend_row_indices for N ", rows_.size(0), ", H ", rows_.size(1), ", S ",
                      rows_.size(2), " do not fit N ", sizes.batch_size, ", H ", sizes.num_heads, ", S ",
                      sizes.key_length);
    const IntegerView rows = binder.integers(for_heads(rows_, sizes)),
                      bounds = binder.integers(for_heads(bounds_, sizes));
    return {rows, bounds, is_causal_};
  }

 private:
  static at::Tensor for_heads(const at::Tensor& tensor, const AttentionSizes& sizes) {
    const at::Tensor heads = tensor.size(1) == 1 || tensor.size(1) == sizes.num_heads
                                 ? tensor
                                 : tensor.repeat_interleave(sizes.num_heads / tensor.size(1), 1);
    return heads.expand({sizes.batch_size, sizes.num_heads, tensor.size(2), tensor.size(3)});
  }

  at::Tensor rows_, bounds_;
  bool is_causal_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
