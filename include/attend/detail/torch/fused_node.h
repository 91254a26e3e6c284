// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/autograd_node.h>
#include <attend/detail/torch/expanded.h>
#include <attend/detail/torch/in_memory.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The results of a fused forward pass.
struct FusedOutputs {
  std::vector<at::Tensor> outputs;
  std::vector<at::Tensor> saved;  // for its backward pass, besides inputs and outputs; some may be undefined
  bool needs_outputs = true;      // whether the backward pass reads the outputs; they cannot be changed in place then
};

/// An input as a fused kernel reads it.
///
/// @throws c10::NotImplementedError if it has a tangent of forward-mode differentiation.
inline at::Tensor fused_input(const char* name, const at::Tensor& input) {
  TORCH_CHECK_NOT_IMPLEMENTED(!input.defined() || !input._fw_grad(/*level=*/0).defined(), name,
                              ": fused kernels have no forward-mode derivative; set .backend(kReference)");
  return in_memory(input);
}

/// The node of a fused kernel in torch's graph. It saves tensors for the backward pass and calls the kernel.
///
/// Function is a struct that holds everything except the tensors, with
///   const char* name() const;
///   FusedOutputs forward(const std::vector<at::Tensor>& inputs, bool with_backward) const;  // not needed for record()
///   std::vector<at::Tensor> backward(const std::vector<at::Tensor>& inputs, const FusedOutputs& forward,
///                                    const std::vector<at::Tensor>& gradients) const;
///   std::vector<at::Tensor> reference(const std::vector<at::Tensor>& inputs) const;
/// - forward and backward work on tensors without autograd. Inputs may be undefined.
/// - backward returns gradients in the order of the inputs. Gradients at the end may be missing. Gradients of tensors
///   that require none may be undefined. Some of the given gradients may be undefined, which means zeros, but not all.
/// - reference computes the same outputs by torch's differentiable operations. The backward pass uses it with
///   create_graph, so the function can be differentiated any number of times. backward alone would silently drop the
///   second derivative.
///
/// Function may also have
///   bool sums_copies(std::size_t input) const;
/// If it returns true and the input is expanded (detail/torch/expanded.h), backward returns the gradient of
/// one_copy(input), summed over the copies. This gradient goes directly to the tensor before the expand(), which is
/// called the short way. If the gradient of the expanded tensor is observed, or there is no short way, backward gets a
/// contiguous copy of the input instead.
///
/// This is a node and not a torch::autograd::Function, whose templates are a third of the code that a program with one
/// attention layer compiles. They serve compiled autograd, which C++ does not have.
template <class Function>
class FusedNode : public torch::autograd::Node {
 public:
  using Tensors = std::vector<at::Tensor>;

  /// Calls forward, and records the call if it needs a gradient.
  static Tensors run(const Function& function, Tensors inputs) {
    for (at::Tensor& input : inputs) input = fused_input(function.name(), input);
    const bool is_recorded = torch::autograd::compute_requires_grad(at::TensorList(inputs));
    FusedOutputs result;
    {
      const c10::AutoGradMode no_grad(false);
      result = function.forward(inputs, is_recorded);
    }
    if (is_recorded) record(function, inputs, result);
    return std::move(result.outputs);
  }

  /// Records a forward pass in torch's graph. The inputs are as fused_input() gives them.
  static void record(const Function& function, const Tensors& inputs, const FusedOutputs& result) {
    const auto node = make_node(new FusedNode(function, inputs));
    node->set_next_edges(torch::autograd::collect_next_edges(at::TensorList(inputs)));
    for (std::size_t k = 0; k < inputs.size(); ++k) {
      if (!node->sums_copies(k, inputs[k])) continue;
      const torch::autograd::Edge edge = edge_past_expand(node->next_edge(k), one_copy(inputs[k]).numel());
      if (!edge.is_valid()) continue;
      node->short_ways_.push_back({k, node->num_outputs()});
      node->add_next_edge(edge);
    }
    node->outputs_.reserve(result.outputs.size());
    node->saved_.reserve(result.saved.size());
    for (const at::Tensor& output : result.outputs) {
      torch::autograd::set_history(output, node);
      node->outputs_.emplace_back(result.needs_outputs ? output : at::Tensor(), /*is_output=*/true);
    }
    for (const at::Tensor& saved : result.saved) node->saved_.emplace_back(saved, /*is_output=*/false);
  }

  std::string name() const override { return function_.name(); }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto* saved : {&inputs_, &outputs_, &saved_})
      for (torch::autograd::SavedVariable& each : *saved) each.reset_data();
  }

 protected:
  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    gradients.resize(outputs_.size());
    bool has_gradient = false;
    for (const at::Tensor& gradient : gradients) has_gradient |= gradient.defined();
    if (!has_gradient) return Tensors(num_outputs());
    // Every tensor already has its dtype, so autocast must not apply to a backward pass within its scope.
    const c10::impl::ExcludeDispatchKeyGuard without_autocast(c10::autocast_dispatch_keyset);
    Tensors inputs;
    FusedOutputs forward;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const torch::autograd::SavedVariable& saved : inputs_) inputs.push_back(saved.unpack());
      for (const torch::autograd::SavedVariable& saved : outputs_) forward.outputs.push_back(saved.unpack(getptr()));
      for (const torch::autograd::SavedVariable& saved : saved_) forward.saved.push_back(saved.unpack());
    }
    check_kinds(inputs);
    for (at::Tensor& gradient : gradients) gradient = in_memory(gradient);
    if (c10::GradMode::is_enabled()) return differentiable_backward(std::move(inputs), gradients);
    std::vector<ShortWay> short_ways;
    for (const ShortWay& way : short_ways_)  // a hook for saved tensors may have unpacked all copies
      if (sums_copies(way.input, inputs[way.input]) &&
          !is_observed_between(next_edge(way.input), next_edge(way.output)))
        short_ways.push_back(way);
    for (std::size_t k = 0; k < inputs.size(); ++k) {
      const auto is_of_input = [k](const ShortWay& way) { return way.input == k; };
      if (sums_copies(k, inputs[k]) && std::none_of(short_ways.begin(), short_ways.end(), is_of_input))
        inputs[k] = inputs[k].contiguous().requires_grad_();
    }
    Tensors results = function_.backward(inputs, forward, gradients);
    results.resize(num_outputs());
    for (const ShortWay& way : short_ways) {
      const torch::autograd::Edge& edge = next_edge(way.output);
      const at::Tensor gradient = std::exchange(results[way.input], at::Tensor());
      if (gradient.defined())
        results[way.output] =
            gradient.reshape_symint(edge.function->input_metadata(edge.input_nr).shape_as_dim_vector());
    }
    return results;
  }

 private:
  /// A short way: the gradient of input number `input` leaves the node through output number `output`.
  struct ShortWay {
    std::size_t input, output;
  };

  FusedNode(const Function& function, const Tensors& inputs) : function_(function) {
    inputs_.reserve(inputs.size());
    kinds_.reserve(inputs.size());
    for (const at::Tensor& input : inputs) {
      inputs_.emplace_back(input, /*is_output=*/false);
      kinds_.push_back(input.defined() ? Kind{input.scalar_type(), input.sizes().vec()} : Kind{});
    }
  }

  /// Throws if the dtype or the sizes of a saved tensor have changed. set_data(), which module->to() calls, replaces
  /// both without a new version of the tensor, so LibTorch does not notice.
  void check_kinds(const Tensors& inputs) const {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const Kind& kind = kinds_[i];
      TORCH_CHECK(!inputs[i].defined() || (inputs[i].scalar_type() == kind.dtype && inputs[i].sizes() == kind.sizes),
                  function_.name(), ": the backward pass needs a tensor that was ", kind.dtype, " ",
                  at::IntArrayRef(kind.sizes), " in the forward pass; set_data() has changed it to ",
                  inputs[i].scalar_type(), " ", inputs[i].sizes());
    }
  }

  /// Whether backward may sum the gradient of the input over its copies.
  bool sums_copies(std::size_t k, const at::Tensor& input) const {
    if constexpr (requires { function_.sums_copies(k); })
      return function_.sums_copies(k) && input.defined() && input.requires_grad() && input.numel() > 0 &&
             is_expanded(input);
    else
      return false;
  }

  Tensors differentiable_backward(Tensors inputs, const Tensors& gradients) const {
    // New views, because the caller may have passed one tensor twice, for example as query and as key.
    Tensors differentiated;
    for (at::Tensor& input : inputs) {
      if (!input.defined() || !input.requires_grad()) continue;
      input = input.view_as(input);
      differentiated.push_back(input);
    }
    const Tensors all = function_.reference(inputs);
    Tensors outputs, output_gradients;
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) continue;
      outputs.push_back(all[i]);
      output_gradients.push_back(gradients[i]);
    }
    const Tensors computed = torch::autograd::grad(outputs, differentiated, output_gradients, /*retain_graph=*/true,
                                                   /*create_graph=*/true, /*allow_unused=*/true);
    Tensors results(num_outputs());
    auto next = computed.begin();
    for (std::size_t k = 0; k < inputs.size(); ++k)
      if (inputs[k].defined() && inputs[k].requires_grad()) results[k] = *next++;
    return results;
  }

  struct Kind {
    at::ScalarType dtype = at::ScalarType::Undefined;
    std::vector<std::int64_t> sizes;
  };

  const Function function_;
  std::vector<Kind> kinds_;  // of the inputs
  std::vector<torch::autograd::SavedVariable> inputs_, outputs_, saved_;
  std::vector<ShortWay> short_ways_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
