// SPDX-License-Identifier: MIT
#pragma once

// The tensors that a kernel on AttentionParams writes, on the device of the problem.

#include <attend/attention/attention_node.h>
#include <attend/attention/backend.h>
#include <attend/attention/detail/output_layout.h>
#include <attend/attention/detail/params.h>
#include <attend/attention/detail/problem.h>
#include <attend/detail/torch/expanded.h>
#include <attend/kernels/attention_params.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros_like.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Memory for the results of a forward pass. `saved_bytes` is 0 if no backward pass follows.
inline KernelResult empty_result(const Problem& problem, std::int64_t saved_bytes) {
  const auto N = problem.batch_size(), H = problem.num_heads(), L = problem.query_length();
  const at::TensorOptions options = problem.query.options();
  KernelResult result;
  result.output = at::empty_strided({N, H, L, problem.value_dim()}, output_strides(problem), options);
  if (problem.needs_log_sum_exp) result.log_sum_exp = at::empty({N, H, L}, options.dtype(compute_dtype(problem)));
  if (saved_bytes > 0) result.saved = at::empty({saved_bytes}, options.dtype(at::kByte));
  return result;
}

inline AttentionOutputs outputs_of(const KernelResult& result) {
  AttentionOutputs outputs;
  outputs.output = view_to_write(result.output);
  if (result.log_sum_exp.defined()) outputs.log_sum_exp = result.log_sum_exp.mutable_data_ptr();
  if (result.saved.defined()) {
    outputs.saved = result.saved.mutable_data_ptr();
    outputs.saved_bytes = result.saved.numel();
  }
  return outputs;
}

/// The tensors of a backward pass: the gradients that it reads, and memory for those that it writes.
class GradientTensors {
 public:
  /// `score_tensors` is the number of tensors of the score_mod. `problem` and `params` must outlive the object.
  GradientTensors(const Problem& problem, const ProblemParams& params, const KernelResult& result,
                  const AttentionResult& given, std::size_t score_tensors)
      : dtype_(compute_dtype(problem)),
        output_(given.output.defined() ? given.output : at::zeros_like(result.output)),
        log_sum_exp_(given.log_sum_exp.defined() ? given.log_sum_exp.contiguous() : at::Tensor()) {
    gradients_.output = view_to_read(output_);
    if (log_sum_exp_.defined()) gradients_.log_sum_exp = log_sum_exp_.const_data_ptr();
    const auto gradient_of = [](const at::Tensor& read, at::Tensor& gradient) {
      gradient =
          at::empty_like(read);  // dimensions in the order of read, so that autograd copies no gradient of a view
      return view_to_write(gradient);
    };
    gradients_.query = gradient_of(problem.query, results_.query);
    gradients_.key = gradient_of(problem.key, results_.key);
    gradients_.value = gradient_of(problem.value, results_.value);

    const auto sum_for = [](const at::Tensor& read, at::IntArrayRef sizes, at::Tensor& sum) -> SummedGradient {
      sum = at::empty(sizes, read.options().dtype(at::kDouble));
      return {sum.mutable_data_ptr<double>(), sum.numel()};
    };
    const auto is_wanted = [](const at::Tensor& read) { return read.defined() && read.requires_grad(); };
    // The gradient of an expanded mask or table is that of one copy of it.
    if (is_wanted(problem.attn_mask))
      gradients_.attn_mask = sum_for(problem.attn_mask, one_copy(problem.attn_mask).sizes(), results_.attn_mask);
    if (is_wanted(problem.alibi_slopes))
      gradients_.alibi_slopes = sum_for(problem.alibi_slopes, params.alibi_slopes.sizes(), results_.alibi_slopes);
    results_.variant_tensors.resize(score_tensors);
    for (std::size_t k = 0; k < score_tensors; ++k) {
      const at::Tensor& read = problem.variant_tensors[k];
      gradients_.score_tensors.push_back(
          is_wanted(read) ? sum_for(read, one_copy(read).sizes(), results_.variant_tensors[k]) : SummedGradient{});
    }
  }

  const AttentionGradients& gradients() const { return gradients_; }

  /// What the backward pass has written. Sums are rounded to the type that the kernels compute in.
  AttentionTensors results() && {
    const auto round = [this](at::Tensor& sum) {
      if (sum.defined()) sum = sum.to(dtype_);
    };
    round(results_.attn_mask);
    round(results_.alibi_slopes);
    for (at::Tensor& sum : results_.variant_tensors) round(sum);
    return std::move(results_);
  }

 private:
  at::ScalarType dtype_;
  at::Tensor output_, log_sum_exp_;
  AttentionTensors results_;
  AttentionGradients gradients_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
