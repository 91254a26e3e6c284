// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/kernels/cpu/backward_pass.h>
#include <attend/kernels/cpu/few_query_pass.h>
#include <attend/kernels/cpu/forward.h>
#include <attend/kernels/cpu/plan.h>
#include <attend/kernels/cpu/scores.h>
#include <attend/kernels/cpu/sums.h>
#include <attend/kernels/cpu/variant.h>
#include <attend/kernels/cpu/workspace.h>
#include <attend/kernels/executor.h>
#include <attend/version.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// One call of attention, forward or backward, on the threads of an executor. T is double for float64, and float
/// otherwise. The params must come from checked().
template <class T>
class AttentionPass {
 public:
  AttentionPass(const AttentionParams& params, const KernelTables<T>& tables, CpuVariant<T>* variant = nullptr)
      : plan_(params, tables, variant), scores_(params, variant) {
    // prepare() needs the same query positions in all batch entries, and tiles that begin at the first query.
    const bool are_whole = params.key_lengths == nullptr && params.num_sequences == 0;
    if (variant != nullptr && are_whole) variant->prepare(plan_.batch_size, plan_.heads, plan_.queries, plan_.keys);
  }

  /// The size of AttentionOutputs::saved, in bytes.
  std::int64_t saved_bytes() const {
    return AttentionResults<T>::saved_size(plan_) * static_cast<std::int64_t>(sizeof(T));
  }

  void forward(const AttentionOutputs& outputs, Executor& executor) const {
    const AttentionResults<T> results(plan_, outputs);
    if (FewQueryPass<T>::is_for(plan_, results)) {
      using Pass = FewQueryPass<T>;
      Pass pass(plan_, scores_, results);
      return for_each_item<typename Pass::Scratch>(pass.num_items(), executor,
                                                   [&](std::int64_t i, auto& scratch) { pass.work(i, scratch); });
    }
    struct Scratch {
      Workspace<T> memory;
      KeyTiles keys;
    };
    // From the end: under a causal mask the last items take longest.
    const std::int64_t items = plan_.num_items();
    for_each_item<Scratch>(items, executor, [&](std::int64_t i, Scratch& scratch) {
      forward_item(plan_, scores_, results, plan_.item(items - 1 - i), scratch.keys, scratch.memory);
    });
  }

  void backward(const AttentionOutputs& outputs, const AttentionGradients& given, Executor& executor) const {
    const AttentionResults<T> results(plan_, outputs);
    const int threads = threads_of(plan_.num_items(), executor);
    Gradients<T> gradients;
    gradients.output = {given.output, plan_.is_bfloat16};
    gradients.log_sum_exp = static_cast<const T*>(given.log_sum_exp);
    gradients.query = {given.query, plan_.is_bfloat16};
    gradients.key = {given.key, plan_.is_bfloat16};
    gradients.value = {given.value, plan_.is_bfloat16};

    // In a mask that is not broadcast each query has its own entries, so no two threads add to the same one.
    std::vector<SumRows> rows;
    rows.reserve(2 + given.score_tensors.size());
    rows.emplace_back(given.attn_mask, scores_.options.is_mask_full() ? 1 : threads);
    rows.emplace_back(given.alibi_slopes, threads);
    for (const SummedGradient& each : given.score_tensors) rows.emplace_back(each, threads);
    const auto set_to_zero = [&] {
      for (SumRows& each : rows) each.set_to_zero();
      if (scores_.variant != nullptr) scores_.variant->clear_gradients();
    };
    set_to_zero();
    gradients.mask = rows[0].sums();
    gradients.slopes = rows[1].sums();
    for (std::size_t k = 2; k < rows.size(); ++k) gradients.score_tensors.push_back(rows[k].sums());
    const auto is_wanted = [](const Sums& sums) { return sums.data != nullptr; };
    if (std::none_of(gradients.score_tensors.begin(), gradients.score_tensors.end(), is_wanted))
      gradients.score_tensors.clear();
    else
      scores_.variant->prepare_gradients(threads);

    BackwardPass<T> pass(plan_, scores_, results, gradients, threads);
    executor.run(threads, [&](int thread) { pass.work(thread, /*is_careful=*/false); });
    if (pass.must_begin_again()) {
      set_to_zero();
      executor.run(threads, [&](int thread) { pass.work(thread, /*is_careful=*/true); });
    }
    executor.run(threads, [&](int thread) {
      pass.finish(thread);
      if (gradients.score_tensors.size() == 1)
        scores_.variant->finish_gradients(thread, gradients.score_tensors[0].of(thread));
    });
    for (SumRows& each : rows) each.finish();
  }

 private:
  static int threads_of(std::int64_t items, const Executor& executor) {
    return static_cast<int>(std::clamp<std::int64_t>(items, 1, std::max(executor.threads(), 1)));
  }

  /// Calls action(item, scratch) for all items. Each thread has its own scratch.
  template <class Scratch, class Action>
  static void for_each_item(std::int64_t items, Executor& executor, const Action& action) {
    std::atomic<std::int64_t> next{0};
    executor.run(threads_of(items, executor), [&](int) {
      Scratch scratch;
      for (std::int64_t i; (i = next++) < items;) action(i, scratch);
    });
  }

  AttentionPlan<T> plan_;
  Scores<T> scores_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
