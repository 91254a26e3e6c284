// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/dual.h>
#include <attend/macros.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The values of a tensor of up to four sizes, as a score_mod reads them. Binder::values() makes one.
///
/// Gradients reach the tensor through it. For each score, one value of each view may be read that the result depends
/// on: a score_mod that needs two values of one tensor holds two views of it. A second one is an error in the backward
/// pass.
///
/// Example:
///   T bias = slopes.read<T>(at.head);
class TensorView {
 public:
  /// The value at these indices. T is what the score_mod is called with.
  template <class T>
  ATTEND_HOST_DEVICE T read(std::int64_t i, std::int64_t j = 0, std::int64_t k = 0, std::int64_t l = 0) const {
    return value_at(i * strides_[0] + j * strides_[1] + k * strides_[2] + l * strides_[3], detail::Type<T>());
  }

  TensorView() = default;

  /// Of values that lie at `data`, float or double as T has them, with steps of `strides`. `differentiated_levels` has
  /// a bit for each depth of Dual: whether its derivative is that by the value which is read.
  ATTEND_HOST_DEVICE TensorView(const void* data, const std::int64_t (&strides)[4], unsigned differentiated_levels)
      : data_(data),
        strides_{strides[0], strides[1], strides[2], strides[3]},
        differentiated_levels_(differentiated_levels) {}

 private:
  template <class V>
  ATTEND_HOST_DEVICE Real<V> value_at(std::int64_t offset, detail::Type<Real<V>>) const {
    return static_cast<const V*>(data_)[offset];
  }
  template <class V>
  ATTEND_HOST_DEVICE Dual<V> value_at(std::int64_t offset, detail::Type<Dual<V>>) const {
    using Number = typename Dual<V>::Number;
    const bool is_differentiated = differentiated_levels_ >> detail::kDepth<V> & 1;
    return {value_at(offset, detail::Type<Number>()), Number(is_differentiated), is_differentiated ? offset + 1 : 0};
  }

  const void* data_ = nullptr;
  std::int64_t strides_[4] = {};
  unsigned differentiated_levels_ = 0;
};

/// The whole numbers of a tensor of up to two sizes, as a score_mod or mask_mod reads them. Binder::integers() makes
/// one.
class IntegerView {
 public:
  ATTEND_HOST_DEVICE std::int32_t read(std::int64_t i, std::int64_t j = 0) const {
    return data_[i * strides_[0] + j * strides_[1]];
  }

  IntegerView() = default;
  ATTEND_HOST_DEVICE IntegerView(const std::int32_t* data, const std::int64_t (&strides)[2])
      : data_(data), strides_{strides[0], strides[1]} {}

 private:
  const std::int32_t* data_ = nullptr;
  std::int64_t strides_[2] = {};
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
