// SPDX-License-Identifier: MIT
#pragma once

#include "kernels/support/configuration.h"
#include "kernels/support/cuda_memory.h"
#include "kernels/support/cuda_run.h"
#include "kernels/support/house_rule.h"
#include "kernels/support/naive.h"
#include "kernels/support/results.h"
#include "kernels/support/user_structs.h"
#include "support/environment.h"

#include <attend/kernels/cuda/backward_plan.cuh>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace attend::test {

/// No tensor-core kernel is compiled.
struct NoTensorCores {
  using BFloat16 = cuda::Widths<>;
  using Float16 = BFloat16;
};

/// The backward pass of a configuration, by the kernels. StructKernels and OptionKernels are the
/// tensor-core kernels that are compiled for the structs of a user, and without them.
template <class T, class StructKernels, class OptionKernels>
class CudaBackward {
 public:
  /// is_tf32: the kernels compute in tf32, and so does the dense formula.
  CudaBackward(std::uint32_t number, const Wishes& wishes, bool is_tf32)
      : is_tf32_(is_tf32),
        c_(number, wishes),
        bias_(c_.bias.begin(), c_.bias.end()),
        gates_(c_.gates.begin(), c_.gates.end()),
        structs_(c_.structs, {bias_.data(), gates_.data(), c_.document.data()}) {
    std::ostringstream text;
    text << "configuration " << number << ": " << c_ << "; " << replay(number);
    description_ = text.str();
    exact_ = Naive<double>(c_, structs_).results();
  }

  const std::string& description() const { return description_; }
  const std::vector<std::string>& kernels() const { return kernels_; }
  const Results& exact() const { return exact_; }
  const Configuration& configuration() const { return c_; }

  Results dense() const {
    if constexpr (std::is_same_v<T, float>)
      if (is_tf32_) return Naive<float, Rounding::kTf32>(c_, structs_).results();
    switch (c_.params.dtype) {
      case NumberType::kBFloat16:
        return Naive<float, Rounding::kBFloat16>(c_, structs_).results();
      case NumberType::kFloat16:
        return Naive<float, Rounding::kFloat16>(c_, structs_).results();
      default:
        return Naive<T>(c_, structs_).results();
    }
  }

  /// By the kernels, whose threads take turns in an order that depends on `seed`.
  Results computed(std::uint64_t seed) {
    Results results;
    structs_.visit([&](const auto& score_mod, const auto& mask_mod) {
      c_.structs == 0 ? compute<OptionKernels>(Unchanged{}, EveryKey{}, seed, results)
                      : compute<StructKernels>(score_mod, mask_mod, seed, results);
    });
    return results;
  }

 private:
  template <class Kernels, class Score, class Mask>
  void compute(const Score& score_mod, const Mask& mask_mod, std::uint64_t seed, Results& results) {
    const AttentionParams& p = c_.params;
    const std::int64_t N = p.batch_size, H = p.num_heads, G = p.num_kv_heads, L = p.query_length, S = p.key_length;
    Tensor output(c_.number(), {N, H, L, p.value_dim}), query = c_.output_tensor({N, H, L, p.head_dim}),
                                                        key = c_.output_tensor({N, G, S, p.head_dim}),
                                                        value = c_.output_tensor({N, G, S, p.value_dim});
    std::vector<double> saved(static_cast<std::size_t>(cuda::saved_bytes(p)) / sizeof(double) + 1);
    cuda::Call call = cuda::call_of(
        p, {output.view(), nullptr, saved.data(), static_cast<std::int64_t>(saved.size() * sizeof(double))});
    save(call, output);

    AttentionGradients gradients;
    gradients.output = c_.output_gradient.view();
    gradients.log_sum_exp = c_.log_sum_exp_gradient.view().data;
    gradients.query = query.view();
    gradients.key = key.view();
    gradients.value = value.view();
    GlobalMemory memory;
    const auto sum_for = [&](const std::string& name, bool is_wanted, std::int64_t size) -> SummedGradient {
      if (!is_wanted) return {};
      std::vector<double>& sum = results[name];
      sum.resize(static_cast<std::size_t>(size), -77);
      memory.add_output(sum.data(), size * 8, name);
      return {sum.data(), size};
    };
    const bool is_added = p.mask_type == MaskType::kAdded || p.mask_type == MaskType::kAddedBFloat16;
    gradients.attn_mask = sum_for("mask", is_added, c_.mask_gradient_size());
    gradients.alibi_slopes = sum_for("slopes", p.alibi_slopes != nullptr, p.alibi_strides[0] == 0 ? H : N * H);
    for (const std::int64_t size : structs_.tensor_sizes()) {
      const std::string name = "tensor" + std::to_string(gradients.score_tensors.size());
      gradients.score_tensors.push_back(sum_for(name, true, size));
    }

    const std::int64_t bytes = cuda::backward_workspace_bytes(call, gradients);
    std::vector<double> workspace(static_cast<std::size_t>((bytes + 7) / 8) + 1, -77);  // the last one must stay
    memory.add_output(workspace.data(), bytes, "workspace");
    add_input(memory, saved, "saved");
    for (const auto& [tensor, name] :
         std::vector<std::pair<Tensor*, std::string>>{{&c_.query, "query"},
                                                      {&c_.key, "key"},
                                                      {&c_.value, "value"},
                                                      {&c_.mask, "attn_mask"},
                                                      {&output, "output"},
                                                      {&c_.slopes, "alibi_slopes"},
                                                      {&c_.output_gradient, "gradient of output"},
                                                      {&c_.log_sum_exp_gradient, "gradient of log_sum_exp"}})
      add_tensor(memory, *tensor, /*is_output=*/false, name);
    for (const auto& [tensor, name] : std::vector<std::pair<Tensor*, std::string>>{
             {&query, "gradient of query"}, {&key, "gradient of key"}, {&value, "gradient of value"}})
      add_tensor(memory, *tensor, /*is_output=*/true, name);
    add_rotary(memory, c_);
    add_input(memory, c_.query_offsets, "query_offsets");
    add_input(memory, c_.key_offsets, "key_offsets");
    add_input(memory, c_.key_lengths, "key_lengths");
    add_input(memory, bias_, "bias");
    add_input(memory, gates_, "gates");
    add_input(memory, c_.document, "document");

    const auto marked = [&](int k, attend::detail::TensorReads* reads) {
      Score copy = score_mod;
      int i = 0;
      std::apply([&](auto&... views) { ((i++ == k ? views.differentiate(reads) : void()), ...); },
                 attend::detail::tensors_of(copy));
      return copy;
    };
    kernels_.clear();
    const auto launch = [&](auto kernel, const cuda::BackwardCall& backward) {
      using Kernel = decltype(kernel);
      kernels_.push_back(kernel.name());
      CAPTURE(kernel.name());
      REQUIRE(run_kernel<Kernel>(backward, score_mod, mask_mod, memory, seed) == "");
    };
    REQUIRE(cuda::backward_why_not(call, gradients) == nullptr);
    cuda::launch_backward<Score, Mask, Kernels>(call, gradients, marked, workspace.data(), bytes, launch);

    results["query"] = query.values();
    results["key"] = key.values();
    results["value"] = value.values();
    for (const Tensor* written : {&query, &key, &value}) CHECK(written->is_kept_around());
    CHECK(workspace.back() == -77);
  }

  /// What the forward pass saves: exact numbers, or those of the dense formula in tf32. In tf32 the gradients are the
  /// smaller difference of larger numbers, which must be rounded alike. For the same reason the numbers are those of
  /// rounded queries and keys with a rotary embedding.
  void save(const cuda::Call& call, Tensor& output) const {
    const Results results = is_tf32_                   ? dense()
                            : c_.params.rotary_dim > 0 ? Naive<double>(c_, structs_, /*rounds_rotated=*/true).results()
                                                       : exact_;
    const std::vector<double>&numbers = results.at("output"), &log_sum_exp = results.at("log_sum_exp");
    std::size_t k = 0;
    Tensor rest(c_.number(), output.sizes());
    Tensor::for_each(output.sizes(), [&](auto n, auto h, auto i, auto d) {
      output.set(n, h, i, d, numbers[k]);
      rest.set(n, h, i, d, numbers[k] - output.get(n, h, i, d));
      ++k;
    });
    if (c_.params.dtype == NumberType::kFloat64) return;
    if (call.output_rest != nullptr) std::memcpy(call.output_rest, rest.view().data, numbers.size() * 2);
    for (std::size_t row = 0; row < log_sum_exp.size(); ++row) {
      const auto rounded = static_cast<float>(log_sum_exp[row]);
      static_cast<float*>(call.saved_log_sum_exp)[row] = rounded;
      static_cast<float*>(call.log_sum_exp_rest)[row] =
          std::isfinite(rounded) ? static_cast<float>(log_sum_exp[row] - static_cast<double>(rounded)) : 0;
    }
  }

  bool is_tf32_;
  Configuration c_;
  std::vector<T> bias_, gates_;
  UserStructs<T> structs_;
  std::string description_;
  std::vector<std::string> kernels_;
  Results exact_;
};

/// Compares configurations with the loop. float64: 1e-12; otherwise by the house rule. is_tf32: the dense formula of
/// the house rule rounds the factors of its products to tf32.
class BackwardComparison {
 public:
  explicit BackwardComparison(bool is_tf32) : is_tf32_(is_tf32) {}

  template <class T, class StructKernels, class OptionKernels>
  void check(std::uint32_t number, const Wishes& wishes) {
    CudaBackward<T, StructKernels, OptionKernels> run(number, wishes, is_tf32_);
    CAPTURE(run.description());
    const Results results = run.computed(number % 3);
    if (number % 8 == 0) CHECK(results == run.computed(number % 3 + 1));  // the order of the threads changes no bit
    const Results dense = std::is_same_v<T, double> ? Results{} : run.dense();
    const AttentionParams& p = run.configuration().params;
    const bool has_few_errors =
        run.configuration().has_large_scores || p.batch_size * p.num_heads * p.query_length < 64;
    for (const auto& [name, numbers] : results) {
      CAPTURE(name);
      const std::vector<double>& exact = run.exact().at(name);
      if (std::is_same_v<T, double>)
        CHECK(max_difference(numbers, exact) <= 1e-12 * size_of(exact));
      else
        accuracy_.check(name, has_few_errors, dense.at(name), numbers, exact);
    }
    for (const std::string& kernel : run.kernels()) ++launches_[kernel];
  }

  void check_results_of_few_numbers() const { accuracy_.check_results_of_few_numbers(); }
  /// How often each kernel was launched.
  const std::map<std::string, int>& launches() const { return launches_; }

 private:
  bool is_tf32_;
  Accuracy accuracy_;
  std::map<std::string, int> launches_;
};

/// Checks the calls 0 to count - 1. Returns how often each kernel was launched, or nothing if only some calls are
/// wanted.
template <class StructKernels, class OptionKernels = StructKernels>
std::map<std::string, int> check_backward(NumberType dtype, std::uint32_t count, Wishes wishes, bool is_tf32 = false) {
  wishes.dtype = dtype;
  const auto [begin, end, are_all] = wanted_calls(count);
  BackwardComparison comparison(is_tf32);
  for (std::uint32_t n = begin; n < end; ++n)
    dtype == NumberType::kFloat64 ? comparison.check<double, NoTensorCores, NoTensorCores>(n, wishes)
                                  : comparison.check<float, StructKernels, OptionKernels>(n, wishes);
  if (!are_all) return {};
  comparison.check_results_of_few_numbers();
  return comparison.launches();
}

}  // namespace attend::test
