// SPDX-License-Identifier: MIT
#pragma once

#include "configuration.h"
#include "cuda_memory.h"
#include "cuda_run.h"
#include "house_rule.h"
#include "naive.h"
#include "pages.h"
#include "results.h"
#include "support/environment.h"
#include "user_structs.h"

#include <attend/score/mask_mod.h>
#include <attend/score/score_mod.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/forward_plan.cuh>
#include <attend/kernels/cuda/number.cuh>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace attend::test {

/// A random call that kernels of the forward pass compute. T is the type that is computed in. kHasStructs:
/// with the user structs of the call, for all of which the kernels are then compiled.
template <class T, bool kHasStructs>
class CudaForwardRun {
 public:
  CudaForwardRun(std::uint32_t number, const Wishes& wishes)
      : c_(number, wishes),
        bias_(c_.bias.begin(), c_.bias.end()),
        gates_(c_.gates.begin(), c_.gates.end()),
        which_(kHasStructs ? c_.structs : 0),
        structs_(which_, {bias_.data(), gates_.data(), c_.document.data()}) {
    std::ostringstream text;
    text << "configuration " << number << ": " << c_ << "; " << replay(number);
    description_ = text.str();
  }

  const std::string& description() const { return description_; }
  const Configuration& configuration() const { return c_; }

  Results exact() const { return forward_only(Naive<double>(c_, structs_).results()); }
  /// The dense formula in the type of the call. is_tf32: with the factors of its products rounded to tf32.
  Results dense(bool is_tf32) const {
    if constexpr (std::is_same_v<T, float>)
      if (is_tf32) return forward_only(Naive<float, Rounding::kTf32>(c_, structs_).results());
    switch (c_.params.dtype) {
      case NumberType::kBFloat16:
        return forward_only(Naive<float, Rounding::kBFloat16>(c_, structs_).results());
      case NumberType::kFloat16:
        return forward_only(Naive<float, Rounding::kFloat16>(c_, structs_).results());
      default:
        return forward_only(Naive<T>(c_, structs_).results());
    }
  }

  /// Lists all memory that the kernels may read.
  void add_inputs(GlobalMemory& memory) {
    for (const auto& [tensor, name] : std::vector<std::pair<Tensor*, std::string>>{
             {&c_.query, "query"}, {&c_.key, "key"}, {&c_.value, "value"}, {&c_.mask, "mask"}, {&c_.slopes, "slopes"}})
      add_tensor(memory, *tensor, /*is_output=*/false, name);
    add_rotary(memory, c_);
    add_input(memory, c_.query_offsets, "query_offsets");
    add_input(memory, c_.key_offsets, "key_offsets");
    add_input(memory, c_.key_lengths, "key_lengths");
    add_input(memory, bias_, "bias");
    add_input(memory, gates_, "gates");
    add_input(memory, c_.document, "document");
  }

  /// What launch_all(call, workspace, launch) computes. Threads take turns in an order that depends on `seed`. The
  /// results have the log-sum-exp twice, and the output with its rest.
  template <class Kernels, class LaunchAll>
  Results computed(const AttentionParams& p, GlobalMemory& memory, std::uint64_t seed, const LaunchAll& launch_all) {
    const std::int64_t N = p.batch_size, H = p.num_heads, L = p.query_length, rows = N * H * L;
    Tensor output = c_.output_tensor({N, H, L, p.value_dim}), log_sum_exp(c_.computed(), {N, H, L, 1});
    std::vector<double> saved(static_cast<std::size_t>(cuda::saved_bytes(p)) / sizeof(double) + 1);
    const cuda::Call call =
        cuda::call_of(p, {output.view(), log_sum_exp.view().data, saved.data(), cuda::saved_bytes(p)});
    const std::int64_t bytes = cuda::forward_workspace_bytes<Kernels>(call);
    std::vector<double> workspace(static_cast<std::size_t>(bytes + 7) / sizeof(double) + 1, -77);
    memory.add_output(workspace.data(), bytes, "workspace");
    add_tensor(memory, output, /*is_output=*/true, "output");
    add_tensor(memory, log_sum_exp, /*is_output=*/true, "log_sum_exp");
    memory.add_output(saved.data(), cuda::saved_bytes(p), "saved");
    const auto run = [&](const auto& score, const auto& mask) {
      launch_all(call, workspace.data(), [&](auto kernel, const cuda::Call& launched) {
        using Kernel = decltype(kernel);
        CAPTURE(kernel.name());
        REQUIRE(run_kernel<Kernel>(launched, score, mask, memory, seed) == "");
      });
    };
    if (which_ == 0)
      run(Unchanged{}, EveryKey{});
    else if constexpr (kHasStructs)
      structs_.visit(run);
    CHECK(output.is_kept_around());
    CHECK(workspace.back() == -77);

    Results results{{"output", output.values()}, {"log_sum_exp", log_sum_exp.values()}};
    const auto* const saved_log_sum_exp = static_cast<const T*>(call.saved_log_sum_exp);
    results["log_sum_exp, saved"] = {saved_log_sum_exp, saved_log_sum_exp + rows};
    if (call.output_rest != nullptr) {
      Tensor rest(c_.number(), {N, H, L, p.value_dim});
      std::memcpy(rest.view().data, call.output_rest, static_cast<std::size_t>(rest.numel() * rest.number_bytes()));
      std::vector<double>&whole = results["output, with its rest"] = output.values(), numbers = rest.values();
      for (std::size_t i = 0; i < whole.size(); ++i) whole[i] += numbers[i];
    }
    return results;
  }

 private:
  static Results forward_only(const Results& all) {
    return {{"output", all.at("output")}, {"log_sum_exp", all.at("log_sum_exp")}};
  }

  Configuration c_;
  std::vector<T> bias_, gates_;
  int which_;
  UserStructs<T> structs_;
  std::string description_;
};

/// Compares random calls with the loop. float64: 1e-12; otherwise by the house rule. has_pages: keys and values are in
/// pages, but in packed batches. With kernels of float32 on tensor cores, the dense formula of the house rule rounds
/// the factors of its products to tf32.
template <NumberType kType, bool kHasStructs, class Kernels = cuda::EveryKernel, class LaunchAll>
void check_cuda_forward(std::uint32_t count, const Wishes& wishes, bool has_pages, const LaunchAll& launch_all) {
  constexpr bool kIsTf32 = kType == NumberType::kFloat32 && !std::is_same_v<Kernels, cuda::EveryKernel>;
  using T = cuda::detail::Computed<kType>;
  const auto [begin, end, are_all] = wanted_calls(count);
  Accuracy accuracy;
  for (std::uint32_t n = begin; n < end; ++n) {
    CudaForwardRun<T, kHasStructs> run(n, wishes);
    CAPTURE(run.description());
    GlobalMemory memory;
    run.add_inputs(memory);
    const Configuration& c = run.configuration();
    Random random(n);
    std::optional<Pages> pages;
    if (has_pages && c.params.num_sequences == 0) {
      pages.emplace(c, random, wishes.has_whole_rows);
      add_tensor(memory, pages->key(), /*is_output=*/false, "key pages");
      add_tensor(memory, pages->value(), /*is_output=*/false, "value pages");
      add_input(memory, pages->table(), "block_table");
      add_input(memory, pages->lengths(), "key_lengths of the pages");
    }
    AttentionParams params = pages ? pages->params() : c.params;
    const auto seed = static_cast<std::int64_t>(params.dropout_seed);
    if (n % 2 == 0) {
      params.dropout_seed = 0;
      params.dropout_seed_data = &seed;
      memory.add_input(&seed, sizeof seed, "dropout_seed_data");
    }
    const Results results = run.template computed<Kernels>(params, memory, /*seed=*/n % 3, launch_all);
    const Results exact = run.exact(), dense = std::is_same_v<T, double> ? Results{} : run.dense(kIsTf32);
    const bool has_few_errors =
        c.has_large_scores || c.params.batch_size * c.params.num_heads * c.params.query_length < 64;
    for (const auto& [full_name, numbers] : results) {
      CAPTURE(full_name);
      const std::string name = full_name.substr(0, full_name.find(','));
      if (std::is_same_v<T, double>)
        CHECK(max_difference(numbers, exact.at(name)) <= 1e-12 * size_of(exact.at(name)));
      else
        accuracy.check(full_name, has_few_errors, dense.at(name), numbers, exact.at(name));
    }
  }
  if (are_all) accuracy.check_results_of_few_numbers();
}

}  // namespace attend::test
