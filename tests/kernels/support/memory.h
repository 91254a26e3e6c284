// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/kernels/cuda/float16.h>
#include <attend/simd/bfloat16.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <random>
#include <vector>

namespace attend::test {

/// Random numbers that are the same with every standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : generator_(seed * 0x9E3779B97F4A7C15u + 1) {}

  std::int64_t from_to(std::int64_t least, std::int64_t most) {
    return least + static_cast<std::int64_t>(generator_() % static_cast<std::uint64_t>(most - least + 1));
  }
  bool chance(int percent) { return from_to(1, 100) <= percent; }
  double uniform() { return std::ldexp(static_cast<double>(generator_() >> 11), -53); }
  double normal() { return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()); }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[from_to(0, static_cast<std::int64_t>(values.size()) - 1)];
  }

 private:
  std::mt19937_64 generator_;
};

/// The nearest bfloat16.
inline float rounded_to_bfloat16(float number) { return static_cast<float>(static_cast<simd::BFloat16>(number)); }

/// The nearest float16.
inline float rounded_to_float16(float number) { return cuda::float_of_float16(cuda::float16_of_float(number)); }

/// The nearest number of tf32, which has 10 bits of fraction. Ties go away from 0.
inline float rounded_to_tf32(float number) {
  if (!std::isfinite(number)) return number;
  int exponent;
  const double fraction = std::frexp(static_cast<double>(number), &exponent);
  return static_cast<float>(std::ldexp(std::round(fraction * 2048), exponent - 11));
}

/// The number types of a Tensor.
enum class Element { kFloat32, kBFloat16, kFloat64, kBool, kFloat16 };

inline Element element_of(NumberType dtype) {
  return dtype == NumberType::kFloat64    ? Element::kFloat64
         : dtype == NumberType::kBFloat16 ? Element::kBFloat16
         : dtype == NumberType::kFloat16  ? Element::kFloat16
                                          : Element::kFloat32;
}

using Sizes = std::array<std::int64_t, 4>;

/// A tensor of four sizes in memory of its own, at any strides. All that is not an entry is NaN.
class Tensor {
 public:
  Tensor() = default;
  /// Contiguous.
  Tensor(Element element, const Sizes& sizes) : Tensor(element, sizes, {0, 1, 2, 3}, {0, 0, 0, 0}, 1) {}

  /// `order`: the sizes from the outermost to the innermost. After each size comes `padding`. A negative column_step
  /// turns the columns around.
  Tensor(Element element, const Sizes& sizes, const std::array<int, 4>& order, const Sizes& padding,
         std::int64_t column_step)
      : element_(element), sizes_(sizes) {
    std::int64_t stride = std::abs(column_step);
    for (int k = 3; k >= 0; --k) {
      const auto d = static_cast<std::size_t>(order[static_cast<std::size_t>(k)]);
      strides_[d] = stride;
      stride *= sizes[d] + padding[d];
    }
    bytes_.resize(static_cast<std::size_t>(stride) * size());
    if (column_step < 0) {
      first_ = strides_[3] * (sizes[3] - 1);
      strides_[3] = -strides_[3];
    }
    for (std::int64_t i = 0; i < stride; ++i) write(i, std::numeric_limits<double>::quiet_NaN());
  }

  /// Makes the size d one that is broadcast.
  void broadcast(std::size_t d) { strides_[d] = 0; }

  const Sizes& sizes() const { return sizes_; }
  std::int64_t number_bytes() const { return static_cast<std::int64_t>(size()); }
  std::int64_t numel() const { return sizes_[0] * sizes_[1] * sizes_[2] * sizes_[3]; }
  double get(std::int64_t n, std::int64_t h, std::int64_t i, std::int64_t d) const { return read(place(n, h, i, d)); }
  void set(std::int64_t n, std::int64_t h, std::int64_t i, std::int64_t d, double value) {
    write(place(n, h, i, d), value);
  }

  template <class Action>  // action(n, h, i, d)
  static void for_each(const Sizes& sizes, const Action& action) {
    for (std::int64_t n = 0; n < sizes[0]; ++n)
      for (std::int64_t h = 0; h < sizes[1]; ++h)
        for (std::int64_t i = 0; i < sizes[2]; ++i)
          for (std::int64_t d = 0; d < sizes[3]; ++d) action(n, h, i, d);
  }
  template <class Make>
  void fill(const Make& make) {
    for_each(sizes_, [&](auto n, auto h, auto i, auto d) { set(n, h, i, d, make()); });
  }

  /// All entries in order.
  std::vector<double> values() const {
    std::vector<double> values;
    for_each(sizes_, [&](auto n, auto h, auto i, auto d) { values.push_back(get(n, h, i, d)); });
    return values;
  }

  /// Whether all that is not an entry is still NaN.
  bool is_kept_around() const {
    std::vector<bool> is_entry(bytes_.size() / size());
    for_each(sizes_,
             [&](auto n, auto h, auto i, auto d) { is_entry[static_cast<std::size_t>(place(n, h, i, d))] = true; });
    for (std::size_t i = 0; i < is_entry.size(); ++i)
      if (!is_entry[i] && !std::isnan(read(static_cast<std::int64_t>(i)))) return false;
    return true;
  }

  TensorView4d view() {
    return {bytes_.data() + first_ * static_cast<std::int64_t>(size()),
            {strides_[0], strides_[1], strides_[2], strides_[3]}};
  }

 private:
  std::size_t size() const {
    switch (element_) {
      case Element::kFloat64:
        return 8;
      case Element::kFloat32:
        return 4;
      case Element::kBFloat16:
      case Element::kFloat16:
        return 2;
      case Element::kBool:
        break;
    }
    return 1;
  }
  std::int64_t place(std::int64_t n, std::int64_t h, std::int64_t i, std::int64_t d) const {
    return first_ + n * strides_[0] + h * strides_[1] + i * strides_[2] + d * strides_[3];
  }
  double read(std::int64_t place) const {
    const unsigned char* from = bytes_.data() + place * static_cast<std::int64_t>(size());
    switch (element_) {
      case Element::kFloat64:
        return as<double>(from);
      case Element::kFloat32:
        return static_cast<double>(as<float>(from));
      case Element::kBFloat16:
        return static_cast<double>(as<simd::BFloat16>(from));
      case Element::kFloat16:
        return static_cast<double>(cuda::float_of_float16(as<std::uint16_t>(from)));
      case Element::kBool:
        break;
    }
    return *from != 0;
  }
  void write(std::int64_t place, double value) {
    unsigned char* to = bytes_.data() + place * static_cast<std::int64_t>(size());
    const auto single = static_cast<float>(value);
    const auto half = static_cast<simd::BFloat16>(single);
    if (element_ == Element::kFloat64) std::memcpy(to, &value, sizeof value);
    if (element_ == Element::kFloat32) std::memcpy(to, &single, sizeof single);
    if (element_ == Element::kBFloat16) std::memcpy(to, &half, sizeof half);
    const std::uint16_t float16 = cuda::float16_of_float(single);
    if (element_ == Element::kFloat16) std::memcpy(to, &float16, sizeof float16);
    if (element_ == Element::kBool) *to = value != 0 ? 2 : 0;  // true may be any byte but 0
  }
  template <class T>
  static T as(const unsigned char* from) {
    T number;
    std::memcpy(&number, from, sizeof number);
    return number;
  }

  Element element_ = Element::kFloat32;
  Sizes sizes_{}, strides_{};
  std::int64_t first_ = 0;
  std::vector<unsigned char> bytes_;
};

}  // namespace attend::test
