// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/finite.h>
#include <attend/detail/torch/autograd_node.h>
#include <attend/detail/torch/in_memory.h>
#include <attend/version.h>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/where.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <cstdint>
#include <mutex>
#include <string>

// The two matrix products of attention, written densely. A masked key has the weight 0 for its query, and so
// has the gradient of its score. But 0 · NaN and 0 · ∞ are NaN. So in these products a weight of 0 adds nothing,
// whatever value it meets. That holds in their derivatives of every order, because each is made of the same two
// products. On finite numbers they are at::matmul().

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Whether to search the tensor for numbers that are not finite. Only on the CPU: on a GPU the search would wait for
/// the device. Not under forward-mode differentiation, which supports torch's own operations only.
inline bool is_looked_at(const at::Tensor& tensor) {
  return tensor.is_cpu() && !tensor._fw_grad(/*level=*/0).defined();
}

inline at::Tensor scores_product(const at::Tensor& query, const at::Tensor& key);
inline at::Tensor values_product(const at::Tensor& weights, const at::Tensor& value);

/// Either product in torch's graph.
class ProductNode : public torch::autograd::Node {
 public:
  enum class Kind { kScores, kValues };

  ProductNode(Kind kind, const at::Tensor& left, const at::Tensor& right)
      : kind_(kind), left_(left, /*is_output=*/false), right_(right, /*is_output=*/false) {}

  std::string name() const override { return kind_ == Kind::kScores ? "attend::scores" : "attend::values"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    left_.reset_data();
    right_.reset_data();
  }

 protected:
  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    if (!gradients[0].defined()) return {at::Tensor(), at::Tensor()};
    const at::Tensor gradient = in_memory(gradients[0]);
    at::Tensor left, right;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      left = left_.unpack();
      right = right_.unpack();
    }
    torch::autograd::variable_list results(2);
    const bool is_scores = kind_ == Kind::kScores;
    if (task_should_compute_output(0)) {
      results[0] = is_scores ? values_product(gradient, right) : scores_product(gradient, right);
      if (!is_scores && !is_finite(right)) results[0] = results[0].masked_fill(left.eq(0.0), 0.0);
    }
    if (task_should_compute_output(1))
      results[1] =
          is_scores ? values_product(gradient.transpose(2, 3), left) : values_product(left.transpose(2, 3), gradient);
    return results;
  }

 private:
  const Kind kind_;
  torch::autograd::SavedVariable left_, right_;
};

/// The result of `compute`, with a ProductNode in torch's graph if a gradient is recorded.
template <class Compute>
at::Tensor product(ProductNode::Kind kind, const at::Tensor& left, const at::Tensor& right, const Compute& compute) {
  const bool is_recorded = torch::autograd::compute_requires_grad(left, right);
  at::Tensor result;
  {
    const c10::AutoGradMode no_grad(false);
    result = compute();
  }
  if (!is_recorded) return result;
  const auto node = make_node(new ProductNode(kind, left, right));
  node->set_next_edges(torch::autograd::collect_next_edges(left, right));
  torch::autograd::set_history(result, node);
  return result;
}

/// query · keyᵀ: (…, L, D), (…, S, D) → (…, L, S).
inline at::Tensor scores_product(const at::Tensor& query, const at::Tensor& key) {
  const auto compute = [&] { return at::matmul(query, key.transpose(2, 3)); };
  return is_looked_at(query) && is_looked_at(key) ? product(ProductNode::Kind::kScores, query, key, compute)
                                                  : compute();
}

/// weights · value: (…, L, S), (…, S, D) → (…, L, D). A weight of 0 adds nothing, even if the value is not finite.
inline at::Tensor values_product(const at::Tensor& weights, const at::Tensor& value) {
  if (!is_looked_at(weights) || !is_looked_at(value)) return at::matmul(weights, value);
  return product(ProductNode::Kind::kValues, weights, value, [&] {
    if (is_finite(value)) return at::matmul(weights, value);
    const at::Tensor is_bad = value.isfinite().logical_not().any(-1, /*keepdim=*/true);  // (…, S, 1)
    at::Tensor result = at::matmul(weights, value.masked_fill(is_bad, 0.0));
    const at::Tensor bad_value = value.masked_fill(is_bad.logical_not(), 0.0);
    const at::Tensor rows = is_bad.squeeze(-1).reshape({-1, is_bad.size(-2)}).any(0).nonzero();
    for (std::int64_t i = 0; i < rows.size(0); ++i) {
      const std::int64_t j = rows[i].item<std::int64_t>();
      const at::Tensor weight = weights.narrow(-1, j, 1);  // (…, L, 1)
      result += at::where(weight.eq(0.0), weight, weight * bad_value.narrow(-2, j, 1));
    }
    return result;
  });
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
