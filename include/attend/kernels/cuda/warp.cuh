// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cuda/instructions.cuh>
#include <attend/macros.h>
#include <attend/version.h>

#include <cmath>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

/// The larger number, or the other one if one is NaN.
ATTEND_HOST_DEVICE inline float larger_number(float a, float b) { return std::fmax(a, b); }
ATTEND_HOST_DEVICE inline double larger_number(double a, double b) { return std::fmax(a, b); }

/// The largest number of kLanes neighbouring lanes, a power of 2.
template <int kLanes, class T>
ATTEND_HOST_DEVICE T largest_of_lanes(T value) {
  ATTEND_UNROLL
  for (int step = kLanes / 2; step > 0; step /= 2) value = larger_number(value, shuffle_xor(value, step));
  return value;
}

/// The sum of kLanes neighbouring lanes, a power of 2. All of them get the same bits.
template <int kLanes, class T>
ATTEND_HOST_DEVICE T sum_of_lanes(T value) {
  ATTEND_UNROLL
  for (int step = kLanes / 2; step > 0; step /= 2) value += shuffle_xor(value, step);
  return value;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
