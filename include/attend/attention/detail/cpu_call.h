// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/attention_node.h>
#include <attend/attention/backend.h>
#include <attend/attention/detail/cpu_variant.h>
#include <attend/attention/detail/instruction_set.h>
#include <attend/attention/detail/kernel_tensors.h>
#include <attend/attention/detail/params.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/detail/torch_executor.h>
#include <attend/attention/variant.h>
#include <attend/kernels/cpu/attention_pass.h>
#include <attend/kernels/cpu/variant.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>
#include <utility>
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
    KernelResult result = empty_result(problem_, with_backward ? pass_.saved_bytes() : 0);
    TorchExecutor executor;
    pass_.forward(outputs_of(result), executor);
    return result;
  }

  AttentionTensors backward(const KernelResult& result, const AttentionResult& given) {
    const std::size_t score_tensors = variant_ == nullptr ? 0 : static_cast<std::size_t>(variant_->tensors());
    GradientTensors tensors(problem_, params_, result, given, score_tensors);
    TorchExecutor executor;
    pass_.backward(outputs_of(result), tensors.gradients(), executor);
    return std::move(tensors).results();
  }

 private:
  static constexpr at::ScalarType kDtype = c10::CppTypeToScalarType<T>::value;

  std::unique_ptr<cpu::CpuVariant<T>> make_variant() {
    if (problem_.variant == nullptr) return nullptr;
    read_ = problem_.variant->on_cpu(problem_.variant_tensors, kDtype);
    return problem_.cpu_variant->make(
        {problem_.batch_size(), problem_.num_heads(), problem_.query_length(), problem_.key_length()}, read_, T());
  }

  const Problem& problem_;
  ProblemParams params_;
  std::vector<at::Tensor> read_;
  std::unique_ptr<cpu::CpuVariant<T>> variant_;
  cpu::AttentionPass<T> pass_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
