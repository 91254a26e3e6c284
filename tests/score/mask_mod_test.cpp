// SPDX-License-Identifier: MIT
#include <attend/attention/materialize.h>
#include <attend/score/mask_mod.h>
#include <attend/score/mask_operators.h>

#include "support/dense.h"
#include "support/grid.h"
#include "support/key_ranges.h"
#include "support/structs.h"
#include "support/tensor_structs.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

using attend::AttentionSizes;
using attend::Causal;
using attend::Coordinate;
using attend::EveryKey;
using attend::KeyRange;
using attend::MaskMod;
using attend::materialize;
using attend::PrefixLM;
using attend::QueryBlock;
using attend::SlidingWindow;
using attend::test::causal;
using attend::test::check_key_ranges;
using attend::test::everywhere;
using attend::test::Grid;
using attend::test::SameBlock;
using attend::test::SameParity;
using attend::test::SwitchedOn;

namespace mask_mod_test {
namespace {

/// Allows one key for each head and batch entry, and keys() returns that key.
struct OneKey {
  bool operator()(Coordinate at) const { return at.key == at.batch + at.head; }
  KeyRange keys(QueryBlock block) const { return {block.batch + block.head, block.batch + block.head + 1}; }
};

struct EmptyRange {
  bool operator()(Coordinate) const { return false; }
  KeyRange keys(QueryBlock) const { return {7, 3}; }
};

struct ReturnsANumber {
  int operator()(Coordinate at) const { return at.key; }
};
struct OfTwoNumbers {
  bool operator()(int query, int key) const { return query >= key; }
};
struct NotConst {
  bool operator()(Coordinate) { return true; }
};
struct HoldsATensor {
  torch::Tensor tensor;
  bool operator()(Coordinate) const { return true; }
};
template <class A, class B>
concept HasAnd = requires(A a, B b) {
  a& b;
};
template <class A, class B>
concept HasOr = requires(A a, B b) {
  a | b;
};
template <class A>
concept HasNot = requires(A a) {
  !a;
};

/// Each mask in torch's operators, broadcastable to (N, H, L, S).
torch::Tensor window(const Grid& at) { return at.ahead.ge(-3).logical_and(at.ahead <= 1); }
torch::Tensor prefix(const Grid& at) { return at.key.lt(3).logical_or(at.ahead <= 0); }
torch::Tensor same_parity(const Grid& at) { return (at.query + at.key).remainder(2) == 0; }
torch::Tensor same_block(const Grid& at) { return at.query.div(4, "floor") == at.key.div(4, "floor"); }
torch::Tensor one_key(const Grid& at) { return at.key == at.batch + at.head; }
torch::Tensor no_key(const Grid& at) { return torch::zeros_like(at.ahead, torch::kBool); }
torch::Tensor switches(const Grid& at) { return at.key.remainder(3) > 0; }

struct Case {
  std::string name;
  std::function<torch::Tensor(const AttentionSizes&)> ours;
  std::function<torch::Tensor(const Grid&)> expected;
  std::function<void(const AttentionSizes&, std::mt19937&)> check_ranges;
};

enum Range { kLoose, kTight };

template <class Make>
Case make_case(const std::string& name, const Make& make, const std::function<torch::Tensor(const Grid&)>& expected,
               Range range = kLoose) {
  return {name, [make](const AttentionSizes& sizes) { return materialize(make(sizes), sizes); }, expected,
          [make, range](const AttentionSizes& sizes, std::mt19937& random) {
            check_key_ranges(make(sizes), sizes, range == kTight, random);
          }};
}

std::vector<Case> all_cases() {
  const auto fixed = [](const auto& mask) { return [mask](const AttentionSizes&) { return mask; }; };
  const auto switched_on = [](const AttentionSizes& sizes) {
    return SwitchedOn{(torch::arange(sizes.key_length).remainder(3) > 0).expand({sizes.batch_size, -1})};
  };
  const auto negated = [](const auto& mask) { return [mask](const Grid& at) { return mask(at).logical_not(); }; };
  const auto both = [](const auto& a, const auto& b) {
    return [=](const Grid& at) { return a(at).logical_and(b(at)); };
  };
  const auto either = [](const auto& a, const auto& b) {
    return [=](const Grid& at) { return a(at).logical_or(b(at)); };
  };
  return {
      make_case("EveryKey", fixed(EveryKey{}), everywhere, kTight),
      make_case("Causal", fixed(Causal{}), causal, kTight),
      make_case("SlidingWindow", fixed(SlidingWindow(3, 1)), window, kTight),
      make_case(
          "SlidingWindow, the diagonal", fixed(SlidingWindow(0, 0)), [](const Grid& at) { return at.ahead == 0; },
          kTight),
      make_case(
          "SlidingWindow, left", fixed(SlidingWindow(2, -1)), [](const Grid& at) { return at.ahead >= -2; }, kTight),
      make_case(
          "SlidingWindow, right", fixed(SlidingWindow(-1, 2)), [](const Grid& at) { return at.ahead <= 2; }, kTight),
      make_case("SlidingWindow, unlimited", fixed(SlidingWindow(-1, -1)), everywhere, kTight),
      make_case("PrefixLM", fixed(PrefixLM(3)), prefix, kTight),
      make_case("PrefixLM of 0", fixed(PrefixLM(0)), causal, kTight),
      make_case("PrefixLM of more than there are", fixed(PrefixLM(1000)), everywhere, kTight),
      make_case("&", fixed(Causal{} & SlidingWindow(3, 1)), both(causal, window), kTight),
      make_case("& with a user's", fixed(Causal{} & SameParity{}), both(causal, same_parity)),
      make_case("a user's &", fixed(SameBlock{4} & SlidingWindow(3, 1)), both(same_block, window)),
      make_case("& of what excludes each other", fixed(SlidingWindow(0, 0) & OneKey{}),
                both([](const Grid& at) { return at.ahead == 0; }, one_key)),
      make_case("|", fixed(SlidingWindow(3, 1) | PrefixLM(3)), either(window, prefix), kTight),
      make_case("| with a user's", fixed(Causal{} | SameParity{}), either(causal, same_parity)),
      make_case("a user's |", fixed(OneKey{} | SlidingWindow(3, 1)), either(one_key, window)),
      make_case("| with an empty range", fixed(SlidingWindow(3, 1) | EmptyRange{}), window, kTight),
      make_case("| after an empty range", fixed(EmptyRange{} | SlidingWindow(3, 1)), window, kTight),
      make_case("| of two empty ranges", fixed((EmptyRange{} & Causal{}) | (EmptyRange{} & EveryKey{})), no_key,
                kTight),
      make_case("!", fixed(!Causal{}), negated(causal)),
      make_case("! of !", fixed(!!SlidingWindow(3, 1)), window),
      make_case("! of a combination", fixed(!(Causal{} & SameParity{})), negated(both(causal, same_parity))),
      make_case("all of them", fixed((SameBlock{4} & !Causal{}) | (PrefixLM(3) & !SlidingWindow(3, 1))),
                either(both(negated(causal), same_block), both(prefix, negated(window)))),
      make_case("all_of", fixed(attend::all_of(SameParity{}, SameBlock{4})), both(same_parity, same_block)),
      make_case("all_of four", fixed(attend::all_of(SameParity{}, SameBlock{4}, Causal{}, OneKey{})),
                both(both(same_parity, same_block), both(causal, one_key))),
      make_case("any_of", fixed(attend::any_of(SameParity{}, SameBlock{4})), either(same_parity, same_block)),
      make_case("any_of four", fixed(attend::any_of(OneKey{}, SameBlock{4}, SlidingWindow(3, 1), EmptyRange{})),
                either(either(one_key, same_block), window)),
      make_case("not_", fixed(attend::not_(SameParity{})), negated(same_parity)),
      make_case("not_ of not_", fixed(attend::not_(attend::not_(OneKey{}))), one_key),
      make_case("what holds a tensor", switched_on, switches),
      make_case(
          "& with what holds a tensor",
          [=](const AttentionSizes& sizes) { return SlidingWindow(3, 1) & switched_on(sizes); },
          both(window, switches)),
      make_case(
          "all three with what holds a tensor",
          [=](const AttentionSizes& sizes) {
            return attend::any_of(SameParity{}, switched_on(sizes), OneKey{}, EmptyRange{}) &
                   !(switched_on(sizes) & Causal{});
          },
          both(negated(both(switches, causal)), either(same_parity, either(switches, one_key)))),
  };
}

}  // namespace

TEST_CASE("MaskMod: the concept accepts structs that a kernel can call and copy, and nothing else") {
  static_assert(MaskMod<EveryKey>);
  static_assert(MaskMod<SameParity>);
  static_assert(MaskMod<SwitchedOn>);
  static_assert(MaskMod<attend::And<Causal, SwitchedOn>>);
  static_assert(MaskMod<attend::Not<attend::Or<SameParity, SwitchedOn>>>);
  static_assert(!MaskMod<int>);
  static_assert(!MaskMod<ReturnsANumber>);
  static_assert(!MaskMod<OfTwoNumbers>);
  static_assert(!MaskMod<NotConst>);
  static_assert(!MaskMod<HoldsATensor>);
}

TEST_CASE("MaskMod: the operators & | ! need a type of attend on one side and do not affect other types") {
  static_assert(HasAnd<Causal, SameParity> && HasAnd<SameParity, Causal> && HasAnd<Causal, Causal>);
  static_assert(HasOr<Causal, SameParity> && HasOr<SameParity, Causal>);
  static_assert(HasAnd<decltype(attend::all_of(SameParity{}, SameParity{})), SameParity>);
  static_assert(HasNot<Causal>);
  static_assert(!HasAnd<SameParity, SameBlock> && !HasOr<SameParity, SameBlock> && !HasNot<SameParity>);
  static_assert(!MaskMod<decltype(Causal{} & 3)> &&
                !MaskMod<decltype(true | Causal{})>);  // flex_attention() rejects it
}

TEST_CASE("MaskMod: attend's masks and their combinations equal torch's logical operators, for all pairs of lengths") {
  for (const Case& c : all_cases()) {
    CAPTURE(c.name);
    for (const std::int64_t queries : {1, 2, 5, 9, 17}) {
      for (const std::int64_t keys : {1, 4, 9, 12, 30}) {
        CAPTURE(queries);
        CAPTURE(keys);
        const torch::Tensor mask = c.ours({2, 3, queries, keys});
        CHECK(mask.equal(c.expected(Grid(2, 3, queries, keys)).expand({2, 3, queries, keys})));
      }
    }
  }
}

TEST_CASE("MaskMod: keys() contains every allowed key, and is exact for attend's masks and for & and |") {
  for (const Case& c : all_cases()) {
    CAPTURE(c.name);
    std::mt19937 random(1);
    for (int repeat = 0; repeat < 10; ++repeat) {
      const std::int64_t queries = 1 + random() % 40, keys = 1 + random() % 40;
      c.check_ranges({2, 3, queries, keys}, random);
    }
  }
}

TEST_CASE("SlidingWindow: the largest int32 means unlimited") {
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
  const AttentionSizes sizes{1, 1, 9, 5};
  std::mt19937 random(1);
  for (const SlidingWindow& mask : {SlidingWindow(kMost, kMost), SlidingWindow(-1, kMost), SlidingWindow(kMost, -1)}) {
    CAPTURE(mask.left);
    CAPTURE(mask.right);
    CHECK(materialize(mask, sizes).all().item<bool>());
    check_key_ranges(mask, sizes, /*is_tight=*/true, random);
  }
}

TEST_CASE("MaskMod: attend's masks are constexpr") {
  constexpr auto mask = Causal{} & !SlidingWindow(1, -1);
  static_assert(mask(Coordinate{0, 0, 5, 3, 9, 9}));
  static_assert(!mask(Coordinate{0, 0, 5, 4, 9, 9}));
  static_assert(Causal{}.keys(QueryBlock{0, 0, 2, 4, 9, 9}).end == 4);
  CHECK(mask.keys(QueryBlock{0, 0, 2, 4, 9, 9}).end == 4);
}

}  // namespace mask_mod_test
