// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/problem.h>
#include <attend/attention/reference.h>

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <array>
#include <memory>
#include <mutex>
#include <string>

namespace attend::detail {

/// The place of a fused kernel in torch's graph: what is saved for the backward pass, and who computes it.
///
/// Kernel is a struct with two functions on raw tensors, which know nothing of autograd:
///   static AttentionResult forward(const Problem&);
///   static std::array<at::Tensor, 3> backward(const Problem&, const AttentionResult& result,
///                                             const AttentionResult& gradients);
/// backward returns the gradients of query, key and value; one of `gradients` may be undefined, which means zeros.
///
/// A backward pass that is to be differentiated itself (create_graph) goes through the reference, so that attention can
/// be differentiated any number of times: a kernel's own backward would drop the second derivative without a word.
///
/// A node and not a torch::autograd::Function, whose templates for compiled autograd, which C++ has not, are a third of
/// the code that a program with one attention layer compiles.
template <class Kernel>
class FusedFunction : public torch::autograd::Node {
 public:
  static AttentionResult run(const Problem& problem) {
    const bool is_recorded = torch::autograd::compute_requires_grad(problem.query, problem.key, problem.value);
    AttentionResult result;
    {
      const c10::AutoGradMode no_grad(false);
      result = Kernel::forward(problem);
    }
    if (!is_recorded) return result;
    const std::shared_ptr<FusedFunction> node(new FusedFunction(problem), torch::autograd::deleteNode);
    node->set_next_edges(torch::autograd::collect_next_edges(problem.query, problem.key, problem.value));
    torch::autograd::set_history(result.output, node);
    if (problem.needs_log_sum_exp) torch::autograd::set_history(result.log_sum_exp, node);
    node->output_ = torch::autograd::SavedVariable(result.output, /*is_output=*/true);
    node->log_sum_exp_ = torch::autograd::SavedVariable(result.log_sum_exp, /*is_output=*/problem.needs_log_sum_exp);
    return result;
  }

  std::string name() const override { return "attend::attention"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto* saved : {&query_, &key_, &value_, &attn_mask_, &output_, &log_sum_exp_}) saved->reset_data();
  }

 protected:
  using Tensors = torch::autograd::variable_list;

  Tensors apply(Tensors&& given) override {
    const AttentionResult gradients{given[0], given.size() > 1 ? given[1] : at::Tensor()};
    if (!gradients.output.defined() && !gradients.log_sum_exp.defined()) return Tensors(3);
    const WithoutAutocast without_autocast;
    Problem problem = problem_;
    AttentionResult result;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      problem.query = query_.unpack();
      problem.key = key_.unpack();
      problem.value = value_.unpack();
      problem.attn_mask = attn_mask_.unpack();
      result = {output_.unpack(shared_from_this()), log_sum_exp_.unpack(shared_from_this())};
    }
    if (c10::GradMode::is_enabled()) return differentiable_backward(problem, gradients);
    const std::array<at::Tensor, 3> inputs = Kernel::backward(problem, result, gradients);
    return {inputs.begin(), inputs.end()};
  }

 private:
  explicit FusedFunction(const Problem& problem)
      : problem_(problem),
        query_(problem.query, /*is_output=*/false),
        key_(problem.key, /*is_output=*/false),
        value_(problem.value, /*is_output=*/false),
        attn_mask_(problem.attn_mask, /*is_output=*/false) {
    problem_.query = problem_.key = problem_.value = problem_.attn_mask = at::Tensor();
  }

  static Tensors differentiable_backward(Problem problem, const AttentionResult& gradients) {
    // Fresh views, because the caller may have passed one tensor as query and as key.
    Tensors inputs;
    for (at::Tensor* input : {&problem.query, &problem.key, &problem.value}) {
      if (!input->requires_grad()) continue;
      *input = input->view_as(*input);
      inputs.push_back(*input);
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
    const Tensors computed = torch::autograd::grad(outputs, inputs, output_gradients, /*retain_graph=*/true,
                                                   /*create_graph=*/true, /*allow_unused=*/true);
    Tensors results;
    auto next = computed.begin();
    for (const at::Tensor* input : {&problem.query, &problem.key, &problem.value})
      results.push_back(input->requires_grad() ? *next++ : at::Tensor());
    return results;
  }

  Problem problem_;  // without the tensors that are saved below, which torch watches for changes in place
  torch::autograd::SavedVariable query_, key_, value_, attn_mask_, output_, log_sum_exp_;
};

}  // namespace attend::detail
