// SPDX-License-Identifier: MIT
#pragma once

// Root mean square normalization of rows: y = x · r · weight with r = 1 / √(mean(x²) + eps).

#include <attend/kernels/cpu/rows.h>
#include <attend/macros.h>
#include <attend/simd/dispatch.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// The sum of term(x[i], …) over a row. Several partial sums hide the latency of an addition and halve the error.
template <class T, class Isa>
struct SumOfRow {
  using Vec = simd::Vec<T, Isa>;
  static constexpr int kParts = 4;

  typename Vec::Vector parts[kParts]{};

  ATTEND_ALWAYS_INLINE T total() const {
    const typename Vec::Vector all = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    T sum = 0;
    for (int i = 0; i < Vec::kLanes; ++i) sum += all[i];
    return sum;
  }
};

/// Normalizes rows. Writes r of each row to `inverses`.
template <class Element>
struct RmsNormRows {
  using T = Computed<Element>;

  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const Element* x, std::int64_t x_row, Element* y, std::int64_t y_row,
                                       const T* weight, T* inverses, std::int64_t rows, int width, T eps) {
    using Vec = simd::Vec<T, Isa>;
    constexpr int kLanes = Vec::kLanes, kParts = SumOfRow<T, Isa>::kParts;
    typename Vec::Vector value, factor;
    for (std::int64_t row = 0; row < rows; ++row, x += x_row, y += y_row) {
      SumOfRow<T, Isa> squares;
      int i = 0;
      for (; i + kParts * kLanes <= width; i += kParts * kLanes)
        ATTEND_UNROLL for (int part = 0; part < kParts; ++part) {
          Vec::load(value, x + i + part * kLanes);
          squares.parts[part] += value * value;
        }
      for (; i + kLanes <= width; i += kLanes) {
        Vec::load(value, x + i);
        squares.parts[0] += value * value;
      }
      T sum = squares.total();
      for (; i < width; ++i) sum += static_cast<T>(x[i]) * static_cast<T>(x[i]);
      const T inverse = T(1) / std::sqrt(sum / static_cast<T>(width) + eps);
      inverses[row] = inverse;
      for (i = 0; i + kLanes <= width; i += kLanes) {
        Vec::load(value, x + i);
        Vec::load(factor, weight + i);
        Vec::store(y + i, value * inverse * factor);
      }
      for (; i < width; ++i) y[i] = Element(static_cast<T>(x[i]) * inverse * weight[i]);
    }
  }
};

/// The gradients of RmsNormRows for the gradient g of y: with n = x · r, x_gradient = r · (g · weight − n · mean(g ·
/// weight · n)), and weight_sums += Σ g · n over the rows. Either may be null.
template <class Element>
struct RmsNormGradientRows {
  using T = Computed<Element>;

  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const Element* x, std::int64_t x_row, const Element* g, std::int64_t g_row,
                                       const T* weight, const T* inverses, Element* x_gradient,
                                       std::int64_t x_gradient_row, T* weight_sums, std::int64_t rows, int width) {
    using Vec = simd::Vec<T, Isa>;
    constexpr int kLanes = Vec::kLanes, kParts = SumOfRow<T, Isa>::kParts;
    typename Vec::Vector value, given, factor, sum_of_weight;
    for (std::int64_t row = 0; row < rows; ++row, x += x_row, g += g_row) {
      const T inverse = inverses[row];
      if (weight_sums != nullptr) {
        int i = 0;
        for (; i + kLanes <= width; i += kLanes) {
          Vec::load(value, x + i);
          Vec::load(given, g + i);
          Vec::load(sum_of_weight, weight_sums + i);
          Vec::store(weight_sums + i, sum_of_weight + given * (value * inverse));
        }
        for (; i < width; ++i) weight_sums[i] += static_cast<T>(g[i]) * (static_cast<T>(x[i]) * inverse);
      }
      if (x_gradient == nullptr) continue;
      SumOfRow<T, Isa> products;  // of g · weight and x
      int i = 0;
      for (; i + kParts * kLanes <= width; i += kParts * kLanes)
        ATTEND_UNROLL for (int part = 0; part < kParts; ++part) {
          Vec::load(value, x + i + part * kLanes);
          Vec::load(given, g + i + part * kLanes);
          Vec::load(factor, weight + i + part * kLanes);
          products.parts[part] += given * factor * value;
        }
      for (; i + kLanes <= width; i += kLanes) {
        Vec::load(value, x + i);
        Vec::load(given, g + i);
        Vec::load(factor, weight + i);
        products.parts[0] += given * factor * value;
      }
      T sum = products.total();
      for (; i < width; ++i) sum += static_cast<T>(g[i]) * weight[i] * static_cast<T>(x[i]);
      const T mean = sum * inverse / static_cast<T>(width);  // of g · weight · n
      for (i = 0; i + kLanes <= width; i += kLanes) {
        Vec::load(value, x + i);
        Vec::load(given, g + i);
        Vec::load(factor, weight + i);
        Vec::store(x_gradient + i, inverse * (given * factor - value * inverse * mean));
      }
      for (; i < width; ++i)
        x_gradient[i] = Element(inverse * (static_cast<T>(g[i]) * weight[i] - static_cast<T>(x[i]) * inverse * mean));
      x_gradient += x_gradient_row;
    }
  }
};

/// The operations above, compiled for one instruction set.
template <class Element>
struct RmsNormOperations {
  using T = Computed<Element>;

  void (*normalize)(const Element* x, std::int64_t x_row, Element* y, std::int64_t y_row, const T* weight, T* inverses,
                    std::int64_t rows, int width, T eps);
  void (*gradient)(const Element* x, std::int64_t x_row, const Element* g, std::int64_t g_row, const T* weight,
                   const T* inverses, Element* x_gradient, std::int64_t x_gradient_row, T* weight_sums,
                   std::int64_t rows, int width);
};

template <class Element, class Isa>
inline constexpr RmsNormOperations<Element> kRmsNormOperations{
    &simd::CompiledFor<Isa, RmsNormRows<Element>>::call, &simd::CompiledFor<Isa, RmsNormGradientRows<Element>>::call};

template <class Element>
const RmsNormOperations<Element>& rms_norm_operations(simd::InstructionSet set) {
  return simd::for_isa(
      set, [](auto isa) -> const RmsNormOperations<Element>& { return kRmsNormOperations<Element, decltype(isa)>; });
}

/// The normalization of rows in three dimensions. `inverses` has a number for each row, in the order of the sizes.
template <class Element>
struct RmsNormParams {
  using T = Computed<Element>;

  Three sizes;
  int width;
  Rows<const Element> x;
  const T* weight;
  T* inverses;
  const RmsNormOperations<Element>* operations;

  std::int64_t rows() const { return sizes[0] * sizes[1] * sizes[2]; }

  /// Normalizes rows `begin` to `end` − 1.
  void forward(const Rows<Element>& y, T eps, std::int64_t begin, std::int64_t end) const {
    std::int64_t row = begin;
    for_each_run(sizes, begin, end, [&](const Three& first, std::int64_t count) {
      operations->normalize(x.row(first), x.strides[2], y.row(first), y.strides[2], weight, inverses + row, count,
                            width, eps);
      row += count;
    });
  }

  /// The gradients of rows `begin` to `end` − 1. `weight_sums` has `width` numbers, to which the gradient of the weight
  /// is added, or is null; x_gradient.data may be null.
  void backward(const Rows<const Element>& g, const Rows<Element>& x_gradient, T* weight_sums, std::int64_t begin,
                std::int64_t end) const {
    // Long sums are sums of partial sums, which lowers their error.
    constexpr std::int64_t kRowsOfPart = 32;
    std::vector<T> part(weight_sums == nullptr ? 0 : static_cast<std::size_t>(width));
    for (std::int64_t first_row = begin; first_row < end; first_row += kRowsOfPart) {
      std::int64_t row = first_row;
      std::fill(part.begin(), part.end(), T(0));
      for_each_run(sizes, first_row, std::min(end, first_row + kRowsOfPart),
                   [&](const Three& first, std::int64_t count) {
                     operations->gradient(x.row(first), x.strides[2], g.row(first), g.strides[2], weight,
                                          inverses + row, x_gradient.data == nullptr ? nullptr : x_gradient.row(first),
                                          x_gradient.strides[2], part.empty() ? nullptr : part.data(), count, width);
                     row += count;
                   });
      for (std::size_t i = 0; i < part.size(); ++i) weight_sums[i] += part[i];
    }
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
