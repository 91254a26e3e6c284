// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/problem.h>
#include <attend/attention/reference.h>
#include <attend/detail/fused_function.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// All tensors of the caller's that a pass over a problem reads, in one order everywhere; some may be undefined. Those
/// that no gradient goes back to come last.
inline std::vector<at::Tensor*> inputs_of(Problem& problem) {
  std::vector<at::Tensor*> inputs{&problem.query, &problem.key, &problem.value, &problem.attn_mask,
                                  &problem.alibi_slopes};
  for (at::Tensor& tensor : problem.modification_tensors) inputs.push_back(&tensor);
  inputs.push_back(&problem.query_offsets);
  inputs.push_back(&problem.key_offsets);
  return inputs;
}

/// The result of an attention kernel's forward pass.
struct FusedResult : AttentionResult {
  std::vector<at::Tensor> kept;  // what its backward pass wants to see again besides
};

/// A fused attention kernel in torch's graph (detail/fused_function.h).
///
/// Kernel is a struct with two functions on raw tensors, which know nothing of autograd:
///   static FusedResult forward(const Problem&, bool with_backward);
///   static std::vector<at::Tensor> backward(const Problem&, const FusedResult& result,
///                                           const AttentionResult& gradients);
/// backward returns gradients in the order of inputs_of(); those at the end may be missing, and so may those of tensors
/// that require none. LibTorch casts them to the inputs' dtypes. Those of the mask and of the modification's tensors
/// are summed over copies (detail/expanded.h). One of `gradients` may be undefined, which means zeros.
template <class Kernel>
class FusedAttention {
 public:
  static AttentionResult run(Problem problem) {
    std::vector<at::Tensor> inputs;
    // They are saved apart from the problem, so that torch watches for changes in place.
    for (at::Tensor* input : inputs_of(problem)) inputs.push_back(std::exchange(*input, at::Tensor()));
    const std::vector<at::Tensor> outputs = FusedFunction<FusedAttention>::run(FusedAttention(problem), inputs);
    return {outputs[0], outputs.size() > 1 ? outputs[1] : at::Tensor()};
  }

  const char* name() const { return "attend::attention"; }

  /// Of the mask and the tensors of the modification.
  bool sums_copies(std::size_t input) const { return input == 3 || input >= 5; }

  FusedOutputs forward(const std::vector<at::Tensor>& inputs, bool with_backward) const {
    FusedResult result = Kernel::forward(problem_of(inputs), with_backward);
    FusedOutputs outputs{{result.output}, std::move(result.kept)};
    (problem_.needs_log_sum_exp ? outputs.outputs : outputs.kept).push_back(result.log_sum_exp);
    return outputs;
  }

  std::vector<at::Tensor> backward(const std::vector<at::Tensor>& inputs, const FusedOutputs& forward,
                                   const std::vector<at::Tensor>& gradients) const {
    FusedResult result;
    result.output = forward.outputs[0];
    result.kept = forward.kept;
    if (problem_.needs_log_sum_exp) {
      result.log_sum_exp = forward.outputs[1];
    } else {
      result.log_sum_exp = result.kept.back();
      result.kept.pop_back();
    }
    return Kernel::backward(problem_of(inputs), result,
                            {gradients[0], gradients.size() > 1 ? gradients[1] : at::Tensor()});
  }

  std::vector<at::Tensor> reference(const std::vector<at::Tensor>& inputs) const {
    const AttentionResult result = Reference::run(problem_of(inputs));
    return {result.output, result.log_sum_exp};
  }

 private:
  explicit FusedAttention(Problem problem) : problem_(std::move(problem)) {}

  Problem problem_of(const std::vector<at::Tensor>& inputs) const {
    Problem problem = problem_;
    const std::vector<at::Tensor*> places = inputs_of(problem);
    for (std::size_t i = 0; i < inputs.size(); ++i) *places[i] = inputs[i];
    return problem;
  }

  Problem problem_;  // without its tensors
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
