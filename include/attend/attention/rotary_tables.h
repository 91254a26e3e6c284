// SPDX-License-Identifier: MIT
#pragma once

#include <attend/score/rotary_layout.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The tables of a rotary embedding: cos and sin of R/2 angles for each row of queries or keys.
///
/// RotaryEmbedding::cos_sin() makes them. rotate() and AttentionOptions::rotary() take them.
struct RotaryTables {
  at::Tensor cos,                                  ///< (L, R/2) or (N, L, R/2)
      sin;                                         ///< the same sizes
  RotaryLayout layout = RotaryLayout::kHalfSplit;  ///< which two numbers are one pair
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
