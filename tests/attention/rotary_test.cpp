// SPDX-License-Identifier: MIT
#include <attend/attention.h>
#include <attend/flex_attention.h>
#include <attend/positions/rotary.h>

#include "support/accuracy.h"
#include "support/derivatives.h"
#include "support/errors.h"
#include "support/gradcheck.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace attention_rotary_test {
namespace {

using attend::attention;
using attend::AttentionOptions;
using attend::Backend;
using attend::RotaryEmbedding;
using attend::RotaryEmbeddingOptions;
using attend::RotaryLayout;
using attend::RotaryTables;
using attend::test::Refused;

/// Tables with any angles.
RotaryTables random_tables(const std::vector<std::int64_t>& sizes, RotaryLayout layout,
                           at::ScalarType dtype = torch::kDouble) {
  const torch::Tensor angles = 3 * torch::randn(sizes, torch::kDouble);
  return {angles.cos().to(dtype), angles.sin().to(dtype), layout};
}

/// The rotation by its formula. The tables are (1 or N, L, R/2).
torch::Tensor rotated(const torch::Tensor& x, const RotaryTables& tables) {
  const bool is_split = tables.layout == RotaryLayout::kHalfSplit;
  const std::int64_t pairs = tables.cos.size(-1);
  std::vector<torch::Tensor> columns = x.unbind(3);
  const std::vector<torch::Tensor> given = columns;
  for (std::int64_t i = 0; i < pairs; ++i) {
    const auto a = static_cast<std::size_t>(is_split ? i : 2 * i),
               b = static_cast<std::size_t>(is_split ? i + pairs : 2 * i + 1);
    const torch::Tensor cos = tables.cos.select(-1, i).unsqueeze(-2), sin = tables.sin.select(-1, i).unsqueeze(-2);
    columns[a] = given[a] * cos - given[b] * sin;
    columns[b] = given[b] * cos + given[a] * sin;
  }
  return torch::stack(columns, 3);
}

constexpr RotaryLayout kLayouts[] = {RotaryLayout::kHalfSplit, RotaryLayout::kInterleaved};

}  // namespace

TEST_CASE("attention: the option rotary is the formula of rotary embeddings, in float64, in every layout") {
  const torch::Tensor q = torch::randn({2, 4, 5, 12}, torch::kDouble), k = torch::randn({2, 2, 9, 12}, torch::kDouble),
                      v = torch::randn({2, 2, 9, 6}, torch::kDouble);
  for (const RotaryLayout layout : kLayouts)
    for (const std::int64_t pairs : {1, 4, 6})
      for (const std::int64_t N : {0, 1, 2}) {
        CAPTURE(layout);
        CAPTURE(pairs);
        CAPTURE(N);
        const RotaryTables tables = N == 0 ? random_tables({9, pairs}, layout) : random_tables({N, 9, pairs}, layout);
        const RotaryTables last{tables.cos.narrow(-2, 4, 5), tables.sin.narrow(-2, 4, 5), layout};
        const auto options = AttentionOptions().is_causal(true).softcap(3.0);
        const torch::Tensor expected = attention(rotated(q, last), rotated(k, tables), v, options);
        for (const Backend backend : {Backend::kReference, Backend::kCpu, Backend::kAuto}) {
          const torch::Tensor y = attention(q, k, v, AttentionOptions(options).rotary(tables).backend(backend));
          attend::test::check_equal_in_float64(y, expected);
        }
      }
}

TEST_CASE("attention: the option rotary gives the bits of attention() with rotated tensors, in every dtype") {
  for (const at::ScalarType dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf})
    for (const Backend backend : {Backend::kReference, Backend::kCpu, Backend::kSdpa}) {
      CAPTURE(dtype);
      CAPTURE(backend);
      const RotaryTables tables = random_tables({7, 4}, RotaryLayout::kInterleaved, torch::kFloat);
      const auto results = [&](bool by_option) {
        std::vector<torch::Tensor> inputs;
        torch::manual_seed(3);
        for (int i = 0; i < 3; ++i) inputs.push_back(torch::randn({2, 3, 7, 8}).to(dtype).requires_grad_());
        const auto options = AttentionOptions().backend(backend);
        const torch::Tensor y =
            by_option ? attention(inputs[0], inputs[1], inputs[2], AttentionOptions(options).rotary(tables))
                      : attention(attend::rotate(inputs[0], tables.cos, tables.sin, tables.layout),
                                  attend::rotate(inputs[1], tables.cos, tables.sin, tables.layout), inputs[2], options);
        std::vector<torch::Tensor> all = torch::autograd::grad({y.square().sum()}, inputs);
        all.push_back(y.detach());
        return all;
      };
      const std::vector<torch::Tensor> option = results(true), before = results(false);
      for (std::size_t i = 0; i < before.size(); ++i) CHECK(torch::equal(option[i], before[i]));
    }
}

TEST_CASE("attention: first and second derivatives with the option rotary, of learned tables too") {
  for (const RotaryLayout layout : kLayouts) {
    const RotaryTables tables = random_tables({5, 2}, layout);
    const auto fixed = [&](const std::vector<torch::Tensor>& inputs) {
      return std::vector<torch::Tensor>{
          attention(inputs[0], inputs[1], inputs[2], AttentionOptions().rotary(tables).is_causal(true))};
    };
    const auto learned = [&](const std::vector<torch::Tensor>& inputs) {
      return std::vector<torch::Tensor>{
          attention(inputs[0], inputs[1], inputs[2],
                    AttentionOptions().rotary({inputs[3].cos(), inputs[3].sin(), layout}).is_causal(true))};
    };
    const torch::Tensor q = torch::randn({1, 2, 3, 6}, torch::kDouble), k = torch::randn({1, 1, 5, 6}, torch::kDouble),
                        v = torch::randn({1, 1, 5, 2}, torch::kDouble), angles = torch::randn({5, 2}, torch::kDouble);
    attend::test::gradcheck(fixed, {q, k, v});
    attend::test::gradcheck(learned, {q, k, v, angles});
    attend::test::gradgradcheck(fixed, {q, k, v});
  }
}

TEST_CASE("attention: the option query_rotary has a row for each query: L > S, a packed batch, key_lengths") {
  const auto rotate_both = [](const torch::Tensor& x, const RotaryTables& tables) {
    return attend::rotate(x, tables.cos, tables.sin, tables.layout);
  };
  const auto check = [&](std::int64_t N, std::int64_t L, std::int64_t S, const AttentionOptions& options) {
    const torch::Tensor q = torch::randn({N, 2, L, 8}, torch::kDouble), k = torch::randn({N, 2, S, 8}, torch::kDouble),
                        v = torch::randn({N, 2, S, 3}, torch::kDouble);
    const RotaryTables of_queries = random_tables({N, L, 3}, RotaryLayout::kHalfSplit),
                       of_keys = random_tables({S, 3}, RotaryLayout::kHalfSplit);
    const torch::Tensor expected = attention(rotate_both(q, of_queries), rotate_both(k, of_keys), v, options);
    const torch::Tensor y = attention(q, k, v, AttentionOptions(options).rotary(of_keys).query_rotary(of_queries));
    CHECK(torch::equal(y, expected));
  };
  check(2, 6, 4, AttentionOptions().is_causal(true));
  check(1, 7, 7,
        AttentionOptions()
            .query_offsets(torch::tensor({0, 3, 7}, torch::kInt))
            .key_offsets(torch::tensor({0, 5, 7}, torch::kInt)));
  check(2, 3, 5, AttentionOptions().key_lengths(torch::tensor({5, 2}, torch::kInt)));
}

TEST_CASE(
    "attention: the option rotary reaches the weights, the log-sum-exp, flex_attention and tensors of rank 2 and 3") {
  RotaryEmbedding rotary(RotaryEmbeddingOptions(8).layout(RotaryLayout::kInterleaved));
  const torch::Tensor x = torch::randn({2, 3, 6, 8}), y = rotary->forward(x);
  const auto options = AttentionOptions().rotary(rotary->cos_sin(x));
  CHECK(torch::equal(attend::attention_weights(x, x, options), attend::attention_weights(y, y)));
  CHECK(torch::equal(attend::attention_with_lse(x, x, x, options).log_sum_exp,
                     attend::attention_with_lse(y, y, x).log_sum_exp));
  CHECK(torch::equal(attend::flex_attention(x, x, x, attend::Softcap{2}, attend::Causal{}, options),
                     attend::flex_attention(y, y, x, attend::Softcap{2}, attend::Causal{})));
  CHECK(torch::equal(attention(x[0], x[0], x[0], options), attention(y[0], y[0], x[0])));
  CHECK(torch::equal(attention(x[0][0], x[0][0], x[0][0], options), attention(y[0][0], y[0][0], x[0][0])));
  const torch::Tensor shared = x.narrow(0, 0, 1).expand({2, 3, 6, 8});
  CHECK(torch::equal(attention(shared, x, x, options), attention(rotary->forward(shared.contiguous()), y, x)));
}

TEST_CASE("explain: with the option rotary it computes nothing, and knows that learned tables need a gradient") {
  const torch::Tensor x = torch::randn({1, 2, 4, 8});
  RotaryTables tables = random_tables({4, 4}, RotaryLayout::kHalfSplit, torch::kFloat);
  const auto explained = [&](const AttentionOptions& options) { return attend::explain(x, x, x, options).text(); };
  CHECK(explained(AttentionOptions().rotary(tables)) == explained(AttentionOptions()));
  const torch::Tensor on_meta = x.to(torch::kMeta);
  tables.cos = tables.cos.to(torch::kMeta);
  tables.sin = tables.sin.to(torch::kMeta);
  CHECK_NOTHROW(attend::explain(on_meta, on_meta, on_meta, AttentionOptions().rotary(tables)));
}

TEST_CASE("attention: errors of the options rotary and query_rotary") {
  const torch::Tensor x = torch::randn({2, 3, 6, 8});
  const RotaryTables good = random_tables({6, 4}, RotaryLayout::kHalfSplit, torch::kFloat);
  const auto with = [&](const RotaryTables& tables) {
    return [&x, tables] { attention(x, x, x, AttentionOptions().rotary(tables)); };
  };
  const auto with_queries = [&](const RotaryTables& tables) {
    return [&x, good, tables] { attention(x, x, x, AttentionOptions().rotary(good).query_rotary(tables)); };
  };
  const auto of = [](const std::vector<std::int64_t>& sizes) {
    return RotaryTables{torch::randn(sizes), torch::randn(sizes)};
  };
  const torch::Tensor lengths = torch::tensor({6, 2}, torch::kInt), pages = torch::zeros({2, 1}, torch::kInt);
  const Refused cases[] = {
      {"rotary must have both cos and sin", false, with({good.cos, {}})},
      {"rotary must have both cos and sin", false, with({{}, good.sin})},
      {"query_rotary needs the option rotary", false,
       [&] { attention(x, x, x, AttentionOptions().query_rotary(good)); }},
      {"rotary must be dense, got the layout Sparse", true, with({good.cos.to_sparse(), good.sin})},
      {"the tables of rotary (Long) must have a floating dtype", true, with({good.cos.to(torch::kLong), good.sin})},
      {"the tables of rotary (meta) must be on the device of query (cpu)", false,
       with({good.cos.to(torch::kMeta), good.sin.to(torch::kMeta)})},
      {"cos [6, 4] and sin [6, 3] of rotary must have the same sizes", false, with({good.cos, torch::randn({6, 3})})},
      {"the tables of rotary must be (S, R/2) or (N, S, R/2), with N = 2 and S = 6, got [5, 4]", false,
       with(of({5, 4}))},
      {"got [3, 6, 4]", false, with(of({3, 6, 4}))},
      {"got [6]", false, with(of({6}))},
      {"got [2, 1, 6, 4]", false, with(of({2, 1, 6, 4}))},
      {"the tables of rotary must have from 1 to D/2 columns, with D = 8, got [6, 5]", false, with(of({6, 5}))},
      {"got [6, 0]", false, with(of({6, 0}))},
      {"the tables of query_rotary must be (L, R/2) or (N, L, R/2), with N = 2 and L = 6, got [4, 4]", false,
       with_queries(of({4, 4}))},
      {"query_rotary [6, 3] must have as many columns as rotary [6, 4]", false, with_queries(of({6, 3}))},
      {"query_rotary (kInterleaved) must have the layout of rotary (kHalfSplit)", false,
       with_queries({good.cos, good.sin, RotaryLayout::kInterleaved})},
      {"query_rotary must be given with L > S, in a packed batch and with key_lengths; L = 6 and S = 4", false,
       [&] {
         const torch::Tensor k = x.narrow(2, 0, 4);
         attention(x, k, k, AttentionOptions().rotary(of({4, 4})));
       }},
      {"query_rotary must be given", false,
       [&] { attention(x, x, x, AttentionOptions().rotary(good).key_lengths(lengths)); }},
      {"rotary cannot be combined with block_table", false,
       [&] { attention(x, x, x, AttentionOptions().rotary(good).key_lengths(lengths).block_table(pages)); }},
  };
  for (const Refused& each : cases) each.check();
}

}  // namespace attention_rotary_test
