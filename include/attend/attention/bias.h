// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/binder.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A score_mod for attention with linear biases: it subtracts slope · |p − j| from the score, for key j and the query's
/// position p = i + S − L.
///
/// `slopes` has one number for each query head. It has any floating-point dtype and may require a gradient.
///
/// AttentionOptions::alibi_slopes computes the same. Alibi can be combined with other score_mods. In packed batches,
/// Alibi counts positions through all sequences (see Coordinate); the option counts within a sequence.
///
/// Source: Press et al., "Train short, test long", 2022.
///
/// @code
/// torch::Tensor y = attend::flex_attention(q, k, v, attend::Alibi(slopes), attend::Causal{});
/// @endcode
class Alibi {
 public:
  /// @param slopes (H) or (N, H), floating-point, on the device of query.
  explicit Alibi(at::Tensor slopes) : slopes_(std::move(slopes)) {}

  struct View {
    TensorView slopes;  // (1 or N, H)
    bool is_shared;

    template <class T>
    ATTEND_HOST_DEVICE T operator()(T score, Coordinate at) const {
      const std::int32_t distance = at.query_position() - at.key;
      return score -
             slopes.read_unchecked<T>(is_shared ? 0 : at.batch, at.head) * T(distance < 0 ? -distance : distance);
    }
  };

  /// Called by attention: checks the tensor against the sizes of the call.
  ///
  /// @param binder Gives the sizes of the call and the view.
  /// @return The struct that is called for each score.
  /// @throws c10::ValueError for a wrong shape, and for a tensor that is not on the device of query.
  /// @throws c10::TypeError for a tensor that is not floating-point.
  View bind(Binder& binder) const {
    const AttentionSizes& sizes = binder.sizes();
    TORCH_CHECK_VALUE(slopes_.defined(), "attend::Alibi: slopes must be a tensor (H) or (N, H), got an undefined one");
    const bool is_shared = slopes_.dim() == 1 && slopes_.size(0) == sizes.num_heads;
    TORCH_CHECK_VALUE(
        is_shared || (slopes_.dim() == 2 && slopes_.size(0) == sizes.batch_size && slopes_.size(1) == sizes.num_heads),
        "attend::Alibi: slopes must be (H) or (N, H), with N = ", sizes.batch_size, " and H = ", sizes.num_heads,
        ", got ", slopes_.sizes());
    return {binder.values(is_shared ? slopes_.unsqueeze(0) : slopes_), is_shared};
  }

 private:
  at::Tensor slopes_;
};

/// A score_mod that adds a learned value for each distance between key and query.
///
/// score + table[h][clamp(j − p, −M, M) + M] for head h, key j and the query's position p = i + S − L. All distances
/// above M share the value of M, and all below −M that of −M.
///
/// The table is (H, 2M + 1), or (1, 2M + 1) for all heads. It has any floating-point dtype and may require a gradient.
///
/// Differs from T5: each distance has its own value. T5 puts several distances into one bucket.
///
/// Source: Shaw et al., "Self-attention with relative position representations", 2018. As a bias: Raffel et al.,
/// "T5", 2020.
///
/// @code
/// torch::Tensor y = attend::flex_attention(q, k, v, attend::RelativeBias(table));
/// @endcode
class RelativeBias {
 public:
  /// @param table (H, 2M + 1) or (1, 2M + 1), floating-point, on the device of query.
  explicit RelativeBias(at::Tensor table) : table_(std::move(table)) {}

  struct View {
    TensorView table;
    std::int32_t max_distance;
    bool is_shared;

    template <class T>
    ATTEND_HOST_DEVICE T operator()(T score, Coordinate at) const {
      return score + table.read_unchecked<T>(is_shared ? 0 : at.head, column(at));
    }
    ATTEND_HOST_DEVICE std::int64_t added_place(Coordinate at) const {
      return table.place(is_shared ? 0 : at.head, column(at));
    }
    constexpr bool is_same_for_batch() const { return true; }

   private:
    ATTEND_HOST_DEVICE std::int32_t column(const Coordinate& at) const {
      const std::int32_t distance = at.key - at.query_position();
      return (distance < -max_distance  ? -max_distance
              : distance > max_distance ? max_distance
                                        : distance) +
             max_distance;
    }
  };

  /// Called by attention: checks the tensor against the sizes of the call.
  ///
  /// @param binder Gives the sizes of the call and the view.
  /// @return The struct that is called for each score.
  /// @throws c10::ValueError for a wrong shape, and for a tensor that is not on the device of query.
  /// @throws c10::TypeError for a tensor that is not floating-point.
  View bind(Binder& binder) const {
    const std::int64_t heads = binder.sizes().num_heads;
    TORCH_CHECK_VALUE(table_.defined(),
                      "attend::RelativeBias: table must be a tensor (H, 2M + 1), got an undefined one");
    TORCH_CHECK_VALUE(table_.dim() == 2 && (table_.size(0) == heads || table_.size(0) == 1) && table_.size(1) % 2 == 1,
                      "attend::RelativeBias: table must be (H, 2M + 1) or (1, 2M + 1), with H = ", heads, ", got ",
                      table_.sizes());
    return {binder.values(table_), static_cast<std::int32_t>(table_.size(1) / 2), table_.size(0) == 1};
  }

 private:
  at::Tensor table_;
};

/// A score_mod that adds a learned value to each score.
///
/// The bias is (L, S), (H, L, S) or (N, H, L, S). Any size may be 1 and is then broadcast. The bias has any
/// floating-point dtype and may require a gradient.
///
/// A float AttentionOptions::attn_mask computes the same. DenseBias can be combined with other score_mods.
///
/// Memory: the gradient is summed in float64. For a bias of more than 2¹⁶ elements this takes at most two float64
/// buffers of the size of the bias. For an expanded bias that is the size before expand().
///
/// @code
/// torch::Tensor y = attend::flex_attention(q, k, v, attend::DenseBias(table));
/// @endcode
class DenseBias {
 public:
  /// @param bias (L, S), (H, L, S) or (N, H, L, S), floating-point, on the device of query.
  explicit DenseBias(at::Tensor bias) : bias_(std::move(bias)) {}

  struct View {
    TensorView bias;
    std::int32_t factors[4];  // 0 where it is broadcast, else 1

    template <class T>
    ATTEND_HOST_DEVICE T operator()(T score, Coordinate at) const {
      return score + bias.read_unchecked<T>(at.batch * factors[0], at.head * factors[1], at.query * factors[2],
                                            at.key * factors[3]);
    }
    ATTEND_HOST_DEVICE std::int64_t added_place(Coordinate at) const {
      return bias.place(at.batch * factors[0], at.head * factors[1], at.query * factors[2], at.key * factors[3]);
    }
    bool is_same_for_batch() const { return factors[0] == 0; }
  };

  /// Called by attention: checks the tensor against the sizes of the call.
  ///
  /// @param binder Gives the sizes of the call and the view.
  /// @return The struct that is called for each score.
  /// @throws c10::ValueError for a wrong shape, and for a tensor that is not on the device of query.
  /// @throws c10::TypeError for a tensor that is not floating-point.
  View bind(Binder& binder) const {
    const AttentionSizes& sizes = binder.sizes();
    const std::int64_t full[4] = {sizes.batch_size, sizes.num_heads, sizes.query_length, sizes.key_length};
    TORCH_CHECK_VALUE(bias_.defined(), "attend::DenseBias: bias must be a tensor (L, S), got an undefined one");
    TORCH_CHECK_VALUE(bias_.dim() >= 2 && bias_.dim() <= 4,
                      "attend::DenseBias: bias must be 2-d (L, S), 3-d (H, L, S) or 4-d (N, H, L, S), got ",
                      bias_.sizes());
    at::Tensor bias = bias_;
    while (bias.dim() < 4) bias = bias.unsqueeze(0);
    View view{};
    for (int i = 0; i < 4; ++i) {
      TORCH_CHECK_VALUE(bias.size(i) == full[i] || bias.size(i) == 1, "attend::DenseBias: bias ", bias_.sizes(),
                        " must broadcast to (N, H, L, S) = ", at::IntArrayRef(full, 4));
      view.factors[i] = bias.size(i) == 1 ? 0 : 1;
    }
    view.bias = binder.values(bias);
    return view;
  }

 private:
  at::Tensor bias_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
