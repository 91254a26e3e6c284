// SPDX-License-Identifier: MIT
#include "support/accuracy.h"
#include "support/dense.h"
#include "support/errors.h"

#include <attend/attention.h>
#include <attend/attention/key_value_cache.h>
#include <attend/flex_attention.h>
#include <attend/score/mask_mod.h>
#include <attend/score/score_mod.h>

#include <torch/nn/functional/activation.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace key_value_cache_test {
namespace {

using attend::AttentionOptions;
using attend::KeyValueCache;
using attend::KeyValueCacheOptions;
using attend::test::check_as_accurate_as;
using attend::test::check_equal_in_float64;
using attend::test::dense;
using attend::test::DenseMask;
using attend::test::DenseScore;
using attend::test::Grid;
using attend::test::Refused;
using attend::test::Tensors;

struct FirstKeys : attend::detail::MaskOperators {
  bool operator()(attend::Coordinate at) const { return at.key < 3; }
};

constexpr std::int64_t N = 2, H = 4, G = 2, D = 16, Dv = 8, kTokens = 40;

struct Kind {
  std::string name;
  std::int64_t page_size;
};
const Kind kKinds[] = {{"contiguous", 0}, {"pages of 1", 1}, {"pages of 5", 5}, {"pages of 64", 64}};

KeyValueCacheOptions options_for(const Kind& kind, at::ScalarType dtype, std::int64_t layers = 1) {
  return KeyValueCacheOptions(layers, N, G, D, 100).value_dim(Dv).dtype(dtype).page_size(kind.page_size);
}

torch::Tensor randn(at::IntArrayRef sizes, at::ScalarType dtype = torch::kDouble) {
  return torch::randn(sizes, torch::kDouble).to(dtype);
}

/// One way to call attention: with the options of tokens begin … end − 1, and as the dense formula.
struct Way {
  std::string name;
  std::function<AttentionOptions(std::int64_t begin, std::int64_t end)> options;
  DenseScore score = attend::test::same;
  DenseMask allowed = attend::test::causal;
  double scale = 0.25;
};

std::vector<Way> ways() {
  const torch::Tensor added = torch::randn({N, 1, kTokens, kTokens}),
                      allowed = torch::rand({H, kTokens, kTokens}) < 0.7;
  const torch::Tensor slopes = torch::tensor({0.5, 0.25, 0.125, 0.0625});
  const auto causal = [](std::int64_t, std::int64_t) { return AttentionOptions().is_causal(true); };
  const auto at = [](const torch::Tensor& mask, std::int64_t begin, std::int64_t end) {
    return mask.narrow(-2, begin, end - begin).narrow(-1, 0, end);
  };
  return {
      {"causal", causal},
      {"scale", [=](auto b, auto e) { return causal(b, e).scale(0.7); }, attend::test::same, attend::test::causal, 0.7},
      {"window",
       [=](auto b, auto e) {
         return causal(b, e).window({6, 0});
       },
       attend::test::same, attend::test::window(6, 0)},
      {"ALiBi", [=](auto b, auto e) { return causal(b, e).alibi_slopes(slopes.to(torch::kFloat)); },
       [=](const torch::Tensor& scores, const Grid& grid, const Tensors&) {
         return scores - slopes.view({H, 1, 1}).to(grid.ahead.scalar_type()) * grid.ahead.abs();
       }},
      {"softcap", [=](auto b, auto e) { return causal(b, e).softcap(1.5); },
       [](const torch::Tensor& scores, const Grid&, const Tensors&) { return 1.5 * (scores / 1.5).tanh(); }},
      {"added mask", [=](auto b, auto e) { return causal(b, e).attn_mask(at(added, b, e).to(torch::kFloat)); },
       [=](const torch::Tensor& scores, const Grid&, const Tensors&) { return scores + added.to(torch::kFloat); }},
      {"bool mask", [=](auto b, auto e) { return causal(b, e).attn_mask(at(allowed, b, e)); }, attend::test::same,
       [=](const Grid& grid) { return allowed.logical_and(grid.ahead <= 0); }},
      {"all together",
       [=](auto b, auto e) {
         return causal(b, e)
             .window({30, 0})
             .softcap(1.5)
             .alibi_slopes(slopes.to(torch::kFloat))
             .attn_mask(at(allowed, b, e));
       },
       [=](const torch::Tensor& scores, const Grid& grid, const Tensors&) {
         return 1.5 * (scores / 1.5).tanh() - slopes.view({H, 1, 1}).to(grid.ahead.scalar_type()) * grid.ahead.abs();
       },
       [=](const Grid& grid) { return allowed.logical_and(grid.ahead <= 0).logical_and(grid.ahead >= -30); }},
  };
}

/// Lengths of the pieces in which the tokens come: a prompt, and then mostly one token.
const std::int64_t kPieces[] = {20, 1, 1, 7, 1, 1, 1, 4, 1, 1, 1, 1};

/// The results of the pieces, one after the other: (N, H, kTokens, Dv).
template <class Attend>
torch::Tensor by_pieces(KeyValueCache& cache, const Tensors& inputs, const Attend& attend_to) {
  Tensors results;
  std::int64_t begin = 0;
  for (const std::int64_t piece : kPieces) {
    const auto rows = [&](const torch::Tensor& tensor) { return tensor.narrow(2, begin, piece); };
    cache.append(0, rows(inputs[1]), rows(inputs[2]));
    results.push_back(attend_to(rows(inputs[0]), begin, begin + piece));
    begin += piece;
  }
  CHECK(begin == kTokens);
  return torch::cat(results, 2);
}

/// The history of each batch entry, as plain tensors.
struct History {
  Tensors keys{static_cast<std::size_t>(N), torch::empty({G, 0, D}, torch::kDouble)},
      values{static_cast<std::size_t>(N), torch::empty({G, 0, Dv}, torch::kDouble)};
};

/// Checks the attention of `query` (N, H, L, D), with valid[n] rows at the end of entry n, to the history.
void check_entries(const torch::Tensor& result, const torch::Tensor& query, const std::vector<std::int64_t>& valid,
                   const History& history, std::int64_t window = -1) {
  for (std::int64_t n = 0; n < N; ++n) {
    const auto entry = static_cast<std::size_t>(n);
    if (valid[entry] == 0) continue;
    const auto rows = [&](const torch::Tensor& tensor) {
      return tensor.narrow(0, n, 1).narrow(2, tensor.size(2) - valid[entry], valid[entry]);
    };
    const torch::Tensor expected =
        dense({rows(query), history.keys[entry].unsqueeze(0), history.values[entry].unsqueeze(0)}, attend::test::same,
              window < 0 ? attend::test::causal : attend::test::window(window, 0))
            .output;
    check_equal_in_float64(rows(result), expected);
  }
}

/// Random operations on a cache and on a History.
void check_random_operations(KeyValueCache& cache, std::uint32_t seed, std::int64_t window) {
  torch::manual_seed(seed);
  const auto draw = [](std::int64_t below) { return torch::randint(below, {1}).item<std::int64_t>(); };
  History history;
  int compared = 0;
  for (int step = 0; step < 60; ++step) {
    CAPTURE(step);
    const std::int64_t what = draw(10);
    std::int64_t longest = 0;
    for (const torch::Tensor& key : history.keys) longest = std::max(longest, key.size(1));
    if (what == 0 && window < 0) {
      const std::int64_t length = draw(longest + 2);
      cache.truncate(length);
      for (Tensors* tensors : {&history.keys, &history.values})
        for (torch::Tensor& each : *tensors) each = each.narrow(1, 0, std::min(each.size(1), length));
    } else if (what == 1) {
      const torch::Tensor indices = torch::randint(N, {N}, torch::kLong);
      cache.reorder(indices);
      const History before = history;
      for (std::int64_t n = 0; n < N; ++n) {
        const auto from = static_cast<std::size_t>(indices[n].item<std::int64_t>()), to = static_cast<std::size_t>(n);
        history.keys[to] = before.keys[from];
        history.values[to] = before.values[from];
      }
    } else if (what == 2 && draw(4) == 0) {
      cache.reset();
      history = History();
    } else {
      const std::int64_t length = draw(3) == 0 ? 1 + draw(8) : 1;
      if (longest + length > 100) continue;
      const bool are_all = draw(2) == 0;
      std::vector<std::int64_t> valid;
      for (std::int64_t n = 0; n < N; ++n) valid.push_back(are_all ? length : draw(length + 1));
      const torch::Tensor query = randn({N, H, length, D}), key = randn({N, G, length, D}),
                          value = randn({N, G, length, Dv}),
                          counts = are_all ? torch::Tensor() : torch::tensor(valid, torch::kLong);
      const torch::Tensor positions = cache.positions(length, 0, counts);
      for (std::size_t n = 0; n < valid.size(); ++n) {
        const std::int64_t first = length - valid[n], entry = static_cast<std::int64_t>(n);
        CHECK(positions[entry]
                  .narrow(0, first, valid[n])
                  .equal(torch::arange(valid[n], torch::kLong) + history.keys[n].size(1)));
        history.keys[n] = torch::cat({history.keys[n], key[entry].narrow(1, first, valid[n])}, 1);
        history.values[n] = torch::cat({history.values[n], value[entry].narrow(1, first, valid[n])}, 1);
        CHECK(cache.lengths()[entry].item<std::int64_t>() + valid[n] == history.keys[n].size(1));
      }
      cache.append(0, key, value, counts);
      check_entries(cache.attention(0, query, AttentionOptions().is_causal(true)), query, valid, history, window);
      ++compared;
    }
  }
  CHECK(compared > 20);
}

}  // namespace

TEST_CASE("KeyValueCache: is_causal token by token equals torch's scaled_dot_product_attention") {
  torch::manual_seed(1);
  const Tensors inputs{randn({N, H, kTokens, D}), randn({N, G, kTokens, D}), randn({N, G, kTokens, D})};
  const torch::Tensor expected =
      torch::scaled_dot_product_attention(inputs[0], inputs[1].repeat_interleave(H / G, 1),
                                          inputs[2].repeat_interleave(H / G, 1), {}, 0.0, /*is_causal=*/true);
  for (const Kind& kind : kKinds) {
    CAPTURE(kind.name);
    KeyValueCache cache(options_for(kind, torch::kDouble).value_dim(0));
    check_equal_in_float64(by_pieces(cache, inputs,
                                     [&](const torch::Tensor& query, auto, auto) {
                                       return cache.attention(0, query, AttentionOptions().is_causal(true));
                                     }),
                           expected);
  }
}

TEST_CASE("KeyValueCache: attention token by token equals attention without a cache, for every option") {
  torch::manual_seed(2);
  const Tensors inputs{randn({N, H, kTokens, D}), randn({N, G, kTokens, D}), randn({N, G, kTokens, Dv})};
  for (const Way& way : ways())
    for (const Kind& kind : kKinds)
      for (const at::ScalarType dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
        CAPTURE(way.name);
        CAPTURE(kind.name);
        CAPTURE(dtype);
        Tensors given, exact_inputs;
        for (const torch::Tensor& input : inputs) {
          given.push_back(input.to(dtype));
          exact_inputs.push_back(given.back().to(torch::kDouble));
        }
        KeyValueCache cache(options_for(kind, dtype));
        const torch::Tensor result =
            by_pieces(cache, given, [&](const torch::Tensor& query, std::int64_t begin, std::int64_t end) {
              return cache.attention(0, query, way.options(begin, end));
            });
        const torch::Tensor exact = dense(exact_inputs, way.score, way.allowed, way.scale).output;
        if (dtype == torch::kDouble)
          check_equal_in_float64(result, exact);
        else
          check_as_accurate_as(dense(given, way.score, way.allowed, way.scale).output, result, exact);
      }
}

TEST_CASE("KeyValueCache: flex_attention with the arguments() of a cache sees absolute positions") {
  torch::manual_seed(3);
  const Tensors inputs{randn({N, H, kTokens, D}), randn({N, G, kTokens, D}), randn({N, G, kTokens, Dv})};
  const torch::Tensor slopes = torch::tensor({0.5, 0.25, 0.125, 0.0625}, torch::kDouble);
  const auto score = [&](const torch::Tensor& scores, const Grid& grid, const Tensors&) {
    return scores + slopes.view({H, 1, 1}) * grid.ahead;  // ahead ≤ 0 where it counts
  };
  const auto allowed = [](const Grid& grid) {
    return grid.ahead.le(0).logical_and(grid.ahead.ge(-9).logical_or(grid.key < 3));
  };
  for (const Kind& kind : kKinds)
    for (const attend::Backend backend : {attend::Backend::kAuto, attend::Backend::kReference}) {
      CAPTURE(kind.name);
      CAPTURE(backend);
      KeyValueCache cache(options_for(kind, torch::kDouble));
      const torch::Tensor result = by_pieces(cache, inputs, [&](const torch::Tensor& query, auto, auto) {
        const attend::CachedKeys cached =
            cache.arguments(0, query.size(2), AttentionOptions().is_causal(true).backend(backend));
        return attend::flex_attention(query, cached.key, cached.value, attend::Alibi(slopes),
                                      attend::SlidingWindow(9, 0) | FirstKeys{}, cached.options);
      });
      check_equal_in_float64(result, dense(inputs, score, allowed).output);
    }
}

TEST_CASE("KeyValueCache: append with valid, truncate, reorder and reset equal attention to the plain history") {
  for (const Kind& kind : kKinds)
    for (std::uint32_t seed = 0; seed < 4; ++seed) {
      CAPTURE(kind.name);
      CAPTURE(seed);
      KeyValueCache cache(options_for(kind, torch::kDouble));
      check_random_operations(cache, seed, /*window=*/-1);
    }
}

TEST_CASE("KeyValueCache: truncate leaves a shorter entry as it is, also one without tokens") {
  torch::manual_seed(6);
  for (const Kind& kind : kKinds) {
    CAPTURE(kind.name);
    KeyValueCache cache(options_for(kind, torch::kDouble));
    const torch::Tensor key = randn({N, G, 20, D}), value = randn({N, G, 20, Dv}), query = randn({N, H, 12, D}),
                        new_key = randn({N, G, 12, D}), new_value = randn({N, G, 12, Dv});
    cache.append(0, key, value, torch::tensor({20, 0}, torch::kLong));
    cache.truncate(15);
    CHECK(cache.lengths().equal(torch::tensor({15, 0}, torch::kLong)));
    cache.append(0, new_key, new_value);
    History history;
    history.keys = {torch::cat({key[0].narrow(1, 0, 15), new_key[0]}, 1), new_key[1]};
    history.values = {torch::cat({value[0].narrow(1, 0, 15), new_value[0]}, 1), new_value[1]};
    check_entries(cache.attention(0, query, AttentionOptions().is_causal(true)), query, {12, 12}, history);
  }
  // An entry whose pages were all evicted.
  KeyValueCache cache(KeyValueCacheOptions(1, N, G, D, 100).value_dim(Dv).dtype(torch::kDouble).page_size(4).window(0));
  for (int i = 0; i < 3; ++i) {
    const std::int64_t length = i < 2 ? 4 : 1;
    const torch::Tensor key = randn({N, G, length, D}), value = randn({N, G, length, Dv});
    cache.append(0, key, value);
    if (length == 1) check_equal_in_float64(cache.attention(0, randn({N, H, 1, D})), value.repeat_interleave(H / G, 1));
    cache.truncate(50);
  }
}

TEST_CASE("KeyValueCache: with a window the results equal those of a cache that evicts nothing") {
  for (const std::int64_t page_size : {0, 1, 4})
    for (const std::int64_t window : {0, 5, 30})
      for (std::uint32_t seed = 0; seed < 3; ++seed) {
        CAPTURE(page_size);
        CAPTURE(window);
        CAPTURE(seed);
        KeyValueCache cache(options_for({"", page_size}, torch::kDouble).window(window).max_append(8));
        check_random_operations(cache, seed, window);
      }
}

TEST_CASE("KeyValueCache: with a window the memory does not depend on max_length, and pages are used again") {
  torch::manual_seed(4);
  KeyValueCache cache(KeyValueCacheOptions(1, 1, G, D, 1'000'000).window(10).max_append(4).page_size(4));
  CHECK(cache.options().num_pages() == 5);  // ⌈(10 + 4) / 4⌉ + 1
  const torch::Tensor query = torch::randn({1, H, 400, D}), key = torch::randn({1, G, 400, D}),
                      value = torch::randn({1, G, 400, D});
  Tensors results;
  for (std::int64_t begin = 0; begin < 400; begin += 4) {
    cache.append(0, key.narrow(2, begin, 4), value.narrow(2, begin, 4));
    results.push_back(cache.attention(0, query.narrow(2, begin, 4), AttentionOptions().is_causal(true)));
  }
  CHECK(cache.lengths().item<std::int64_t>() == 400);
  const Tensors inputs{query, key, value},
      wide{query.to(torch::kDouble), key.to(torch::kDouble), value.to(torch::kDouble)};
  const DenseMask window = attend::test::window(10, 0);
  check_as_accurate_as(dense(inputs, attend::test::same, window).output, torch::cat(results, 2),
                       dense(wide, attend::test::same, window).output);
  // The option of the call may be narrower.
  const torch::Tensor last = query.narrow(2, 399, 1);
  CHECK(torch::allclose(cache.attention(0, last, AttentionOptions().window({2, 0})),
                        dense({last, key, value}, attend::test::same, attend::test::window(2, 0)).output, 1e-5, 1e-6));
}

TEST_CASE(
    "KeyValueCache: pages are taken when needed, shared after reorder, copied once before a write, and given back") {
  KeyValueCache cache(KeyValueCacheOptions(2, 3, 1, 4, 16).page_size(4));
  CHECK(cache.free_pages() == 12);
  const auto append = [&](std::int64_t length) {
    for (std::int64_t layer = 0; layer < 2; ++layer)
      cache.append(layer, torch::randn({3, 1, length, 4}), torch::randn({3, 1, length, 4}));
  };
  append(6);
  CHECK(cache.free_pages() == 6);
  cache.reorder(torch::tensor({0, 0, 0}, torch::kLong));
  CHECK(cache.free_pages() == 10);
  append(1);  // the full page stays shared, and one of the entries keeps the other page
  CHECK(cache.free_pages() == 8);
  append(2);
  CHECK(cache.free_pages() == 5);
  cache.truncate(8);
  CHECK(cache.free_pages() == 8);
  cache.truncate(4);
  CHECK(cache.free_pages() == 11);
  cache.reset();
  CHECK(cache.free_pages() == 12);
}

TEST_CASE("KeyValueCache: with a window and too few pages a refused append evicts nothing") {
  torch::manual_seed(5);
  KeyValueCache cache(KeyValueCacheOptions(1, 1, G, D, 100).window(6).max_append(20).page_size(2).num_pages(6));
  const auto tokens = [](std::int64_t length) { return torch::randn({1, G, length, D}); };
  cache.append(0, tokens(12), tokens(12));
  const torch::Tensor queries = torch::randn({1, H, 6, D});
  const torch::Tensor before = cache.attention(0, queries);  // the first of them needs the tokens from 0 on
  CHECK(cache.free_pages() == 0);
  CHECK_THROWS_AS(cache.append(0, tokens(20), tokens(20)), c10::ValueError);
  CHECK(cache.free_pages() == 0);
  CHECK(cache.attention(0, queries).equal(before));
}

TEST_CASE("KeyValueCache: each layer counts its own tokens, and layers do not mix") {
  torch::manual_seed(5);
  for (const Kind& kind : kKinds) {
    CAPTURE(kind.name);
    KeyValueCache cache(options_for(kind, torch::kDouble, 3));
    Tensors keys, values, queries;
    for (std::int64_t layer = 0; layer < 3; ++layer) {
      CHECK(cache.positions(5, layer).equal(torch::arange(5, torch::kLong).expand({N, 5})));
      queries.push_back(randn({N, H, 5, D}));
      keys.push_back(randn({N, G, 5, D}));
      values.push_back(randn({N, G, 5, Dv}));
      cache.append(layer, keys.back(), values.back());
      CHECK(cache.lengths(layer).equal(torch::tensor({5, 5}, torch::kLong)));
    }
    for (std::int64_t layer = 0; layer < 3; ++layer) {
      const auto l = static_cast<std::size_t>(layer);
      check_equal_in_float64(cache.attention(layer, queries[l]), dense({queries[l], keys[l], values[l]}).output);
    }
  }
}

TEST_CASE("KeyValueCache: an empty cache gives zeros, and no memory is allocated after the constructor") {
  for (const Kind& kind : kKinds) {
    CAPTURE(kind.name);
    KeyValueCache cache(options_for(kind, torch::kFloat));
    CHECK(cache.attention(0, torch::randn({N, H, 1, D})).eq(0).all().item<bool>());
    cache.append(0, torch::randn({N, G, 9, D}), torch::randn({N, G, 9, Dv}));
    const void* const memory = cache.arguments(0, 1).key.const_data_ptr();
    cache.reorder(torch::tensor({1, 0}, torch::kLong));
    cache.append(0, torch::randn({N, G, 9, D}), torch::randn({N, G, 9, Dv}));
    CHECK(cache.arguments(0, 1).key.const_data_ptr() == memory);
  }
}

TEST_CASE("KeyValueCache: bad options, tokens and calls are refused") {
  using Options = KeyValueCacheOptions;
  const auto made = [](Options options) { return [options] { KeyValueCache cache(options); }; };
  const auto good = [] { return Options(2, N, G, D, 20); };
  for (const std::int64_t page_size : {0, 4}) {
    KeyValueCache cache(good().page_size(page_size).num_pages(page_size == 0 ? 0 : 7));
    KeyValueCache sliding(good().window(4).max_append(6).page_size(2));
    const auto tokens = [](std::int64_t length) { return torch::randn({N, G, length, D}); };
    for (int i = 0; i < 8; ++i) sliding.append(i % 2, tokens(5), tokens(5));
    cache.append(0, tokens(12), tokens(12));
    const torch::Tensor learned = tokens(1).requires_grad_(true), query = torch::randn({N, H, 1, D});
    const std::vector<Refused> table = {
        {"attend::KeyValueCache: num_layers must be at least 1, got 0", false, made(Options(0, 1, 1, 1, 1))},
        {"attend::KeyValueCache: batch_size must be at least 1, got -2", false, made(Options(1, -2, 1, 1, 1))},
        {"attend::KeyValueCache: num_kv_heads must be at least 1, got 0", false, made(Options(1, 1, 0, 1, 1))},
        {"attend::KeyValueCache: head_dim must be at least 1, got 0", false, made(Options(1, 1, 1, 0, 1))},
        {"attend::KeyValueCache: max_length must be at least 1, got 0", false, made(Options(1, 1, 1, 1, 0))},
        {"attend::KeyValueCache: value_dim must be at least 0, got -1", false, made(good().value_dim(-1))},
        {"attend::KeyValueCache: window must be at least -1, got -2", false, made(good().window(-2))},
        {"attend::KeyValueCache: max_append must be at least 1, got 0", false, made(good().max_append(0))},
        {"attend::KeyValueCache: page_size must be at least 0, got -1", false, made(good().page_size(-1))},
        {"attend::KeyValueCache: num_pages must be at least 0, got -1", false, made(good().num_pages(-1))},
        {"attend::KeyValueCache: dtype must be float64, float32, bfloat16 or float16, got Int", true,
         made(good().dtype(torch::kInt))},
        {"attend::KeyValueCache: layer must be from 0 to 1, got 2", false,
         [&] { cache.append(2, tokens(1), tokens(1)); }},
        {"attend::KeyValueCache: layer must be from 0 to 1, got -1", false, [&] { cache.attention(-1, query); }},
        {"attend::KeyValueCache: layer must be from 0 to 1, got 2", false, [&] { cache.lengths(2); }},
        {"attend::KeyValueCache: layer must be from 0 to 1, got 2", false, [&] { cache.positions(1, 2); }},
        {"attend::KeyValueCache: key must be (N, G, L, D) = (2, 2, 1, 16), got [3, 2, 1, 16]", false,
         [&] {
           cache.append(0, torch::randn({3, G, 1, D}), tokens(1));
         }},
        {"attend::KeyValueCache: key must be (N, G, L, D) = (2, 2, 1, 16), got [2, 4, 1, 16]", false,
         [&] {
           cache.append(0, torch::randn({N, H, 1, D}), tokens(1));
         }},
        {"attend::KeyValueCache: key must be (N, G, L, D) = (2, 2, 0, 16), got an undefined tensor", false,
         [&] { cache.append(0, torch::Tensor(), tokens(1)); }},
        {"attend::KeyValueCache: value must be (N, G, L, Dv) = (2, 2, 1, 16), got [2, 2, 2, 16]", false,
         [&] { cache.append(0, tokens(1), tokens(2)); }},
        {"attend::KeyValueCache: value must be (N, G, L, Dv) = (2, 2, 1, 16), got [2, 2, 1, 8]", false,
         [&] {
           cache.append(0, tokens(1), torch::randn({N, G, 1, Dv}));
         }},
        {"attend::KeyValueCache: key must have the dtype of the cache (Float), got Double", true,
         [&] { cache.append(0, tokens(1).to(torch::kDouble), tokens(1)); }},
        {"attend::KeyValueCache: value must be on the device of the cache (cpu), got meta", false,
         [&] { cache.append(0, tokens(1), tokens(1).to(torch::kMeta)); }},
        {"attend::KeyValueCache: key must not require a gradient, because none reaches cached keys and values; use "
         "torch::NoGradGuard or detach()",
         false, [&] { cache.append(0, learned, tokens(1)); }},
        {"attend::KeyValueCache: valid must be int64, got Int", true,
         [&] { cache.append(0, tokens(1), tokens(1), torch::ones({N}, torch::kInt)); }},
        {"attend::KeyValueCache: valid must be (N), with N = 2, got [3]", false,
         [&] { cache.append(0, tokens(1), tokens(1), torch::ones({3}, torch::kLong)); }},
        {"attend::KeyValueCache: valid must be from 0 to L = 1, got 2", false,
         [&] {
           cache.append(0, tokens(1), tokens(1), torch::tensor({1, 2}, torch::kLong));
         }},
        {"attend::KeyValueCache: batch entry 0 has 12 of max_length = 20 tokens; 9 more do not fit", false,
         [&] { cache.append(0, tokens(9), tokens(9)); }},
        {"attend::KeyValueCache: with a window at most max_append = 6 tokens can be added at once, got 7; add them in "
         "pieces, or raise max_append",
         false, [&] { sliding.append(0, tokens(7), tokens(7)); }},
        {"attend::KeyValueCache: query must be (N, H, L, D), with N = 2, got [1, 4, 1, 16]", false,
         [&] { cache.attention(0, query.narrow(0, 0, 1)); }},
        {"attend::KeyValueCache: query must be (N, H, L, D), with N = 2, got an undefined tensor", false,
         [&] { cache.attention(0, torch::Tensor()); }},
        {"attend::attention: key (Float) must have the dtype of query (Double)", true,
         [&] { cache.attention(0, query.to(torch::kDouble)); }},
        {"attend::KeyValueCache: key_lengths, block_table, query_offsets and key_offsets must not be set", false,
         [&] { cache.attention(0, query, AttentionOptions().key_lengths(torch::ones({N}, torch::kInt))); }},
        {"attend::KeyValueCache: the first query needs the keys of batch entry 0 from position 3 on, but those before "
         "10 were evicted",
         false,
         [&] {
           sliding.attention(0, torch::randn({N, H, 13, D}));
         }},
        {"attend::KeyValueCache: length must be at least 0, got -1", false, [&] { cache.truncate(-1); }},
        {"attend::KeyValueCache: length must be at least 0, got -1", false, [&] { cache.positions(-1); }},
        {"attend::KeyValueCache: truncate needs the keys of batch entry 0 from position 7 on, but those before 10 were "
         "evicted",
         false, [&] { sliding.truncate(11); }},
        {"attend::KeyValueCache: indices must be (N), got an undefined tensor", false,
         [&] { cache.reorder(torch::Tensor()); }},
        {"attend::KeyValueCache: indices must be int64, got Float", true, [&] { cache.reorder(torch::ones({N})); }},
        {"attend::KeyValueCache: indices must be (N), with N = 2, got [1]", false,
         [&] { cache.reorder(torch::ones({1}, torch::kLong)); }},
        {"attend::KeyValueCache: indices must be from 0 to N - 1 = 1, got 2", false,
         [&] {
           cache.reorder(torch::tensor({0, 2}, torch::kLong));
         }},
    };
    for (const Refused& each : table) {
      CAPTURE(each.expected);
      each.check();
    }
    if (page_size > 0) {
      attend::test::check_throws<c10::ValueError>(
          "attend::KeyValueCache: the new tokens need more pages than are free (1 of num_pages = 7); raise num_pages, "
          "or call truncate()",
          [&] { cache.append(0, tokens(1), tokens(1)); });
      attend::test::check_throws<c10::ValueError>(
          "attend::KeyValueCache: attn_mask must have S = 12 columns, the largest of lengths(), got [1, 11]", [&] {
            cache.attention(0, query, AttentionOptions().attn_mask(torch::ones({1, 11})));
          });
    }
    CHECK(cache.lengths().equal(torch::tensor({12, 12}, torch::kLong)));  // as before the errors
  }
}

}  // namespace key_value_cache_test
