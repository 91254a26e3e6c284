// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/simd/math.h>
#include <attend/version.h>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/warp.cuh>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

/// The online softmax of the rows of a tile that a thread has a part of.
///
/// A thread has parts of 2 rows, g = lane / 4 and g + 8: operand C of m16n8. scores[4 n + 2 r + e] is column
/// 8 n + 2 (lane % 4) + e of row g + 8 r. Four neighbouring lanes have a row together.
class OnlineSoftmax {
 public:
  /// Turns the scores of the next kCount / 2 columns into weights 2^(factor · (score − largest)), where `largest` is
  /// the largest score of the row so far. `rescale` becomes the factors of all sums over earlier columns. factor > 0.
  template <int kCount>
  ATTEND_HOST_DEVICE void step(float (&scores)[kCount], float factor, float (&rescale)[2]) {
    constexpr float kMasked = -simd::FloatFormat<float>::kInfinity;
    ATTEND_UNROLL
    for (int r = 0; r < 2; ++r) {
      float largest = kMasked;
      ATTEND_UNROLL
      for (int n = 0; n < kCount; n += 4)
        largest = larger_number(scores[n + 2 * r + 1], larger_number(scores[n + 2 * r], largest));
      largest = larger_number(largest_of_lanes<4>(largest), largest_[r]);
      const float shift = largest == kMasked ? 0.0f : largest * factor;  // −∞ less −∞ would be NaN
      // 1 exactly if the largest score is the old one: not a difference of two products, one of which would be rounded.
      rescale[r] = exp2_fast(largest == kMasked ? 0.0f : (largest_[r] - largest) * factor);
      largest_[r] = largest;
      float sum = 0;
      ATTEND_UNROLL
      for (int n = 0; n < kCount; n += 4) {
        ATTEND_UNROLL
        for (int e = 0; e < 2; ++e) {
          float& score = scores[n + 2 * r + e];
          score = exp2_fast(score * factor - shift);
          sum += score;
        }
      }
      sum_[r] = sum_[r] * rescale[r] + sum;
    }
  }

  /// The largest score of row r (0 or 1) of this thread.
  ATTEND_HOST_DEVICE float largest(int r) const { return largest_[r]; }
  /// The sum of the weights of row r. All lanes of the warp call it.
  ATTEND_HOST_DEVICE float sum(int r) const { return sum_of_lanes<4>(sum_[r]); }

 private:
  float largest_[2] = {-simd::FloatFormat<float>::kInfinity, -simd::FloatFormat<float>::kInfinity};
  float sum_[2] = {};  // over the columns of this thread
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
