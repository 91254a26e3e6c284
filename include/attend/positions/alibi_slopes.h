// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/checks.h>
#include <attend/version.h>

#include <torch/types.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The slopes of attention with linear biases (ALiBi), one for each head.
///
/// With H a power of two, the slope of head h is 2^(−8 (h + 1) / H). For other H, the first heads have the slopes of
/// the next smaller power of two, and the others have every second slope of the power of two after it.
///
/// @param num_heads The number of query heads H, at least 1.
/// @return (H), float64 on the CPU.
/// @throws c10::ValueError if num_heads is below 1.
///
/// Source: Press et al., "Train short, test long", 2022, and its code for other H than powers of two.
///
/// @code
/// torch::Tensor slopes = attend::alibi_slopes(8).to(torch::kFloat);
/// torch::Tensor y = attend::attention(q, k, v, attend::AttentionOptions().is_causal(true).alibi_slopes(slopes));
/// @endcode
inline torch::Tensor alibi_slopes(std::int64_t num_heads) {
  detail::check_positive("attend::alibi_slopes", "num_heads", num_heads);
  const auto power = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(num_heads)));
  std::vector<double> slopes;
  for (std::int64_t h = 1; h <= power; ++h)
    slopes.push_back(std::exp2(-8.0 * static_cast<double>(h) / static_cast<double>(power)));
  for (std::int64_t h = 1; h <= num_heads - power; ++h)
    slopes.push_back(std::exp2(-8.0 * static_cast<double>(2 * h - 1) / static_cast<double>(2 * power)));
  return torch::tensor(slopes, torch::kDouble);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
