// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/kernels/check_params.h>
#include <attend/kernels/cpu/attention_pass.h>
#include <attend/kernels/cpu/variant.h>
#include <attend/kernels/executor.h>
#include <attend/simd/dispatch.h>
#include <attend/version.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// A call without a score_mod and mask_mod. make<T>() returns a pointer, of any kind, to a CpuVariant<T>.
struct NoVariant {
  template <class T>
  CpuVariant<T>* make() const {
    return nullptr;
  }
  void check(const AttentionParams&) const {}
  void check_gradients(const AttentionGradients& gradients) const {
    if (!gradients.score_tensors.empty())
      attend::detail::throw_invalid(
          "AttentionGradients::score_tensors must be empty without a score_mod, got %zu gradients",
          gradients.score_tensors.size());
  }
};

/// One checked call of kernels.h that is computed in T.
template <class T, class Variant>
class CheckedCall {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>,
                "attend::kernels: T must be float, for float32 and bfloat16, or double, for float64");

 public:
  CheckedCall(const AttentionParams& params, const Variant& variant)
      : params_(attend::detail::checked(params)), variant_(variant) {
    const bool is_bfloat16 = params_.dtype == NumberType::kBFloat16, is_float64 = attend::detail::is_float64(params_);
    if (is_float64 && std::is_same_v<T, float>)
      attend::detail::throw_invalid(
          "AttentionParams::dtype must be kFloat32 or kBFloat16 for T = float, got kFloat64; call "
          "attention_forward<double>");
    if (!is_float64 && std::is_same_v<T, double>)
      attend::detail::throw_invalid("AttentionParams::dtype must be kFloat64 for T = double, got %s",
                                    is_bfloat16 ? "kBFloat16" : "kFloat32");
    variant_.check(params_);
  }

  std::int64_t saved_bytes() const {
    return with_pass([](const auto& pass) { return pass.saved_bytes(); });
  }

  void forward(const AttentionOutputs& outputs, Executor& executor) const {
    attend::detail::check_outputs(params_, outputs, /*saved_bytes=*/0);
    with_pass([&](const auto& pass) { pass.forward(outputs, executor); });
  }

  void backward(const AttentionOutputs& outputs, const AttentionGradients& gradients, Executor& executor) const {
    attend::detail::check_gradients(params_, gradients);
    variant_.check_gradients(gradients);
    with_pass([&](const auto& pass) {
      attend::detail::check_outputs(params_, outputs, pass.saved_bytes());
      if (params_.batch_size == 0 || params_.query_length == 0 || params_.key_length == 0)
        set_to_zero(gradients);
      else
        pass.backward(outputs, gradients, executor);
    });
  }

 private:
  template <class Action>
  auto with_pass(const Action& action) const {
    const auto variant = variant_.template make<T>();
    return action(AttentionPass<T>(params_, best_instruction_set(), variant ? &*variant : nullptr));
  }

  /// The gradients of a call without any score.
  void set_to_zero(const AttentionGradients& gradients) const {
    const auto clear = [this](const TensorView4d& view, std::int64_t heads, std::int64_t rows, std::int64_t columns) {
      const std::size_t size = attend::detail::number_size(params_);
      for (std::int64_t n = 0; n < params_.batch_size; ++n)
        for (std::int64_t h = 0; h < heads; ++h)
          for (std::int64_t i = 0; i < rows; ++i)
            for (std::int64_t d = 0; d < columns; ++d)
              std::memset(static_cast<char*>(view.data) +
                              (n * view.strides[0] + h * view.strides[1] + i * view.strides[2] + d * view.strides[3]) *
                                  static_cast<std::int64_t>(size),
                          0, size);
    };
    clear(gradients.query, params_.num_heads, params_.query_length, params_.head_dim);
    clear(gradients.key, params_.num_kv_heads, params_.key_length, params_.head_dim);
    clear(gradients.value, params_.num_kv_heads, params_.key_length, params_.value_dim);
    const auto clear_sum = [](const SummedGradient& sum) {
      if (sum.data != nullptr) std::fill_n(sum.data, sum.size, 0.0);
    };
    clear_sum(gradients.attn_mask);
    clear_sum(gradients.alibi_slopes);
    for (const SummedGradient& sum : gradients.score_tensors) clear_sum(sum);
  }

  AttentionParams params_;
  const Variant& variant_;
};

template <class T, class Variant>
CheckedCall<T, Variant> checked_call(const AttentionParams& params, const Variant& variant) {
  return {params, variant};
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
