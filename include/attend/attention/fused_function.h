// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/problem.h>
#include <attend/attention/reference.h>

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace attend::detail {

/// All tensors of a problem that a gradient may go back to, in one order everywhere; some may be undefined.
inline std::vector<at::Tensor*> inputs_of(Problem& problem) {
  std::vector<at::Tensor*> inputs{&problem.query, &problem.key, &problem.value, &problem.attn_mask,
                                  &problem.alibi_slopes};
  for (at::Tensor& tensor : problem.modification_tensors) inputs.push_back(&tensor);
  return inputs;
}

/// What a kernel's forward pass gives.
struct FusedResult : AttentionResult {
  std::vector<at::Tensor> kept;  // what its backward pass wants to see again besides
};

/// The place of a fused kernel in torch's graph: what is saved for the backward pass, and who computes it.
///
/// Kernel is a struct with two functions on raw tensors, which know nothing of autograd:
///   static FusedResult forward(const Problem&, bool with_backward);
///   static std::vector<at::Tensor> backward(const Problem&, const FusedResult& result,
///                                           const AttentionResult& gradients);
/// backward returns gradients in the order of inputs_of(); those at the end may be missing, and so may those of tensors
/// that require none. One of `gradients` may be undefined, which means zeros.
///
/// A backward pass that is to be differentiated itself (create_graph) goes through the reference, so that attention can
/// be differentiated any number of times: a kernel's own backward would drop the second derivative without a word.
///
/// A node and not a torch::autograd::Function, whose templates for compiled autograd, which C++ has not, are a third of
/// the code that a program with one attention layer compiles.
template <class Kernel>
class FusedFunction : public torch::autograd::Node {
 public:
  static AttentionResult run(Problem problem) {
    Tensors inputs;
    for (const at::Tensor* input : inputs_of(problem)) inputs.push_back(*input);
    for (const at::Tensor& input : inputs)
      TORCH_CHECK_NOT_IMPLEMENTED(
          !input.defined() || !input._fw_grad(/*level=*/0).defined(),
          "attend::attention: fused kernels have no forward-mode derivative; ask for kReference");
    const bool is_recorded = torch::autograd::compute_requires_grad(at::TensorList(inputs));
    FusedResult result;
    {
      const c10::AutoGradMode no_grad(false);
      result = Kernel::forward(problem, is_recorded);
    }
    if (!is_recorded) return result;
    const std::shared_ptr<FusedFunction> node(new FusedFunction(problem), torch::autograd::deleteNode);
    node->set_next_edges(torch::autograd::collect_next_edges(at::TensorList(inputs)));
    torch::autograd::set_history(result.output, node);
    if (problem.needs_log_sum_exp) torch::autograd::set_history(result.log_sum_exp, node);
    node->output_ = torch::autograd::SavedVariable(result.output, /*is_output=*/true);
    node->log_sum_exp_ = torch::autograd::SavedVariable(result.log_sum_exp, /*is_output=*/problem.needs_log_sum_exp);
    for (const at::Tensor& kept : result.kept) node->kept_.emplace_back(kept, /*is_output=*/false);
    return result;
  }

  std::string name() const override { return "attend::attention"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (torch::autograd::SavedVariable& saved : inputs_) saved.reset_data();
    for (torch::autograd::SavedVariable& saved : kept_) saved.reset_data();
    output_.reset_data();
    log_sum_exp_.reset_data();
  }

 protected:
  using Tensors = torch::autograd::variable_list;

  Tensors apply(Tensors&& given) override {
    const AttentionResult gradients{given[0], given.size() > 1 ? given[1] : at::Tensor()};
    if (!gradients.output.defined() && !gradients.log_sum_exp.defined()) return Tensors(inputs_.size());
    const WithoutAutocast without_autocast;
    Problem problem = problem_;
    FusedResult result;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const std::vector<at::Tensor*> inputs = inputs_of(problem);
      for (std::size_t i = 0; i < inputs.size(); ++i) *inputs[i] = inputs_[i].unpack();
      result.output = output_.unpack(shared_from_this());
      result.log_sum_exp = log_sum_exp_.unpack(shared_from_this());
      for (const torch::autograd::SavedVariable& saved : kept_) result.kept.push_back(saved.unpack());
    }
    if (c10::GradMode::is_enabled()) return differentiable_backward(problem, gradients);
    Tensors inputs = Kernel::backward(problem, result, gradients);
    inputs.resize(inputs_.size());
    return inputs;
  }

 private:
  explicit FusedFunction(const Problem& problem) : problem_(problem) {
    for (at::Tensor* input : inputs_of(problem_)) {
      inputs_.emplace_back(*input, /*is_output=*/false);
      *input = at::Tensor();
    }
  }

  static Tensors differentiable_backward(Problem problem, const AttentionResult& gradients) {
    // Fresh views, because the caller may have passed one tensor as query and as key.
    Tensors differentiated;
    const std::vector<at::Tensor*> inputs = inputs_of(problem);
    for (at::Tensor* input : inputs) {
      if (!input->defined() || !input->requires_grad()) continue;
      *input = input->view_as(*input);
      differentiated.push_back(*input);
    }
    const AttentionResult result = Reference::run(problem);
    Tensors outputs, output_gradients;
    const auto add = [&](const at::Tensor& output, const at::Tensor& gradient) {
      if (!gradient.defined()) return;
      outputs.push_back(output);
      output_gradients.push_back(gradient);
    };
    add(result.output, gradients.output);
    add(result.log_sum_exp, gradients.log_sum_exp);
    const Tensors computed = torch::autograd::grad(outputs, differentiated, output_gradients, /*retain_graph=*/true,
                                                   /*create_graph=*/true, /*allow_unused=*/true);
    Tensors results;
    auto next = computed.begin();
    for (const at::Tensor* input : inputs)
      results.push_back(input->defined() && input->requires_grad() ? *next++ : at::Tensor());
    return results;
  }

  Problem problem_;  // without the tensors that are saved below, which torch watches for changes in place
  std::vector<torch::autograd::SavedVariable> inputs_, kept_;
  torch::autograd::SavedVariable output_, log_sum_exp_;
};

}  // namespace attend::detail
