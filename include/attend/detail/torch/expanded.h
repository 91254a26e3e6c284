// SPDX-License-Identifier: MIT
#pragma once

// Expanded tensors, as expand() makes them: a stride of 0 where the size is above 1, so that numbers are there several
// times but lie in memory once. Here is what keeps their casts and gradients as small as that.

#include <attend/detail/torch/autograd_node.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>

#include <cstdint>
#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

inline bool is_expanded(const at::Tensor& tensor, std::int64_t dim) {
  return tensor.size(dim) > 1 && tensor.stride(dim) == 0;
}

inline bool is_expanded(const at::Tensor& tensor) {
  if (tensor.layout() != at::kStrided || tensor.is_nested()) return false;
  for (std::int64_t d = 0; d < tensor.dim(); ++d)
    if (is_expanded(tensor, d)) return true;
  return false;
}

/// A view that has each number once: of size 1 where the tensor is expanded.
inline at::Tensor one_copy(at::Tensor tensor) {
  for (std::int64_t d = 0; d < tensor.dim(); ++d)
    if (is_expanded(tensor, d)) tensor = tensor.narrow(d, 0, 1);
  return tensor;
}

/// A cast that leaves an expanded tensor expanded.
class ExpandedCast : public torch::autograd::Node {
 public:
  static constexpr const char* kName = "attend::cast";

  /// cast(tensor) is the tensor in another dtype; its derivative is taken as 1.
  template <class Cast>
  static at::Tensor apply_to(const at::Tensor& tensor, const Cast& cast) {
    if (!is_expanded(tensor)) return cast(tensor);
    const bool is_recorded = tensor.requires_grad() && c10::GradMode::is_enabled();
    at::Tensor result;
    {
      const c10::AutoGradMode no_grad(false);
      result = cast(one_copy(tensor)).expand(tensor.sizes());
    }
    if (!is_recorded) return result;
    const auto node = make_node(new ExpandedCast(tensor.scalar_type()));
    node->set_next_edges(torch::autograd::collect_next_edges(tensor));
    torch::autograd::set_history(result, node);
    return result;
  }

  static at::Tensor apply_to(const at::Tensor& tensor, at::ScalarType dtype) {
    if (tensor.scalar_type() == dtype) return tensor;
    return apply_to(tensor, [dtype](const at::Tensor& each) { return each.to(dtype); });
  }

  std::string name() const override { return kName; }

 protected:
  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    return {gradients[0].defined() ? gradients[0].to(dtype_) : at::Tensor()};
  }

 private:
  explicit ExpandedCast(at::ScalarType dtype) : dtype_(dtype) {}

  at::ScalarType dtype_;
};

/// The short way of a gradient: past the expand() that made an expanded tensor, to what was expanded. A gradient that
/// takes it is summed over the copies and needs no memory for each of them.
///
/// `edge` is that of the expanded tensor, which holds `numel` different numbers. The result is invalid if there is no
/// such way: for a leaf that is expanded itself, and where another operation follows the expand(). unsqueeze() and an
/// ExpandedCast may follow.
inline torch::autograd::Edge edge_past_expand(torch::autograd::Edge edge, std::int64_t numel) {
  while (edge.is_valid()) {
    const std::string name = edge.function->name();
    if (name != "ExpandBackward0" && name != "UnsqueezeBackward0" && name != ExpandedCast::kName) break;
    edge = edge.function->next_edge(0);
    if (!edge.is_valid()) break;
    c10::SymInt size = 1;
    for (const c10::SymInt& each : edge.function->input_metadata(edge.input_nr).shape_as_dim_vector()) size *= each;
    if (size == numel) return edge;
  }
  return {};
}

/// Whether the backward pass that runs now shows to somebody what comes to this node: to a hook, to retain_grad(), or
/// to the caller of torch::autograd::grad().
inline bool is_observed(torch::autograd::Node& node) {
  if (!node.pre_hooks().empty() || !node.post_hooks().empty() || !node.tensor_pre_hooks().empty() ||
      !node.retains_grad_hooks().empty())
    return true;
  const auto* const wanted = torch::autograd::get_current_graph_task_exec_info();
  if (wanted == nullptr) return false;
  const auto found = wanted->find(&node);
  return found != wanted->end() && found->second.captures_ != nullptr;
}

/// Whether it does for a node on the way from `from` to `to`, `to` left out.
inline bool is_observed_between(const torch::autograd::Edge& from, const torch::autograd::Edge& to) {
  for (torch::autograd::Node* node = from.function.get(); node != to.function.get();
       node = node->next_edge(0).function.get())
    if (is_observed(*node)) return true;
  return false;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
