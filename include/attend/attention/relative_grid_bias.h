// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/binder.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/position_grid.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A score_mod that adds a learned value for each offset from key to query on a line, an image or a volume.
///
/// score + table[Σ (qᵈ − kᵈ + Mᵈ − 1) · Π_{e > d} (2Mᵉ − 1)][h] for head h, the query at (q¹ … qⁿ) and the key at
/// (k¹ … kⁿ) of a window of M¹ × … × Mⁿ positions, counted row by row.
///
/// The table is (Π (2Mᵈ − 1), H), the relative_position_bias_table of the Swin Transformer. It has any floating-point
/// dtype and may require a gradient. On the CPU no (L, L) tensor is allocated.
///
/// Differs from RelativeBias, which has one dimension, any lengths, and one value for all large distances.
///
/// Source: Liu et al., "Swin Transformer", 2021; 3 dimensions: "Video Swin Transformer", 2022.
///
/// @code
/// torch::Tensor table = torch::zeros({13 * 13, 3}).requires_grad_();
/// torch::Tensor y = attend::flex_attention(q, k, v, attend::RelativeGridBias(table, {7, 7}));  // q: (N, 3, 49, D)
/// @endcode
class RelativeGridBias {
 public:
  /// @param table (Π (2Mᵈ − 1), H), floating-point, on the device of query.
  /// @param window_size The sizes M of the window, 1 to 3 numbers, each at least 1. Their product is at most 2²¹.
  /// @throws c10::ValueError for sizes out of range.
  RelativeGridBias(at::Tensor table, const std::vector<std::int64_t>& window_size)
      : table_(std::move(table)), window_(window_of(window_size)) {
    std::int64_t step = 1;
    for (int d = detail::PositionGrid::kAxes - 1; d >= 0; --d) {
      steps_[d] = static_cast<std::int32_t>(step);
      centre_ += static_cast<std::int32_t>((window_.sizes[d] - 1) * step);
      step *= 2 * window_.sizes[d] - 1;
    }
    entries_ = step;
  }

  struct View {
    TensorView table;  // (H, entries)
    detail::PositionGrid window;
    std::int32_t more_per_row, more_per_plane, centre;

    template <class T>
    ATTEND_HOST_DEVICE T operator()(T score, Coordinate at) const {
      return score + table.read_unchecked<T>(at.head, entry(at));
    }
    ATTEND_HOST_DEVICE std::int64_t added_place(Coordinate at) const { return table.place(at.head, entry(at)); }
    constexpr bool is_same_for_batch() const { return true; }

   private:
    ATTEND_HOST_DEVICE std::int32_t entry(const Coordinate& at) const {
      return centre + place(at.query) - place(at.key);
    }
    /// Σ coordinate · step. A row and a plane of the table have more entries than a row and a plane of the window.
    ATTEND_HOST_DEVICE std::int32_t place(std::int32_t position) const {
      return position + window.row.quotient(position) * more_per_row + window.plane.quotient(position) * more_per_plane;
    }
  };

  /// Called by attention: checks the tensor against the sizes of the call.
  ///
  /// @param binder Gives the sizes of the call and the view.
  /// @return The struct that is called for each score.
  /// @throws c10::ValueError if the table is not (Π (2Mᵈ − 1), H) on the device of query, or L or S is not the number
  /// of positions of the window.
  /// @throws c10::TypeError for a tensor that is not floating-point.
  View bind(Binder& binder) const {
    const std::int64_t heads = binder.sizes().num_heads;
    TORCH_CHECK_VALUE(table_.defined(), "attend::RelativeGridBias: table must be a tensor (", entries_, ", ", heads,
                      "), got an undefined one");
    TORCH_CHECK_VALUE(table_.dim() == 2 && table_.size(0) == entries_ && table_.size(1) == heads,
                      "attend::RelativeGridBias: table must be (", entries_, ", ", heads,
                      "), one row for each offset and H = ", heads, ", got ", table_.sizes());
    binder.check_positions("attend::RelativeGridBias", "window_size", window_.positions());
    return {binder.values(table_.t()), window_, steps_[1] - window_.sizes[2], steps_[0] - window_.sizes[1] * steps_[1],
            centre_};
  }

 private:
  static detail::PositionGrid window_of(const std::vector<std::int64_t>& sizes) {
    try {
      return detail::PositionGrid("attend::RelativeGridBias: window_size", sizes);
    } catch (const std::invalid_argument& error) {
      TORCH_CHECK_VALUE(false, error.what());
    }
  }

  at::Tensor table_;
  detail::PositionGrid window_;
  std::int32_t steps_[detail::PositionGrid::kAxes] = {}, centre_ = 0;
  std::int64_t entries_ = 0;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
