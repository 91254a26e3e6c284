// SPDX-License-Identifier: MIT

// The C++ of docs/flex_attention.md and of "Custom scores" in README, compared with the same formula in torch's
// operators. tests/readme_test.py checks that the pages show the code of this file and of examples/flex_attention.

#include "../../examples/flex_attention/scores.h"

#include <attend/flex_attention.h>

#include "support/accuracy.h"
#include "support/errors.h"
#include "training/support.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

using attend::test::max_difference;
using attend::test::normal;

namespace flex_attention_test {
namespace {

struct SoftSign {
  float strength;

  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
    return score / (1 + strength * abs(score)) - 0.01f * abs(T(at.query_position() - at.key));
  }
};
torch::Tensor my_attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) {
  return attend::flex_attention(q, k, v, SoftSign{0.5f}, attend::Causal{});
}

/// softmax(scores) v in torch's operators, where a masked score counts as −∞.
torch::Tensor dense(const torch::Tensor& scores, const torch::Tensor& allowed, const torch::Tensor& v) {
  return scores.masked_fill(allowed.logical_not(), -INFINITY).softmax(-1).matmul(v);
}

torch::Tensor scores_of(const torch::Tensor& q, const torch::Tensor& k) {
  return q.matmul(k.mT()) / std::sqrt(static_cast<double>(q.size(-1)));  // (N, H, L, S)
}

/// key position − query position, (L, S); the last query is aligned with the last key.
torch::Tensor distances(std::int64_t query_length, std::int64_t key_length) {
  return torch::arange(key_length) - torch::arange(key_length - query_length, key_length).unsqueeze(1);
}

torch::Tensor everything(const torch::Tensor& scores) { return torch::ones_like(scores, torch::kBool); }

/// The number of scores (L, S) that are computed for the mask's key ranges, 16 queries at a time. Checks that they
/// include all allowed scores.
template <class Mask>
int computed_scores(const Mask& mask, const torch::Tensor& allowed) {
  const auto query_length = static_cast<std::int32_t>(allowed.size(0)),
             key_length = static_cast<std::int32_t>(allowed.size(1));
  int computed = 0;
  for (std::int32_t begin = 0; begin < query_length; begin += 16) {
    const std::int32_t end = std::min(begin + 16, query_length);
    const attend::KeyRange keys = mask.keys({0, 0, begin, end, query_length, key_length});
    const std::int32_t first = std::max(keys.begin, 0), last = std::min(keys.end, key_length);
    const torch::Tensor block = allowed.slice(0, begin, end);
    CHECK(block.slice(1, first, last).sum().equal(block.sum()));
    computed += (end - begin) * (last - first);
  }
  return computed;
}

/// ALiBi's formula for eight heads, (8, 1, 1).
torch::Tensor alibi_slopes() { return torch::exp2(-torch::arange(1, 9, torch::kDouble)).view({8, 1, 1}); }

}  // namespace

TEST_CASE("docs/flex_attention.md, 1: DistancePenalty equals Alibi, also with more keys than queries") {
  const torch::Tensor q = normal({2, 8, 13, 4}, 1), k = normal({2, 8, 21, 4}, 2), v = normal({2, 8, 21, 3}, 3);
  const torch::Tensor distance = distances(13, 21);
  const torch::Tensor expected = dense(scores_of(q, k) - alibi_slopes() * distance.abs(), distance.le(0), v);
  {
    torch::Tensor y = attend::flex_attention(q, k, v, DistancePenalty{}, attend::Causal{});  // (N, H, L, Dv)
    CHECK(max_difference(y, expected) < 1e-12);
  }
  {
    torch::Tensor slopes = torch::exp2(-torch::arange(1, 9));  // (8), 1/2 to 1/256; may require a gradient
    torch::Tensor y = attend::flex_attention(q, k, v, attend::Alibi(slopes), attend::Causal{});
    CHECK(max_difference(y, expected) < 1e-12);
  }
}

TEST_CASE("docs/flex_attention.md, 2: Near & Causal is a window, and keys() skips as many scores as the page says") {
  const torch::Tensor q = normal({1, 2, 64, 4}, 1), k = normal({1, 2, 64, 4}, 2), v = normal({1, 2, 64, 4}, 3);
  torch::Tensor y = attend::flex_attention(q, k, v, attend::Unchanged{}, Near{12} & attend::Causal{});
  const torch::Tensor allowed = distances(64, 64).le(0) & distances(64, 64).ge(-12);  // (L, S)
  CHECK(max_difference(y, dense(scores_of(q, k), allowed, v)) < 1e-12);
  CHECK(allowed.sum().item<int>() == 754);
  CHECK(computed_scores(Near{12} & attend::Causal{}, allowed) == 1600);

  const torch::Tensor near = distances(24, 64).abs().le(3);  // (L, S), with more keys than queries
  CHECK(attend::materialize(Near{3}, {1, 1, 24, 64})[0][0].equal(near));
  CHECK(computed_scores(Near{3}, near) < 24 * 64);
}

TEST_CASE("docs/flex_attention.md, 3: Document and FirstKeys separate packed documents and share a prompt") {
  const torch::Tensor q = normal({2, 2, 64, 4}, 1), k = normal({2, 2, 64, 4}, 2), v = normal({2, 2, 64, 4}, 3);
  torch::Tensor document = torch::repeat_interleave(torch::tensor({8, 20, 12, 24}));  // (L): 0 0 … 1 1 … 3 3
  torch::Tensor packed =
      attend::flex_attention(q, k, v, attend::Unchanged{}, attend::Document(document) & attend::Causal{});
  torch::Tensor prompted = attend::flex_attention(q, k, v, attend::Unchanged{},
                                                  (FirstKeys{8} | attend::Document(document)) & attend::Causal{});
  std::vector<torch::Tensor> alone;
  for (const auto& [begin, end] : std::vector<std::pair<int, int>>{{0, 8}, {8, 28}, {28, 40}, {40, 64}}) {
    const torch::Tensor a = q.slice(2, begin, end), b = k.slice(2, begin, end), c = v.slice(2, begin, end);
    alone.push_back(at::scaled_dot_product_attention(a, b, c, /*attn_mask=*/{}, /*dropout_p=*/0.0, /*is_causal=*/true));
  }
  CHECK(max_difference(packed, torch::cat(alone, 2)) < 1e-12);

  const torch::Tensor same = document.unsqueeze(1).eq(document);  // (L, S)
  const torch::Tensor allowed = (same | torch::arange(64).lt(8)) & distances(64, 64).le(0);
  CHECK(max_difference(prompted, dense(scores_of(q, k), allowed, v)) < 1e-12);
  CHECK(max_difference(prompted, packed) > 0.1);
  CHECK(computed_scores(FirstKeys{8}, torch::arange(64).lt(8).expand({64, 64})) == 64 * 8);
}

TEST_CASE("docs/flex_attention.md, masks with holes: Chunks, block_mask_of() and FlashMask") {
  const torch::Tensor position = torch::arange(200), chunk = position.div(70, "floor");
  CHECK(attend::materialize(Chunks{70}, {1, 1, 200, 200})[0][0].equal(chunk.unsqueeze(1) == chunk));
  const torch::Tensor q = normal({1, 2, 200, 4}, 1), k = normal({1, 2, 200, 4}, 2), v = normal({1, 2, 200, 4}, 3);
  CHECK(max_difference(attend::flex_attention(q, k, v, attend::Unchanged{}, Chunks{70}),
                       dense(scores_of(q, k), chunk.unsqueeze(1) == chunk, v)) < 1e-12);

  auto blocks = attend::block_mask_of(Near{12} & attend::Causal{}, {1, 1, 64, 64}, {64, 64});   // 1, 1: for all N and H
  torch::Tensor ends = torch::tensor({8, 28, 40, 64}).repeat_interleave(torch::tensor({8, 20, 12, 24}));
  auto causal_documents = attend::FlashMask(ends.view({1, 1, 64, 1}), /*is_causal=*/true);      // masked from `ends` on
  const torch::Tensor near = distances(64, 64).le(0) & distances(64, 64).ge(-12);
  CHECK(attend::materialize(blocks, {2, 3, 64, 64}).equal(near.expand({2, 3, 64, 64})));
  const torch::Tensor same = ends.unsqueeze(1) == ends;
  CHECK(attend::materialize(causal_documents, {1, 1, 64, 64})[0][0].equal(same & distances(64, 64).le(0)));
}

TEST_CASE("docs/flex_attention.md, 4: GridBias and its derivatives equal a bias gathered by torch's indexing") {
  const std::int64_t rows = 3, columns = 4, pixels = rows * columns;
  const torch::Tensor pixel = torch::arange(pixels);
  const torch::Tensor down = at::floor_divide(pixel, columns), right = pixel % columns;
  const auto step = [](const torch::Tensor& place, std::int64_t size) { return place - place.unsqueeze(1) + size - 1; };

  std::vector<torch::Tensor> results[2];
  for (const bool is_flex : {true, false}) {
    CAPTURE(is_flex);
    std::vector<torch::Tensor> inputs{normal({2, 2, pixels, 5}, 1), normal({2, 2, pixels, 5}, 2),
                                      normal({2, 2, pixels, 3}, 3), normal({2, 2 * rows - 1, 2 * columns - 1}, 4)};
    for (torch::Tensor& input : inputs) input.requires_grad_();
    const torch::Tensor &q = inputs[0], &k = inputs[1], &v = inputs[2], &table = inputs[3];
    torch::Tensor y;
    if (is_flex) {
      y = attend::flex_attention(q, k, v, GridBias{table});
    } else {
      const torch::Tensor bias = table.index({torch::indexing::Slice(), step(down, rows), step(right, columns)});
      const torch::Tensor scores = scores_of(q, k) + bias;
      y = dense(scores, everything(scores), v);
    }
    std::vector<torch::Tensor>& found = results[is_flex ? 0 : 1];
    found.push_back(y);
    const auto gradients = torch::autograd::grad({(y * normal(y.sizes().vec(), 5)).sum()}, inputs, /*grad_outputs=*/{},
                                                 /*retain_graph=*/true, /*create_graph=*/true);
    torch::Tensor penalty = torch::zeros({}, torch::kDouble);
    for (const torch::Tensor& gradient : gradients) {
      found.push_back(gradient);
      penalty = penalty + gradient.square().sum();
    }
    for (const torch::Tensor& second : torch::autograd::grad({penalty}, inputs)) found.push_back(second);
  }
  REQUIRE(results[0].size() == 1 + 4 + 4);
  for (std::size_t i = 0; i < results[0].size(); ++i) {
    CAPTURE(i);
    CHECK(results[1][i].abs().max().item<double>() > 1e-3);
    CHECK(max_difference(results[0][i], results[1][i]) < 1e-12);
  }
}

TEST_CASE("docs/flex_attention.md, 4: GridBias, trained on random images, learns which neighbours to read") {
  torch::manual_seed(1);
  const torch::Tensor table = learn_neighbours(4, 4, 60);  // (2, 7, 7); no step is [3][3]
  CHECK(table[0].argmax().item<int>() == 3 * 7 + 2);       // one to the left
  CHECK(table[1].argmax().item<int>() == 2 * 7 + 3);       // one up
  const torch::Tensor bias = attend::materialize(GridBias{table}, torch::zeros({1, 2, 16, 16}));
  const torch::Tensor weights = bias.softmax(-1)[0];  // (2, 16, 16)
  CHECK(weights[0][5][4].item<double>() > 0.9);
  CHECK(weights[1][5][1].item<double>() > 0.9);
}

TEST_CASE("docs/flex_attention.md, 4: GridBias refuses a table that does not fit") {
  const torch::Tensor q = normal({1, 2, 12, 4}, 1);  // (N, H, L, D)
  const std::string message = attend::test::message_of<c10::ValueError>([&] {
    attend::flex_attention(q, q, q, GridBias{torch::zeros({2, 5, 5})});
  });
  CHECK(message.find("GridBias: a table [2, 5, 5] does not fit 2 heads, 12 queries and 12 keys") == 0);
}

TEST_CASE("docs/flex_attention.md: then(), mask operators, materialize() and explain_flex() work as shown") {
  const torch::Tensor q = normal({1, 8, 64, 4}, 1), k = normal({1, 8, 64, 4}, 2), v = normal({1, 8, 64, 4}, 3);
  const torch::Tensor distance = distances(64, 64), key = torch::arange(64);
  const torch::Tensor penalty = alibi_slopes() * distance.abs();  // (8, L, S)
  const torch::Tensor in_mask = (distance.ge(-16) | key.lt(4)) & distance.le(0);

  auto score = attend::then(attend::Softcap{30}, DistancePenalty{});             // Softcap first
  auto mask = (attend::SlidingWindow(16, 0) | FirstKeys{4}) & attend::Causal{};  // a window, and 4 keys for every query
  auto far = !attend::SlidingWindow(16, 16);
  auto both = attend::all_of(FirstKeys{32}, Near{16});  // for two structs of your own; also any_of, not_
  {
    torch::Tensor allowed = attend::materialize(mask, {1, 1, 64, 64});                 // bool (N, H, L, S)
    torch::Tensor changed = attend::materialize(score, torch::zeros({1, 8, 64, 64}));  // (N, H, L, S)
    CHECK(allowed[0][0].equal(in_mask));
    CHECK(max_difference(changed[0], -penalty) < 1e-6);
    CHECK(attend::materialize(far, {1, 1, 64, 64})[0][0].equal(distance.abs().gt(16)));
    CHECK(attend::materialize(both, {1, 1, 64, 64})[0][0].equal(key.lt(32) & distance.abs().le(16)));
  }

  auto options = attend::AttentionOptions().scale(1.0).window({8, 0});
  torch::Tensor y = attend::flex_attention(q, k, v, score, mask, options);
  auto [output, log_sum_exp] = attend::flex_attention_with_lse(q, k, v, score, mask);
  const auto changed = [&](const torch::Tensor& scores) { return 30 * (scores / 30).tanh() - penalty; };
  const torch::Tensor unscaled = changed(q.matmul(k.mT())), scaled = changed(scores_of(q, k));
  CHECK(max_difference(y, dense(unscaled, in_mask & distance.ge(-8), v)) < 1e-12);
  CHECK(max_difference(output, dense(scaled, in_mask, v)) < 1e-12);
  CHECK(max_difference(log_sum_exp, scaled.masked_fill(in_mask.logical_not(), -INFINITY).logsumexp(-1)) < 1e-12);

  std::cout << attend::explain_flex(q, k, v, score, mask) << '\n';  // which backend runs, and why not a faster one
  CHECK(attend::explain_flex(q, k, v, score, mask).backend == attend::Backend::kCpu);
}

TEST_CASE("README, custom scores: the score_mod equals its formula") {
  const torch::Tensor q = normal({2, 3, 9, 4}, 1), k = normal({2, 3, 9, 4}, 2), v = normal({2, 3, 9, 4}, 3);
  const torch::Tensor scores = scores_of(q, k), distance = distances(9, 9);
  const torch::Tensor changed = scores / (1 + 0.5 * scores.abs()) - 0.01 * distance.abs();
  // 0.01f differs from 0.01
  CHECK(max_difference(my_attention(q, k, v), dense(changed, distance.le(0), v)) < 1e-7);
}

}  // namespace flex_attention_test
