// SPDX-License-Identifier: MIT
#pragma once

// Applies a score_mod and a mask_mod to whole tensors of scores, one score after the other. The dense reference and
// materialize() use these functions, and tests compare the kernels with them. The results can be differentiated twice,
// with respect to the scores and to every tensor that the score_mod reads.

#include <attend/attention/binder.h>
#include <attend/detail/torch/autograd_node.h>
#include <attend/detail/torch/const_data.h>
#include <attend/detail/torch/parallel.h>
#include <attend/score/coordinate.h>
#include <attend/score/dual.h>
#include <attend/score/real.h>
#include <attend/score/score_mod.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

inline AttentionSizes sizes_of(const at::Tensor& scores) {
  return {scores.size(0), scores.size(1), scores.size(2), scores.size(3)};
}

/// Calls action(coordinate, index) for every score of (N, H, L, S) whose key exists, on all threads. Each thread calls
/// make_action() for an action of its own.
template <class MakeAction>
void for_each_score(const AttentionSizes& sizes, const KeyLengths& key_lengths, const MakeAction& make_action) {
  const std::int64_t rows = sizes.batch_size * sizes.num_heads * sizes.query_length;
  const int threads = static_cast<int>(std::min<std::int64_t>(at::get_num_threads(), std::max<std::int64_t>(rows, 1)));
  parallel(threads, [&](int thread) {
    auto action = make_action();
    for (std::int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; ++row) {
      const std::int64_t head = row / sizes.query_length, keys = key_lengths.of(head / sizes.num_heads, sizes);
      Coordinate at{
          static_cast<std::int32_t>(head / sizes.num_heads),   static_cast<std::int32_t>(head % sizes.num_heads),
          static_cast<std::int32_t>(row % sizes.query_length), 0,
          static_cast<std::int32_t>(sizes.query_length),       static_cast<std::int32_t>(keys)};
      for (; at.key < keys; ++at.key) action(at, row * sizes.key_length + at.key);
    }
  });
}

/// Calls action(coordinate) for every score of (N, H, L, S) whose key exists, one after the other.
template <class Action>
void for_each_score_in_order(const AttentionSizes& sizes, const KeyLengths& key_lengths, const Action& action) {
  Coordinate at{0, 0, 0, 0, static_cast<std::int32_t>(sizes.query_length), 0};
  for (at.batch = 0; at.batch < sizes.batch_size; ++at.batch) {
    at.key_length = static_cast<std::int32_t>(key_lengths.of(at.batch, sizes));
    for (at.head = 0; at.head < sizes.num_heads; ++at.head)
      for (at.query = 0; at.query < sizes.query_length; ++at.query)
        for (at.key = 0; at.key < at.key_length; ++at.key) action(at);
  }
}

/// The variable with respect to which the result of a score_mod is differentiated. Input 0 is the score itself. Input k
/// is a value of tensor k − 1: value number `turn`, from 0, in the order in which the score_mod reads them.
struct Direction {
  std::size_t input;
  int turn = 0;
};

/// A score_mod applied to scores (N, H, L, S), or the derivative of the result with respect to one or two `directions`.
template <class Mod>
class DenseScores : public torch::autograd::Node {
 public:
  using Tensors = std::vector<at::Tensor>;

  /// `inputs`: the scores, then the tensors that the score_mod requests from its binder, all on the CPU. Scores of keys
  /// that do not exist become 0.
  static at::Tensor apply_to(const Mod& mod, const Tensors& inputs, const std::vector<Direction>& directions = {},
                             const KeyLengths& key_lengths = {}) {
    for (const at::Tensor& input : inputs)
      TORCH_CHECK_NOT_IMPLEMENTED(!input._fw_grad(/*level=*/0).defined(),
                                  "attend::flex_attention: a score_mod has no forward-mode derivative");
    at::Tensor result;
    {
      const c10::AutoGradMode no_grad(false);
      result = evaluate(mod, inputs, directions, key_lengths).results;
    }
    if (!torch::autograd::compute_requires_grad(at::TensorList(inputs))) return result;
    const auto node = make_node(new DenseScores(mod, inputs, directions, key_lengths));
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
                                "attend::flex_attention: a score_mod can be differentiated at most twice");
    Tensors inputs;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const torch::autograd::SavedVariable& saved : inputs_) inputs.push_back(saved.unpack());
    }
    torch::autograd::variable_list results(inputs.size());
    if (!gradients[0].defined()) return results;
    for (std::size_t k = 0; k < inputs.size(); ++k) {
      if (!task_should_compute_output(k)) continue;
      if (k == 0) {
        results[k] = gradient_by(inputs, gradients[0], {0});
        continue;
      }
      at::Tensor sums = at::zeros({inputs[k].numel()}, gradients[0].options());
      for (int turn = 0, turns = 1; turn < turns; ++turn) {
        const Evaluation evaluation = evaluate(mod_, inputs, {{k, turn}}, key_lengths_);
        turns = evaluation.turns;
        if (turn >= turns) break;  // the tensor is not read
        sums = sums.index_add(0, evaluation.places.flatten(), gradient_by(inputs, gradients[0], {k, turn}).flatten());
      }
      results[k] = sums.view(inputs[k].sizes());
    }
    return results;
  }

 private:
  DenseScores(const Mod& mod, const Tensors& inputs, std::vector<Direction> directions, KeyLengths key_lengths)
      : mod_(mod), directions_(std::move(directions)), key_lengths_(std::move(key_lengths)) {
    for (const at::Tensor& input : inputs) inputs_.emplace_back(input, /*is_output=*/false);
  }

  /// The gradient times the derivative with respect to one more direction, for each score: (N, H, L, S).
  at::Tensor gradient_by(const Tensors& inputs, const at::Tensor& gradient, const Direction& direction) const {
    std::vector<Direction> directions = directions_;
    directions.push_back(direction);
    const at::Tensor derivative = apply_to(mod_, inputs, directions, key_lengths_);
    // The derivative of a masked score may be infinite. Its gradient is 0, and the product must be 0.
    const at::Tensor is_masked = gradient.eq(0.0).logical_and(derivative.isfinite().logical_not());
    return gradient * derivative.masked_fill(is_masked, 0.0);
  }

  /// The result of evaluate(). `results` has the changed score, or its derivative, for each score.
  ///
  /// The other members are set only for a single direction that is a tensor. `places` has an index for each score:
  /// where value number `turn` is in the tensor, or 0 if the score_mod reads fewer values. `turns` is the largest
  /// number of values that the score_mod reads for a score.
  struct Evaluation {
    at::Tensor results, places;
    int turns = 0;
  };

  static Evaluation evaluate(const Mod& mod, const Tensors& inputs, const std::vector<Direction>& directions,
                             const KeyLengths& key_lengths) {
    return inputs[0].scalar_type() == at::kDouble ? evaluate_in<double>(mod, inputs, directions, key_lengths)
                                                  : evaluate_in<float>(mod, inputs, directions, key_lengths);
  }

  template <class V>
  static Evaluation evaluate_in(const Mod& mod, const Tensors& inputs, const std::vector<Direction>& directions,
                                const KeyLengths& key_lengths) {
    const at::Tensor scores = inputs[0].contiguous();
    const AttentionSizes sizes = sizes_of(scores);
    Tensors tensors;
    for (std::size_t k = 1; k < inputs.size(); ++k) tensors.push_back(inputs[k].contiguous());
    const V* const score = const_data<V>(scores);
    Evaluation evaluation{at::zeros(scores.sizes(), scores.options()), {}};
    V* const result = evaluation.results.template mutable_data_ptr<V>();

    // Each thread has its own score_mod. Its views count the values that it reads, in `reads`.
    struct Bound {
      Bound(const Mod& mod, const AttentionSizes& sizes, const Tensors& tensors,
            const std::vector<Direction>& directions)
          : reads(std::make_unique<TensorReads[]>(2)), function(bind(mod, sizes, tensors, directions, reads.get())) {}
      static attend::detail::Bound<Mod> bind(const Mod& mod, const AttentionSizes& sizes, const Tensors& tensors,
                                             const std::vector<Direction>& directions, TensorReads* reads) {
        ViewPurpose purpose;
        for (std::size_t depth = 0; depth < directions.size(); ++depth) {
          purpose.differentiated[depth] = static_cast<int>(directions[depth].input) - 1;
          purpose.reads[depth] = &reads[depth];
        }
        Binder binder(sizes, tensors, purpose);
        return bound(mod, binder);
      }
      std::unique_ptr<TensorReads[]> reads;
      attend::detail::Bound<Mod> function;
    };
    using First = Dual<V, /*kByTensor=*/true>;
    using Second = Dual<First, /*kByTensor=*/true>;
    const auto bound_mod = [&] { return Bound(mod, sizes, tensors, directions); };
    const auto one_if = [&](std::size_t depth) { return directions[depth].input == 0 ? 1 : 0; };

    if (directions.empty()) {
      for_each_score(sizes, key_lengths, [&] {
        return [&, own = bound_mod()](Coordinate at, std::int64_t i) {
          result[i] = Real<V>(own.function(Real<V>(score[i]), at)).value;
        };
      });
    } else if (directions.size() == 1) {
      std::int64_t* place = nullptr;
      if (directions[0].input > 0) {
        evaluation.places = at::zeros(scores.sizes(), scores.options().dtype(at::kLong));
        place = evaluation.places.template mutable_data_ptr<std::int64_t>();
      }
      std::atomic<int> turns{0};
      for_each_score(sizes, key_lengths, [&] {
        return [&, own = bound_mod()](Coordinate at, std::int64_t i) {
          TensorReads& reads = own.reads[0];
          reads.begin(directions[0].turn);
          const First changed = own.function(First(score[i], one_if(0)), at);
          result[i] = changed.derivative.value;
          if (place != nullptr && reads.turn > directions[0].turn) place[i] = reads.place;
          if (reads.turn > turns.load(std::memory_order_relaxed)) {
            int seen = turns.load();
            while (seen < reads.turn && !turns.compare_exchange_weak(seen, reads.turn)) continue;
          }
        };
      });
      evaluation.turns = turns;
    } else {
      for_each_score(sizes, key_lengths, [&] {
        return [&, own = bound_mod()](Coordinate at, std::int64_t i) {
          for (std::size_t depth = 0; depth < 2; ++depth) own.reads[depth].begin(directions[depth].turn);
          const Second changed = own.function(Second(First(score[i], one_if(0)), First(one_if(1))), at);
          result[i] = changed.derivative.derivative.value;
        };
      });
    }
    return evaluation;
  }

  Mod mod_;
  std::vector<Direction> directions_;
  KeyLengths key_lengths_;
  std::vector<torch::autograd::SavedVariable> inputs_;
};

/// The scores that a mask_mod allows: bool (N, H, L, S), false for keys that do not exist. `tensors`: the tensors that
/// it requests from its binder, on the CPU.
///
/// The mask_mod is passed by value: g++ 12 -O1 warns about a reference to an empty one.
template <class Mod>
at::Tensor dense_mask(Mod mod, const AttentionSizes& sizes, const std::vector<at::Tensor>& tensors,
                      const KeyLengths& key_lengths = {}) {
  Binder binder(sizes, tensors);
  const auto function = bound(mod, binder);
  at::Tensor mask = at::zeros({sizes.batch_size, sizes.num_heads, sizes.query_length, sizes.key_length}, at::kBool);
  bool* allowed = mask.mutable_data_ptr<bool>();
  for_each_score(sizes, key_lengths, [&] { return [&](Coordinate at, std::int64_t i) { allowed[i] = function(at); }; });
  return mask;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
