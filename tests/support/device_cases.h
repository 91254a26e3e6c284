// SPDX-License-Identifier: MIT
#pragma once

// Calls that compare the CUDA kernels with the dense formula: on CPU tensors, where a harness runs the kernels
// (attention/detail/device_backend_test.cpp), and on a GPU (gpu/cuda_backend_test.cpp).

#include <attend/attention.h>
#include <attend/flex_attention.h>

#include "support/accuracy.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace attend::test {

inline torch::Tensor weighted_sum(const torch::Tensor& results) {
  const torch::Tensor numbers =
      torch::arange(results.numel(), torch::TensorOptions(results.device()).dtype(torch::kDouble));
  return (results.to(torch::kDouble) * (0.7 * numbers).sin().view(results.sizes())).sum();
}

/// Output, log-sum-exp and gradients of call(inputs), on the CPU.
template <class Call>
std::vector<torch::Tensor> results_of(std::vector<torch::Tensor> inputs, const Call& call, bool has_gradient) {
  for (torch::Tensor& input : inputs) input = input.detach().requires_grad_(has_gradient);
  torch::manual_seed(8);  // for dropout
  const AttentionResult result = call(inputs);
  std::vector<torch::Tensor> results{result.output.cpu(), result.log_sum_exp.cpu()};
  if (!has_gradient) return results;
  const torch::Tensor sum =
      weighted_sum(result.output) + weighted_sum(result.log_sum_exp.masked_fill(result.log_sum_exp.isinf(), 0));
  for (const torch::Tensor& gradient : torch::autograd::grad({sum}, inputs)) results.push_back(gradient.cpu());
  return results;
}

/// Compares a backend with the dense formula in float64, both on `device`: 1e-12 in float64, and the house rule in
/// lower precision.
template <class Call>
void compare_on(torch::Device device, const std::vector<torch::Tensor>& exact_inputs, at::ScalarType dtype,
                const Call& call, const BackendChoice& backend, bool has_gradient = true) {
  std::vector<torch::Tensor> inputs, in_double;
  for (const torch::Tensor& input : exact_inputs) {
    inputs.push_back(input.to(device, dtype));
    in_double.push_back(inputs.back().to(torch::kDouble));
  }
  const auto by = [&call](const BackendChoice& choice) {
    return [&call, choice](const std::vector<torch::Tensor>& given) { return call(given, choice); };
  };
  const BackendChoice reference = Backend::kReference;
  const auto results = results_of(inputs, by(backend), has_gradient),
             dense = results_of(inputs, by(reference), has_gradient),
             expected = results_of(in_double, by(reference), has_gradient);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    CHECK(bool(results[i].scalar_type() == dense[i].scalar_type()));
    CHECK(results[i].sizes() == dense[i].sizes());
    const torch::Tensor is_finite = expected[i].isfinite();
    CHECK(results[i].isfinite().equal(is_finite));
    const auto finite = [&](const torch::Tensor& result) {
      return result.to(torch::kDouble).masked_fill(is_finite.logical_not(), 0);
    };
    const double error = max_difference(finite(results[i]), finite(expected[i]));
    if (dtype == torch::kDouble)
      CHECK(error <= 1e-12 * size_of(finite(expected[i])));
    else
      CHECK(error <= 2 * max_difference(finite(dense[i]), finite(expected[i])) + 1e-6);
  }
}

/// Every option of attention(), in every dtype, with gradients. The backend is for calls without structs.
inline void check_every_option(torch::Device device, const BackendChoice& backend) {
  struct Case {
    std::string name;
    AttentionOptions options;
    std::vector<torch::Tensor> learned = {};  // attn_mask or alibi_slopes
    std::int64_t N = 2, L = 19;
    bool has_gradient = true;
  };
  torch::manual_seed(5);
  const auto with = [] { return AttentionOptions(); };
  const auto integers = [device](const torch::Tensor& tensor) { return tensor.to(device, torch::kInt); };
  const torch::Tensor mask = torch::rand({2, 1, 19, 23}) < 0.6, offsets = integers(torch::tensor({0, 5, 5, 19})),
                      key_offsets = integers(torch::tensor({0, 8, 10, 23})),
                      table = integers(torch::tensor({{2, 0, 0}, {1, 3, 0}}));
  const auto tables = [device](torch::IntArrayRef sizes, RotaryLayout layout) {
    const torch::Tensor angles = torch::randn(sizes).to(device);
    return RotaryTables{angles.cos(), angles.sin(), layout};
  };
  const RotaryTables half_split = tables({23, 8}, RotaryLayout::kHalfSplit),
                     of_keys = tables({2, 23, 3}, RotaryLayout::kInterleaved),
                     of_queries = tables({19, 3}, RotaryLayout::kInterleaved);
  const Case cases[] = {
      {"plain", with()},
      {"is_causal, scale", with().is_causal(true).scale(0.4)},
      {"window", with().window({6, 2})},
      {"a bool attn_mask", with().attn_mask(mask.to(device))},
      {"a learned attn_mask", with(), {torch::randn({4, 1, 23}, torch::kDouble)}},
      {"softcap", with().softcap(1.5)},
      {"learned alibi_slopes", with(), {torch::rand({4}, torch::kDouble)}},
      {"a packed batch", with().query_offsets(offsets).key_offsets(key_offsets).is_causal(true), {}, 1},
      {"key_lengths", with().key_lengths(integers(torch::tensor({23, 0})))},
      {"block_table", with().key_lengths(integers(torch::tensor({7, 12}))).block_table(table), {}, 4, 3, false},
      {"dropout", with().dropout(0.3)},
      {"rotary", with().rotary(half_split).is_causal(true)},
      {"rotary of a part, with query_rotary", with().rotary(of_keys).query_rotary(of_queries).softcap(1.5)},
  };
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf})
    for (const Case& c : cases) {
      CAPTURE(c.name);
      CAPTURE(dtype);
      const bool has_pages = c.options.block_table().defined();
      const std::int64_t S = has_pages ? 8 : 23, queries = has_pages ? 2 : c.N;
      std::vector<torch::Tensor> inputs{torch::randn({queries, c.L, 4, 16}).transpose(1, 2),  // not contiguous
                                        torch::randn({c.N, 2, S, 16}), torch::randn({c.N, 2, S, 24})};
      inputs.insert(inputs.end(), c.learned.begin(), c.learned.end());
      const auto call = [&c](const std::vector<torch::Tensor>& given, const BackendChoice& choice) {
        AttentionOptions options = AttentionOptions(c.options).backend(choice);
        if (given.size() > 3 && given[3].dim() == 1) options.alibi_slopes(given[3]);
        if (given.size() > 3 && given[3].dim() == 3) options.attn_mask(given[3]);
        return attention_with_lse(given[0], given[1], given[2], options);
      };
      compare_on(device, inputs, dtype, call, backend, c.has_gradient);
    }
}

/// The structs of check_structs(), which hold tensors.
using DeviceScore = decltype(then(Softcap{2}, RelativeBias(torch::Tensor())));
using DeviceMask = decltype(Document(torch::Tensor()) & Causal());

/// flex_attention() with these structs. The backend is for them.
inline void check_structs(torch::Device device, const BackendChoice& backend) {
  torch::manual_seed(6);
  const torch::Tensor documents =
      torch::tensor({0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2}, torch::kLong).to(device);
  const auto call = [&](const std::vector<torch::Tensor>& given, const BackendChoice& choice) {
    return flex_attention_with_lse(given[0], given[1], given[2], then(Softcap{2}, RelativeBias(given[3])),
                                   Document(documents) & Causal(), AttentionOptions().backend(choice));
  };
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
    CAPTURE(dtype);
    compare_on(device,
               {torch::randn({2, 4, 19, 16}), torch::randn({2, 2, 19, 16}), torch::randn({2, 2, 19, 16}),
                torch::randn({4, 9})},
               dtype, call, backend);
  }
}

}  // namespace attend::test
