// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/problem.h>
#include <attend/attention/reference.h>
#include <attend/detail/torch/fused_node.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// All tensors of the caller that a forward or backward pass reads, always in this order. Some may be undefined. The
/// tensors that never get a gradient come last.
inline std::vector<at::Tensor*> inputs_of(Problem& problem) {
  std::vector<at::Tensor*> inputs{&problem.query, &problem.key, &problem.value, &problem.attn_mask,
                                  &problem.alibi_slopes};
  for (at::Tensor& tensor : problem.variant_tensors) inputs.push_back(&tensor);
  inputs.push_back(&problem.query_offsets);
  inputs.push_back(&problem.key_offsets);
  return inputs;
}

/// The results of an attention kernel's forward pass.
struct KernelResult : AttentionResult {
  at::Tensor saved;  // for its backward pass; undefined if it needs nothing more
};

/// An attention kernel: two functions on raw tensors, which know nothing of autograd.
///
/// backward returns gradients in the order of inputs_of(). Those at the end may be missing, and so may those of tensors
/// that require none. LibTorch casts them to the inputs' dtypes. If the mask or a tensor of the variant is expanded,
/// its gradient is summed over the copies (detail/torch/expanded.h). One of `gradients` may be undefined: zeros.
struct AttentionKernel {
  KernelResult (*forward)(const Problem&, bool with_backward);
  std::vector<at::Tensor> (*backward)(const Problem&, const KernelResult& result, const AttentionResult& gradients);
};

/// The node of an attention kernel in torch's graph (detail/torch/fused_node.h).
class AttentionNode {
 public:
  static AttentionResult run(const AttentionKernel& kernel, Problem problem) {
    std::vector<at::Tensor> inputs;
    // They are saved apart from the problem, so that torch watches for changes in place.
    for (at::Tensor* input : inputs_of(problem)) inputs.push_back(std::exchange(*input, at::Tensor()));
    const std::vector<at::Tensor> outputs =
        FusedNode<AttentionNode>::run(AttentionNode(kernel, std::move(problem)), inputs);
    return {outputs[kOutput], outputs.size() > kLogSumExp ? outputs[kLogSumExp] : at::Tensor()};
  }

  const char* name() const { return "attend::attention"; }

  /// See FusedNode. True for the mask and the tensors of the variant.
  bool sums_copies(std::size_t input) const { return input == 3 || input >= 5; }

  FusedOutputs forward(const std::vector<at::Tensor>& inputs, bool with_backward) const {
    const KernelResult result = kernel_.forward(problem_of(inputs), with_backward);
    FusedOutputs outputs{{result.output}, {result.saved}};
    if (problem_.needs_log_sum_exp)
      outputs.outputs.push_back(result.log_sum_exp);
    else
      outputs.saved.push_back(result.log_sum_exp);
    return outputs;
  }

  std::vector<at::Tensor> backward(const std::vector<at::Tensor>& inputs, const FusedOutputs& forward,
                                   const std::vector<at::Tensor>& gradients) const {
    KernelResult result;
    result.output = forward.outputs[kOutput];
    result.log_sum_exp = problem_.needs_log_sum_exp ? forward.outputs[kLogSumExp] : forward.saved[1];
    result.saved = forward.saved[0];
    return kernel_.backward(problem_of(inputs), result,
                            {gradients[kOutput], gradients.size() > kLogSumExp ? gradients[kLogSumExp] : at::Tensor()});
  }

  std::vector<at::Tensor> reference(const std::vector<at::Tensor>& inputs) const {
    const AttentionResult result = Reference::run(problem_of(inputs));
    return {result.output, result.log_sum_exp};
  }

 private:
  static constexpr std::size_t kOutput = 0, kLogSumExp = 1;  // the indices in the outputs

  AttentionNode(const AttentionKernel& kernel, Problem problem) : kernel_(kernel), problem_(std::move(problem)) {}

  Problem problem_of(const std::vector<at::Tensor>& inputs) const {
    Problem problem = problem_;
    const std::vector<at::Tensor*> places = inputs_of(problem);
    for (std::size_t i = 0; i < inputs.size(); ++i) *places[i] = inputs[i];
    return problem;
  }

  AttentionKernel kernel_;
  Problem problem_;  // without its tensors
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
