// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/checks.h>
#include <attend/version.h>

#include <ATen/ops/arange.h>
#include <ATen/ops/meshgrid.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/stack.h>
#include <c10/util/Exception.h>
#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The positions of a packed batch: each sequence counts from 0.
///
/// @param offsets (B + 1), int32 or int64, as AttentionOptions::query_offsets: sequence b has the tokens offsets[b] …
/// offsets[b + 1] − 1.
/// @return int64 (total), where total is the last offset, on the device of offsets.
/// @throws c10::ValueError if offsets is not 1-d with at least one element.
/// @throws c10::TypeError if offsets is not int32 or int64.
///
/// @code
/// torch::Tensor positions = attend::packed_positions(torch::tensor({0, 3, 5}));  // 0, 1, 2, 0, 1
/// @endcode
inline torch::Tensor packed_positions(const torch::Tensor& offsets) {
  const char* const kName = "attend::packed_positions";
  detail::check_tensor(kName, "offsets", offsets);
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) >= 1, kName,
                    ": offsets must be 1-d with at least one element, got ", offsets.sizes());
  TORCH_CHECK_TYPE(offsets.scalar_type() == torch::kInt || offsets.scalar_type() == torch::kLong, kName, ": offsets (",
                   offsets.scalar_type(), ") must be int32 or int64");
  const torch::Tensor starts = offsets.to(torch::kLong);
  const std::int64_t sequences = offsets.size(0) - 1;
  const torch::Tensor start_of_token = at::repeat_interleave(starts.narrow(0, 0, sequences), starts.diff());  // (total)
  return at::arange(start_of_token.size(0), starts.options()) - start_of_token;
}

/// The positions of a grid, row by row, for example of the patches of an image or the squares of a board.
///
/// @param sizes The size of each axis, at least 1: {height, width}, or {depth, height, width}.
/// @return int64 (product of the sizes, number of axes) on the CPU.
/// @throws c10::ValueError if there is no size, or a size is below 1.
///
/// @code
/// torch::Tensor positions = attend::grid_positions({2, 3});  // (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)
/// @endcode
inline torch::Tensor grid_positions(torch::IntArrayRef sizes) {
  const char* const kName = "attend::grid_positions";
  TORCH_CHECK_VALUE(!sizes.empty(), kName, ": sizes must have at least one axis, got none");
  std::vector<torch::Tensor> axes;
  for (const std::int64_t size : sizes) {
    detail::check_positive(kName, "a size", size);
    axes.push_back(at::arange(size, torch::kLong));
  }
  return at::stack(at::meshgrid(axes, "ij"), -1).reshape({-1, static_cast<std::int64_t>(sizes.size())});
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
