// SPDX-License-Identifier: MIT
#include <attend/attention/binder.h>
#include <attend/attention/materialize.h>
#include <attend/score/score_mod.h>

#include "support/dense.h"
#include "support/derivatives.h"
#include "support/grid.h"
#include "support/tensor_structs.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <functional>
#include <string>
#include <vector>

using attend::Coordinate;
using attend::materialize;
using attend::ScoreMod;
using attend::Softcap;
using attend::then;
using attend::Unchanged;
using attend::test::check_same_derivatives;
using attend::test::Grid;
using attend::test::HeadBias;
using attend::test::Tensors;

namespace score_mod_test {
namespace {

struct TimesTwo {
  template <class T>
  T operator()(T score, Coordinate) const {
    return 2 * score;
  }
};

struct PlusKey {
  template <class T>
  T operator()(T score, Coordinate at) const {
    return score + T(at.key);
  }
};

struct ReturnsANumber {  // any number type converts to T
  template <class T>
  double operator()(T, Coordinate) const {
    return 1;
  }
};

struct OfFloat {
  float operator()(float score, Coordinate) const { return score; }
};
struct OfReal {
  attend::Real<float> operator()(attend::Real<float> score, Coordinate) const { return score; }
};
struct ReturnsNothing {
  template <class T>
  void operator()(T, Coordinate) const {}
};
struct NotConst {
  template <class T>
  T operator()(T score, Coordinate) {
    return score;
  }
};
struct HoldsATensor {
  torch::Tensor tensor;

  template <class T>
  T operator()(T score, Coordinate) const {
    return score;
  }
};
struct BindsToATensor {
  HoldsATensor bind(attend::Binder&) const { return {}; }
};

}  // namespace

TEST_CASE("ScoreMod: the concept accepts structs that a kernel can call and copy, and nothing else") {
  static_assert(ScoreMod<Unchanged>);
  static_assert(ScoreMod<Softcap>);
  static_assert(ScoreMod<TimesTwo>);
  static_assert(ScoreMod<ReturnsANumber>);
  static_assert(ScoreMod<HeadBias>);
  static_assert(ScoreMod<attend::Then<Softcap, HeadBias>>);
  static_assert(ScoreMod<attend::Then<HeadBias, HeadBias>>);
  static_assert(ScoreMod<attend::Then<Softcap, TimesTwo>>);
  static_assert(!ScoreMod<int>);
  static_assert(!ScoreMod<OfFloat>);
  static_assert(!ScoreMod<OfReal>);
  static_assert(!ScoreMod<ReturnsNothing>);
  static_assert(!ScoreMod<NotConst>);
  static_assert(!ScoreMod<HoldsATensor>);
  static_assert(!ScoreMod<BindsToATensor>);
  static_assert(!ScoreMod<attend::Then<Softcap, OfFloat>>);
  static_assert(!ScoreMod<attend::Then<ReturnsNothing, Softcap>>);
}

TEST_CASE("ScoreMod: each score_mod equals an expression of torch's operators, with first and second derivatives") {
  torch::manual_seed(1);
  const torch::Tensor scores = torch::randn({2, 3, 4, 5}, torch::kDouble), bias = torch::randn({3}, torch::kDouble);
  const Grid at(2, 3, 4, 5);
  const auto cap = [](const torch::Tensor& score, double limit) { return limit * torch::tanh(score / limit); };
  const auto of_head = [](const torch::Tensor& bias) { return bias.view({3, 1, 1}); };
  using Function = std::function<torch::Tensor(const torch::Tensor& scores, const torch::Tensor& bias)>;
  struct Case {
    std::string name;
    Function ours, expected;
  };
  const Case cases[] = {
      {"Unchanged", [](const auto& s, const auto&) { return materialize(Unchanged{}, s); },
       [](const auto& s, const auto&) { return s; }},
      {"Softcap", [](const auto& s, const auto&) { return materialize(Softcap{1.5f}, s); },
       [=](const auto& s, const auto&) { return cap(s, 1.5); }},
      {"then", [](const auto& s, const auto&) { return materialize(then(TimesTwo{}, PlusKey{}), s); },
       [=](const auto& s, const auto&) { return 2 * s + at.key; }},
      {"then, the other way round",
       [](const auto& s, const auto&) { return materialize(then(PlusKey{}, TimesTwo{}), s); },
       [=](const auto& s, const auto&) { return 2 * (s + at.key); }},
      {"then of four",
       [](const auto& s, const auto&) { return materialize(then(TimesTwo{}, Softcap{3}, PlusKey{}, Softcap{2}), s); },
       [=](const auto& s, const auto&) { return cap(cap(2 * s, 3) + at.key, 2); }},
      {"then of a then",
       [](const auto& s, const auto&) { return materialize(then(TimesTwo{}, then(PlusKey{}, Softcap{2})), s); },
       [=](const auto& s, const auto&) { return cap(2 * s + at.key, 2); }},
      {"first what holds a tensor",
       [](const auto& s, const auto& b) { return materialize(then(HeadBias{b}, Softcap{1}), s); },
       [=](const auto& s, const auto& b) { return cap(s + of_head(b), 1); }},
      {"second what holds a tensor",
       [](const auto& s, const auto& b) { return materialize(then(Softcap{1}, HeadBias{b}), s); },
       [=](const auto& s, const auto& b) { return cap(s, 1) + of_head(b); }},
      {"both hold one",
       [](const auto& s, const auto& b) {
         return materialize(then(HeadBias{b}, Softcap{2}, HeadBias{b * b}, Softcap{1}), s);
       },
       [=](const auto& s, const auto& b) { return cap(cap(s + of_head(b), 2) + of_head(b * b), 1); }},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    check_same_derivatives([&](const Tensors& in) { return Tensors{c.ours(in[0], in[1])}; },
                           [&](const Tensors& in) { return Tensors{c.expected(in[0], in[1])}; }, {scores, bias});
  }
}

TEST_CASE("ScoreMod: a score_mod that returns a C++ number sets all scores to it, with zero gradients") {
  const torch::Tensor scores = torch::randn({1, 1, 2, 2}, torch::kDouble).requires_grad_();
  const torch::Tensor changed = materialize(ReturnsANumber{}, scores);
  CHECK(changed.eq(1).all().item<bool>());
  CHECK(torch::autograd::grad({changed.sum()}, {scores})[0].eq(0).all().item<bool>());
}

}  // namespace score_mod_test
