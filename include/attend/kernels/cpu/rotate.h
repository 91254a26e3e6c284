// SPDX-License-Identifier: MIT
#pragma once

// The rotation of pairs of numbers by tables of cos and sin: rotary embeddings, forward and backward.

#include <attend/kernels/cpu/rows.h>
#include <attend/macros.h>
#include <attend/simd/dispatch.h>
#include <attend/simd/interleave.h>
#include <attend/simd/portable.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Rotates `rows` rows: pair (a, b) number i becomes (a cosᵢ − b sinᵢ, b cosᵢ + a sinᵢ), where sinᵢ is multiplied by
/// `sign`. The pairs are numbers i and i + pairs, or 2i and 2i + 1 with kIsInterleaved. The other numbers up to `width`
/// are copied. x and y must not overlap, or must be the same rows.
template <class Element, bool kIsInterleaved>
struct RotateRows {
  using T = Computed<Element>;

  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const Element* x, std::int64_t x_row, Element* y, std::int64_t y_row,
                                       const T* cos, std::int64_t cos_row, const T* sin, std::int64_t sin_row,
                                       std::int64_t rows, int pairs, int width, T sign) {
    for (std::int64_t row = 0; row < rows; ++row, x += x_row, y += y_row, cos += cos_row, sin += sin_row) {
      int i = 0;
      some_pairs<Isa::kVectorBytes>(x, y, cos, sin, i, pairs, sign);
      for (; i < pairs; ++i) {
        const int first = kIsInterleaved ? 2 * i : i, second = kIsInterleaved ? 2 * i + 1 : i + pairs;
        const T a = static_cast<T>(x[first]), b = static_cast<T>(x[second]), s = sin[i] * sign;
        y[first] = Element(a * cos[i] - b * s);
        y[second] = Element(b * cos[i] + a * s);
      }
      for (int d = 2 * pairs; d < width && x != y; ++d) y[d] = x[d];
    }
  }

 private:
  /// Rotates pairs in vectors of kBytes, then the others in vectors of half the size, down to 16 bytes.
  template <int kBytes>
  static ATTEND_ALWAYS_INLINE void some_pairs(const Element* x, Element* y, const T* cos, const T* sin, int& i,
                                              int pairs, T sign) {
    using Isa = simd::PortableOf<kBytes>;
    using Vec = simd::Vec<T, Isa>;
    constexpr int kLanes = Vec::kLanes;
    for (; i + kLanes <= pairs; i += kLanes) {
      const int first = kIsInterleaved ? 2 * i : i, second = kIsInterleaved ? 2 * i + kLanes : i + pairs;
      typename Vec::Vector a, b, c, s;
      Vec::load(a, x + first);
      Vec::load(b, x + second);
      Vec::load(c, cos + i);
      Vec::load(s, sin + i);
      s *= sign;
      if constexpr (kIsInterleaved) simd::Pairs<T, Isa>::split(a, b);
      typename Vec::Vector rotated_a = a * c - b * s, rotated_b = b * c + a * s;
      if constexpr (kIsInterleaved) simd::Pairs<T, Isa>::join(rotated_a, rotated_b);
      Vec::store(y + first, rotated_a);
      Vec::store(y + second, rotated_b);
    }
    if constexpr (kBytes > 16) some_pairs<kBytes / 2>(x, y, cos, sin, i, pairs, sign);
  }
};

/// A rotation of rows in three dimensions. The tables have stride 0 where they are shared.
template <class Element>
struct RotateParams {
  using T = Computed<Element>;

  Three sizes;
  Rows<const Element> x;
  Rows<Element> y;
  Rows<const T> cos, sin;
  int pairs, width;
  bool is_inverse;  // by the negative angles
};

template <class Element>
using RotateFunction = void (*)(const Element* x, std::int64_t x_row, Element* y, std::int64_t y_row,
                                const Computed<Element>* cos, std::int64_t cos_row, const Computed<Element>* sin,
                                std::int64_t sin_row, std::int64_t rows, int pairs, int width, Computed<Element> sign);

template <class Element, class Isa>
RotateFunction<Element> rotate_function(bool is_interleaved) {
  if (is_interleaved) return &simd::CompiledFor<Isa, RotateRows<Element, true>>::call;
  return &simd::CompiledFor<Isa, RotateRows<Element, false>>::call;
}

template <class Element>
RotateFunction<Element> rotate_function(simd::InstructionSet set, bool is_interleaved) {
  return simd::for_isa(set, [&](auto isa) { return rotate_function<Element, decltype(isa)>(is_interleaved); });
}

/// Rotates rows `begin` to `end` − 1, in the order of the sizes.
template <class Element>
void rotate(const RotateParams<Element>& params, RotateFunction<Element> function, std::int64_t begin,
            std::int64_t end) {
  for_each_run(params.sizes, begin, end, [&](const Three& first, std::int64_t rows) {
    function(params.x.row(first), params.x.strides[2], params.y.row(first), params.y.strides[2], params.cos.row(first),
             params.cos.strides[2], params.sin.row(first), params.sin.strides[2], rows, params.pairs, params.width,
             static_cast<Computed<Element>>(params.is_inverse ? -1 : 1));
  });
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
