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

/// A mask_mod for self-attention on a line, an image or a volume: a query attends to the kernel_size nearest keys in
/// each dimension.
///
/// In a dimension of n positions, query i attends to the keys s … s + kernel_size − 1 with s = clamp(i −
/// ⌊kernel_size / 2⌋, 0, n − kernel_size). Near a border the window is moved inside, so every query has the same number
/// of keys. With a dilation d, the rule is applied separately to the positions of each remainder modulo d.
///
/// The positions are counted row by row: the last dimension is the fastest. L and S must be the number of positions.
///
/// Differs from SlidingWindow, whose window is cut at a border.
///
/// Source: Hassani et al., "Neighborhood Attention Transformer", 2023, and "Dilated Neighborhood Attention
/// Transformer", 2022. The rule at borders is that of the library NATTEN.
///
/// @code
/// attend::NeighborhoodMask mask({56, 56}, {7, 7});  // an image, 7 × 7 keys for each pixel
/// torch::Tensor y = attend::flex_attention(q, k, v, attend::Unchanged{}, mask);
/// @endcode
class NeighborhoodMask : public detail::MaskOperators {
 public:
  /// The mask for a grid of positions.
  ///
  /// @param sizes The sizes of the grid, 1 to 3 numbers, each at least 1. Their product is at most 2²¹.
  /// @param kernel_size The size of the window in each dimension, at least 1.
  /// @param dilation The step between neighbours in each dimension, at least 1. Default: 1. kernel_size · dilation must
  /// not exceed the size.
  /// @throws std::invalid_argument for numbers out of range, or if the arguments differ in their number of dimensions.
  NeighborhoodMask(const std::vector<std::int64_t>& sizes, const std::vector<std::int64_t>& kernel_size,
                   const std::vector<std::int64_t>& dilation = {})
      : grid_("attend::NeighborhoodMask: sizes", sizes) {
    const std::vector<std::int64_t> steps = dilation.empty() ? std::vector<std::int64_t>(sizes.size(), 1) : dilation;
    const auto check = [&](const char* name, const std::vector<std::int64_t>& given) {
      if (given.size() != sizes.size())
        throw std::invalid_argument(std::string("attend::NeighborhoodMask: ") + name + " (" +
                                    std::to_string(given.size()) + " numbers) must have as many numbers as sizes (" +
                                    std::to_string(sizes.size()) + ")");
      for (const std::int64_t number : given)
        if (number < 1)
          throw std::invalid_argument(std::string("attend::NeighborhoodMask: ") + name + " must be at least 1, got " +
                                      std::to_string(number));
    };
    check("kernel_size", kernel_size);
    check("dilation", steps);
    for (std::size_t d = 0; d < sizes.size(); ++d) {
      if (kernel_size[d] > sizes[d] / steps[d])
        throw std::invalid_argument("attend::NeighborhoodMask: kernel_size (" + std::to_string(kernel_size[d]) +
                                    ") times dilation (" + std::to_string(steps[d]) +
                                    ") must not exceed the size of the dimension (" + std::to_string(sizes[d]) + ")");
      const std::size_t axis = detail::PositionGrid::kAxes - sizes.size() + d;
      axes_[axis] =
          Axis(grid_.sizes[axis], static_cast<std::int32_t>(kernel_size[d]), static_cast<std::int32_t>(steps[d]));
    }
  }

  /// Called by attention for a query and a key: whether the query may attend to the key.
  ATTEND_HOST_DEVICE bool operator()(Coordinate at) const {
    const detail::PositionGrid::Point query = grid_.point(at.query), key = grid_.point(at.key);
    int is_allowed = 1;
    for (int d = 0; d < detail::PositionGrid::kAxes; ++d) is_allowed &= axes_[d].allows(query.at[d], key.at[d]);
    return is_allowed != 0;
  }
  /// Called by attention for a block of queries: a range of keys outside of which no query of the block attends.
  ATTEND_HOST_DEVICE KeyRange keys(QueryBlock block) const {
    const detail::PositionGrid::Point first = grid_.point(block.query_begin), last = grid_.point(block.query_end - 1);
    // A range of planes, or of rows if there is only one plane, or of positions if there is only one row.
    const int d = grid_.sizes[0] > 1 ? 0 : grid_.sizes[1] > 1 ? 1 : 2;
    const std::int32_t positions = (d < 1 ? grid_.sizes[1] : 1) * (d < 2 ? grid_.sizes[2] : 1);
    const KeyRange range = axes_[d].keys(first.at[d], last.at[d]);
    return {range.begin * positions, range.end * positions};
  }
  /// Called by attention for a block of queries and keys: how much of it is allowed.
  ATTEND_HOST_DEVICE MaskCover cover(QueryBlock queries, KeyRange keys) const {
    const detail::PositionGrid::Point first = grid_.point(queries.query_begin),
                                      last = grid_.point(queries.query_end - 1), first_key = grid_.point(keys.begin),
                                      last_key = grid_.point(keys.end - 1);
    bool is_full = true;
    for (int d = 0; d < detail::PositionGrid::kAxes; ++d) {
      const KeyRange any = axes_[d].keys(first.at[d], last.at[d]);
      if (last_key.at[d] < any.begin || any.end <= first_key.at[d]) return MaskCover::kEmpty;
      is_full = is_full && axes_[d].allows_all(first.at[d], last.at[d], first_key.at[d], last_key.at[d]);
      // The block has several planes or rows: in the dimensions that follow, all positions may occur.
      if (first.at[d] != last.at[d] || first_key.at[d] != last_key.at[d]) {
        for (int rest = d + 1; rest < detail::PositionGrid::kAxes; ++rest)
          is_full = is_full && axes_[rest].allows_all(0, grid_.sizes[rest] - 1, 0, grid_.sizes[rest] - 1);
        break;
      }
    }
    return is_full ? MaskCover::kFull : MaskCover::kPartial;
  }
  /// Called by attend::flex_attention(): checks the sizes of the call. The kernels without LibTorch do not check them.
  ///
  /// @param binder Gives the sizes of the call.
  /// @return The mask.
  /// @throws c10::ValueError if L or S is not the number of positions of the grid.
  template <class AnyBinder>
  NeighborhoodMask bind(AnyBinder& binder) const {
    binder.check_positions("attend::NeighborhoodMask", "sizes", grid_.positions());
    return *this;
  }

 private:
  struct Axis {
    std::int32_t size = 1, kernel_size = 1, dilation = 1;
    detail::Divisor by_dilation;

    Axis() = default;
    Axis(std::int32_t positions, std::int32_t width, std::int32_t step)
        : size(positions), kernel_size(width), dilation(step), by_dilation(step) {}

    /// The first key of the window of a query. It is an index among the keys with the same remainder as the query.
    ATTEND_HOST_DEVICE constexpr std::int32_t start(std::int32_t quotient, std::int32_t remainder) const {
      const std::int32_t count = by_dilation.quotient(size - remainder + dilation - 1);
      return detail::larger(0, detail::smaller(quotient - kernel_size / 2, count - kernel_size));
    }
    ATTEND_HOST_DEVICE constexpr int allows(std::int32_t query, std::int32_t key) const {
      const std::int32_t quotient = by_dilation.quotient(query), key_quotient = by_dilation.quotient(key);
      const std::int32_t remainder = query - quotient * dilation, key_remainder = key - key_quotient * dilation;
      const std::int32_t distance = key_quotient - start(quotient, remainder);
      return static_cast<int>(remainder == key_remainder) & static_cast<int>(distance >= 0) &
             static_cast<int>(distance < kernel_size);
    }
    /// A range that contains the windows of the queries first … last. Without dilation it is the smallest such range.
    ATTEND_HOST_DEVICE constexpr KeyRange keys(std::int32_t first, std::int32_t last) const {
      if (dilation == 1) return {start(first, 0), start(last, 0) + kernel_size};
      const std::int32_t reach = dilation * (kernel_size - 1);
      return {detail::larger(0, first - reach), detail::smaller(size, last + reach + 1)};
    }
    /// Whether each of the queries first … last may attend to each of the keys. False if that is unknown.
    ATTEND_HOST_DEVICE constexpr bool allows_all(std::int32_t first, std::int32_t last, std::int32_t first_key,
                                                 std::int32_t last_key) const {
      if (dilation != 1) return first == last && first_key == last_key && allows(first, first_key) != 0;
      return first_key >= start(last, 0) && last_key < start(first, 0) + kernel_size;
    }
  };

  detail::PositionGrid grid_;
  Axis axes_[detail::PositionGrid::kAxes];
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
