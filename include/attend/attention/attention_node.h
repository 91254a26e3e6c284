// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/attention_backend.h>
#include <attend/attention/backend.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/detail/rotated.h>
#include <attend/attention/reference.h>
#include <attend/detail/torch/fused_node.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The results of an attention kernel's forward pass.
struct KernelResult : AttentionResult {
  at::Tensor saved;  // more memory for the backward pass; undefined if there is none
};

/// A backend with a kernel: a forward and a backward pass on tensors without autograd.
class KernelBackend : public AttentionBackend {
 public:
  /// The problem with tensors in a form that the kernel can read. Autograd records the conversions.
  virtual Problem readable(const Problem& problem) const = 0;

  /// Computes a problem that is readable().
  virtual KernelResult forward(const Problem& problem, bool with_backward) const = 0;

  /// The gradients of the problem's tensors, each in the member of its tensor. Gradients of tensors that require none
  /// may be undefined. LibTorch casts the gradients to the dtypes of the tensors. If the mask or a tensor of the
  /// variant is expanded, its gradient is summed over the copies (detail/torch/expanded.h). One of `gradients` may be
  /// undefined, which means zeros.
  virtual AttentionTensors backward(const Problem& problem, const KernelResult& result,
                                    const AttentionResult& gradients) const = 0;

  /// Whether dropout drops other weights than the reference. If so, there is no second derivative.
  virtual bool drops_other_weights(const Problem& /*problem*/) const { return false; }

  AttentionResult run(const Problem& problem) const override;

 protected:
  ~KernelBackend() = default;
};

/// The node of a kernel in torch's graph (detail/torch/fused_node.h).
class AttentionNode {
 public:
  /// Computes a problem that is readable().
  static AttentionResult run(const KernelBackend& backend, Problem problem) {
    const std::vector<at::Tensor*> tensors = tensors_of(problem);
    for (at::Tensor* tensor : tensors) *tensor = fused_input(kName, *tensor);
    const bool is_recorded =
        std::any_of(tensors.begin(), tensors.end(), [](auto* each) { return needs_gradient(*each); });
    KernelResult result;
    {
      const c10::AutoGradMode no_grad(false);
      result = backend.forward(problem, is_recorded);
    }
    if (is_recorded) {
      std::vector<at::Tensor> inputs;
      inputs.reserve(tensors.size());
      // The tensors are saved apart from the problem, so that torch detects changes in place.
      for (at::Tensor* tensor : tensors) inputs.push_back(std::exchange(*tensor, at::Tensor()));
      const AttentionNode function(backend, std::move(problem));
      FusedNode<AttentionNode>::record(function, inputs, function.outputs_of(result));
    }
    return result;
  }

  const char* name() const { return kName; }

  bool sums_copies(std::size_t input) const { return input == kAttnMask || input >= kVariantTensors; }

  std::vector<at::Tensor> backward(const std::vector<at::Tensor>& inputs, const FusedOutputs& forward,
                                   const std::vector<at::Tensor>& given) const {
    const AttentionResult gradients{given[kOutput], given.size() > kLogSumExp ? given[kLogSumExp] : at::Tensor()};
    AttentionTensors results = backend_.backward(problem_of(inputs), result_of(forward), gradients);
    results.variant_tensors.resize(problem_.variant_tensors.size());
    std::vector<at::Tensor> in_order;
    for (at::Tensor* result : tensors_of(results)) in_order.push_back(std::move(*result));
    return in_order;
  }

  std::vector<at::Tensor> reference(const std::vector<at::Tensor>& inputs) const {
    const Problem problem = problem_of(inputs);
    TORCH_CHECK_NOT_IMPLEMENTED(!backend_.drops_other_weights(problem), "attend::attention: ", backend_.name(),
                                " has no second derivative with dropout on a GPU");
    const AttentionResult result = Reference().run(rotated(problem));
    return {result.output, result.log_sum_exp};
  }

 private:
  static constexpr const char* kName = "attend::attention";

  // The indices in the lists of FusedNode: inputs, outputs, and other saved tensors.
  enum Input : std::size_t {
    kQuery,
    kKey,
    kValue,
    kAttnMask,
    kAlibiSlopes,
    kQueryOffsets,
    kKeyOffsets,
    kKeyLengths,
    kBlockTable,
    kQueryCos,
    kQuerySin,
    kKeyCos,
    kKeySin,
    kVariantTensors
  };
  enum Output : std::size_t { kOutput, kLogSumExp };
  enum Saved : std::size_t { kSaved, kSavedLogSumExp };

  AttentionNode(const KernelBackend& backend, Problem problem) : backend_(backend), problem_(std::move(problem)) {}

  /// All tensors, in the order of Input. Some may be undefined.
  static std::vector<at::Tensor*> tensors_of(AttentionTensors& from) {
    std::vector<at::Tensor*> tensors{&from.query,       &from.key,          &from.value,
                                     &from.attn_mask,   &from.alibi_slopes, &from.query_offsets,
                                     &from.key_offsets, &from.key_lengths,  &from.block_table,
                                     &from.query_cos,   &from.query_sin,    &from.key_cos,
                                     &from.key_sin};
    for (at::Tensor& tensor : from.variant_tensors) tensors.push_back(&tensor);
    return tensors;
  }

  Problem problem_of(const std::vector<at::Tensor>& inputs) const {
    Problem problem = problem_;
    const std::vector<at::Tensor*> tensors = tensors_of(problem);
    for (std::size_t i = 0; i < inputs.size(); ++i) *tensors[i] = inputs[i];
    return problem;
  }

  /// The log-sum-exp is an output of the node if the caller wants it. Otherwise it is only saved for the backward pass.
  FusedOutputs outputs_of(const KernelResult& result) const {
    if (problem_.needs_log_sum_exp) return {{result.output, result.log_sum_exp}, {result.saved}};
    return {{result.output}, {result.saved, result.log_sum_exp}};
  }
  KernelResult result_of(const FusedOutputs& forward) const {
    KernelResult result;
    result.output = forward.outputs[kOutput];
    result.saved = forward.saved[kSaved];
    result.log_sum_exp = problem_.needs_log_sum_exp ? forward.outputs[kLogSumExp] : forward.saved[kSavedLogSumExp];
    return result;
  }

  const KernelBackend& backend_;  // built-in, or held by Problem::given_backend
  Problem problem_;               // without its tensors
};

inline AttentionResult KernelBackend::run(const Problem& problem) const {
  Problem given = readable(problem);
  given.given_backend = problem.given_backend;  // the graph keeps the backend alive
  AttentionResult result = AttentionNode::run(*this, std::move(given));
  const at::ScalarType dtype = problem.query.scalar_type();
  if (result.output.scalar_type() != dtype) result.output = result.output.to(dtype);
  return result;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
