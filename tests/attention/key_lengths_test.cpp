// SPDX-License-Identifier: MIT

// The options key_lengths and block_table.

#include "support/accuracy.h"
#include "support/backends.h"
#include "support/dense.h"
#include "support/errors.h"

#include <attend/attention.h>
#include <attend/flex_attention.h>
#include <attend/score/mask_mod.h>

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace key_lengths_test {
namespace {

using attend::AttentionOptions;
using attend::Backend;
using attend::test::check_equal_in_float64;
using attend::test::dense;
using attend::test::Refused;
using attend::test::Tensors;

constexpr std::int64_t N = 3, H = 4, G = 2, L = 3, S = 24, D = 8;
const std::vector<std::int32_t> kLengths{24, 0, 13};

torch::Tensor lengths() { return torch::tensor(kLengths, torch::kInt); }

Tensors random_inputs() {
  torch::manual_seed(1);
  return {torch::randn({N, H, L, D}, torch::kDouble), torch::randn({N, G, S, D}, torch::kDouble),
          torch::randn({N, G, S, D}, torch::kDouble)};
}

/// The dense formula for each batch entry alone, with its own keys. Differentiable.
torch::Tensor each_alone(const Tensors& inputs, const attend::test::DenseMask& allowed) {
  Tensors outputs;
  for (std::int64_t n = 0; n < N; ++n) {
    const auto keys = [&](const torch::Tensor& tensor) {
      return tensor.narrow(0, n, 1).narrow(2, 0, kLengths[static_cast<std::size_t>(n)]);
    };
    outputs.push_back(
        kLengths[static_cast<std::size_t>(n)] == 0
            ? torch::zeros({1, H, L, D}, torch::kDouble)
            : dense({inputs[0].narrow(0, n, 1), keys(inputs[1]), keys(inputs[2])}, attend::test::same, allowed).output);
  }
  return torch::cat(outputs);
}

constexpr std::int64_t kPageSize = 5, kColumns = 5;  // for 25 keys

/// Pages of keys or values: a pool, in which NaN is where no key is.
struct Pages {
  torch::Tensor table = torch::full({N, kColumns}, -7, torch::kInt);
  torch::Tensor pool(const torch::Tensor& rows) {
    torch::Tensor pool = torch::full({N * kColumns + 1, G, kPageSize, D}, std::nan(""), torch::kDouble);
    for (std::int64_t n = 0; n < N; ++n)
      for (std::int64_t j = 0; j < kLengths[static_cast<std::size_t>(n)]; ++j) {
        const std::int64_t page = (n * kColumns + j / kPageSize) * 7 % (N * kColumns + 1);
        table[n][j / kPageSize] = page;
        pool.select(0, page).select(1, j % kPageSize).copy_(rows.select(0, n).select(1, j));
      }
    return pool;
  }
};

}  // namespace

TEST_CASE("attention: key_lengths equals attention of each batch entry to its own keys, with gradients") {
  for (const Backend backend : {Backend::kAuto, Backend::kCpu, Backend::kReference})
    for (const bool is_causal : {false, true}) {
      CAPTURE(backend);
      CAPTURE(is_causal);
      Tensors ours = random_inputs(), theirs = random_inputs();
      for (Tensors* inputs : {&ours, &theirs})
        for (torch::Tensor& input : *inputs) input.requires_grad_(true);
      const torch::Tensor result = attend::attention(
          ours[0], ours[1], ours[2], AttentionOptions().is_causal(is_causal).key_lengths(lengths()).backend(backend));
      const torch::Tensor expected =
          each_alone(theirs, is_causal ? attend::test::causal : attend::test::DenseMask(attend::test::everywhere));
      check_equal_in_float64(result, expected);
      const torch::Tensor gradient = torch::randn_like(expected);
      result.backward(gradient);
      expected.backward(gradient);
      for (std::size_t i = 0; i < 3; ++i) check_equal_in_float64(ours[i].grad(), theirs[i].grad());
    }
}

TEST_CASE("attention: key_lengths and offsets may have any strides") {
  torch::manual_seed(5);
  const torch::Tensor q = torch::randn({3, 2, 6, 8}), k = torch::randn({3, 2, 9, 8});
  const auto with_lengths = [&](const torch::Tensor& lengths) {
    return attend::attention(q, k, k, AttentionOptions().key_lengths(lengths));
  };
  const torch::Tensor five = torch::full({1}, 5, torch::kInt), two = torch::tensor({4, 0, 9, 0, 2, 0}, torch::kInt);
  CHECK(with_lengths(five.expand({3})).equal(with_lengths(torch::tensor({5, 5, 5}, torch::kInt))));
  CHECK(with_lengths(two.slice(0, 0, 6, 2)).equal(with_lengths(torch::tensor({4, 9, 2}, torch::kInt))));

  const torch::Tensor x = torch::randn({1, 2, 12, 8});
  const auto packed = [&](const torch::Tensor& offsets) {
    return attend::attention(x, x, x, AttentionOptions().query_offsets(offsets).key_offsets(offsets));
  };
  const torch::Tensor offsets = torch::tensor({0, 9, 5, 9, 12, 9}, torch::kInt);
  CHECK(packed(offsets.slice(0, 0, 6, 2)).equal(packed(torch::tensor({0, 5, 12}, torch::kInt))));
}

TEST_CASE("attention: key_lengths has second derivatives, which equal those of the dense formula") {
  Tensors ours = random_inputs(), theirs = random_inputs();
  const auto second = [](Tensors& inputs, const torch::Tensor& output) {
    const torch::Tensor first =
        torch::autograd::grad({output.square().sum()}, {inputs[1]}, {}, true, /*create_graph=*/true)[0];
    return torch::autograd::grad({first.square().sum()}, {inputs[0]})[0];
  };
  for (Tensors* inputs : {&ours, &theirs})
    for (torch::Tensor& input : *inputs) input.requires_grad_(true);
  check_equal_in_float64(
      second(ours, attend::attention(ours[0], ours[1], ours[2], AttentionOptions().key_lengths(lengths()))),
      second(theirs, each_alone(theirs, attend::test::everywhere)));
}

TEST_CASE("attention: block_table reads keys and values in pages, in the forward pass of every backend that can") {
  const Tensors inputs = random_inputs();
  const torch::Tensor expected = each_alone(inputs, attend::test::causal);
  Pages pages;
  const torch::Tensor key = pages.pool(inputs[1]), value = pages.pool(inputs[2]);
  for (const Backend backend : {Backend::kAuto, Backend::kCpu, Backend::kReference}) {
    CAPTURE(backend);
    const AttentionOptions options =
        AttentionOptions().is_causal(true).key_lengths(lengths()).block_table(pages.table).backend(backend);
    check_equal_in_float64(attend::attention(inputs[0], key, value, options), expected);
    const attend::AttentionResult with_lse = attend::attention_with_lse(inputs[0], key, value, options);
    check_equal_in_float64(with_lse.output, expected);
    CHECK(with_lse.log_sum_exp[1].eq(-INFINITY).all().item<bool>());
    CHECK(attend::attention_weights(inputs[0], key, options).sizes() == at::IntArrayRef({N, H, L, 25}));
  }
}

TEST_CASE("attention: key_lengths is the key_length of a score_mod's and mask_mod's Coordinate") {
  const Tensors inputs = random_inputs();
  Pages pages;
  const torch::Tensor key = pages.pool(inputs[1]), value = pages.pool(inputs[2]);
  for (const Backend backend : {Backend::kCpu, Backend::kReference}) {
    CAPTURE(backend);
    const AttentionOptions options = AttentionOptions().key_lengths(lengths()).backend(backend);
    const torch::Tensor expected = each_alone(inputs, attend::test::window(4, 0));
    check_equal_in_float64(attend::flex_attention(inputs[0], inputs[1], inputs[2], attend::Unchanged{},
                                                  attend::SlidingWindow(4, 0), options),
                           expected);
    check_equal_in_float64(
        attend::flex_attention(inputs[0], key, value, attend::Unchanged{}, attend::SlidingWindow(4, 0),
                               AttentionOptions(options).block_table(pages.table)),
        expected);
  }
}

TEST_CASE("attention: block_table with a gradient uses the dense formula, and kCpu by name refuses with the remedy") {
  Tensors inputs = random_inputs();
  Pages pages;
  const torch::Tensor key = pages.pool(inputs[1]).requires_grad_(true), value = pages.pool(inputs[2]);
  const AttentionOptions options = AttentionOptions().key_lengths(lengths()).block_table(pages.table);
  const attend::Explanation plan = attend::explain(inputs[0], key, value, options);
  CHECK(plan.backend == Backend::kReference);
  CHECK(plan.why_not_faster.find("kCpu has no backward pass with block_table; use key_lengths without pages, or "
                                 "torch::NoGradGuard if no gradient is needed.") != std::string::npos);
  CHECK(plan.why_not_faster.find("kSdpa does not support block_table.") != std::string::npos);
  CHECK(plan.copies.find("It copies the pages of key and value") != std::string::npos);
  attend::test::check_throws<c10::NotImplementedError>("kCpu has no backward pass with block_table", [&] {
    attend::attention(inputs[0], key, value, AttentionOptions(options).backend(Backend::kCpu));
  });
  attend::test::check_throws<c10::NotImplementedError>("kSdpa does not support key_lengths.", [&] {
    attend::attention(inputs[0], inputs[1], inputs[2],
                      AttentionOptions().key_lengths(lengths()).backend(Backend::kSdpa));
  });
  attend::attention(inputs[0], key, value, options).sum().backward();
  torch::Tensor row = inputs[1].clone().requires_grad_(true);
  each_alone({inputs[0], row, inputs[2]}, attend::test::everywhere).sum().backward();
  const std::int64_t page = pages.table[2][1].item<std::int64_t>();
  check_equal_in_float64(key.grad()[page], row.grad()[2].narrow(1, kPageSize, kPageSize));
  const torch::NoGradGuard no_grad;
  CHECK(attend::explain(inputs[0], key, value, options).backend == Backend::kCpu);
}

TEST_CASE("attention: key_lengths and block_table that do not fit are refused") {
  const Tensors inputs = random_inputs();
  Pages pages;
  const torch::Tensor key = pages.pool(inputs[1]), value = pages.pool(inputs[2]), table = pages.table;
  torch::Tensor beyond = table.clone(), negative = table.clone();
  beyond[0][2] = 16;
  negative[2][2] = -1;
  const auto call = [&](const AttentionOptions& options) {
    return [&inputs, options] { attend::attention(inputs[0], inputs[1], inputs[2], options); };
  };
  const auto paged = [&](const torch::Tensor& block_table, const torch::Tensor& values) {
    return [&, block_table, values] {
      attend::attention(inputs[0], key, values, AttentionOptions().key_lengths(lengths()).block_table(block_table));
    };
  };
  const auto of = [](std::vector<std::int32_t> numbers) { return torch::tensor(numbers, torch::kInt); };
  const std::vector<Refused> refused = {
      {"attend::attention: key_lengths must be int32, got Long", true,
       call(AttentionOptions().key_lengths(lengths().to(torch::kLong)))},
      {"attend::attention: key_lengths must be (N), with N = 3, got [2]", false,
       call(AttentionOptions().key_lengths(of({1, 2})))},
      {"attend::attention: key_lengths must be from 0 to S = 24, got 25 at index 1", false,
       call(AttentionOptions().key_lengths(of({1, 25, 2})))},
      {"attend::attention: key_lengths must be from 0 to S = 24, got -1 at index 2", false,
       call(AttentionOptions().key_lengths(of({1, 2, -1})))},
      {"attend::attention: key_lengths (meta) must be on the device of query (cpu)", false,
       call(AttentionOptions().key_lengths(lengths().to(torch::kMeta)))},
      {"attend::attention: block_table needs key_lengths", false, call(AttentionOptions().block_table(table))},
      {"attend::attention: block_table must be int32, got Long", true, paged(table.to(torch::kLong), value)},
      {"attend::attention: block_table must be (N, P), with N = 3, got [2, 5]", false,
       paged(table.narrow(0, 0, 2), value)},
      {"attend::attention: block_table must have numbers below the 16 pages of key, got 16 for page 2 of batch entry 0",
       false, paged(beyond, value)},
      {"attend::attention: block_table must have numbers below the 16 pages of key, got -1 for page 2 of batch entry 2",
       false, paged(negative, value)},
      {"attend::attention: value [15, 2, 5, 8] must have as many pages as key [16, 2, 5, 8]", false,
       paged(table, value.narrow(0, 0, 15))},
      {"attend::attention: with block_table query must be 4-d, got [3, 3, 8]", false,
       [&] {
         attend::attention(inputs[0].select(1, 0), key.select(1, 0), value.select(1, 0),
                           AttentionOptions().key_lengths(lengths()).block_table(table));
       }},
      {"attend::attention: key_lengths cannot be combined with query_offsets and key_offsets", false,
       [&] {
         attend::attention(inputs[0].narrow(0, 0, 1), inputs[1].narrow(0, 0, 1), inputs[2].narrow(0, 0, 1),
                           AttentionOptions().key_lengths(of({3})).query_offsets(of({0, 3})).key_offsets(of({0, 24})));
       }},
  };
  for (const Refused& each : refused) each.check();
}

}  // namespace key_lengths_test
