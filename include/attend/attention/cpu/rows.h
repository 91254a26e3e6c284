// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/cpu/four.h>
#include <attend/attention/cpu/product.h>
#include <attend/attention/cpu/tile.h>
#include <attend/version.h>

#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Two neighbouring numbers of bfloat16.
using Pair = std::uint32_t;

/// The rows of one head of a tensor in the caller's memory, which holds T or, if T is float, bfloat16; at any strides
/// (in elements).
template <class T>
struct Rows {
  char* data;
  std::int64_t row, column;
  bool is_bfloat16;

  /// Rows first … first + count − 1 as a matrix (count, width): where they are, or converted into `scratch`.
  Strided<T> rows(std::int64_t first, int count, int width, T* scratch) const {
    if (!is_bfloat16) return {reinterpret_cast<const T*>(data) + first * row, row, column};
    read(first, count, width, scratch, width);
    return {scratch, width, 1};
  }

  /// The same as pairs of neighbouring numbers, of bfloat16: where they are, or copied into `scratch`, the one after an
  /// odd last being zero.
  Strided<Pair> pairs(std::int64_t first, int count, int width, Pair* scratch) const {
    const auto* elements = reinterpret_cast<const std::uint16_t*>(data) + first * row;
    const bool is_aligned = reinterpret_cast<std::uintptr_t>(elements) % sizeof(Pair) == 0;
    if (column == 1 && row % 2 == 0 && width % 2 == 0 && is_aligned)
      return {reinterpret_cast<const Pair*>(elements), row / 2, 1};
    const int pairs = (width + 1) / 2;
    for (int i = 0; i < count; ++i)
      for (int d = 0; d < width; d += 2)
        scratch[i * pairs + d / 2] =
            elements[i * row + d * column] |
            (d + 1 < width ? static_cast<Pair>(elements[i * row + (d + 1) * column]) << 16 : Pair{0});
    return {scratch, pairs, 1};
  }

  /// to[i · to_row + d] = (row first + i)[d]
  void read(std::int64_t first, int count, int width, T* to, std::int64_t to_row) const {
    for_elements([&](const auto* elements) {
      for (int i = 0; i < count; ++i) {
        const auto* from = elements + (first + i) * row;
        T* const to_i = to + i * to_row;
        int d = 0;
        if constexpr (kHasFour)
          if (column == 1)
            for (; d + 4 <= width; d += 4) Four::load(from + d).store(to_i + d);
        for (; d < width; ++d) to_i[d] = static_cast<T>(from[d * column]);
      }
    });
  }

  /// (row first + i)[d] = factor · from[i · from_row + d]
  void write(std::int64_t first, std::int64_t count, int width, T factor, const T* from, std::int64_t from_row) const {
    for_elements([&](auto* elements) {
      using Element = std::remove_reference_t<decltype(*elements)>;
      for (std::int64_t i = 0; i < count; ++i) {
        Element* const to = elements + (first + i) * row;
        const T* const from_i = from + i * from_row;
        int d = 0;
        if constexpr (kHasFour)
          if (column == 1)
            for (; d + 4 <= width; d += 4) Four{Four::load(from_i + d).values * factor}.store(to + d);
        for (; d < width; ++d) to[d * column] = static_cast<Element>(factor * from_i[d]);
      }
    });
  }

  /// Calls action(pointer to the first element), typed.
  template <class Action>
  ATTEND_ALWAYS_INLINE void for_elements(const Action& action) const {
    if constexpr (kHasFour)
      if (is_bfloat16) return action(reinterpret_cast<BFloat16*>(data));
    action(reinterpret_cast<T*>(data));
  }

 private:
  static constexpr bool kHasFour = std::is_same_v<T, float>;
};

/// A tensor (batch, head, row, column) in the caller's memory.
template <class T>
struct TensorRows {
  void* data = nullptr;
  std::int64_t strides[4] = {};
  bool is_bfloat16 = false;

  Rows<T> of(std::int64_t batch, std::int64_t head) const {
    const std::int64_t offset = batch * strides[0] + head * strides[1];
    const std::int64_t element = is_bfloat16 ? sizeof(BFloat16) : sizeof(T);
    return {static_cast<char*>(data) + offset * element, strides[2], strides[3], is_bfloat16};
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
