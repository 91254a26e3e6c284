// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/score/mask_mod.h>
#include <attend/score/position_grid.h>
#include <attend/version.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A mask_mod for the shifted windows of the Swin Transformer, in 1 to 3 dimensions: a query attends to the keys of its
/// window that were its neighbours before the shift.
///
/// The signal is rolled by −shift in each dimension and cut into windows, as torch::roll() and window_partition() do.
/// The last window of a dimension then has positions from both ends of the signal. Its positions below window_size −
/// shift come from one end, the others from the other end. A query attends only to keys from its own end.
///
/// Batch entry n is window n mod W of the W = Π (size / window_size) windows, counted row by row. L and S must be
/// Π window_size. A window that is not the last of any dimension has no masked key, and is computed without the mask.
///
/// Differs from the source, which adds −100 to masked scores. The weights differ by less than 1e-40.
///
/// Source: Liu et al., "Swin Transformer", 2021; 3 dimensions: "Video Swin Transformer", 2022.
///
/// @code
/// attend::ShiftedWindowMask mask({56, 56}, {7, 7}, {3, 3});
/// torch::Tensor y = attend::flex_attention(q, k, v, attend::Unchanged{}, mask);  // q: (N · 64, H, 49, D)
/// @endcode
class ShiftedWindowMask : public detail::MaskOperators {
 public:
  /// The mask for a signal of these sizes.
  ///
  /// @param sizes The sizes of the signal, 1 to 3 numbers. Each must be divisible by the window size. There must be at
  /// most 2²¹ windows.
  /// @param window_size The sizes of a window, each at least 1. Their product is at most 2²¹.
  /// @param shift The number of positions by which the signal was rolled in each dimension, from 0 to window_size − 1.
  /// @throws std::invalid_argument for numbers out of range, or if the arguments differ in their number of dimensions.
  ShiftedWindowMask(const std::vector<std::int64_t>& sizes, const std::vector<std::int64_t>& window_size,
                    const std::vector<std::int64_t>& shift)
      : window_("attend::ShiftedWindowMask: window_size", window_size) {
    const std::string name = "attend::ShiftedWindowMask: ";
    if (sizes.size() != window_size.size() || shift.size() != window_size.size())
      throw std::invalid_argument(name + "sizes, window_size and shift must have as many numbers, got " +
                                  std::to_string(sizes.size()) + ", " + std::to_string(window_size.size()) + " and " +
                                  std::to_string(shift.size()));
    std::vector<std::int64_t> counts;
    for (std::size_t d = 0; d < sizes.size(); ++d) {
      if (sizes[d] < 1 || sizes[d] % window_size[d] != 0)
        throw std::invalid_argument(name + "sizes (" + std::to_string(sizes[d]) +
                                    ") must be positive and divisible by window_size (" +
                                    std::to_string(window_size[d]) + ")");
      if (shift[d] < 0 || shift[d] >= window_size[d])
        throw std::invalid_argument(name + "shift (" + std::to_string(shift[d]) +
                                    ") must be at least 0 and below window_size (" + std::to_string(window_size[d]) +
                                    ")");
      counts.push_back(sizes[d] / window_size[d]);
      const std::size_t axis = detail::PositionGrid::kAxes - sizes.size() + d;
      borders_[axis] = shift[d] == 0 ? 0 : static_cast<std::int32_t>(window_size[d] - shift[d]);
    }
    windows_ = detail::PositionGrid(name + "sizes / window_size", counts);
  }

  /// Called by attention for a query and a key: whether the query may attend to the key.
  ATTEND_HOST_DEVICE bool operator()(Coordinate at) const {
    const Borders borders = borders_of(at.batch);
    const detail::PositionGrid::Point query = window_.point(at.query), key = window_.point(at.key);
    int is_allowed = 1;
    for (int d = 0; d < detail::PositionGrid::kAxes; ++d)
      is_allowed &= static_cast<int>((query.at[d] < borders.at[d]) == (key.at[d] < borders.at[d]));
    return is_allowed != 0;
  }
  /// Called by attention for a block of queries and keys: how much of it is allowed.
  ATTEND_HOST_DEVICE MaskCover cover(QueryBlock queries, KeyRange) const {
    const Borders borders = borders_of(queries.batch);
    return borders.at[0] == 0 && borders.at[1] == 0 && borders.at[2] == 0 ? MaskCover::kFull : MaskCover::kPartial;
  }
  /// Called by attend::flex_attention(): checks the sizes of the call. The kernels without LibTorch do not check them.
  ///
  /// @param binder Gives the sizes of the call.
  /// @return The mask.
  /// @throws c10::ValueError if L or S is not the number of positions of a window, or N is not a multiple of the number
  /// of windows.
  template <class AnyBinder>
  ShiftedWindowMask bind(AnyBinder& binder) const {
    binder.check_positions("attend::ShiftedWindowMask", "window_size", window_.positions());
    binder.check_windows("attend::ShiftedWindowMask", windows_.positions());
    return *this;
  }

 private:
  struct Borders {
    std::int32_t at[detail::PositionGrid::kAxes];
  };

  /// The position in each dimension at which the window of a batch entry is divided; 0 if it is not divided.
  ATTEND_HOST_DEVICE Borders borders_of(std::int32_t batch) const {
    const std::int32_t count = windows_.sizes[0] * windows_.sizes[1] * windows_.sizes[2];
    const detail::PositionGrid::Point window = windows_.point(batch % count);
    Borders borders{};
    for (int d = 0; d < detail::PositionGrid::kAxes; ++d)
      borders.at[d] = window.at[d] == windows_.sizes[d] - 1 ? borders_[d] : 0;
    return borders;
  }

  detail::PositionGrid window_, windows_;                   // the positions of a window; the windows of the signal
  std::int32_t borders_[detail::PositionGrid::kAxes] = {};  // window_size − shift; 0 without a shift
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
