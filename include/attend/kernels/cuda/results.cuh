// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/score/real.h>
#include <attend/simd/math.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/number.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

/// Sets output (n, h, i, d), and output_rest if it is wanted.
template <NumberType kType>
ATTEND_HOST_DEVICE void store_output(const Call& call, std::int32_t n, std::int32_t h, std::int32_t i, std::int32_t d,
                                     Computed<kType> value) {
  const auto& strides = call.output.strides;
  const Stored<kType> stored = stored_of<kType>(value);
  store_global(
      static_cast<Stored<kType>*>(call.output.data) + n * strides[0] + h * strides[1] + i * strides[2] + d * strides[3],
      stored);
  if constexpr (kIsRounded<kType>)
    if (call.output_rest != nullptr)
      store_number<kType>(call.output_rest, call.row(n, h, i) * call.value_dim + d, value - value_of<kType>(stored));
}

/// Sets neighbouring numbers, aligned to their size, to two numbers of 16 bits at once, or to four of float32.
template <NumberType kType>
ATTEND_HOST_DEVICE void store_run(std::uint16_t* to, const float (&numbers)[2]) {
  store_global(reinterpret_cast<std::uint32_t*>(to), pack<kType>(numbers[0], numbers[1]));
}
template <NumberType kType>
ATTEND_HOST_DEVICE void store_run(float* to, const float (&numbers)[4]) {
  Words4 words;
  ATTEND_UNROLL
  for (int k = 0; k < 4; ++k) words.words[k] = __builtin_bit_cast(std::uint32_t, numbers[k]);
  store_global(reinterpret_cast<Words4*>(to), words);
}

/// Sets the kRun outputs from (n, h, i, d) on, as store_output(). d and all strides are multiples of kRun, and the
/// stride of columns is 1.
template <NumberType kType, int kRun>
ATTEND_HOST_DEVICE void store_outputs(const Call& call, std::int32_t n, std::int32_t h, std::int32_t i, std::int32_t d,
                                      const float (&numbers)[kRun]) {
  const auto& strides = call.output.strides;
  store_run<kType>(static_cast<Stored<kType>*>(call.output.data) + n * strides[0] + h * strides[1] + i * strides[2] + d,
                   numbers);
  if constexpr (kIsRounded<kType>) {
    if (call.output_rest == nullptr) return;
    float rests[kRun];
    ATTEND_UNROLL
    for (int k = 0; k < kRun; ++k) rests[k] = numbers[k] - value_of<kType>(stored_of<kType>(numbers[k]));
    store_run<kType>(static_cast<Stored<kType>*>(call.output_rest) + call.row(n, h, i) * call.value_dim + d, rests);
  }
}

/// Sets the log-sum-exp of row (n, h, i) where it is wanted: largest + log(sum), −∞ if no key is allowed (sum = 0), and
/// ∞ if a score is ∞.
template <class T>
ATTEND_HOST_DEVICE void store_log_sum_exp(const Call& call, std::int32_t n, std::int32_t h, std::int32_t i, T largest,
                                          T sum) {
  constexpr T kInfinity = simd::FloatFormat<T>::kInfinity;
  const T logarithm = log(Real<T>(sum)).value;
  const bool is_empty = sum == T(0);
  const T log_sum_exp = is_empty ? -kInfinity : largest == kInfinity ? kInfinity : largest + logarithm;
  const std::int64_t row = call.row(n, h, i);
  if (call.log_sum_exp != nullptr) store_global(static_cast<T*>(call.log_sum_exp) + row, log_sum_exp);
  if (call.saved_log_sum_exp != nullptr) store_global(static_cast<T*>(call.saved_log_sum_exp) + row, log_sum_exp);
  if (call.log_sum_exp_rest != nullptr)
    store_global(static_cast<T*>(call.log_sum_exp_rest) + row, is_empty ? T(0) : largest - log_sum_exp + logarithm);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
