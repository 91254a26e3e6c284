// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/macros.h>
#include <attend/simd/bfloat16.h>
#include <attend/simd/portable.h>
#include <attend/simd/product.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// to[0 … 3] = factor · from[0 … 3], in vectors of the baseline. Either may be bfloat16.
template <class From, class To>
ATTEND_ALWAYS_INLINE void copy_four(const From* from, To* to, float factor = 1.0f) {
  using Vec = simd::Vec<float, Portable>;
  Vec::Vector four;
  Vec::load(four, from);
  Vec::store(to, four * factor);
}

/// The rows of one head in the caller's memory, at any strides (in numbers). Entry (i, d) is
/// i · row + d · column numbers after `data`. The numbers are T or, if T is float, bfloat16.
template <class T>
struct HeadView {
  char* data;
  std::int64_t row, column;
  bool is_bfloat16;

  /// The size of a number, in bytes.
  std::int64_t number_size() const { return is_bfloat16 ? sizeof(BFloat16) : sizeof(T); }

  /// Rows first … first + count − 1 as a matrix (count, width): in place, or converted into `scratch`.
  Strided<T> rows(std::int64_t first, int count, int width, T* scratch) const {
    if (!is_bfloat16) return {reinterpret_cast<const T*>(data) + first * row, row, column};
    read(first, count, width, scratch, width);
    return {scratch, width, 1};
  }

  /// The same rows as pairs of neighbouring bfloat16 numbers: in place, or copied into `scratch`. If `width` is odd,
  /// the last pair ends with 0.
  Strided<Bf16x2> pairs(std::int64_t first, int count, int width, Bf16x2* scratch) const {
    const auto* elements = reinterpret_cast<const std::uint16_t*>(data) + first * row;
    const bool is_aligned = reinterpret_cast<std::uintptr_t>(elements) % sizeof(Bf16x2) == 0;
    if (column == 1 && row % 2 == 0 && width % 2 == 0 && is_aligned)
      return {reinterpret_cast<const Bf16x2*>(elements), row / 2, 1};
    copy_pairs(first, count, width, scratch);
    return {scratch, (width + 1) / 2, 1};
  }

  /// The same rows as pairs, copied.
  void copy_pairs(std::int64_t first, int count, int width, Bf16x2* to) const {
    const auto* elements = reinterpret_cast<const std::uint16_t*>(data) + first * row;
    const int pairs = (width + 1) / 2;
    for (int i = 0; i < count; ++i)
      for (int d = 0; d < width; d += 2)
        to[i * pairs + d / 2] =
            elements[i * row + d * column] |
            (d + 1 < width ? static_cast<Bf16x2>(elements[i * row + (d + 1) * column]) << 16 : Bf16x2{0});
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
            for (; d + 4 <= width; d += 4) copy_four(from + d, to_i + d);
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
            for (; d + 4 <= width; d += 4) copy_four(from_i + d, to + d, factor);
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

/// A tensor (N, H, rows, columns) in the caller's memory.
template <class T>
class HeadTensor {
 public:
  HeadTensor() = default;
  HeadTensor(const ConstTensorView4d& view, bool is_bfloat16) : view_(view), is_bfloat16_(is_bfloat16) {}

  HeadView<T> of(std::int64_t batch, std::int64_t head) const {
    // A tensor without numbers may be a null pointer, which takes no offset.
    const std::int64_t offset = view_.data == nullptr ? 0 : batch * view_.strides[0] + head * view_.strides[1];
    const std::int64_t element = is_bfloat16_ ? sizeof(BFloat16) : sizeof(T);
    // The kernels write only to tensors that were given as TensorView4d.
    return {static_cast<char*>(const_cast<void*>(view_.data)) + offset * element, view_.strides[2], view_.strides[3],
            is_bfloat16_};
  }

 private:
  ConstTensorView4d view_;
  bool is_bfloat16_ = false;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
