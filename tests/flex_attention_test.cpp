// SPDX-License-Identifier: MIT

// Compares flex_attention() with the dense formula: results and two derivatives, in every dtype.

#include <attend/flex_attention.h>

#include "flex_attention/support.h"
#include "support/accuracy.h"
#include "support/backends.h"
#include "support/dense.h"
#include "support/derivatives.h"
#include "support/grid.h"
#include "support/structs.h"
#include "support/tensor_structs.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

using attend::AttentionOptions;
using attend::AttentionResult;
using attend::Backend;
using attend::Coordinate;
using attend::EveryKey;
using attend::Unchanged;
using attend::test::calls_of;
using attend::test::causal;
using attend::test::check_as_accurate_as;
using attend::test::check_equals_dense;
using attend::test::check_same_derivatives;
using attend::test::dense;
using attend::test::DenseMask;
using attend::test::DenseScore;
using attend::test::everywhere;
using attend::test::fixed;
using attend::test::Grid;
using attend::test::kReferenceAndAuto;
using attend::test::max_difference;
using attend::test::NoKey;
using attend::test::random;
using attend::test::random_inputs;
using attend::test::same;
using attend::test::SameBlock;
using attend::test::SameParity;
using attend::test::scale_of;
using attend::test::SoftSign;
using attend::test::SwitchedOn;
using attend::test::TanhCap;
using attend::test::Tensors;

namespace flex_attention_test {
namespace {

using Calls = attend::test::FlexCalls;
using Case = attend::test::FlexCase;
using Sizes = attend::test::FlexSizes;

struct DistanceDecay {
  template <class T>
  T operator()(T score, Coordinate at) const {
    return score * exp(-0.125 * abs(T(at.key - at.query_position())));
  }
};

struct ScalePerHead {
  template <class T>
  T operator()(T score, Coordinate at) const {
    return score * (0.5 + 0.25 * T(at.head)) + 0.5 * T(at.batch);
  }
};

struct CheckerboardBias {
  template <class T>
  T operator()(T score, Coordinate at) const {
    if ((at.query + at.key) % 2 == 0) return score;
    return score - 1.5;
  }
};

struct LogDistance {
  template <class T>
  T operator()(T score, Coordinate at) const {
    return score - 0.75 * log(1 + abs(T(at.query_position() - at.key)));
  }
};

struct Clamp {
  template <class T>
  T operator()(T score, Coordinate) const {
    return min(max(score, T(-0.75)), T(0.5));
  }
};

struct SignedRoot {
  template <class T>
  T operator()(T score, Coordinate) const {
    const T root = sqrt(score * score + 0.25);
    return select(score < 0, -root, root);
  }
};

struct Piecewise {
  template <class T>
  T operator()(T score, Coordinate at) const {
    if (score > 0.25 && at.key > 0) return 2 * score;
    if (score < -0.25) return score * score;
    return score / 2;
  }
};

struct Gaussian {
  template <class T>
  T operator()(T score, Coordinate at) const {
    const T difference = score - T(at.key) / T(at.key_length);
    T result = exp(-difference * difference);
    result *= 2;
    result -= 1;
    return result;
  }
};

struct LogOfSum {
  template <class T>
  T operator()(T score, Coordinate) const {
    return log(1 + exp(score));
  }
};

struct Dilated {
  std::int32_t left, step;

  bool operator()(Coordinate at) const {
    const std::int32_t behind = at.query_position() - at.key;
    return behind >= 0 && behind <= left && behind % step == 0;
  }
  attend::KeyRange keys(attend::QueryBlock block) const {
    return {block.first_position() - left, block.last_position() + 1};
  }
};

struct OddHeadsSeeAll {
  bool operator()(Coordinate at) const { return at.head % 2 == 1 || at.key <= at.batch + at.query; }
};

/// Score · eᵗ + bias, with a t for each head and a bias for each key of each batch entry.
struct TemperatureAndBias {
  torch::Tensor temperature, bias;  // (H), (N, S)

  struct View {
    attend::TensorView temperature, bias;

    template <class T>
    T operator()(T score, Coordinate at) const {
      return score * exp(temperature.read<T>(at.head)) + bias.read<T>(at.batch, at.key);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(temperature), binder.values(bias)}; }
};

torch::Tensor relative_bias(const torch::Tensor& table, const Grid& at) {  // (1 or H, L, S)
  const std::int64_t largest = table.size(1) / 2;
  const torch::Tensor column = (at.ahead.clamp(-largest, largest) + largest).to(torch::kLong);
  return table.index_select(1, column.flatten()).view({table.size(0), column.size(0), column.size(1)});
}

std::vector<Case> built_in_cases() {
  torch::manual_seed(1);
  const auto alibi = [](const Tensors& learned) { return attend::Alibi(learned[0]); };
  const auto relative = [](const Tensors& learned) { return attend::RelativeBias(learned[0]); };
  const auto bias = [](const Tensors& learned) { return attend::DenseBias(learned[0]); };
  const DenseScore dense_alibi = [](const auto& s, const Grid& at, const Tensors& learned) {
    return s - learned[0].unsqueeze(-1).unsqueeze(-1) * at.ahead.abs();
  };
  const DenseScore dense_relative = [](const auto& s, const Grid& at, const Tensors& learned) {
    return s + relative_bias(learned[0], at);
  };
  const DenseScore dense_bias = [](const auto& s, const Grid&, const Tensors& learned) { return s + learned[0]; };
  const torch::Tensor documents = torch::tensor({0, 0, 3, 3, 4}, torch::kInt);
  const torch::Tensor key_documents = torch::tensor({0, 0, 0, 1, 3, 3, 5}, torch::kLong);
  const torch::Tensor lengths = torch::tensor({7, 2}, torch::kInt);
  const auto same_document = [=](const Grid&) { return documents.unsqueeze(1) == key_documents; };
  const auto not_padding = [=](const Grid& at) { return at.key < lengths.view({2, 1, 1, 1}); };
  return {
      {"Unchanged", fixed(Unchanged{})},
      {"Softcap", fixed(attend::Softcap{0.75f}),
       [](const auto& s, const Grid&, const Tensors&) { return 0.75 * torch::tanh(s / 0.75); }},
      {"Alibi", calls_of(alibi, EveryKey{}), dense_alibi, everywhere, {random({4})}},
      {"Alibi per batch entry", calls_of(alibi, attend::Causal{}), dense_alibi, causal, {random({2, 4})}},
      {"RelativeBias", calls_of(relative, EveryKey{}), dense_relative, everywhere, {random({4, 5})}},
      {"RelativeBias, shared", calls_of(relative, EveryKey{}), dense_relative, everywhere, {random({1, 1})}},
      {"RelativeBias, wide", calls_of(relative, EveryKey{}), dense_relative, everywhere, {random({4, 21})}},
      {"DenseBias", calls_of(bias, EveryKey{}), dense_bias, everywhere, {random({5, 7})}},
      {"DenseBias per head", calls_of(bias, EveryKey{}), dense_bias, everywhere, {random({4, 1, 7})}},
      {"DenseBias per batch entry", calls_of(bias, EveryKey{}), dense_bias, everywhere, {random({2, 4, 5, 7})}},
      {"DenseBias, one", calls_of(bias, EveryKey{}), dense_bias, everywhere, {random({2, 1, 1, 1})}},
      {"Softcap, then two that are learned",
       calls_of(
           [](const Tensors& learned) {
             return attend::then(attend::Softcap{2}, attend::Alibi(learned[0]), attend::RelativeBias(learned[1]));
           },
           EveryKey{}),
       [](const auto& s, const Grid& at, const Tensors& learned) {
         return 2 * torch::tanh(s / 2) - learned[0].view({4, 1, 1}) * at.ahead.abs() + relative_bias(learned[1], at);
       },
       everywhere,
       {random({4}), random({4, 7})}},
      {"two that are learned, then Softcap",
       calls_of(
           [](const Tensors& learned) {
             return attend::then(attend::Alibi(learned[0]), attend::DenseBias(learned[1]), attend::Softcap{2});
           },
           attend::Causal{}),
       [](const auto& s, const Grid& at, const Tensors& learned) {
         return 2 * torch::tanh((s - learned[0].view({4, 1, 1}) * at.ahead.abs() + learned[1]) / 2);
       },
       causal,
       {random({4}), random({5, 7})}},
      {"Causal", fixed(Unchanged{}, attend::Causal{}), same, causal},
      {"Causal, rows that see nothing", fixed(Unchanged{}, attend::Causal{}), same, causal, {}, {.queries = 9}},
      {"SlidingWindow", fixed(Unchanged{}, attend::SlidingWindow(2, 1)), same,
       [](const Grid& at) { return at.ahead.ge(-2).logical_and(at.ahead <= 1); }},
      {"SlidingWindow, left", fixed(Unchanged{}, attend::SlidingWindow(2, -1)), same,
       [](const Grid& at) { return at.ahead >= -2; }},
      {"SlidingWindow, right", fixed(Unchanged{}, attend::SlidingWindow(-1, 2)), same,
       [](const Grid& at) { return at.ahead <= 2; }},
      {"SlidingWindow, all", fixed(Unchanged{}, attend::SlidingWindow(-1, -1))},
      {"SlidingWindow, rows that see nothing",
       fixed(Unchanged{}, attend::SlidingWindow(1, 0)),
       same,
       [](const Grid& at) { return at.ahead.ge(-1).logical_and(at.ahead <= 0); },
       {},
       {.queries = 9, .keys = 4}},
      {"PrefixLM", fixed(Unchanged{}, attend::PrefixLM(4)), same,
       [](const Grid& at) { return at.key.lt(4).logical_or(at.ahead <= 0); }},
      {"Document", fixed(Unchanged{}, attend::Document(documents, key_documents)), same, same_document},
      {"KeyPadding", fixed(Unchanged{}, attend::KeyPadding(lengths)), same, not_padding},
      {"&", fixed(Unchanged{}, attend::Document(documents, key_documents) & attend::Causal{}), same,
       [=](const Grid& at) { return same_document(at).logical_and(causal(at)); }},
      {"|", fixed(Unchanged{}, attend::Document(documents, key_documents) | attend::SlidingWindow(0, 0)), same,
       [=](const Grid& at) { return same_document(at).logical_or(at.ahead == 0); }},
      {"!", fixed(Unchanged{}, !attend::SlidingWindow(1, 1)), same, [](const Grid& at) { return at.ahead.abs() > 1; }},
      {"& | !", fixed(Unchanged{}, (attend::KeyPadding(lengths) & !attend::Causal{}) | attend::PrefixLM(1)), same,
       [=](const Grid& at) {
         return not_padding(at).logical_and(at.ahead > 0).logical_or(at.key < 1).logical_or(causal(at));
       }},
  };
}

std::vector<Case> user_cases() {
  torch::manual_seed(2);
  const auto same_parity = [](const Grid& at) { return (at.query - at.key).remainder(2) == 0; };
  const auto block_diagonal = [](const Grid& at) { return at.query.div(3, "floor") == at.key.div(3, "floor"); };
  const torch::Tensor is_on = torch::tensor({1, 1, 0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 1}).view({2, 7}).to(torch::kBool);
  return {
      {"SoftSign", fixed(SoftSign{0.5f}, SameParity{} & attend::Causal{}),
       [](const auto& s, const Grid& at, const Tensors&) {
         return s / (1 + 0.5 * s.abs()) - static_cast<double>(0.01f) * (at.query - at.key);
       },
       [=](const Grid& at) { return same_parity(at).logical_and(causal(at)); }},
      {"DistanceDecay", fixed(DistanceDecay{}),
       [](const auto& s, const Grid& at, const Tensors&) { return s * torch::exp(-0.125 * at.ahead.abs()); }},
      {"ScalePerHead", fixed(ScalePerHead{}),
       [](const auto& s, const Grid& at, const Tensors&) { return s * (0.5 + 0.25 * at.head) + 0.5 * at.batch; }},
      {"CheckerboardBias", fixed(CheckerboardBias{}),
       [](const auto& s, const Grid& at, const Tensors&) { return s - 1.5 * (at.query + at.key).remainder(2); }},
      {"LogDistance", fixed(LogDistance{}, attend::Causal{}),
       [](const auto& s, const Grid& at, const Tensors&) { return s - 0.75 * torch::log1p(at.ahead.abs()); }, causal},
      {"TanhCap", fixed(TanhCap{1.25}, SameParity{}),
       [](const auto& s, const Grid&, const Tensors&) { return 1.25 * torch::tanh(s / 1.25); }, same_parity},
      {"Clamp", fixed(Clamp{}), [](const auto& s, const Grid&, const Tensors&) { return s.clamp(-0.75, 0.5); }},
      {"SignedRoot", fixed(SignedRoot{}),
       [](const auto& s, const Grid&, const Tensors&) { return s.sign() * torch::sqrt(s * s + 0.25); }},
      {"Piecewise", fixed(Piecewise{}, attend::any_of(SameBlock{3}, attend::SlidingWindow(1, 0))),
       [](const auto& s, const Grid& at, const Tensors&) {
         return torch::where(s.gt(0.25).logical_and(at.key > 0), 2 * s, torch::where(s < -0.25, s * s, s / 2));
       },
       [=](const Grid& at) { return block_diagonal(at).logical_or(at.ahead.ge(-1).logical_and(at.ahead <= 0)); }},
      {"Gaussian", fixed(Gaussian{}),
       [](const auto& s, const Grid& at, const Tensors&) { return 2 * torch::exp(-(s - at.key / 7).square()) - 1; }},
      {"LogOfSum", fixed(LogOfSum{}, attend::all_of(SameBlock{3}, attend::not_(SameParity{}))),
       [](const auto& s, const Grid&, const Tensors&) { return at::softplus(s); },
       [=](const Grid& at) { return block_diagonal(at).logical_and(same_parity(at).logical_not()); }},
      {"Dilated", fixed(TanhCap{3}, Dilated{4, 2}),
       [](const auto& s, const Grid&, const Tensors&) { return 3 * torch::tanh(s / 3); },
       [](const Grid& at) {
         return at.ahead.le(0).logical_and(at.ahead >= -4).logical_and(at.ahead.remainder(2) == 0);
       }},
      {"OddHeadsSeeAll", fixed(SoftSign{1}, OddHeadsSeeAll{}),
       [](const auto& s, const Grid& at, const Tensors&) {
         return s / (1 + s.abs()) - static_cast<double>(0.01f) * (at.query - at.key);
       },
       [](const Grid& at) { return at.head.remainder(2).eq(1).logical_or(at.key <= at.batch + at.query); }},
      {"TemperatureAndBias, SwitchedOn",
       calls_of(
           [](const Tensors& learned) {
             return TemperatureAndBias{learned[0], learned[1]};
           },
           attend::Causal{} & SwitchedOn{is_on}),
       [](const auto& s, const Grid&, const Tensors& learned) {
         return s * torch::exp(learned[0].view({4, 1, 1})) + learned[1].view({2, 1, 1, 7});
       },
       [=](const Grid& at) {
         return causal(at).logical_and(is_on.view({2, 1, 1, 7}));
       },
       {random({4}), random({2, 7})}},
      {"TemperatureAndBias, then SoftSign, then Alibi",
       calls_of(
           [](const Tensors& learned) {
             return attend::then(TemperatureAndBias{learned[0], learned[1]}, SoftSign{1}, attend::Alibi(learned[2]));
           },
           EveryKey{}),
       [](const auto& s, const Grid& at, const Tensors& learned) {
         const torch::Tensor inner = s * torch::exp(learned[0].view({4, 1, 1})) + learned[1].view({2, 1, 1, 7});
         return inner / (1 + inner.abs()) - static_cast<double>(0.01f) * (at.query - at.key) -
                learned[2].view({4, 1, 1}) * at.ahead.abs();
       },
       everywhere,
       {random({4}), random({2, 7}), random({4})}},
  };
}

/// A case with a fixed score_mod, which has a learned tensor, and a fixed mask_mod.
Case with_options(const std::string& name, const AttentionOptions& options, const DenseScore& before = same,
                  const DenseMask& besides = everywhere, const Sizes& sizes = {}) {
  return {name,
          calls_of([](const Tensors& learned) { return attend::then(SoftSign{0.5f}, attend::Alibi(learned[0])); },
                   !attend::SlidingWindow(0, 0)),
          [=](const auto& s, const Grid& at, const Tensors& learned) {
            const torch::Tensor score = before(s, at, learned);
            return score / (1 + 0.5 * score.abs()) - static_cast<double>(0.01f) * (at.query - at.key) -
                   learned[0].view({-1, 1, 1}) * at.ahead.abs();
          },
          [=](const Grid& at) { return besides(at).logical_and(at.ahead != 0); },
          {random({sizes.heads})},
          sizes,
          options};
}

}  // namespace

TEST_CASE("flex_attention: every built-in score_mod and mask_mod equals the dense formula, with two derivatives") {
  for (const Case& c : built_in_cases()) check_equals_dense(c);
}

TEST_CASE("flex_attention: a user's score_mod and mask_mod equal the dense formula, with two derivatives") {
  for (const Case& c : user_cases()) check_equals_dense(c);
}

TEST_CASE("flex_attention: options are applied before the score_mod, and their masks in addition to the mask_mod") {
  const torch::Tensor bool_mask = torch::rand({2, 1, 5, 7}) < 0.7, float_mask = random({4, 5, 7});
  const torch::Tensor slopes = torch::rand({4}, torch::kDouble);
  const auto cap = [](const torch::Tensor& s) { return 1.5 * torch::tanh(s / 1.5); };
  const auto bias = [=](const Grid& at) { return slopes.view({4, 1, 1}) * at.ahead.abs(); };
  const auto window = [](const Grid& at) { return at.ahead.ge(-3).logical_and(at.ahead <= 1); };
  const torch::Tensor query_offsets = torch::tensor({0, 2, 2, 6}, torch::kInt),
                      key_offsets = torch::tensor({0, 3, 4, 8}, torch::kInt);
  const Sizes packed{.batch = 1, .queries = 6, .keys = 8};
  const torch::Tensor query_sequence = torch::tensor({0, 0, 2, 2, 2, 2}).view({6, 1}),
                      key_sequence = torch::tensor({0, 0, 0, 1, 2, 2, 2, 2});
  // Within each sequence: its last query is aligned with its last key.
  const torch::Tensor ahead = torch::arange(8, torch::kDouble) - torch::tensor({1, 2, 4, 5, 6, 7}).view({6, 1});
  const auto packed_options = AttentionOptions().query_offsets(query_offsets).key_offsets(key_offsets);
  const Case cases[] = {
      with_options("scale", AttentionOptions().scale(-0.5)),
      with_options("is_causal", AttentionOptions().is_causal(true), same, causal),
      with_options("window", AttentionOptions().window({3, 1}), same, window),
      with_options("bool mask", AttentionOptions().attn_mask(bool_mask), same, [=](const Grid&) { return bool_mask; }),
      with_options("float mask", AttentionOptions().attn_mask(float_mask),
                   [=](const auto& s, const Grid&, const Tensors&) { return s + float_mask; }),
      with_options("softcap", AttentionOptions().softcap(1.5),
                   [=](const auto& s, const Grid&, const Tensors&) { return cap(s); }),
      with_options("alibi_slopes", AttentionOptions().alibi_slopes(slopes),
                   [=](const auto& s, const Grid& at, const Tensors&) { return s - bias(at); }),
      with_options(
          "all",
          AttentionOptions()
              .scale(0.75)
              .softcap(1.5)
              .alibi_slopes(slopes)
              .attn_mask(float_mask)
              .window({3, 1})
              .is_causal(true),
          [=](const auto& s, const Grid& at, const Tensors&) { return cap(s) - bias(at) + float_mask; },
          [=](const Grid& at) { return window(at).logical_and(causal(at)); }),
      with_options(
          "packed", packed_options, same, [=](const Grid&) { return query_sequence == key_sequence; }, packed),
      with_options(
          "packed, causal, ALiBi", AttentionOptions(packed_options).is_causal(true).alibi_slopes(slopes),
          [=](const auto& s, const Grid&, const Tensors&) {
            return s - slopes.view({4, 1, 1}) * ahead.abs();
          },
          [=](const Grid&) { return query_sequence.eq(key_sequence).logical_and(ahead <= 0); }, packed),
  };
  for (const Case& c : cases) check_equals_dense(c);
}

TEST_CASE("flex_attention: learned attn_mask and alibi_slopes have their gradients through the score_mod") {
  for (const Backend backend : kReferenceAndAuto) {
    CAPTURE(backend);
    Tensors inputs = random_inputs({});
    inputs.push_back(random({5, 7}));
    inputs.push_back(torch::rand({4}, torch::kDouble));
    check_same_derivatives(
        [&](const Tensors& in) {
          const auto options = AttentionOptions().attn_mask(in[3]).alibi_slopes(in[4]).backend(backend);
          return Tensors{attend::flex_attention(in[0], in[1], in[2], TanhCap{1.5}, attend::Causal{}, options)};
        },
        [&](const Tensors& in) {
          const auto score = [](const auto& s, const Grid& at, const Tensors& learned) {
            return 1.5 * torch::tanh((s - learned[1].view({4, 1, 1}) * at.ahead.abs() + learned[0]) / 1.5);
          };
          return Tensors{dense(in, score, causal).output};
        },
        inputs);
  }
}

TEST_CASE("flex_attention: lengths of 0 and 1, batch 0, grouped heads and Dv unlike D equal the dense formula") {
  const Sizes sizes[] = {
      {.queries = 1},
      {.keys = 1},
      {.queries = 1, .keys = 1},
      {.queries = 0},
      {.keys = 0},
      {.queries = 0, .keys = 0},
      {.batch = 0},
      {.heads = 1, .kv_heads = 1},
      {.heads = 4, .kv_heads = 1},
      {.heads = 3, .kv_heads = 3},
      {.width = 1, .value_dim = 1},
      {.width = 2, .value_dim = 19},
      {.width = 33, .value_dim = 1},
      {.batch = 1, .heads = 2, .kv_heads = 1, .queries = 40, .keys = 33, .width = 8, .value_dim = 8},
  };
  for (const Sizes& n : sizes) {
    CAPTURE(n.batch);
    CAPTURE(n.heads);
    CAPTURE(n.kv_heads);
    CAPTURE(n.queries);
    CAPTURE(n.keys);
    CAPTURE(n.width);
    CAPTURE(n.value_dim);
    check_equals_dense(with_options("sizes", {}, same, everywhere, n));
  }
}

TEST_CASE("flex_attention: with many blocks, masked keys far from the diagonal change nothing") {
  const Sizes n{.batch = 1, .heads = 2, .kv_heads = 1, .queries = 300, .keys = 413, .width = 16, .value_dim = 8};
  const torch::Tensor documents = torch::arange(413, torch::kInt).div(100, "floor");
  const torch::Tensor query_documents = documents.slice(0, 413 - 300);
  const Case cases[] = {
      {"window", fixed(SoftSign{1}, attend::SlidingWindow(40, 0))},
      {"document", fixed(SoftSign{1}, attend::Document(query_documents, documents) & attend::Causal{})},
      {"far only", fixed(SoftSign{1}, !attend::SlidingWindow(130, 130))},
  };
  const DenseMask allowed[] = {
      [](const Grid& at) { return at.ahead.le(0).logical_and(at.ahead >= -40); },
      [=](const Grid& at) { return at.ahead.le(0).logical_and(query_documents.unsqueeze(1) == documents); },
      [](const Grid& at) { return at.ahead.abs() > 130; },
  };
  const auto score = [](const auto& s, const Grid& at, const Tensors&) {
    return s / (1 + s.abs()) - static_cast<double>(0.01f) * (at.query - at.key);
  };
  for (std::size_t i = 0; i < std::size(cases); ++i) {
    CAPTURE(cases[i].name);
    torch::manual_seed(4);
    const Tensors inputs = random_inputs(n);
    const auto gradients = [&](const auto& function) {
      Tensors leaves;
      for (const torch::Tensor& input : inputs) leaves.push_back(input.clone().requires_grad_());
      Tensors results{function(leaves)};
      for (const torch::Tensor& gradient : torch::autograd::grad({results[0].sin().sum()}, leaves))
        results.push_back(gradient);
      return results;
    };
    const Tensors expected = gradients([&](const Tensors& in) { return dense(in, score, allowed[i]).output; });
    for (const Backend backend : kReferenceAndAuto) {
      CAPTURE(backend);
      const Tensors ours =
          gradients([&](const Tensors& in) { return cases[i].calls.output(in, AttentionOptions().backend(backend)); });
      for (std::size_t k = 0; k < ours.size(); ++k) CHECK(max_difference(ours[k], expected[k]) < 1e-12);
    }
  }
}

TEST_CASE("flex_attention: queries that may attend to nothing give zeros, −∞ and zero gradients, for any score_mod") {
  struct NamedCalls {
    std::string name;
    Calls calls;
  };
  const torch::Tensor lengths = torch::tensor({0, 0}, torch::kInt);
  const auto learned = [](const Tensors& in) { return attend::then(attend::Alibi(in[0]), TanhCap{2}); };
  const NamedCalls all[] = {
      {"a user's mask", calls_of(learned, NoKey{})},
      {"empty key ranges", calls_of(learned, attend::KeyPadding(lengths))},
      {"two that exclude each other", calls_of(learned, attend::Causal{} & !attend::Causal{})},
      {"a window that ends before the first key", calls_of(learned, attend::SlidingWindow(-1, 2) & NoKey{})},
  };
  for (const NamedCalls& c : all) {
    for (const Backend backend : kReferenceAndAuto) {
      for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
        CAPTURE(c.name);
        CAPTURE(backend);
        CAPTURE(dtype);
        Tensors leaves = random_inputs({});
        leaves.push_back(random({4}));
        for (torch::Tensor& leaf : leaves) leaf = leaf.to(dtype).requires_grad_();
        const auto options = AttentionOptions().backend(backend);
        const AttentionResult result = c.calls.with_lse(leaves, options);
        CHECK(result.output.eq(0).all().item<bool>());
        CHECK(result.log_sum_exp.isneginf().all().item<bool>());
        CHECK((result.log_sum_exp.scalar_type() == (dtype == torch::kDouble ? torch::kDouble : torch::kFloat)));
        const torch::Tensor output = c.calls.output(leaves, options);
        CHECK(output.eq(0).all().item<bool>());
        for (const bool create_graph : {false, true})
          for (const torch::Tensor& gradient :
               torch::autograd::grad({output}, leaves, {torch::ones_like(output)}, /*retain_graph=*/true, create_graph))
            CHECK(gradient.eq(0).all().item<bool>());
      }
    }
  }
}

namespace {

/// weight · log(1 + distance back to the key): −∞ for the next key, and NaN for later keys.
struct LogOfPast {
  torch::Tensor weight;  // (H)

  struct View {
    attend::TensorView weight;

    template <class T>
    T operator()(T score, Coordinate at) const {
      return score - weight.read<T>(at.head) * log(T(at.query_position() - at.key + 1));
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(weight)}; }
};

struct RootOfDistance {  // sqrt has an infinite derivative at 0, but its argument is a constant
  template <class T>
  T operator()(T score, Coordinate at) const {
    return score - sqrt(abs(T(at.query_position() - at.key)));
  }
};

struct PowerOfDistance {  // pow of a constant 0: its derivative must not become 0 · log 0
  template <class T>
  T operator()(T score, Coordinate at) const {
    const T distance = abs(T(at.query_position() - at.key));
    return select(distance > 0, score - exp(0.5 * log(distance)), score);
  }
};

struct OverflowingLater {  // e^(1000 · distance) is infinite for every masked key
  template <class T>
  T operator()(T score, Coordinate at) const {
    return score * exp(T(1000) * T(at.key - at.query_position()));
  }
};

}  // namespace

TEST_CASE("flex_attention: a masked score that is not finite changes neither result nor gradient") {
  check_equals_dense({"LogOfPast",
                      calls_of([](const Tensors& learned) { return LogOfPast{learned[0]}; }, attend::Causal{}),
                      [](const auto& s, const Grid& at, const Tensors& learned) {
                        return s - learned[0].view({4, 1, 1}) * torch::log((1 - at.ahead).clamp_min(1));
                      },
                      causal,
                      {random({4})}});
  check_equals_dense(
      {"OverflowingLater", fixed(OverflowingLater{}, attend::Causal{}),
       [](const auto& s, const Grid& at, const Tensors&) { return s * torch::exp(1000 * at.ahead.clamp_max(0)); },
       causal});
}

TEST_CASE("flex_attention: a function of constants has derivative 0, also where its derivative is infinite") {
  const DenseScore root = [](const auto& s, const Grid& at, const Tensors&) { return s - at.ahead.abs().sqrt(); };
  check_equals_dense({"RootOfDistance", fixed(RootOfDistance{}), root});
  check_equals_dense({"PowerOfDistance", fixed(PowerOfDistance{}), root});
}

TEST_CASE("flex_attention: float32, bfloat16 and float16 are as accurate as the dense formula, forward and backward") {
  const std::vector<Case> built_in = built_in_cases(), users = user_cases();
  std::vector<Case> cases(built_in.begin(), built_in.end());
  cases.insert(cases.end(), users.begin(), users.end());
  for (const Case& c : cases) {
    // A rounded score at the border of two pieces may fall on either side.
    if (c.name == "Clamp" || c.name == "Piecewise" || c.name == "SignedRoot") continue;
    for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      // The error of a few numbers depends on chance, so the results of eight calls are compared together.
      const auto with_gradients = [&](at::ScalarType in_dtype, const auto& function) {
        Tensors all;
        for (int call = 0; call < 8; ++call) {
          torch::manual_seed(call);
          Tensors leaves = random_inputs(c.sizes);
          for (const torch::Tensor& learned : c.learned) leaves.push_back(torch::randn_like(learned));
          for (torch::Tensor& leaf : leaves) leaf = leaf.to(dtype).to(in_dtype).requires_grad_();
          Tensors results{function(leaves)};
          const torch::Tensor output_gradient = random(results[0].sizes().vec()).to(dtype).to(in_dtype);
          for (const torch::Tensor& gradient : torch::autograd::grad(results, leaves, {output_gradient}))
            results.push_back(gradient);
          all.resize(results.size());
          for (std::size_t i = 0; i < results.size(); ++i)
            all[i] = all[i].defined() ? torch::cat({all[i], results[i]}) : results[i];
        }
        return all;
      };
      const auto formula = [&](const Tensors& in) { return dense(in, c.score, c.allowed, scale_of(c)).output; };
      const Tensors exact = with_gradients(torch::kDouble, formula), plain = with_gradients(dtype, formula);
      for (const Backend backend : kReferenceAndAuto) {
        CAPTURE(c.name);
        CAPTURE(dtype);
        CAPTURE(backend);
        const Tensors ours = with_gradients(
            dtype, [&](const Tensors& in) { return c.calls.output(in, AttentionOptions().backend(backend)); });
        for (std::size_t i = 0; i < ours.size(); ++i) {
          CAPTURE(i);
          check_as_accurate_as(plain[i], ours[i], exact[i]);
        }
      }
    }
  }
}

}  // namespace flex_attention_test
