// SPDX-License-Identifier: MIT
#pragma once

// The update of Adam and AdamW for float32 parameters on the CPU. All parameters of a group share one parallel section.
// at::_fused_adam_ starts one for each parameter, however small.

#include <attend/detail/torch/const_data.h>
#include <attend/detail/torch/parallel.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

#ifdef __x86_64__
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The update of one parameter.
class AdamOnCpu {
 public:
  /// The settings that all parameters of a group share.
  struct Settings {
    double rate, beta1, beta2, epsilon, weight_decay;
    bool is_decay_decoupled;  // AdamW
  };

  /// Whether the tensor is a float32 tensor in CPU memory. Its strides must be those of the parameter; this is not
  /// checked.
  static bool can_update(const at::Tensor& tensor) {
    return tensor.is_cpu() && tensor.scalar_type() == at::kFloat && tensor.layout() == at::kStrided &&
           tensor.has_storage() && !tensor.is_neg() && !tensor._is_zerotensor();
  }

  /// `step` counts from 1. `largest` is undefined without AMSGrad.
  AdamOnCpu(const Settings& settings, double step, const at::Tensor& parameter, const at::Tensor& gradient,
            const at::Tensor& mean, const at::Tensor& square, const at::Tensor& largest)
      : size_(parameter.numel()),
        parameter_(changed(parameter)),
        gradient_(const_data<float>(gradient)),
        mean_(changed(mean)),
        square_(changed(square)),
        largest_(largest.defined() ? changed(largest) : nullptr) {
    const double first = 1 - std::pow(settings.beta1, step), second = 1 - std::pow(settings.beta2, step);
    rate_ = static_cast<float>(settings.rate / first);
    scale_ = static_cast<float>(1 / std::sqrt(second));
    epsilon_ = static_cast<float>(settings.epsilon);
    old_in_mean_ = static_cast<float>(settings.beta1);
    new_in_mean_ = static_cast<float>(1 - settings.beta1);
    old_in_square_ = static_cast<float>(settings.beta2);
    new_in_square_ = static_cast<float>(1 - settings.beta2);
    if (settings.is_decay_decoupled)
      kept_ = static_cast<float>(1 - settings.rate * settings.weight_decay);
    else
      decay_ = static_cast<float>(settings.weight_decay);
  }

  /// Updates all parameters.
  static void run(const std::vector<AdamOnCpu>& parameters) {
    std::vector<std::int64_t> first{0};  // the first chunk of each parameter
    for (const AdamOnCpu& each : parameters) first.push_back(first.back() + (each.size_ + kChunk - 1) / kChunk);
    parallel_ranges(first.back(), /*grain=*/16, [&](std::int64_t begin, std::int64_t end) {
      auto k = static_cast<std::size_t>(std::upper_bound(first.begin(), first.end(), begin) - first.begin()) - 1;
      for (std::int64_t i = begin; i < end; ++i) {
        while (i == first[k + 1]) ++k;
        parameters[k].update_chunk(i - first[k]);
      }
    });
  }

 private:
  typedef float Four __attribute__((vector_size(16)));

  static constexpr std::int64_t kChunk = 1024;  // a whole number of vectors

  static float* changed(const at::Tensor& tensor) {
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
    return tensor.mutable_data_ptr<float>();
  }

  void update_chunk(std::int64_t chunk) const {
    std::int64_t i = chunk * kChunk;
    const std::int64_t end = std::min(size_, i + kChunk);
    for (; i + 4 <= end; i += 4) update<Four>(i);
    for (; i < end; ++i) update<float>(i);
  }

  template <class V>
  void update(std::int64_t i) const {
    V parameter = load<V>(parameter_ + i) * kept_, mean = load<V>(mean_ + i), square = load<V>(square_ + i);
    V gradient = load<V>(gradient_ + i);
    if (decay_ != 0.0f) gradient = gradient + decay_ * parameter;  // 0 · ∞ would be NaN
    mean = old_in_mean_ * mean +
           new_in_mean_ * gradient;  // mean + c · (gradient − mean) would lose a small gradient after a large one
    square = old_in_square_ * square + new_in_square_ * (gradient * gradient);
    store(mean_ + i, mean);
    store(square_ + i, square);
    if (largest_ != nullptr) {
      const V largest = load<V>(largest_ + i);
      square = largest > square ? largest : square;
      store(largest_ + i, square);
    }
    store(parameter_ + i, V(parameter - rate_ * mean / (root(square) * scale_ + epsilon_)));
  }

  template <class V>
  static V load(const float* from) {
    V value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }
  template <class V>
  static void store(float* to, V value) {
    __builtin_memcpy(to, &value, sizeof value);
  }
  static float root(float x) { return std::sqrt(x); }
  static Four root(Four x) {
#ifdef __x86_64__
    return _mm_sqrt_ps(x);
#else
    for (int i = 0; i < 4; ++i) x[i] = std::sqrt(x[i]);
    return x;
#endif
  }

  std::int64_t size_;
  float* parameter_;
  const float* gradient_;
  float *mean_, *square_, *largest_;
  float rate_, scale_, epsilon_, old_in_mean_, new_in_mean_, old_in_square_, new_in_square_;
  float decay_ = 0.0f, kept_ = 1.0f;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
