// SPDX-License-Identifier: MIT
#pragma once

// Expanded tensors, as expand() makes them: the stride is 0 in a dimension of size above 1, so several elements share
// one number in memory. With these functions, casts and gradients of such tensors need no more memory than the tensor
// before expand().

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

/// A view that has each number once: expanded dimensions get size 1.
inline at::Tensor one_copy(at::Tensor tensor) {
  for (std::int64_t d = 0; d < tensor.dim(); ++d)
    if (is_expanded(tensor, d)) tensor = tensor.narrow(d, 0, 1);
  return tensor;
}

/// A cast whose result is expanded if the tensor is expanded.
class ExpandedCast : public torch::autograd::Node {
 public:
  static constexpr const char* kName = "attend::cast";

  /// cast(tensor) returns the tensor in another dtype; the derivative is taken as 1.
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

/// The edge in the graph that leads to the tensor before the expand(). A gradient that is already summed over the
/// copies can take this edge past the node of expand(). So it needs no memory for each copy.
///
/// `edge` is the edge of the expanded tensor, which has `numel` different numbers. After the expand(), only unsqueeze()
/// and an ExpandedCast may follow. Otherwise, and for an expanded leaf, there is no such edge: the result is invalid.
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

/// Whether the running backward pass exposes the gradient that arrives at this node: to a hook, to retain_grad(), or to
/// the caller of torch::autograd::grad().
inline bool is_observed(torch::autograd::Node& node) {
  if (!node.pre_hooks().empty() || !node.post_hooks().empty() || !node.tensor_pre_hooks().empty() ||
      !node.retains_grad_hooks().empty())
    return true;
  const auto* const wanted = torch::autograd::get_current_graph_task_exec_info();
  if (wanted == nullptr) return false;
  const auto found = wanted->find(&node);
  return found != wanted->end() && found->second.captures_ != nullptr;
}

/// Whether a node on the way from `from` to `to` is observed; `to` itself is not checked.
inline bool is_observed_between(const torch::autograd::Edge& from, const torch::autograd::Edge& to) {
  for (torch::autograd::Node* node = from.function.get(); node != to.function.get();
       node = node->next_edge(0).function.get())
    if (is_observed(*node)) return true;
  return false;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
