// SPDX-License-Identifier: MIT

// Tests that masked keys and values change no output or gradient, whatever they contain. A call with NaN or ±∞ in
// masked places is compared with the same call with ordinary numbers there.

#include <attend/attention.h>
#include <attend/flex_attention.h>

#include "support/accuracy.h"
#include "support/backends.h"
#include "support/dense.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>
#include <vector>

using attend::Alibi;
using attend::AttentionOptions;
using attend::Backend;
using attend::Coordinate;
using attend::test::kAllBackends;
using attend::test::max_difference;
using attend::test::size_of;
using attend::test::Tensors;

namespace masked_nan_test {
namespace {

constexpr at::ScalarType kDtypes[] = {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf};
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kBad[] = {std::numeric_limits<double>::quiet_NaN(), kInfinity};

// No query may attend to the key kHidden or to the last kPadding keys. The query kBlind may attend to nothing.
constexpr std::int64_t kHidden = 5, kPadding = 7, kBlind = 1;

struct AllowedKeys {
  bool operator()(const Coordinate& at) const {
    return at.key != kHidden && at.key < at.key_length - kPadding && at.query != kBlind;
  }
};

torch::Tensor allowed(std::int64_t queries, std::int64_t keys) {
  torch::Tensor mask = torch::ones({queries, keys}, torch::kBool);
  mask.select(1, kHidden).fill_(false);
  mask.slice(1, keys - kPadding).fill_(false);
  mask.select(0, kBlind).fill_(false);
  return mask;
}

torch::Tensor added(std::int64_t queries, std::int64_t keys) {
  return torch::zeros({queries, keys}).masked_fill(allowed(queries, keys).logical_not(), -kInfinity);
}

/// A call whose results must not depend on masked keys and values.
struct Case {
  std::string name;
  std::function<torch::Tensor(const Tensors& inputs, Backend backend)> attend;
  bool runs_on_sdpa;
};

const Case kCases[] = {
    {"bool mask",
     [](const Tensors& in, Backend backend) {
       return attend::attention(in[0], in[1], in[2],
                                AttentionOptions().backend(backend).attn_mask(allowed(in[0].size(2), in[1].size(2))));
     },
     true},
    {"−∞ added",
     [](const Tensors& in, Backend backend) {
       return attend::attention(
           in[0], in[1], in[2],
           AttentionOptions().backend(backend).attn_mask(added(in[0].size(2), in[1].size(2)).to(in[0].scalar_type())));
     },
     true},
    {"−∞ added, softcap, ALiBi, dropout",
     [](const Tensors& in, Backend backend) {
       const AttentionOptions options = AttentionOptions()
                                            .backend(backend)
                                            .attn_mask(added(in[0].size(2), in[1].size(2)).to(in[0].scalar_type()))
                                            .softcap(3)
                                            .alibi_slopes(torch::full({in[0].size(1)}, 0.125))
                                            .dropout(0.25);
       torch::manual_seed(2);  // of the dropout
       return attend::attention(in[0], in[1], in[2], options);
     },
     false},
    {"mask_mod",
     [](const Tensors& in, Backend backend) {
       return attend::flex_attention(in[0], in[1], in[2], attend::Unchanged{}, AllowedKeys{},
                                     AttentionOptions().backend(backend));
     },
     false},
    {"score_mod and mask_mod",
     [](const Tensors& in, Backend backend) {
       const Alibi alibi(torch::full({in[0].size(1)}, 0.125));
       return attend::flex_attention(in[0], in[1], in[2], attend::then(attend::Softcap{3}, alibi), AllowedKeys{},
                                     AttentionOptions().backend(backend));
     },
     false},
};

struct Lengths {
  std::int64_t queries, keys;
};
// For ATen's kernels by kAuto; all keys in one softmax; few tiles; many tiles.
constexpr Lengths kLengths[] = {{2, 70}, {67, 70}, {17, 200}, {66, 460}};

Tensors random_inputs(const Lengths& n, at::ScalarType dtype) {
  torch::manual_seed(1);
  const auto random = [&](std::int64_t heads, std::int64_t length) {
    return torch::randn({1, heads, length, 20}, torch::kDouble).to(dtype);
  };
  return {random(2, n.queries), random(1, n.keys), random(1, n.keys), random(2, n.queries)};
}

/// Output and gradients of query, key and value. `inputs` are these three and the output gradient.
Tensors pass(const Case& c, const Tensors& inputs, Backend backend) {
  Tensors leaves;
  for (std::size_t i = 0; i < 3; ++i) leaves.push_back(inputs[i].detach().requires_grad_());
  const torch::Tensor output = c.attend(leaves, backend);
  Tensors all = torch::autograd::grad({output}, leaves, {inputs[3]});
  all.insert(all.begin(), output.detach());
  return all;
}

/// Second derivatives: the gradients of a function of the gradients.
Tensors second_pass(const Case& c, const Tensors& inputs, Backend backend) {
  Tensors leaves;
  for (const torch::Tensor& input : inputs) leaves.push_back(input.detach().requires_grad_());
  const torch::Tensor output = c.attend(leaves, backend);
  const Tensors first = torch::autograd::grad({output}, {leaves[0], leaves[1], leaves[2]}, {leaves[3]},
                                              /*retain_graph=*/true, /*create_graph=*/true);
  torch::Tensor sum = torch::zeros({}, torch::kDouble);
  for (const torch::Tensor& gradient : first) sum = sum + gradient.square().sum();
  return torch::autograd::grad({sum}, leaves);
}

void check_close(const Tensors& results, const Tensors& expected) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);  // output, gradients of query, key and value
    // Only the order of sums differs: a few units in the last place of the largest number.
    const at::ScalarType dtype = expected[i].scalar_type();
    const double unit = dtype == torch::kDouble  ? 0x1p-52
                        : dtype == torch::kFloat ? 0x1p-23
                        : dtype == torch::kHalf  ? 0x1p-10
                                                 : 0x1p-7;
    CHECK(max_difference(results[i], expected[i]) <= 16 * unit * size_of(expected[i]));
  }
}

/// Checks every case, backend, dtype and length: change(tensor, lengths, number) writes a NaN or an infinity into one
/// of the inputs, and the results must stay close to those before. `also` is called with both inputs.
template <class Change, class Also>
void check_without_effect(std::initializer_list<std::size_t> inputs_to_change, const Change& change, const Also& also) {
  for (const Case& c : kCases)
    for (const Backend backend : kAllBackends)
      for (const auto dtype : kDtypes)
        for (const Lengths& lengths : kLengths) {
          if (backend == Backend::kSdpa && !c.runs_on_sdpa) continue;
          CAPTURE(c.name);
          CAPTURE(backend);
          CAPTURE(dtype);
          CAPTURE(lengths.queries);
          CAPTURE(lengths.keys);
          const Tensors inputs = random_inputs(lengths, dtype);
          const Tensors expected = pass(c, inputs, backend);
          for (const double bad : kBad)
            for (const std::size_t which : inputs_to_change) {
              CAPTURE(bad);
              CAPTURE(which);
              Tensors changed = inputs;
              changed[which] = inputs[which].clone();
              change(changed[which], lengths, bad);
              check_close(pass(c, changed, backend), expected);
              if (dtype == torch::kDouble && lengths.keys <= 70) also(c, backend, inputs, changed);
            }
        }
}

}  // namespace

TEST_CASE("attention: NaN and ±∞ in masked keys and values change no output and no first or second gradient") {
  check_without_effect(
      {1, 2},
      [](torch::Tensor& tensor, const Lengths& lengths, double bad) {
        tensor.select(2, kHidden).fill_(bad);
        tensor.slice(2, lengths.keys - kPadding).select(3, 3).fill_(bad);
      },
      [](const Case& c, Backend backend, const Tensors& inputs, const Tensors& changed) {
        check_close(second_pass(c, changed, backend), second_pass(c, inputs, backend));
      });
}

TEST_CASE("attention: NaN and ±∞ in a query that may attend to nothing, or in its gradient, change no gradient") {
  check_without_effect(
      {0, 3}, [](torch::Tensor& tensor, const Lengths&, double bad) { tensor.select(2, kBlind).fill_(bad); },
      [](const Case&, Backend, const Tensors&, const Tensors&) {});
}

TEST_CASE("is_causal and window: NaN in the last key and value reaches only queries that may attend to it") {
  for (const std::int64_t left : {-1, 9})
    for (const Backend backend : kAllBackends)
      for (const auto dtype : kDtypes)
        for (const Lengths& lengths : kLengths) {
          if (backend == Backend::kSdpa && left >= 0) continue;
          if (backend == Backend::kSdpa && lengths.queries != lengths.keys && lengths.queries > 32) continue;
          CAPTURE(left);
          CAPTURE(backend);
          CAPTURE(dtype);
          CAPTURE(lengths.queries);
          CAPTURE(lengths.keys);
          const Case c{
              "",
              [left](const Tensors& in, Backend by) {
                return attend::attention(in[0], in[1], in[2], AttentionOptions().backend(by).window({left, 0}));
              },
              true};
          const Tensors inputs = random_inputs(lengths, dtype);
          const Tensors expected = pass(c, inputs, backend);
          for (const double bad : kBad)
            for (const std::size_t which : {1, 2}) {
              CAPTURE(bad);
              CAPTURE(which);
              Tensors changed = inputs;
              changed[which] = inputs[which].clone();
              changed[which].select(2, lengths.keys - 1).fill_(bad);
              const Tensors results = pass(c, changed, backend);
              for (const std::size_t i : {0, 1}) {  // output and gradient of the query
                const auto earlier = [&](const torch::Tensor& tensor) {
                  return tensor.slice(2, 0, lengths.queries - 1);
                };
                check_close({earlier(results[i])}, {earlier(expected[i])});
                CHECK(results[i].select(2, lengths.queries - 1).isfinite().all().item<bool>() == false);
              }
              if (left < 0) continue;
              // The gradients of keys to which the last query may not attend do not change.
              for (const std::size_t i : {2, 3}) {
                const auto unseen = [&](const torch::Tensor& tensor) {
                  return tensor.slice(2, 0, lengths.keys - 1 - left);
                };
                check_close({unseen(results[i])}, {unseen(expected[i])});
              }
            }
        }
}

TEST_CASE("attention: a NaN in an allowed query, key or value appears in the output, on every backend") {
  for (const Backend backend : kAllBackends)
    for (const auto dtype : kDtypes) {
      CAPTURE(backend);
      CAPTURE(dtype);
      for (const std::size_t which : {0, 1, 2}) {
        CAPTURE(which);
        Tensors inputs = random_inputs({4, 70}, dtype);
        inputs[which].select(2, 2).fill_(std::numeric_limits<double>::quiet_NaN());
        const torch::Tensor output = kCases[0].attend(inputs, backend);
        const torch::Tensor is_nan = output.isnan().all(3);  // (N, H, L)
        for (std::int64_t query = 0; query < 4; ++query)
          CHECK(is_nan.select(2, query).all().item<bool>() == (query != kBlind && (which != 0 || query == 2)));
      }
    }
}

TEST_CASE("attention: a NaN in a value whose weight is rounded to 0 gives NaN or the output without the value") {
  torch::manual_seed(1);
  const torch::Tensor query = torch::randn({1, 1, 130, 8}), key = torch::randn({1, 1, 130, 8});
  query.select(3, 0).fill_(1.0);
  for (const std::int64_t unlikely : {0, 70, 129})
    for (const bool is_causal : {false, true})
      for (const Backend backend : attend::test::kAllBackends) {
        CAPTURE(unlikely);
        CAPTURE(is_causal);
        CAPTURE(backend);
        const torch::Tensor keys = key.clone(), values = torch::randn({1, 1, 130, 8});
        keys[0][0][unlikely][0] = -1e4;  // all scores of this key are lower by 10,000
        const auto output = [&](double number) {
          const torch::Tensor changed = values.clone();
          changed[0][0][unlikely].fill_(number);
          const auto options = AttentionOptions().scale(1.0).is_causal(is_causal).backend(backend);
          return attend::attention(query, keys, changed, options)
              .slice(2, is_causal ? 1 : 0);  // with is_causal, query 0 attends to key 0 alone
        };
        const torch::Tensor of_nan = output(std::numeric_limits<double>::quiet_NaN()), of_zero = output(0.0);
        CHECK_FALSE(of_zero.isnan().any().item<bool>());
        CHECK(torch::where(of_nan.isnan(), of_zero, of_nan).allclose(of_zero, 1e-5, 1e-6));
      }
}

TEST_CASE("attention: keys that are all NaN give NaN, on every backend") {
  for (const Backend backend : kAllBackends)
    for (const auto dtype : kDtypes)
      for (const std::int64_t keys : {1, 4, 15, 16}) {
        CAPTURE(backend);
        CAPTURE(dtype);
        CAPTURE(keys);
        Tensors inputs = random_inputs({4, keys}, dtype);
        inputs[1].fill_(std::numeric_limits<double>::quiet_NaN());
        const torch::Tensor mask = torch::tensor({true, false, true, true}).unsqueeze(1);
        const auto options = [&] { return AttentionOptions().backend(backend); };
        CHECK(attend::attention(inputs[0], inputs[1], inputs[2], options()).isnan().all().item<bool>());
        const torch::Tensor masked = attend::attention(inputs[0], inputs[1], inputs[2], options().attn_mask(mask));
        CHECK(masked.isnan().equal(mask.unsqueeze(0).unsqueeze(0).expand(masked.sizes())));
      }
}

TEST_CASE("attention_weights: a masked key has the weight 0, also in a row of NaN") {
  Tensors inputs = random_inputs({3, 3}, torch::kFloat);
  inputs[1].select(2, 1).fill_(std::numeric_limits<double>::quiet_NaN());
  const torch::Tensor weights = attend::attention_weights(inputs[0], inputs[1], AttentionOptions().is_causal(true));
  CHECK(weights.isnan().equal(torch::tensor({{false, false, false}, {true, true, false}, {true, true, true}})
                                  .unsqueeze(0)
                                  .unsqueeze(0)
                                  .expand(weights.sizes())));
  CHECK(weights.triu(1).eq(0).all().item<bool>());
}

}  // namespace masked_nan_test
