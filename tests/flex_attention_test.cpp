// SPDX-License-Identifier: MIT
#include <attend/flex_attention.h>

#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/derivatives.h"
#include "support/errors.h"
#include "support/grid.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

using attend::AttentionOptions;
using attend::AttentionResult;
using attend::Backend;
using attend::Coordinate;
using attend::EveryKey;
using attend::Unchanged;
using attend::test::check_as_accurate_as;
using attend::test::check_same_derivatives;
using attend::test::Grid;
using attend::test::max_difference;
using attend::test::message_of;

namespace {

/// The backends of every check.
constexpr Backend kFlexBackends[] = {Backend::kReference, Backend::kAuto};

using Tensors = std::vector<torch::Tensor>;

constexpr double kNegativeInfinity = -std::numeric_limits<double>::infinity();

// ---- Structs as a user writes them ----------------------------------------------------------------------------------

struct SoftSign {
  float strength;

  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, Coordinate at) const {
    return score / (T(1) + abs(score) * T(strength)) - T(0.01f) * T(at.query - at.key);
  }
};

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

struct TanhCap {
  double limit;

  template <class T>
  T operator()(T score, Coordinate) const {
    return limit * tanh(score / limit);
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

struct SameParity {
  ATTEND_HOST_DEVICE bool operator()(Coordinate at) const { return (at.query - at.key) % 2 == 0; }
};

struct BlockDiagonal {
  std::int32_t width;

  bool operator()(Coordinate at) const { return at.query / width == at.key / width; }
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

struct NoKey {
  bool operator()(Coordinate) const { return false; }
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

/// Allows only the keys that a tensor of the struct switches on.
struct SwitchedOn {
  torch::Tensor is_on;  // bool (N, S)

  struct View {
    attend::IntegerView is_on;

    bool operator()(Coordinate at) const { return is_on.read(at.batch, at.key) != 0; }
  };

  View bind(attend::Binder& binder) const { return {binder.integers(is_on)}; }
};

/// Allows only keys whose value is positive.
struct PositiveKeys {
  torch::Tensor values;  // floating-point (S)

  struct View {
    attend::TensorView values;

    bool operator()(Coordinate at) const { return values.read<attend::Real<float>>(at.key) > 0; }
  };

  View bind(attend::Binder& binder) const { return {binder.values(values)}; }
};

/// Checks that `call` throws exactly an Error whose message contains this text.
template <class Error, class Call>
void check_throws(const std::string& expected, const Call& call) {
  const std::string message = message_of<Error>(call);
  CAPTURE(message);
  CHECK(message.find(expected) != std::string::npos);
}

// ---- The dense formula in torch's operators -------------------------------------------------------------------------

struct Sizes {
  std::int64_t batch = 2, heads = 4, kv_heads = 2, queries = 5, keys = 7, width = 3, value_dim = 2;
};

/// Random query, key and value.
Tensors random_inputs(const Sizes& n) {
  return {torch::randn({n.batch, n.heads, n.queries, n.width}, torch::kDouble),
          torch::randn({n.batch, n.kv_heads, n.keys, n.width}, torch::kDouble),
          torch::randn({n.batch, n.kv_heads, n.keys, n.value_dim}, torch::kDouble)};
}

/// Changes scores (N, H, L, S), given their coordinates and the learned tensors.
using DenseScore = std::function<torch::Tensor(const torch::Tensor& scores, const Grid& at, const Tensors& learned)>;
/// The allowed scores: bool, broadcastable to (N, H, L, S).
using DenseMask = std::function<torch::Tensor(const Grid& at)>;

/// The dense formula in the dtype of its arguments. `inputs`: query, key, value and the learned tensors.
AttentionResult dense(const Tensors& inputs, double scale, const DenseScore& score, const DenseMask& allowed) {
  const torch::Tensor& query = inputs[0];
  const std::int64_t queries_per_key = query.size(1) / inputs[1].size(1);
  const torch::Tensor key = inputs[1].repeat_interleave(queries_per_key, 1);
  const torch::Tensor value = inputs[2].repeat_interleave(queries_per_key, 1);
  const Grid at(query.size(0), query.size(1), query.size(2), key.size(2), query.scalar_type());
  const torch::Tensor scores = scale * query.matmul(key.transpose(2, 3));  // (N, H, L, S)
  const torch::Tensor changed = score(scores, at, Tensors(inputs.begin() + 3, inputs.end()));
  const torch::Tensor ruled_out = allowed(at).logical_not().expand(scores.sizes());
  // A large finite number instead of −∞, so that an empty row does not become NaN.
  const double never = query.scalar_type() == torch::kDouble ? -1e300
                       : query.scalar_type() == torch::kHalf ? -65504.0
                                                             : -3e38;
  const torch::Tensor masked = changed.masked_fill(ruled_out, never);
  const torch::Tensor weights = masked.softmax(-1).masked_fill(ruled_out, 0.0);
  return {weights.matmul(value), masked.logsumexp(-1).masked_fill(ruled_out.all(-1), kNegativeInfinity)};
}

torch::Tensor same(const torch::Tensor& scores, const Grid&, const Tensors&) { return scores; }
torch::Tensor everywhere(const Grid& at) { return torch::ones_like(at.ahead, torch::kBool); }
torch::Tensor causal(const Grid& at) { return at.ahead <= 0; }

// ---- A case: structs and their dense form ---------------------------------------------------------------------------

/// Calls of flex_attention() and related functions with the structs of a case. `inputs`: query, key, value, learned.
struct Calls {
  std::function<torch::Tensor(const Tensors& inputs, const AttentionOptions& options)> output;
  std::function<AttentionResult(const Tensors& inputs, const AttentionOptions& options)> with_lse;
  std::function<attend::Explanation(const Tensors& inputs, const AttentionOptions& options)> explain;
};

/// The calls for a score_mod that `make_score` makes from the learned tensors.
template <class MakeScore, class Mask>
Calls calls_of(const MakeScore& make_score, const Mask& mask) {
  const auto score = [make_score](const Tensors& inputs) {
    return make_score(Tensors(inputs.begin() + 3, inputs.end()));
  };
  return {[=](const Tensors& in, const AttentionOptions& options) {
            return attend::flex_attention(in[0], in[1], in[2], score(in), mask, options);
          },
          [=](const Tensors& in, const AttentionOptions& options) {
            return attend::flex_attention_with_lse(in[0], in[1], in[2], score(in), mask, options);
          },
          [=](const Tensors& in, const AttentionOptions& options) {
            return attend::explain_flex(in[0], in[1], in[2], score(in), mask, options);
          }};
}

template <class Score, class Mask = EveryKey>
Calls fixed(const Score& score, const Mask& mask = {}) {
  return calls_of([score](const Tensors&) { return score; }, mask);
}

struct Case {
  std::string name;
  Calls calls;
  DenseScore score = same;
  DenseMask allowed = everywhere;
  Tensors learned = {};
  Sizes sizes = {};
  AttentionOptions options = {};
};

double scale_of(const Case& c) { return c.options.scale().factor(c.sizes.width); }

/// Checks that output, log-sum-exp and their first and second derivatives equal the dense form's, on every backend.
void check_equals_dense(const Case& c) {
  CAPTURE(c.name);
  torch::manual_seed(3);
  Tensors inputs = random_inputs(c.sizes);
  inputs.insert(inputs.end(), c.learned.begin(), c.learned.end());
  for (const Backend backend : kFlexBackends) {
    CAPTURE(backend);
    const AttentionOptions options = AttentionOptions(c.options).backend(backend);
    check_same_derivatives(
        [&](const Tensors& in) { return Tensors{c.calls.output(in, options)}; },
        [&](const Tensors& in) { return Tensors{dense(in, scale_of(c), c.score, c.allowed).output}; }, inputs);
    CAPTURE("with the log-sum-exp");
    check_same_derivatives(
        [&](const Tensors& in) {
          const AttentionResult result = c.calls.with_lse(in, options);
          return Tensors{result.output, result.log_sum_exp};
        },
        [&](const Tensors& in) {
          const AttentionResult result = dense(in, scale_of(c), c.score, c.allowed);
          return Tensors{result.output, result.log_sum_exp};
        },
        inputs);
  }
}

torch::Tensor random(const std::vector<std::int64_t>& sizes) { return torch::randn(sizes, torch::kDouble); }

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
      {"Piecewise", fixed(Piecewise{}, attend::any_of(BlockDiagonal{3}, attend::SlidingWindow(1, 0))),
       [](const auto& s, const Grid& at, const Tensors&) {
         return torch::where(s.gt(0.25).logical_and(at.key > 0), 2 * s, torch::where(s < -0.25, s * s, s / 2));
       },
       [=](const Grid& at) { return block_diagonal(at).logical_or(at.ahead.ge(-1).logical_and(at.ahead <= 0)); }},
      {"Gaussian", fixed(Gaussian{}),
       [](const auto& s, const Grid& at, const Tensors&) { return 2 * torch::exp(-(s - at.key / 7).square()) - 1; }},
      {"LogOfSum", fixed(LogOfSum{}, attend::all_of(BlockDiagonal{3}, attend::not_(SameParity{}))),
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
  for (const Backend backend : kFlexBackends) {
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
          return Tensors{dense(in, 1 / std::sqrt(3.0), score, causal).output};
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
    const Tensors expected = gradients([&](const Tensors& in) { return dense(in, 0.25, score, allowed[i]).output; });
    for (const Backend backend : kFlexBackends) {
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
    for (const Backend backend : kFlexBackends) {
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
      const auto formula = [&](const Tensors& in) { return dense(in, scale_of(c), c.score, c.allowed).output; };
      const Tensors exact = with_gradients(torch::kDouble, formula), plain = with_gradients(dtype, formula);
      for (const Backend backend : kFlexBackends) {
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

TEST_CASE("flex_attention: a learned tensor may have another dtype than the query; so has its gradient") {
  for (const Backend backend : kFlexBackends) {
    for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
      for (const auto learned_dtype : {torch::kDouble, torch::kFloat, torch::kHalf}) {
        CAPTURE(backend);
        CAPTURE(dtype);
        CAPTURE(learned_dtype);
        Tensors inputs = random_inputs({});
        for (torch::Tensor& input : inputs) input = input.to(dtype);
        const auto gradient = [&](const torch::Tensor& slopes) {
          const torch::Tensor leaf = slopes.detach().requires_grad_();
          const torch::Tensor output = attend::flex_attention(inputs[0], inputs[1], inputs[2], attend::Alibi(leaf),
                                                              EveryKey{}, AttentionOptions().backend(backend));
          CHECK((output.scalar_type() == dtype));
          return torch::autograd::grad({output.to(torch::kDouble).sin().sum()}, {leaf})[0];
        };
        const torch::Tensor slopes = (torch::arange(4) * 0.25).to(learned_dtype);  // exact in every dtype
        const torch::Tensor narrow = gradient(slopes), wide = gradient(slopes.to(torch::kDouble));
        CHECK((narrow.scalar_type() == learned_dtype));
        CHECK(max_difference(narrow, wide.to(learned_dtype)) == 0);
      }
    }
  }
}

TEST_CASE("flex_attention: any strides of query, key, value and learned tensors give the results of copies") {
  for (const Backend backend : kFlexBackends) {
    CAPTURE(backend);
    const torch::Tensor query = random({2, 5, 4, 3}).transpose(1, 2), key = random({2, 2, 3, 7}).transpose(2, 3);
    const torch::Tensor value = random({1, 1, 7, 4}).expand({2, 2, 7, 4}).slice(3, 0, 4, 2);
    const torch::Tensor bias = random({7, 5}).t(), slopes = random({1}).expand({4});
    Tensors inputs{query, key, value, bias, slopes}, results[2];
    for (const bool is_copied : {false, true}) {
      Tensors leaves;
      for (const torch::Tensor& input : inputs)
        leaves.push_back((is_copied ? input.contiguous() : input).detach().requires_grad_());
      const auto score = attend::then(attend::DenseBias(leaves[3]), attend::Alibi(leaves[4]));
      const torch::Tensor output = attend::flex_attention(leaves[0], leaves[1], leaves[2], score, attend::Causal{},
                                                          AttentionOptions().backend(backend));
      results[is_copied] = torch::autograd::grad({output.sin().sum()}, leaves);
      results[is_copied].push_back(output);
    }
    for (std::size_t i = 0; i < results[0].size(); ++i) CHECK(max_difference(results[0][i], results[1][i]) < 1e-12);
  }
}

TEST_CASE("flex_attention: dropout drops the same weights as attention() for the same seed, on every backend") {
  const Tensors inputs = random_inputs({});
  const auto options = AttentionOptions().dropout(0.4);
  torch::manual_seed(6);
  const torch::Tensor expected = attend::attention(
      inputs[0], inputs[1], inputs[2], AttentionOptions(options).softcap(0.75).backend(Backend::kReference));
  for (const Backend backend : kFlexBackends) {
    CAPTURE(backend);
    torch::manual_seed(6);
    const torch::Tensor output = attend::flex_attention(inputs[0], inputs[1], inputs[2], attend::Softcap{0.75f},
                                                        EveryKey{}, AttentionOptions(options).backend(backend));
    CHECK(max_difference(output, expected) < 1e-12);
  }
}

TEST_CASE("flex_attention: autocast casts query, key and value as in attention(), and no learned tensor") {
  Tensors inputs = random_inputs({});
  for (torch::Tensor& input : inputs) input = input.to(torch::kFloat);
  const attend::Alibi alibi(torch::rand({4}));
  for (const Backend backend : kFlexBackends) {
    CAPTURE(backend);
    const auto options = AttentionOptions().backend(backend);
    const torch::Tensor expected =
        attend::flex_attention(inputs[0].to(torch::kBFloat16), inputs[1].to(torch::kBFloat16),
                               inputs[2].to(torch::kBFloat16), alibi, attend::Causal{}, options);
    const attend::test::Autocast autocast;
    CHECK(attend::flex_attention(inputs[0], inputs[1], inputs[2], alibi, attend::Causal{}, options).equal(expected));
  }
}

TEST_CASE("flex_attention: two calls give the same bits, forward and backward") {
  for (const Backend backend : kFlexBackends) {
    CAPTURE(backend);
    Tensors leaves = random_inputs({.queries = 70, .keys = 90, .width = 16});
    leaves.push_back(random({4}));
    for (torch::Tensor& leaf : leaves) leaf = leaf.to(torch::kFloat).requires_grad_();
    const auto once = [&] {
      const auto score = attend::then(SoftSign{1}, attend::Alibi(leaves[3]));
      Tensors results{attend::flex_attention(leaves[0], leaves[1], leaves[2], score, attend::Causal{},
                                             AttentionOptions().backend(backend))};
      for (const torch::Tensor& gradient : torch::autograd::grad({results[0].sum()}, leaves))
        results.push_back(gradient);
      return results;
    };
    const Tensors first = once(), second = once();
    for (std::size_t i = 0; i < first.size(); ++i) CHECK(first[i].equal(second[i]));
  }
}

TEST_CASE("flex_attention: backward uses the values of the forward pass and refuses tensors changed in place") {
  for (const Backend backend : kFlexBackends) {
    CAPTURE(backend);
    const Tensors inputs = random_inputs({});
    const torch::Tensor slopes = random({4}).requires_grad_();
    const torch::Tensor output = attend::flex_attention(inputs[0], inputs[1], inputs[2], attend::Alibi(slopes),
                                                        EveryKey{}, AttentionOptions().backend(backend));
    const torch::Tensor loss = output.sum();
    const torch::NoGradGuard no_grad;
    slopes.mul_(2);
    check_throws<c10::Error>("modified by an inplace operation", [&] { loss.backward(); });
  }
}

TEST_CASE("flex_attention: a mask_mod may read floating-point values, for every dtype of the call") {
  Tensors inputs = random_inputs({});
  const torch::Tensor values = random({inputs[1].size(2)});
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
    CAPTURE(dtype);
    for (torch::Tensor& input : inputs) input = input.to(dtype);
    const auto output = [&](Backend backend) {
      return attend::flex_attention(inputs[0], inputs[1], inputs[2], Unchanged{}, PositiveKeys{values.to(dtype)},
                                    AttentionOptions().backend(backend));
    };
    const torch::Tensor expected = attend::attention(
        inputs[0], inputs[1], inputs[2],
        AttentionOptions().attn_mask(values.to(dtype).gt(0).unsqueeze(0)).backend(Backend::kReference));
    CHECK(output(Backend::kReference).equal(expected));
    CHECK(max_difference(output(Backend::kCpu), expected) < (dtype == torch::kDouble ? 1e-12 : 2e-2));
  }
}

TEST_CASE("explain_flex: it names the backend and why no faster one is used; kAuto uses that backend") {
  Tensors inputs = random_inputs({});
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
    for (torch::Tensor& input : inputs) input = input.to(dtype);
    const Calls calls = fixed(SoftSign{1}, attend::Causal{});
    const attend::Explanation plan = calls.explain(inputs, {});
    CHECK(plan.backend == Backend::kCpu);
    CHECK(calls.output(inputs, {}).equal(calls.output(inputs, AttentionOptions().backend(plan.backend))));
    const auto by_name = AttentionOptions().backend(Backend::kReference);
    CHECK(calls.explain(inputs, by_name).backend == Backend::kReference);
    const attend::BackendGuard guard(Backend::kReference);
    CHECK(calls.explain(inputs, {}).backend == Backend::kReference);
  }
}

TEST_CASE("flex_attention: kSdpa requested by name throws with the reason") {
  const Tensors inputs = random_inputs({.value_dim = 3});
  const Calls calls = fixed(Unchanged{});
  const auto options = AttentionOptions().backend(Backend::kSdpa);
  const auto throws_the_reason = [](const auto& call) {
    check_throws<c10::NotImplementedError>(
        "attend::attention: the requested backend cannot run. "
        "kSdpa does not support a score_mod or a mask_mod.",
        call);
  };
  throws_the_reason([&] { calls.output(inputs, options); });
  throws_the_reason([&] { calls.with_lse(inputs, options); });
  throws_the_reason([&] { calls.explain(inputs, options); });
}

namespace {

/// Adds the sum of two values of one view.
struct TwoOfOneView {
  torch::Tensor bias;  // (at least S + 1)

  struct View {
    attend::TensorView bias;

    template <class T>
    T operator()(T score, Coordinate at) const {
      return score + bias.read<T>(at.key) + bias.read<T>(at.key + 1);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(bias)}; }
};

/// Uses the product of two values of one view.
struct ProductOfOneView {
  torch::Tensor bias;

  struct View {
    attend::TensorView bias;

    template <class T>
    T operator()(T score, Coordinate at) const {
      return score * bias.read<T>(at.query) + bias.read<T>(at.query) * bias.read<T>(at.key);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(bias)}; }
};

/// Adds a value for each distance to an earlier key.
struct DistanceTable {
  torch::Tensor table;

  struct View {
    attend::TensorView table;

    template <class T>
    T operator()(T score, Coordinate at) const {
      return score + table.read<T>(at.query_position() - at.key);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(table)}; }
};

/// Multiplies by a value for each distance. For later keys the derivative with respect to the score is NaN.
struct DistanceFactor {
  torch::Tensor table;

  struct View {
    attend::TensorView table;

    template <class T>
    T operator()(T score, Coordinate at) const {
      return score * table.read<T>(at.query_position() - at.key);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(table)}; }
};

struct LearnedNumber {
  torch::Tensor number;  // ()

  struct View {
    attend::TensorView number;

    template <class T>
    T operator()(T score, Coordinate) const {
      return score * number.read<T>() + number.read<T>();
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(number)}; }
};

struct Functions {
  torch::Tensor number;  // ()

  struct View {
    attend::TensorView number;

    template <class T>
    T operator()(T score, Coordinate) const {
      const T a = number.read<T>();
      return sin(score * a) + cos(score) + tan(score * 0.1) + sigmoid(score + a) + erf(score * a) +
             pow(abs(score) + 1, a) + floor(score) + round(score);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(number)}; }
};

/// Adds integers by query and key.
struct Shift {
  torch::Tensor numbers;

  struct View {
    attend::IntegerView numbers;

    template <class T>
    T operator()(T score, Coordinate at) const {
      return score + numbers.read(at.query + at.key);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.integers(numbers)}; }
};

/// A mask given as a table, (N, L, S) or (N, H, L, S).
struct MaskTable {
  torch::Tensor allowed;

  struct View {
    attend::IntegerView allowed;
    bool has_heads;

    bool operator()(Coordinate at) const {
      return (has_heads ? allowed.read(at.batch, at.head, at.query, at.key)
                        : allowed.read(at.batch, at.query, at.key)) != 0;
    }
  };

  View bind(attend::Binder& binder) const { return {binder.integers(allowed), allowed.dim() == 4}; }
};

/// The product of two values, each read through its own view.
struct TwoViews {
  torch::Tensor bias;

  struct View {
    attend::TensorView first, second;

    template <class T>
    T operator()(T score, Coordinate at) const {
      return score + first.read<T>(at.key) * second.read<T>(at.key + 1);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(bias), binder.values(bias)}; }
};

/// Reads two values of one view, but the result depends on only one of them.
struct EitherOfOneView {
  torch::Tensor bias;

  struct View {
    attend::TensorView bias;

    template <class T>
    T operator()(T score, Coordinate at) const {
      const T here = bias.read<T>(at.key), next = bias.read<T>(at.key + 1);
      return score * select(at.query % 2 == 0, here, next);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(bias)}; }
};

}  // namespace

TEST_CASE("TensorView: a score_mod that reads two values of one tensor gets both gradients, of each order") {
  check_equals_dense({"TwoOfOneView",
                      calls_of([](const Tensors& learned) { return TwoOfOneView{learned[0]}; }, EveryKey{}),
                      [](const auto& s, const Grid&, const Tensors& learned) {
                        return s + learned[0].slice(0, 0, 7) + learned[0].slice(0, 1, 8);
                      },
                      everywhere,
                      {random({8})}});
  check_equals_dense({"ProductOfOneView",
                      calls_of([](const Tensors& learned) { return ProductOfOneView{learned[0]}; }, attend::Causal{}),
                      [](const auto& s, const Grid& at, const Tensors& learned) {
                        const torch::Tensor by_query =
                            learned[0].index_select(0, at.query.flatten().to(torch::kLong)).unsqueeze(1);
                        return s * by_query + by_query * learned[0].slice(0, 0, 7);
                      },
                      causal,
                      {random({8})}});
}

TEST_CASE("TensorView: a learned table of distances under Causal and a learned number have the right gradients") {
  check_equals_dense({"DistanceTable",
                      calls_of([](const Tensors& learned) { return DistanceTable{learned[0]}; }, attend::Causal{}),
                      [](const auto& s, const Grid& at, const Tensors& learned) {
                        const torch::Tensor distance = (-at.ahead).clamp(0).to(torch::kLong);
                        return s + learned[0].index_select(0, distance.flatten()).view(distance.sizes());
                      },
                      causal,
                      {random({8})}});
  check_equals_dense({"DistanceFactor",
                      calls_of([](const Tensors& learned) { return DistanceFactor{learned[0]}; }, attend::Causal{}),
                      [](const auto& s, const Grid& at, const Tensors& learned) {
                        const torch::Tensor distance = (-at.ahead).clamp(0).to(torch::kLong);
                        return s * learned[0].index_select(0, distance.flatten()).view(distance.sizes());
                      },
                      causal,
                      {random({8})}});
  check_equals_dense({"LearnedNumber",
                      calls_of([](const Tensors& learned) { return LearnedNumber{learned[0]}; }, EveryKey{}),
                      [](const auto& s, const Grid&, const Tensors& learned) { return s * learned[0] + learned[0]; },
                      everywhere,
                      {random({})}});
}

TEST_CASE("flex_attention: a score_mod may use sin, cos, tan, sigmoid, erf, pow, floor, round and a learned number") {
  check_equals_dense({"Functions",
                      calls_of([](const Tensors& learned) { return Functions{learned[0]}; }, EveryKey{}),
                      [](const auto& s, const Grid&, const Tensors& learned) {
                        const torch::Tensor& a = learned[0];
                        return torch::sin(s * a) + torch::cos(s) + torch::tan(s * 0.1) + torch::sigmoid(s + a) +
                               torch::erf(s * a) + torch::pow(s.abs() + 1, a) + torch::floor(s) + torch::round(s);
                      },
                      everywhere,
                      {torch::tensor(0.7, torch::kDouble)}});
}

TEST_CASE("IntegerView: a mask_mod reads tensors of three and four sizes, integer and bool") {
  torch::manual_seed(4);
  const torch::Tensor q = random({2, 2, 9, 8}), k = random({2, 2, 12, 8});
  for (const auto dtype : {torch::kBool, torch::kInt}) {
    for (const std::vector<std::int64_t>& sizes : {std::vector<std::int64_t>{2, 9, 12}, {2, 2, 9, 12}}) {
      CAPTURE(sizes.size());
      const torch::Tensor allowed = torch::rand(sizes) > 0.3;
      const torch::Tensor mask = sizes.size() == 3 ? allowed.unsqueeze(1) : allowed;
      const torch::Tensor expected =
          attend::attention(q, k, k, AttentionOptions().attn_mask(mask).backend(Backend::kReference));
      for (const Backend backend : kFlexBackends)
        CHECK(max_difference(attend::flex_attention(q, k, k, attend::Unchanged{}, MaskTable{allowed.to(dtype)},
                                                    AttentionOptions().backend(backend)),
                             expected) < 1e-12);
    }
  }
}

TEST_CASE("TensorView: a read outside the tensor has no effect for a masked score, and is an error elsewhere") {
  torch::manual_seed(5);
  const std::string rule = "attend::flex_attention: a score_mod or mask_mod reads outside of its tensor: index ";
  for (const Backend backend : kFlexBackends) {
    for (const auto dtype : {torch::kFloat, torch::kDouble}) {
      CAPTURE(backend);
      CAPTURE(dtype);
      const torch::Tensor x = torch::randn({2, 2, 9, 8}, dtype);
      const auto options = [&] { return AttentionOptions().backend(backend); };
      const auto table = [&](std::int64_t size) { return DistanceTable{torch::randn({size}, dtype)}; };
      const auto shifts = [](std::int64_t size) { return Shift{torch::ones({size}, torch::kInt)}; };
      const auto is_finite = [](const torch::Tensor& y) { return y.isfinite().all().item<bool>(); };
      const auto index = torch::arange(9);
      const torch::Tensor few = index.unsqueeze(1) + index < 9;

      CHECK(is_finite(attend::flex_attention(x, x, x, table(9), attend::Causal{}, options())));
      CHECK(is_finite(attend::flex_attention(x, x, x, table(9), EveryKey{}, options().is_causal(true))));
      CHECK(is_finite(attend::flex_attention(x, x, x, table(4), attend::Causal{}, options().window({3, 0}))));
      CHECK(is_finite(attend::flex_attention(x, x, x, shifts(17), EveryKey{}, options())));
      CHECK(is_finite(attend::flex_attention(x, x, x, shifts(9), EveryKey{}, options().attn_mask(few))));

      check_throws<c10::ValueError>(rule + "[-1, 0, 0, 0] of sizes [9, 1, 1, 1]",
                                    [&] { attend::flex_attention(x, x, x, table(9), EveryKey{}, options()); });
      check_throws<c10::ValueError>(rule + "[4, 0, 0, 0] of sizes [4, 1, 1, 1]",
                                    [&] { attend::flex_attention(x, x, x, table(4), attend::Causal{}, options()); });
      check_throws<c10::ValueError>(rule + "[0, 0, 0, 0] of sizes [0, 1, 1, 1]",
                                    [&] { attend::flex_attention(x, x, x, table(0), attend::Causal{}, options()); });
      check_throws<c10::ValueError>(rule + "[9, 0, 0, 0] of sizes [9, 1, 1, 1]",
                                    [&] { attend::flex_attention(x, x, x, shifts(9), EveryKey{}, options()); });

      // In a packed batch, coordinates count through all sequences, and no query attends to keys of another sequence.
      const torch::Tensor packed = x.slice(0, 0, 1), offsets = torch::tensor({0, 4, 9}, torch::kInt);
      const auto of_packed = options().is_causal(true).query_offsets(offsets).key_offsets(offsets);
      CHECK(is_finite(attend::flex_attention(packed, packed, packed, table(5), EveryKey{}, of_packed)));
      check_throws<c10::ValueError>(rule + "[4, 0, 0, 0]", [&] {
        attend::flex_attention(packed, packed, packed, table(4), EveryKey{}, of_packed);
      });

      // NaN in the caller's inputs is not reported as a read outside.
      torch::Tensor with_nan = x.clone();
      with_nan[0][0][3][0] = std::numeric_limits<double>::quiet_NaN();
      CHECK(attend::flex_attention(with_nan, x, x, table(9), attend::Causal{}, options()).isnan().any().item<bool>());
    }
  }
}

TEST_CASE("TensorView: a tensor with two views gets the gradients of both") {
  check_equals_dense({"TwoViews",
                      calls_of([](const Tensors& learned) { return TwoViews{learned[0]}; }, attend::Causal{}),
                      [](const auto& s, const Grid&, const Tensors& learned) {
                        return s + learned[0].slice(0, 0, 7) * learned[0].slice(0, 1, 8);
                      },
                      causal,
                      {random({8})}});
}

TEST_CASE("TensorView: a score_mod may read two values of one view and choose one of them") {
  check_equals_dense({"EitherOfOneView",
                      calls_of([](const Tensors& learned) { return EitherOfOneView{learned[0]}; }, attend::Causal{}),
                      [](const auto& s, const Grid& at, const Tensors& learned) {
                        const torch::Tensor here = learned[0].slice(0, 0, 7), next = learned[0].slice(0, 1, 8);
                        return s * torch::where(at.query.remainder(2) == 0, here, next);
                      },
                      causal,
                      {random({8})}});
}

TEST_CASE("flex_attention: a third derivative is refused, with and without create_graph") {
  for (const Backend backend : kFlexBackends) {
    for (const bool create_graph : {true, false}) {
      CAPTURE(backend);
      CAPTURE(create_graph);
      Tensors leaves = random_inputs({});
      leaves[0].requires_grad_();
      torch::Tensor derivative = attend::flex_attention(leaves[0], leaves[1], leaves[2], TanhCap{1}, EveryKey{},
                                                        AttentionOptions().backend(backend));
      for (int order = 1; order <= 2; ++order)
        derivative = torch::autograd::grad({derivative.sin().sum()}, {leaves[0]}, {}, /*retain_graph=*/true,
                                           /*create_graph=*/true)[0];
      check_throws<c10::NotImplementedError>(
          "attend::flex_attention: a score_mod can be differentiated at most twice", [&] {
            torch::autograd::grad({derivative.sin().sum()}, {leaves[0]}, {}, /*retain_graph=*/true, create_graph);
          });
    }
  }
}

TEST_CASE("flex_attention: type and text of errors about structs and arguments") {
  const Tensors inputs = random_inputs({});
  const auto flex = [&](const auto& score, const auto& mask) {
    attend::flex_attention(inputs[0], inputs[1], inputs[2], score, mask);
  };
  struct ErrorCase {
    std::string expected;
    bool is_type_error;
    std::function<void()> call;
  };
  const torch::Tensor whole = torch::arange(4), elsewhere = torch::empty({4}, torch::kMeta);
  const ErrorCase cases[] = {
      {"attend::Binder: values() needs a floating-point tensor, got Long", true,
       [&] { flex(attend::Alibi(whole), EveryKey{}); }},
      {"attend::Binder: a tensor of a score_mod or mask_mod (meta) must be on the device of query (cpu)", false,
       [&] { flex(attend::Alibi(elsewhere), EveryKey{}); }},
      {"attend::Alibi: slopes must be (H) or (N, H), with N = 2 and H = 4, got [3]", false,
       [&] { flex(attend::Alibi(torch::rand({3})), EveryKey{}); }},
      {"attend::KeyPadding: lengths must be (N), with N = 2, got [4]", false,
       [&] { flex(Unchanged{}, attend::KeyPadding(whole)); }},
      {"attend::Binder: integers() needs an integer or bool tensor, got Double", true,
       [&] { flex(Unchanged{}, attend::KeyPadding(torch::ones({2}, torch::kDouble))); }},
      {"attend::attention: value (Float) must have the dtype of query (Double)", true,
       [&] { attend::flex_attention(inputs[0], inputs[1], inputs[2].to(torch::kFloat), Unchanged{}); }},
      {"attend::attention: key [2, 2, 7, 2] must have the width of query [2, 4, 5, 3]", false,
       [&] { attend::flex_attention(inputs[0], inputs[2], inputs[2], Unchanged{}); }},
      {"attend::attention: query must be a tensor (N, H, L, D), got an undefined one", false,
       [&] { attend::flex_attention({}, inputs[1], inputs[2], Unchanged{}); }},
  };
  for (const ErrorCase& c : cases) {
    if (c.is_type_error)
      check_throws<c10::TypeError>(c.expected, c.call);
    else
      check_throws<c10::ValueError>(c.expected, c.call);
  }
}
