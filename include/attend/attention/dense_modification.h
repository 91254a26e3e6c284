// SPDX-License-Identifier: MIT
#pragma once

// A score_mod and a mask_mod applied to whole tensors of scores, one score after the other: the definition, which the
// kernels are held against, and what materialize() shows. It can be differentiated twice, with respect to the scores
// and to every tensor that the score_mod reads.

#include <attend/attention/binder.h>
#include <attend/attention/coordinate.h>
#include <attend/attention/detail/dual.h>
#include <attend/attention/score_mod.h>
#include <attend/detail/autograd_node.h>
#include <attend/detail/const_data.h>
#include <attend/detail/parallel.h>
#include <attend/version.h>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

inline constexpr const char* kTwoValuesRead =
    "attend::flex_attention: a score_mod reads two values of one TensorView for the same score; its gradient needs two "
    "views of the tensor";

inline AttentionSizes sizes_of(const at::Tensor& scores) {
  return {scores.size(0), scores.size(1), scores.size(2), scores.size(3)};
}

/// Calls action(coordinate, place) for every score of (N, H, L, S), on all threads.
template <class Action>
void for_each_score(const AttentionSizes& sizes, const Action& action) {
  const std::int64_t rows = sizes.batch_size * sizes.num_heads * sizes.query_length;
  const int threads = static_cast<int>(std::min<std::int64_t>(at::get_num_threads(), std::max<std::int64_t>(rows, 1)));
  parallel(threads, [&](int thread) {
    for (std::int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; ++row) {
      const std::int64_t head = row / sizes.query_length;
      Coordinate at{
          static_cast<std::int32_t>(head / sizes.num_heads),   static_cast<std::int32_t>(head % sizes.num_heads),
          static_cast<std::int32_t>(row % sizes.query_length), 0,
          static_cast<std::int32_t>(sizes.query_length),       static_cast<std::int32_t>(sizes.key_length)};
      for (; at.key < sizes.key_length; ++at.key) action(at, row * sizes.key_length + at.key);
    }
  });
}

/// What a score_mod makes of scores (N, H, L, S), or a derivative of that.
///
/// `directions` says which derivative: 0 is one by the score, k one by the value that is read of tensor k − 1. None is
/// the changed score itself.
template <class Mod>
class DenseScores : public torch::autograd::Node {
 public:
  using Tensors = std::vector<at::Tensor>;

  /// `inputs`: the scores, then the tensors that the score_mod asks its binder for, all on the CPU.
  static at::Tensor apply_to(const Mod& mod, const Tensors& inputs, const std::vector<std::size_t>& directions = {}) {
    for (const at::Tensor& input : inputs)
      TORCH_CHECK_NOT_IMPLEMENTED(!input._fw_grad(/*level=*/0).defined(),
                                  "attend::flex_attention: a score_mod has no forward-mode derivative");
    at::Tensor result;
    {
      const c10::AutoGradMode no_grad(false);
      result = evaluate(mod, inputs, directions).first;
    }
    if (!torch::autograd::compute_requires_grad(at::TensorList(inputs))) return result;
    const auto node = make_node(new DenseScores(mod, inputs, directions));
    node->set_next_edges(torch::autograd::collect_next_edges(at::TensorList(inputs)));
    torch::autograd::set_history(result, node);
    return result;
  }

  std::string name() const override { return "attend::score_mod"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (torch::autograd::SavedVariable& saved : inputs_) saved.reset_data();
  }

 protected:
  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    TORCH_CHECK_NOT_IMPLEMENTED(directions_.size() < 2,
                                "attend::flex_attention: a score_mod can be differentiated twice, not more often");
    Tensors inputs;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const torch::autograd::SavedVariable& saved : inputs_) inputs.push_back(saved.unpack());
    }
    torch::autograd::variable_list results(inputs.size());
    if (!gradients[0].defined()) return results;
    for (std::size_t k = 0; k < inputs.size(); ++k) {
      if (!task_should_compute_output(k)) continue;
      std::vector<std::size_t> directions = directions_;
      directions.push_back(k);
      const at::Tensor derivative = apply_to(mod_, inputs, directions);  // (N, H, L, S)
      // Where no gradient goes, because a mask rules it out, a derivative may be infinite.
      const at::Tensor is_ruled_out = gradients[0].eq(0.0).logical_and(derivative.isfinite().logical_not());
      const at::Tensor gradient = gradients[0] * derivative.masked_fill(is_ruled_out, 0.0);
      if (k == 0) {
        results[k] = gradient;
        continue;
      }
      const at::Tensor places = evaluate(mod_, inputs, {k}).second;  // (N, H, L, S), of the values, from 1 on
      results[k] = at::zeros({inputs[k].numel() + 1}, gradient.options())
                       .index_add(0, places.flatten(), gradient.flatten())
                       .narrow(0, 1, inputs[k].numel())
                       .view(inputs[k].sizes());
    }
    return results;
  }

 private:
  DenseScores(const Mod& mod, const Tensors& inputs, std::vector<std::size_t> directions)
      : mod_(mod), directions_(std::move(directions)) {
    for (const at::Tensor& input : inputs) inputs_.emplace_back(input, /*is_output=*/false);
  }

  /// The derivative, and for a single direction k ≥ 1 also the place, from 1 on, of the value that it is by; else none.
  static std::pair<at::Tensor, at::Tensor> evaluate(const Mod& mod, const Tensors& inputs,
                                                    const std::vector<std::size_t>& directions) {
    return inputs[0].scalar_type() == at::kDouble ? evaluate_in<double>(mod, inputs, directions)
                                                  : evaluate_in<float>(mod, inputs, directions);
  }

  template <class V>
  static std::pair<at::Tensor, at::Tensor> evaluate_in(const Mod& mod, const Tensors& inputs,
                                                       const std::vector<std::size_t>& directions) {
    const at::Tensor scores = inputs[0].contiguous();
    const AttentionSizes sizes = sizes_of(scores);
    Tensors tensors;
    for (std::size_t k = 1; k < inputs.size(); ++k) tensors.push_back(inputs[k].contiguous());
    std::array<int, 2> differentiated = {-1, -1};
    for (std::size_t depth = 0; depth < directions.size(); ++depth)
      differentiated[depth] = static_cast<int>(directions[depth]) - 1;
    Binder binder(sizes, tensors, differentiated);
    const auto function = bound(mod, binder);

    at::Tensor results = at::empty(scores.sizes(), scores.options()), places;
    const V* score = const_data<V>(scores);
    V* result = results.mutable_data_ptr<V>();
    if (directions.empty()) {
      for_each_score(
          sizes, [&](Coordinate at, std::int64_t i) { result[i] = Real<V>(function(Real<V>(score[i]), at)).value; });
    } else if (directions.size() == 1) {
      const Real<V> by_score = directions[0] == 0 ? 1 : 0;
      std::int64_t* place = nullptr;
      if (directions[0] > 0) {
        places = at::empty(scores.sizes(), scores.options().dtype(at::kLong));
        place = places.mutable_data_ptr<std::int64_t>();
      }
      for_each_score(sizes, [&](Coordinate at, std::int64_t i) {
        const Dual<V> changed = function(Dual<V>(score[i], by_score, 0), at);
        result[i] = changed.derivative.value;
        if (place != nullptr) place[i] = changed.source;
      });
      TORCH_CHECK_VALUE(!places.defined() || places.ge(0).all().item<bool>(), kTwoValuesRead);
    } else {
      const Dual<V> first(0, directions[0] == 0 ? 1 : 0, 0);
      const Dual<V> second = directions[1] == 0 ? 1 : 0;
      for_each_score(sizes, [&](Coordinate at, std::int64_t i) {
        const Dual<Dual<V>> changed = function(Dual<Dual<V>>(first + score[i], second, 0), at);
        result[i] = changed.derivative.derivative.value;
      });
    }
    return {results, places};
  }

  Mod mod_;
  std::vector<std::size_t> directions_;
  std::vector<torch::autograd::SavedVariable> inputs_;
};

/// Which scores a mask_mod allows: bool (N, H, L, S). `tensors`: those that it asks its binder for, on the CPU.
///
/// The mask_mod is passed by value: g++ 12 -O1 warns about a reference to an empty one.
template <class Mod>
at::Tensor dense_mask(Mod mod, const AttentionSizes& sizes, const std::vector<at::Tensor>& tensors) {
  Binder binder(sizes, tensors);
  const auto function = bound(mod, binder);
  at::Tensor mask = at::empty({sizes.batch_size, sizes.num_heads, sizes.query_length, sizes.key_length}, at::kBool);
  bool* allowed = mask.mutable_data_ptr<bool>();
  for_each_score(sizes, [&](Coordinate at, std::int64_t i) { allowed[i] = function(at); });
  return mask;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
