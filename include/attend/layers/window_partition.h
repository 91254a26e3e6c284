// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/checks.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

namespace detail {

inline std::int64_t product_of(torch::IntArrayRef sizes) {
  std::int64_t product = 1;
  for (const std::int64_t size : sizes) product *= size;
  return product;
}

inline void check_windows(const char* name, torch::IntArrayRef sizes, torch::IntArrayRef window_size) {
  TORCH_CHECK_VALUE(!window_size.empty() && window_size.size() <= 3, name,
                    ": window_size must have 1 to 3 numbers, got ", window_size);
  TORCH_CHECK_VALUE(sizes.size() == window_size.size(), name, ": window_size ", window_size,
                    " must have as many numbers as the signal has dimensions, got ", sizes);
  for (std::size_t d = 0; d < sizes.size(); ++d)
    TORCH_CHECK_VALUE(window_size[d] >= 1 && sizes[d] >= 1 && sizes[d] % window_size[d] == 0, name, ": the signal ",
                      sizes, " must be divisible by window_size ", window_size);
}

/// The permutation between the dimensions (N, s¹/M¹, M¹, …, sⁿ/Mⁿ, Mⁿ, C) and (N, s¹/M¹, …, sⁿ/Mⁿ, M¹, …, Mⁿ, C). With
/// counts_first it leads to the second order, otherwise to the first.
inline std::vector<std::int64_t> order_of_windows(std::size_t axes, bool counts_first) {
  std::vector<std::int64_t> order{0};
  const auto n = static_cast<std::int64_t>(axes);
  for (std::int64_t d = 0; d < n; ++d)
    if (counts_first)
      order.push_back(1 + 2 * d);
    else
      order.insert(order.end(), {1 + d, 1 + n + d});
  for (std::int64_t d = 0; counts_first && d < n; ++d) order.push_back(2 + 2 * d);
  order.push_back(1 + 2 * n);
  return order;
}

}  // namespace detail

/// Cuts a signal, an image or a volume into windows that do not overlap.
///
/// Window w of entry n becomes the batch entry n · W + w, with W = Π (size / window_size). The windows, and the
/// positions in a window, are counted row by row.
///
/// @param x (N, s¹, …, sⁿ, C) with n = 1, 2 or 3.
/// @param window_size The sizes M of a window, n numbers. Each must divide the size of x.
/// @return (N · W, Π M, C)
/// @throws c10::ValueError if x is not (N, s¹, …, sⁿ, C), or a window size does not divide the size of x.
///
/// Differs from the source: the positions of a window are one dimension, as attention needs them.
///
/// Source: Liu et al., "Swin Transformer", 2021.
///
/// @code
/// torch::Tensor windows = attend::window_partition(x, {7, 7});        // (N, 56, 56, C) → (N · 64, 49, C)
/// torch::Tensor back = attend::window_reverse(windows, {7, 7}, {56, 56});  // (N, 56, 56, C)
/// @endcode
inline torch::Tensor window_partition(const torch::Tensor& x, torch::IntArrayRef window_size) {
  const char* const kName = "attend::window_partition";
  detail::check_tensor(kName, "x", x);
  TORCH_CHECK_VALUE(x.dim() >= 3 && x.dim() <= 5, kName,
                    ": x must be (N, length, C), (N, height, width, C) or (N, depth, height, width, C), got ",
                    x.sizes());
  const torch::IntArrayRef sizes = x.sizes().slice(1, x.sizes().size() - 2);
  detail::check_windows(kName, sizes, window_size);
  std::vector<std::int64_t> cut{x.size(0)};
  for (std::size_t d = 0; d < sizes.size(); ++d) cut.insert(cut.end(), {sizes[d] / window_size[d], window_size[d]});
  cut.push_back(x.size(-1));
  const std::int64_t positions = detail::product_of(window_size), windows = detail::product_of(sizes) / positions;
  return x.reshape(cut)
      .permute(detail::order_of_windows(sizes.size(), /*counts_first=*/true))
      .reshape({x.size(0) * windows, positions, x.size(-1)});
}

/// The inverse of window_partition().
///
/// @param windows (N · W, Π M, C)
/// @param window_size The sizes M of a window, 1 to 3 numbers.
/// @param sizes The sizes s of the signal, as many numbers as window_size. Each must be divisible by the window size.
/// @return (N, s¹, …, sⁿ, C)
/// @throws c10::ValueError if the sizes of windows do not fit window_size and sizes.
///
/// Source: Liu et al., "Swin Transformer", 2021.
///
/// @code
/// torch::Tensor y = attend::window_reverse(x, {7, 7}, {56, 56});  // (N · 64, 49, C) → (N, 56, 56, C)
/// @endcode
inline torch::Tensor window_reverse(const torch::Tensor& windows, torch::IntArrayRef window_size,
                                    torch::IntArrayRef sizes) {
  const char* const kName = "attend::window_reverse";
  detail::check_tensor(kName, "windows", windows);
  detail::check_windows(kName, sizes, window_size);
  const std::int64_t positions = detail::product_of(window_size), count = detail::product_of(sizes) / positions;
  TORCH_CHECK_VALUE(windows.dim() == 3 && windows.size(1) == positions && windows.size(0) % count == 0, kName,
                    ": windows must be (N · ", count, ", ", positions, ", C), got ", windows.sizes());
  const std::int64_t batch = windows.size(0) / count, channels = windows.size(2);
  std::vector<std::int64_t> cut{batch}, whole{batch};
  for (std::size_t d = 0; d < sizes.size(); ++d) cut.push_back(sizes[d] / window_size[d]);
  cut.insert(cut.end(), window_size.begin(), window_size.end());
  cut.push_back(channels);
  whole.insert(whole.end(), sizes.begin(), sizes.end());
  whole.push_back(channels);
  return windows.reshape(cut).permute(detail::order_of_windows(sizes.size(), /*counts_first=*/false)).reshape(whole);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
