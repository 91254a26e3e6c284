// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/attention_node.h>
#include <attend/attention/backend.h>
#include <attend/attention/detail/cpu_variant.h>
#include <attend/attention/detail/instruction_set.h>
#include <attend/attention/detail/output_layout.h>
#include <attend/attention/detail/params.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/detail/torch_executor.h>
#include <attend/attention/variant.h>
#include <attend/detail/torch/expanded.h>
#include <attend/kernels/attention_params.h>
#include <attend/kernels/cpu/attention_pass.h>
#include <attend/kernels/cpu/variant.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros_like.h>

#include <cstddef>
#include <memory>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// One pass of the CPU kernels over the tensors of a problem, computed in T. The problem must outlive it.
template <class T>
class CpuCall {
 public:
  explicit CpuCall(const Problem& problem)
      : problem_(problem),
        params_(attention_params(problem)),
        variant_(make_variant()),
        pass_(params_.params, available_instruction_set(), variant_.get()) {}

  KernelResult forward(bool with_backward) {
    const auto N = problem_.batch_size(), H = problem_.num_heads(), L = problem_.query_length();
    const at::TensorOptions options = problem_.query.options();
    KernelResult result;
    result.output = at::empty_strided({N, H, L, problem_.value_dim()}, output_strides(problem_), options);
    if (problem_.needs_log_sum_exp) result.log_sum_exp = at::empty({N, H, L}, options.dtype(kDtype));
    if (with_backward) result.saved = at::empty({pass_.saved_bytes()}, options.dtype(at::kByte));
    TorchExecutor executor;
    pass_.forward(outputs(result), executor);
    return result;
  }

  AttentionTensors backward(const KernelResult& result, const AttentionResult& given) {
    AttentionTensors results;
    const at::Tensor output = given.output.defined() ? given.output : at::zeros_like(result.output);
    const at::Tensor log_sum_exp = given.log_sum_exp.defined() ? given.log_sum_exp.contiguous() : at::Tensor();
    AttentionGradients gradients;
    gradients.output = view_to_read(output);
    if (log_sum_exp.defined()) gradients.log_sum_exp = log_sum_exp.const_data_ptr();
    const auto gradient_of = [](const at::Tensor& read, at::Tensor& gradient) {
      gradient = at::empty_like(read);  // dimensions in the order of read, so that autograd copies no gradient of a view
      return view_to_write(gradient);
    };
    gradients.query = gradient_of(problem_.query, results.query);
    gradients.key = gradient_of(problem_.key, results.key);
    gradients.value = gradient_of(problem_.value, results.value);

    const auto sum_for = [](const at::Tensor& read, at::IntArrayRef sizes, at::Tensor& sum) -> SummedGradient {
      sum = at::empty(sizes, read.options().dtype(at::kDouble));
      return {sum.mutable_data_ptr<double>(), sum.numel()};
    };
    const auto is_wanted = [](const at::Tensor& read) { return read.defined() && read.requires_grad(); };
    // The gradient of an expanded mask or table is that of one copy of it.
    if (is_wanted(problem_.attn_mask))
      gradients.attn_mask = sum_for(problem_.attn_mask, one_copy(problem_.attn_mask).sizes(), results.attn_mask);
    if (is_wanted(problem_.alibi_slopes))
      gradients.alibi_slopes = sum_for(problem_.alibi_slopes, params_.alibi_slopes.sizes(), results.alibi_slopes);
    results.variant_tensors.resize(variant_ == nullptr ? 0 : static_cast<std::size_t>(variant_->tensors()));
    for (std::size_t k = 0; k < results.variant_tensors.size(); ++k) {
      const at::Tensor& read = problem_.variant_tensors[k];
      gradients.score_tensors.push_back(
          is_wanted(read) ? sum_for(read, one_copy(read).sizes(), results.variant_tensors[k]) : SummedGradient{});
    }
    TorchExecutor executor;
    pass_.backward(outputs(result), gradients, executor);
    const auto round = [](at::Tensor& sum) {
      if (sum.defined()) sum = sum.to(kDtype);
    };
    round(results.attn_mask);
    round(results.alibi_slopes);
    for (at::Tensor& sum : results.variant_tensors) round(sum);
    return results;
  }

 private:
  static constexpr at::ScalarType kDtype = c10::CppTypeToScalarType<T>::value;

  std::unique_ptr<cpu::CpuVariant<T>> make_variant() {
    if (problem_.variant == nullptr) return nullptr;
    read_ = problem_.variant->on_cpu(problem_.variant_tensors, kDtype);
    return problem_.cpu_variant->make(
        {problem_.batch_size(), problem_.num_heads(), problem_.query_length(), problem_.key_length()}, read_, T());
  }

  static AttentionOutputs outputs(const KernelResult& result) {
    AttentionOutputs outputs;
    outputs.output = view_to_write(result.output);
    if (result.log_sum_exp.defined()) outputs.log_sum_exp = result.log_sum_exp.mutable_data_ptr();
    if (result.saved.defined()) {
      outputs.saved = result.saved.mutable_data_ptr();
      outputs.saved_bytes = result.saved.numel();
    }
    return outputs;
  }

  const Problem& problem_;
  ProblemParams params_;
  std::vector<at::Tensor> read_;
  std::unique_ptr<cpu::CpuVariant<T>> variant_;
  cpu::AttentionPass<T> pass_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
