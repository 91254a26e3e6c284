// SPDX-License-Identifier: MIT
#pragma once

#include <attend/simd/bfloat16.h>
#include <attend/version.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

using simd::BFloat16;

/// The numbers that an operation on rows computes with: float for bfloat16.
template <class Element>
using Computed = std::conditional_t<std::is_same_v<Element, BFloat16>, float, Element>;

/// Three sizes, or three strides in numbers.
using Three = std::array<std::int64_t, 3>;

/// Rows of adjacent numbers in three dimensions.
template <class T>
struct Rows {
  T* data;
  Three strides;

  T* row(const Three& index) const {
    return data + index[0] * strides[0] + index[1] * strides[1] + index[2] * strides[2];
  }
};

/// Calls work(index of the first row, number of rows) for rows `begin` to `end` − 1 in the order of the sizes, so that
/// the rows of a call have the same distance, the last stride.
template <class Work>
void for_each_run(const Three& sizes, std::int64_t begin, std::int64_t end, const Work& work) {
  while (begin < end) {
    const std::int64_t last = begin % sizes[2], run = begin / sizes[2];
    const std::int64_t count = std::min(sizes[2] - last, end - begin);
    work(Three{run / sizes[1], run % sizes[1], last}, count);
    begin += count;
  }
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
