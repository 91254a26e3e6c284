// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cpu/bf16_operations.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/macros.h>
#include <attend/simd/bfloat16.h>
#include <attend/simd/dispatch.h>
#include <attend/simd/portable.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

// The operations of a stack of convolutions on rows, besides products. A row is one position, its channels side by
// side. Rows are padded to whole vectors, except those of few channels.

/// Rows of up to kFewChannels channels are not padded to whole vectors. Products with such a result sum along vectors.
inline constexpr int kFewChannels = 4;

/// The distance between two positions, in numbers.
constexpr int row_of_channels(int channels) { return channels <= kFewChannels ? channels : (channels + 15) / 16 * 16; }

/// These operations work on 16 numbers at a time on every instruction set. The compilers split such vectors.
inline constexpr int kRunOfRow = 16;

using Run = simd::Vec<float, PortableOf<64>>;

/// to (rows, width) = from + bias, or max(from + bias, 0) with has_relu. The rows of `to` end with zeros. Element is
/// float or BFloat16.
template <class Element>
struct FinishRows {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const float* from, int from_row, const float* bias, Element* to, int to_row,
                                       int rows, int width, bool has_relu) {
    const float least = has_relu ? 0.0f : -__builtin_inff();
    for (int l = 0; l < rows; ++l, from += from_row, to += to_row) {
      int c = 0;
      Run::Vector x, b;
      for (; c + kRunOfRow <= width; c += kRunOfRow) {
        Run::load(x, from + c);
        Run::load(b, bias + c);
        x += b;
        Run::store(to + c, x < least ? Run::Vector{} + least : x);  // NaN stays NaN, as in torch
      }
      for (; c < width; ++c) {
        const float y = from[c] + bias[c];
        to[c] = Element(y < least ? least : y);
      }
      for (; c < to_row; ++c) to[c] = Element(0.0f);
    }
  }
};

/// to (rows, width) = from where output > 0, else 0. The rows of `to` end with zeros.
template <class Element>
struct GradientRows {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const float* from, int from_row, const Element* output, int output_row,
                                       float* to, int to_row, int rows, int width) {
    for (int l = 0; l < rows; ++l, from += from_row, output += output_row, to += to_row) {
      int c = 0;
      Run::Vector x, y;
      for (; c + kRunOfRow <= width; c += kRunOfRow) {
        Run::load(x, from + c);
        Run::load(y, output + c);
        Run::store(to + c, y <= 0.0f ? Run::Vector{} : x);
      }
      for (; c < width; ++c) to[c] = static_cast<float>(output[c]) <= 0.0f ? 0.0f : from[c];
      for (; c < to_row; ++c) to[c] = 0.0f;
    }
  }
};

/// Packs pairs of neighbouring rows: to[k / 2][c] = (row k[c], row k + 1[c]) in bfloat16. The number of rows must be
/// even.
struct PackFloatsBf16 {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const float* from, int row, int rows, std::uint32_t* to) {
    typename Vec<float, Isa>::Integers even, odd;
    constexpr int kLanes = Vec<float, Isa>::kLanes;
    for (int k = 0; k < rows; k += 2, from += 2 * row, to += row)
      for (int c = 0; c < row; c += kLanes) {
        load_rounded<Isa>(even, from + c);
        load_rounded<Isa>(odd, from + row + c);
        even |= odd << 16;
        __builtin_memcpy(to + c, &even, sizeof even);
      }
  }
};

/// sums[c] += Σ of column c of (rows, width).
struct AddColumns {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const float* from, int row, int rows, int width, float* sums) {
    using Vec = attend::simd::Vec<float, Isa>;
    int c = 0;
    for (; c + Vec::kLanes <= width; c += Vec::kLanes) {
      typename Vec::Vector sum{}, next;
      for (int l = 0; l < rows; ++l) {
        Vec::load(next, from + l * row + c);
        sum += next;
      }
      Vec::load(next, sums + c);
      Vec::store(sums + c, sum + next);
    }
    for (; c < width; ++c) {
      float sum = 0;
      for (int l = 0; l < rows; ++l) sum += from[l * row + c];
      sums[c] += sum;
    }
  }
};

/// A product with a narrow result: to[l · to_row + o] = Σ_k rows[l · row + k] · weights[o · weight_row + k].
struct NarrowProduct {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const float* from, int row, const float* weights, int weight_row, float* to,
                                       int to_row, int rows, int width, int depth) {
    using Vec = attend::simd::Vec<float, Isa>;
    constexpr int kLanes = Vec::kLanes;
    for (int o = 0; o < width; ++o)
      for (int l = 0; l < rows; ++l) {
        const float *a = from + static_cast<std::int64_t>(l) * row, *b = weights + o * weight_row;
        typename Vec::Vector sums[4]{}, x, w;
        int k = 0;
        for (; k + 4 * kLanes <= depth; k += 4 * kLanes) ATTEND_UNROLL for (int i = 0; i < 4; ++i) {
            Vec::load(x, a + k + i * kLanes);
            Vec::load(w, b + k + i * kLanes);
            sums[i] += x * w;
          }
        for (; k + kLanes <= depth; k += kLanes) {
          Vec::load(x, a + k);
          Vec::load(w, b + k);
          sums[0] += x * w;
        }
        const typename Vec::Vector all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        float sum = 0;
        for (int i = 0; i < kLanes; ++i) sum += all[i];
        for (; k < depth; ++k) sum += a[k] * b[k];
        to[l * to_row + o] = sum;
      }
  }
};

/// The operations above, compiled for one instruction set.
struct RowOperations {
  void (*finish)(const float* from, int from_row, const float* bias, float* to, int to_row, int rows, int width,
                 bool has_relu);
  void (*finish_bfloat16)(const float* from, int from_row, const float* bias, BFloat16* to, int to_row, int rows,
                          int width, bool has_relu);
  void (*gradient)(const float* from, int from_row, const float* output, int output_row, float* to, int to_row,
                   int rows, int width);
  void (*gradient_bfloat16)(const float* from, int from_row, const BFloat16* output, int output_row, float* to,
                            int to_row, int rows, int width);
  void (*add_columns)(const float* from, int row, int rows, int width, float* sums);
  void (*narrow_product)(const float* from, int row, const float* weights, int weight_row, float* to, int to_row,
                         int rows, int width, int depth);
  void (*pack_floats)(const float* from, int row, int rows, std::uint32_t* to);
};

template <class Isa>
inline constexpr RowOperations kRowOperations{&CompiledFor<Isa, FinishRows<float>>::call,
                                              &CompiledFor<Isa, FinishRows<BFloat16>>::call,
                                              &CompiledFor<Isa, GradientRows<float>>::call,
                                              &CompiledFor<Isa, GradientRows<BFloat16>>::call,
                                              &CompiledFor<Isa, AddColumns>::call,
                                              &CompiledFor<Isa, NarrowProduct>::call,
                                              &CompiledFor<Isa, PackFloatsBf16>::call};

inline const RowOperations& row_operations(InstructionSet set) {
  return for_isa(set, [](auto isa) -> const RowOperations& { return kRowOperations<decltype(isa)>; });
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
