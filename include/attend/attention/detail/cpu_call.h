// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/attention_node.h>
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
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros_like.h>

#include <cstddef>
#include <memory>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The CPU kernels, called with the tensors of a problem.
struct CpuKernel {
  /// The problem in a dtype that the kernels read: float16 as float32.
  static Problem readable(const Problem& given) {
    Problem problem = given;
    for (at::Tensor* tensor : {&problem.query, &problem.key, &problem.value, &problem.attn_mask})
      if (tensor->defined() && tensor->scalar_type() == at::kHalf)
        *tensor = ExpandedCast::apply_to(*tensor, at::kFloat);
    return problem;
  }

  static KernelResult forward(const Problem& problem, bool with_backward) {
    return problem.query.scalar_type() == at::kDouble ? Call<double>(problem).forward(with_backward)
                                                      : Call<float>(problem).forward(with_backward);
  }
  static std::vector<at::Tensor> backward(const Problem& problem, const KernelResult& result,
                                          const AttentionResult& gradients) {
    return problem.query.scalar_type() == at::kDouble ? Call<double>(problem).backward(result, gradients)
                                                      : Call<float>(problem).backward(result, gradients);
  }

 private:
  template <class T>
  class Call {
   public:
    explicit Call(const Problem& problem)
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

    std::vector<at::Tensor> backward(const KernelResult& result, const AttentionResult& given) {
      std::vector<at::Tensor> inputs;
      for (const at::Tensor& input : {problem_.query, problem_.key, problem_.value})
        inputs.push_back(at::empty(input.sizes(), input.options()));
      const at::Tensor output = given.output.defined() ? given.output : at::zeros_like(result.output);
      const at::Tensor log_sum_exp = given.log_sum_exp.defined() ? given.log_sum_exp.contiguous() : at::Tensor();
      AttentionGradients gradients;
      gradients.output = view_to_read(output);
      if (log_sum_exp.defined()) gradients.log_sum_exp = log_sum_exp.const_data_ptr();
      gradients.query = view_to_write(inputs[0]);
      gradients.key = view_to_write(inputs[1]);
      gradients.value = view_to_write(inputs[2]);

      std::vector<at::Tensor> sums;
      const auto sum_for = [&sums](const at::Tensor& read, at::IntArrayRef sizes) -> SummedGradient {
        const bool is_wanted = read.defined() && read.requires_grad();
        sums.push_back(is_wanted ? at::empty(sizes, read.options().dtype(at::kDouble)) : at::Tensor());
        if (!is_wanted) return {};
        return {sums.back().mutable_data_ptr<double>(), sums.back().numel()};
      };
      // The gradient of an expanded mask or table is that of one copy of it.
      const auto sum_for_copy = [&sum_for](const at::Tensor& read) {
        return read.defined() ? sum_for(read, one_copy(read).sizes()) : sum_for(read, {});
      };
      gradients.attn_mask = sum_for_copy(problem_.attn_mask);
      gradients.alibi_slopes = sum_for(
          problem_.alibi_slopes, params_.alibi_slopes.defined() ? params_.alibi_slopes.sizes() : at::IntArrayRef());
      const int score_tensors = variant_ == nullptr ? 0 : variant_->tensors();
      for (int k = 0; k < score_tensors; ++k)
        gradients.score_tensors.push_back(sum_for_copy(problem_.variant_tensors[static_cast<std::size_t>(k)]));
      TorchExecutor executor;
      pass_.backward(outputs(result), gradients, executor);
      for (const at::Tensor& sum : sums) inputs.push_back(sum.defined() ? sum.to(kDtype) : sum);
      return inputs;
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
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
