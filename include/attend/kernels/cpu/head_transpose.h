// SPDX-License-Identifier: MIT
#pragma once

// Queries, outputs and their gradients are rows in the caller's memory and columns in the kernels. Blocks of them are
// transposed in registers. Copies of single numbers would take a sixth of the time of all products (L = 100).

#include <attend/kernels/cpu/head_view.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/macros.h>
#include <attend/simd/bfloat16.h>
#include <attend/simd/transpose.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// to[d · kTileQueries + i] = factor · (row first + i)[d], and zeros for count ≤ i < columns.
template <class T>
struct ReadTransposed {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const HeadView<T>& rows, std::int64_t first, int count, int columns, int width,
                                       T factor, T* to) {
    if constexpr (std::is_same_v<T, float>)
      if (rows.is_bfloat16)
        return run_typed<Isa>(reinterpret_cast<const BFloat16*>(rows.data), rows, first, count, columns, width, factor,
                              to);
    run_typed<Isa>(reinterpret_cast<const T*>(rows.data), rows, first, count, columns, width, factor, to);
  }

 private:
  template <class Isa, class Element>
  static ATTEND_ALWAYS_INLINE void run_typed(const Element* elements, const HeadView<T>& rows, std::int64_t first,
                                             int count, int columns, int width, T factor, T* to) {
    constexpr int kLanes = Vec<T, Isa>::kLanes;
    elements += first * rows.row;
    int d = 0;
    if (rows.column == 1)
      for (; d + kLanes <= width; d += kLanes)
        for (int i = 0; i < columns; i += kLanes) {
          VecBlock<T, Isa> block{};
          ATTEND_UNROLL for (int r = 0; r < kLanes; ++r) if (i + r < count) {
            Vec<T, Isa>::load(block.rows[r], elements + (i + r) * rows.row + d);
            block.rows[r] *= factor;
          }
          block.transpose();
          ATTEND_UNROLL for (int r = 0; r < kLanes; ++r)
              Vec<T, Isa>::store(to + (d + r) * kTileQueries + i, block.rows[r]);
        }
    for (; d < width; ++d)
      for (int i = 0; i < columns; ++i)
        to[d * kTileQueries + i] = i < count ? factor * static_cast<T>(elements[i * rows.row + d * rows.column]) : T(0);
  }
};

/// (row first + i)[d] = factor · from[d · kTileQueries + i].
template <class T>
struct WriteTransposed {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const HeadView<T>& rows, std::int64_t first, int count, int width, T factor,
                                       const T* from) {
    if constexpr (std::is_same_v<T, float>)
      if (rows.is_bfloat16)
        return run_typed<Isa>(reinterpret_cast<BFloat16*>(rows.data), rows, first, count, width, factor, from);
    run_typed<Isa>(reinterpret_cast<T*>(rows.data), rows, first, count, width, factor, from);
  }

 private:
  template <class Isa, class Element>
  static ATTEND_ALWAYS_INLINE void run_typed(Element* elements, const HeadView<T>& rows, std::int64_t first, int count,
                                             int width, T factor, const T* from) {
    constexpr int kLanes = Vec<T, Isa>::kLanes;
    elements += first * rows.row;
    int d = 0;
    if (rows.column == 1)
      for (; d + kLanes <= width; d += kLanes)
        for (int i = 0; i < count; i += kLanes) {
          VecBlock<T, Isa> block;
          ATTEND_UNROLL for (int r = 0; r < kLanes; ++r) {
            Vec<T, Isa>::load(block.rows[r], from + (d + r) * kTileQueries + i);
            block.rows[r] *= factor;
          }
          block.transpose();
          ATTEND_UNROLL for (int r = 0; r < kLanes; ++r) if (i + r < count)
              Vec<T, Isa>::store(elements + (i + r) * rows.row + d, block.rows[r]);
        }
    for (; d < width; ++d)
      for (int i = 0; i < count; ++i)
        elements[i * rows.row + d * rows.column] = static_cast<Element>(factor * from[d * kTileQueries + i]);
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
