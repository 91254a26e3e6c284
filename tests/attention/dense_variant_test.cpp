// SPDX-License-Identifier: MIT
#include <attend/attention/bias.h>
#include <attend/attention/dense_variant.h>

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

using attend::Softcap;
using attend::detail::DenseScores;
using attend::detail::for_each_score;

TEST_CASE("flex_attention: the dense formula calls a score_mod once for each score, also with few or no rows") {
  const int threads = at::get_num_threads();
  at::set_num_threads(4);
  for (const attend::AttentionSizes& sizes :
       {attend::AttentionSizes{2, 3, 5, 7}, {1, 1, 1, 9}, {1, 1, 3, 1}, {0, 2, 3, 4}, {2, 2, 0, 4}, {2, 2, 3, 0}}) {
    const std::int64_t count = sizes.batch_size * sizes.num_heads * sizes.query_length * sizes.key_length;
    std::vector<std::atomic<int>> visits(static_cast<std::size_t>(count));
    for_each_score(sizes, {}, [&] {
      return [&](attend::Coordinate at, std::int64_t place) {
        const std::int64_t expected =
            ((at.batch * sizes.num_heads + at.head) * sizes.query_length + at.query) * sizes.key_length + at.key;
        if (place == expected) ++visits[static_cast<std::size_t>(place)];
      };
    });
    for (const std::atomic<int>& visit : visits) CHECK(visit == 1);
  }
  at::set_num_threads(threads);
}

TEST_CASE("flex_attention: derivatives with respect to scores and read tensors, and mixed second derivatives") {
  const torch::Tensor scores = torch::tensor({0.3, -0.2}, torch::kDouble).view({1, 1, 1, 2});
  const auto tanh = torch::tanh(scores);
  CHECK((DenseScores<Softcap>::apply_to({1}, {scores}) - tanh).abs().max().item<double>() < 1e-15);
  CHECK((DenseScores<Softcap>::apply_to({1}, {scores}, {{0}}) - (1 - tanh * tanh)).abs().max().item<double>() < 1e-15);
  CHECK((DenseScores<Softcap>::apply_to({1}, {scores}, {{0}, {0}}) + 2 * tanh * (1 - tanh * tanh))
            .abs()
            .max()
            .item<double>() < 1e-15);

  const torch::Tensor slopes = torch::tensor({{0.5}}, torch::kDouble);
  const attend::Alibi alibi(slopes);
  const torch::Tensor by_slope = DenseScores<attend::Alibi>::apply_to(alibi, {scores, slopes}, {{1}});
  CHECK(by_slope.flatten().equal(torch::tensor({-1.0, 0.0}, torch::kDouble)));  // the query is at the second key
  CHECK(DenseScores<attend::Alibi>::apply_to(alibi, {scores, slopes}, {{0}}).eq(1).all().item<bool>());
  CHECK(DenseScores<attend::Alibi>::apply_to(alibi, {scores, slopes}, {{0}, {1}}).eq(0).all().item<bool>());
}

TEST_CASE("flex_attention: the derivative with respect to an output gradient exists also where it is zero") {
  const torch::Tensor scores = torch::tensor({0.3, -0.2}, torch::kDouble).view({1, 1, 1, 2}).requires_grad_();
  const torch::Tensor given = torch::zeros({1, 1, 1, 2}, torch::kDouble).requires_grad_();
  const torch::Tensor changed = DenseScores<Softcap>::apply_to({1}, {scores});
  const torch::Tensor gradient = torch::autograd::grad({changed}, {scores}, {given}, std::nullopt, true)[0];
  const torch::Tensor by_given = torch::autograd::grad({gradient.sum()}, {given})[0];
  CHECK((by_given - (1 - torch::tanh(scores).square())).abs().max().item<double>() < 1e-15);
}

TEST_CASE("flex_attention: a backward pass through the dense formula frees its graph, as in torch") {
  const torch::Tensor scores = torch::zeros({1, 1, 2, 2}, torch::kDouble).requires_grad_();
  const torch::Tensor changed = DenseScores<Softcap>::apply_to({1}, {scores});
  CHECK(changed.grad_fn()->name() == "attend::score_mod");
  const torch::Tensor ones = torch::ones_like(changed);
  changed.backward(ones);
  CHECK(scores.grad().eq(1).all().item<bool>());
  CHECK_THROWS_WITH_AS(changed.backward(ones), doctest::Contains("backward through the graph a second time"),
                       c10::Error);
}
