// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/cpu/four.h>
#include <attend/attention/cpu/instruction_set.h>
#include <attend/attention/cpu/pairs.h>
#include <attend/attention/cpu/tile_operations.h>
#include <attend/attention/cpu/vector.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

// What a stack of convolutions does to rows besides products: a row is one position with its channels side by side, and
// as long as whole vectors, but for rows of few channels.

/// So few channels are not padded to whole vectors; products that would give them sum along vectors instead.
inline constexpr int kFewChannels = 4;

/// How many numbers lie between a position and the next.
constexpr int row_of_channels(int channels) { return channels <= kFewChannels ? channels : (channels + 15) / 16 * 16; }

/// Vectors of 16 numbers at a time, whatever the instruction set: the compilers split them.
inline constexpr int kRunOfRow = 16;

struct Run {
  typedef float Vector __attribute__((vector_size(64)));
  typedef std::uint32_t Words __attribute__((vector_size(64)));
  typedef std::uint16_t Halves __attribute__((vector_size(32)));

  static ATTEND_ALWAYS_INLINE void load(Vector& to, const float* from) { __builtin_memcpy(&to, from, sizeof to); }
  static ATTEND_ALWAYS_INLINE void load(Vector& to, const BFloat16* from) {
    Halves halves;
    __builtin_memcpy(&halves, from, sizeof halves);
    to = (Vector)(__builtin_convertvector(halves, Words) << 16);
  }
  static ATTEND_ALWAYS_INLINE void store(float* to, const Vector& from) { __builtin_memcpy(to, &from, sizeof from); }
  static ATTEND_ALWAYS_INLINE void store(BFloat16* to, const Vector& from) {
    Words rounded;
    round_to_bfloat16(from, rounded);
    const Halves halves = __builtin_convertvector(rounded, Halves);
    __builtin_memcpy(to, &halves, sizeof halves);
  }
};

/// to (rows, width) = from + bias, or max(from + bias, 0), and zeros from `width` to the end of the rows, which hold
/// floats or bfloat16.
template <class Element>
struct FinishRows {
  template <class Set>
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

/// to (rows, width) = from, rounded; whole runs
struct RoundRows {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(const float* from, int from_row, BFloat16* to, int to_row, int rows, int width) {
    Run::Vector x;
    for (int l = 0; l < rows; ++l, from += from_row, to += to_row)
      for (int c = 0; c < width; c += kRunOfRow) {
        Run::load(x, from + c);
        Run::store(to + c, x);
      }
  }
};

/// to (rows, width) = from where output > 0, else 0; and zeros from `width` to the end of the rows
template <class Element>
struct GradientRows {
  template <class Set>
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

/// to[k / 2][c] = (row k[c], row k + 1[c]) in bfloat16, of an even number of rows; neighbours in a row lie side by
/// side.
struct PairFloats {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(const float* from, int row, int rows, std::uint32_t* to) {
    typename Rounded<Set>::Words even, odd;
    constexpr int kLanes = Simd<float, Set>::kLanes;
    for (int k = 0; k < rows; k += 2, from += 2 * row, to += row)
      for (int c = 0; c < row; c += kLanes) {
        Rounded<Set>::load(even, from + c);
        Rounded<Set>::load(odd, from + row + c);
        even |= odd << 16;
        __builtin_memcpy(to + c, &even, sizeof even);
      }
  }
};

/// sums[c] += the column c of (rows, width)
struct AddColumns {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(const float* from, int row, int rows, int width, float* sums) {
    using Simd = attend::cpu::Simd<float, Set>;
    int c = 0;
    for (; c + Simd::kLanes <= width; c += Simd::kLanes) {
      typename Simd::Vector sum{}, next;
      for (int l = 0; l < rows; ++l) {
        Simd::load(next, from + l * row + c);
        sum += next;
      }
      Simd::load(next, sums + c);
      Simd::store(sums + c, sum + next);
    }
    for (; c < width; ++c) {
      float sum = 0;
      for (int l = 0; l < rows; ++l) sum += from[l * row + c];
      sums[c] += sum;
    }
  }
};

/// to[l · to_row + o] = Σ_k rows[l · row + k] · weights[o · weight_row + k]: a product whose result is narrow.
struct NarrowProduct {
  template <class Set>
  static ATTEND_ALWAYS_INLINE void run(const float* from, int row, const float* weights, int weight_row, float* to,
                                       int to_row, int rows, int width, int depth) {
    using Simd = attend::cpu::Simd<float, Set>;
    constexpr int kLanes = Simd::kLanes;
    for (int o = 0; o < width; ++o)
      for (int l = 0; l < rows; ++l) {
        const float *a = from + static_cast<std::int64_t>(l) * row, *b = weights + o * weight_row;
        typename Simd::Vector sums[4]{}, x, w;
        int k = 0;
        for (; k + 4 * kLanes <= depth; k += 4 * kLanes) ATTEND_UNROLL for (int i = 0; i < 4; ++i) {
            Simd::load(x, a + k + i * kLanes);
            Simd::load(w, b + k + i * kLanes);
            sums[i] += x * w;
          }
        for (; k + kLanes <= depth; k += kLanes) {
          Simd::load(x, a + k);
          Simd::load(w, b + k);
          sums[0] += x * w;
        }
        const typename Simd::Vector all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        float sum = 0;
        for (int i = 0; i < kLanes; ++i) sum += all[i];
        for (; k < depth; ++k) sum += a[k] * b[k];
        to[l * to_row + o] = sum;
      }
  }
};

/// All of it, compiled for one instruction set.
struct RowOperations {
  void (*finish)(const float* from, int from_row, const float* bias, float* to, int to_row, int rows, int width,
                 bool has_relu);
  void (*finish_bfloat16)(const float* from, int from_row, const float* bias, BFloat16* to, int to_row, int rows,
                          int width, bool has_relu);
  void (*round)(const float* from, int from_row, BFloat16* to, int to_row, int rows, int width);
  void (*gradient)(const float* from, int from_row, const float* output, int output_row, float* to, int to_row,
                   int rows, int width);
  void (*gradient_bfloat16)(const float* from, int from_row, const BFloat16* output, int output_row, float* to,
                            int to_row, int rows, int width);
  void (*add_columns)(const float* from, int row, int rows, int width, float* sums);
  void (*narrow_product)(const float* from, int row, const float* weights, int weight_row, float* to, int to_row,
                         int rows, int width, int depth);
  void (*pair_floats)(const float* from, int row, int rows, std::uint32_t* to);
};

template <class Set>
inline constexpr RowOperations kRowOperations{&On<Set, FinishRows<float>>::call,
                                              &On<Set, FinishRows<BFloat16>>::call,
                                              &On<Set, RoundRows>::call,
                                              &On<Set, GradientRows<float>>::call,
                                              &On<Set, GradientRows<BFloat16>>::call,
                                              &On<Set, AddColumns>::call,
                                              &On<Set, NarrowProduct>::call,
                                              &On<Set, PairFloats>::call};

inline const RowOperations& row_operations(InstructionSet available) {
  if constexpr (supported<float>(InstructionSet::kAvx512) == InstructionSet::kAvx512) {
    if (available >= InstructionSet::kAvx512) return kRowOperations<Avx512>;
    if (available == InstructionSet::kAvx2) return kRowOperations<Avx2>;
  }
  return kRowOperations<Baseline>;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
