// SPDX-License-Identifier: MIT
#include <attend/attention/bias.h>
#include <attend/attention/materialize.h>

#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

using attend::AttentionSizes;
using attend::materialize;

namespace {

/// A number whose digits are the fields of the Coordinate.
struct AllFields {
  template <class T>
  T operator()(T score, attend::Coordinate at) const {
    const T digits = ((((T(at.batch) * 10 + at.head) * 10 + at.query) * 10 + at.key) * 10 + at.query_length) * 10;
    return score + digits + at.key_length;
  }
};

struct OneCell {
  bool operator()(attend::Coordinate at) const {
    return at.batch == 1 && at.head == 2 && at.query == 3 && at.key == 4 && at.query_length == 5 && at.key_length == 6;
  }
};

}  // namespace

TEST_CASE("materialize: Causal for four queries and six keys gives the mask written by hand") {
  const torch::Tensor expected = torch::tensor({1, 1, 1, 0, 0, 0,  //
                                                1, 1, 1, 1, 0, 0,  //
                                                1, 1, 1, 1, 1, 0,  //
                                                1, 1, 1, 1, 1, 1});
  CHECK(materialize(attend::Causal{}, {1, 1, 4, 6})[0][0].equal(expected.view({4, 6}).to(torch::kBool)));
}

TEST_CASE("materialize: a struct gets the right coordinate for each score, with any number of threads") {
  const int threads = at::get_num_threads();
  for (const int count : {1, 2, 3}) {
    CAPTURE(count);
    at::set_num_threads(count);
    const torch::Tensor digits = materialize(AllFields{}, torch::zeros({2, 3, 5, 6}, torch::kDouble));
    const auto digit = digits.accessor<double, 4>();
    for (int n = 0; n < 2; ++n)
      for (int h = 0; h < 3; ++h)
        for (int i = 0; i < 5; ++i)
          for (int j = 0; j < 6; ++j) CHECK(digit[n][h][i][j] == 100000 * n + 10000 * h + 1000 * i + 100 * j + 56);
    torch::Tensor one = torch::zeros({2, 3, 5, 6}, torch::kBool);
    one[1][2][3][4] = true;
    CHECK(materialize(OneCell{}, {2, 3, 5, 6}).equal(one));
  }
  at::set_num_threads(threads);
}

TEST_CASE("materialize: any size may be 0") {
  for (const auto& sizes :
       std::vector<std::vector<std::int64_t>>{{0, 2, 3, 4}, {2, 0, 3, 4}, {2, 2, 0, 4}, {2, 2, 3, 0}}) {
    CAPTURE(torch::IntArrayRef(sizes));
    const torch::Tensor mask = materialize(attend::Causal{}, {sizes[0], sizes[1], sizes[2], sizes[3]});
    CHECK(mask.sizes() == torch::IntArrayRef(sizes));
    CHECK((mask.scalar_type() == torch::kBool));
    const torch::Tensor scores = torch::zeros(sizes).requires_grad_();
    const torch::Tensor changed = materialize(AllFields{}, scores);
    CHECK(changed.sizes() == torch::IntArrayRef(sizes));
    CHECK(torch::autograd::grad({changed.sum()}, {scores})[0].sizes() == torch::IntArrayRef(sizes));
  }
}

TEST_CASE("materialize: scores may have any strides and are not changed; the result has their dtype") {
  for (const auto dtype : {torch::kFloat, torch::kDouble}) {
    const torch::Tensor scores = torch::randn({6, 5, 3, 2}, dtype).permute({3, 2, 1, 0}), before = scores.clone();
    const torch::Tensor changed = materialize(attend::Softcap{1}, scores);
    CHECK((changed.scalar_type() == dtype));
    CHECK((changed - torch::tanh(before)).abs().max().item<double>() < 1e-6);
    CHECK(scores.equal(before));
    CHECK_FALSE(changed.requires_grad());
  }
}

TEST_CASE("materialize: without gradient mode no autograd graph is recorded") {
  const torch::Tensor scores = torch::zeros({1, 1, 2, 2}).requires_grad_();
  CHECK(materialize(attend::Softcap{1}, scores).requires_grad());
  CHECK(materialize(attend::Alibi(torch::ones({1}).requires_grad_()), scores.detach()).requires_grad());
  const torch::NoGradGuard no_grad;
  CHECK_FALSE(materialize(attend::Softcap{1}, scores).requires_grad());
}

TEST_CASE("materialize: type and text of errors") {
  const auto mask = [](const AttentionSizes& sizes) { return [=] { materialize(attend::Causal{}, sizes); }; };
  const auto score = [](const torch::Tensor& scores) { return [=] { materialize(attend::Softcap{1}, scores); }; };
  const attend::test::Refused cases[] = {
      {"attend::materialize: sizes must not be negative, got (-1, 2, 3, 4)", false, mask({-1, 2, 3, 4})},
      {"attend::materialize: sizes must not be negative, got (1, -2, 3, 4)", false, mask({1, -2, 3, 4})},
      {"attend::materialize: sizes must not be negative, got (1, 2, -3, 4)", false, mask({1, 2, -3, 4})},
      {"attend::materialize: sizes must not be negative, got (1, 2, 3, -4)", false, mask({1, 2, 3, -4})},
      {"attend::materialize: scores must be 4-d (N, H, L, S), got [3, 4]", false, score(torch::zeros({3, 4}))},
      {"attend::materialize: scores must be 4-d (N, H, L, S), got an undefined tensor", false, score({})},
      {"attend::materialize: scores must be float32 or float64, got Half", true,
       score(torch::zeros({1, 1, 2, 2}, torch::kHalf))},
      {"attend::materialize: scores must be float32 or float64, got Long", true,
       score(torch::zeros({1, 1, 2, 2}, torch::kLong))},
  };
  for (const attend::test::Refused& each : cases) each.check();
}
