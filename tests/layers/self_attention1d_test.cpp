// SPDX-License-Identifier: MIT
#include <attend/layers/self_attention1d.h>

#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/backends.h"
#include "support/dense.h"
#include "support/errors.h"
#include "support/layers.h"
#include "support/operator_log.h"
#include "support/processor.h"
#include "support/reference_data.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <map>
#include <optional>
#include <sstream>
#include <string>

using attend::Backend;
using attend::SelfAttention1d;
using attend::SelfAttention1dOptions;
using attend::test::check_as_accurate_as;
using attend::test::check_gradients;
using attend::test::copy_parameters;
using attend::test::dense;
using attend::test::everywhere;
using attend::test::kAllBackendsWithAllOptions;
using attend::test::max_difference;
using attend::test::message_of;
using attend::test::OperatorLog;
using attend::test::reference_data;
using attend::test::same;

namespace {

/// The notebook's layer in torch's operators.
torch::Tensor notebook_layer(const torch::Tensor& x, const SelfAttention1d& layer) {
  const auto project = [&x](const torch::Tensor& weight) { return torch::conv1d(x, weight); };
  const torch::Tensor q = project(layer->query->weight), k = project(layer->key->weight);
  const torch::Tensor v = project(layer->value->weight);
  const auto one_head = [](const torch::Tensor& signal) { return signal.transpose(1, 2).unsqueeze(1); };
  return dense({one_head(q), one_head(k), one_head(v)}, same, everywhere, /*scale=*/1.0)
      .output.squeeze(1)
      .transpose(1, 2);
}

}  // namespace

TEST_CASE("SelfAttention1d: outputs, attention_map and gradients equal the notebook's layer in Python") {
  const std::map<std::string, torch::Tensor> data = reference_data("self_attention1d");
  const std::pair<std::string, SelfAttention1dOptions> cases[] = {
      {"notebook/", SelfAttention1dOptions(6, 10, 8)},
      {"heads/", SelfAttention1dOptions(6, 8, 4).num_heads(2).scale(attend::kInverseSqrt)},
  };
  for (const auto& c : cases) {
    for (const Backend backend : kAllBackendsWithAllOptions) {
      const std::string& prefix = c.first;
      CAPTURE(prefix);
      CAPTURE(backend);
      SelfAttention1d layer(SelfAttention1dOptions(c.second).backend(backend));
      layer->to(torch::kDouble);
      copy_parameters(data, prefix, *layer);
      torch::Tensor x = data.at(prefix + "x").clone().requires_grad_();
      const torch::Tensor y = layer(x);
      CHECK(max_difference(y, data.at(prefix + "output")) < 1e-12);
      CHECK(max_difference(layer->attention_map(x), data.at(prefix + "map")) < 1e-12);
      y.backward(data.at(prefix + "output_gradient"));
      CHECK(max_difference(x.grad(), data.at(prefix + "x_gradient")) < 1e-12);
      check_gradients(data, prefix, *layer);
    }
  }
}

TEST_CASE("SelfAttention1d: float32 is as accurate as the formula of the notebook, at the size of the experiment") {
  SelfAttention1d layer(64, 64, 64);
  const torch::Tensor x = torch::randn({32, 64, 100});
  const torch::Tensor formula = notebook_layer(x, layer), ours = layer(x);
  layer->to(torch::kDouble);
  check_as_accurate_as(formula, ours, notebook_layer(x.to(torch::kDouble), layer));
}

TEST_CASE("SelfAttention1d: every fused kernel reads the channels-first signal uncopied; kAuto uses the fastest") {
  for (const int num_heads : {1, 4}) {
    for (const Backend backend : attend::test::and_auto(attend::test::kBackendsWithOwnGradients)) {
      CAPTURE(num_heads);
      CAPTURE(backend);
      SelfAttention1d layer(SelfAttention1dOptions(64, 64, 64).num_heads(num_heads).backend(backend));
      const attend::Explanation explanation = layer->explain(torch::randn({32, 64, 100}).requires_grad_());
      CHECK(explanation.backend == (backend == Backend::kAuto ? attend::test::fastest_backend() : backend));
      CHECK(explanation.why_not_faster.empty() == (explanation.backend == Backend::kCpu || backend == Backend::kSdpa));
      CHECK(explanation.copies.empty());
    }
  }
}

TEST_CASE("SelfAttention1d: parameters have Conv1d's names and shapes; the experiment's net has 54,081 in total") {
  SelfAttention1d layer(SelfAttention1dOptions(5, 12, 8).num_heads(4));
  const auto parameters = layer->named_parameters();
  CHECK(parameters.size() == 3);
  CHECK(parameters["query.weight"].sizes() == torch::IntArrayRef{8, 5, 1});
  CHECK(parameters["key.weight"].sizes() == torch::IntArrayRef{8, 5, 1});
  CHECK(parameters["value.weight"].sizes() == torch::IntArrayRef{12, 5, 1});
  CHECK(layer(torch::randn({2, 5, 7})).sizes() == torch::IntArrayRef{2, 12, 7});
  std::int64_t count = 0;
  for (const torch::Tensor& parameter : SelfAttention1d(64, 64, 64)->parameters()) count += parameter.numel();
  const std::int64_t convolutions = (5 * 1 * 64 + 64) + (5 * 64 * 64 + 64) + (5 * 64 * 64 + 64) + (5 * 64 * 1 + 1);
  CHECK(count + convolutions == 54'081);
}

TEST_CASE("SelfAttention1d: a permutation of the positions of x permutes y in the same way, with several heads too") {
  torch::manual_seed(1);
  const torch::Tensor order = torch::randperm(9), x = torch::randn({2, 8, 9});
  for (const std::int64_t heads : {1, 2, 4}) {
    CAPTURE(heads);
    SelfAttention1d layer(SelfAttention1dOptions(8, 8, 8).num_heads(heads));
    CHECK(max_difference(layer(x.index_select(2, order)), layer(x).index_select(2, order)) < 1e-6);

    const auto reshaped = [&](const torch::Tensor& signal) {
      const auto project = [&](const torch::Tensor& weight) {
        return torch::conv1d(signal, weight).reshape({2, heads, 9, 8 / heads});  // of (N, C, L), not of (N, L, C)
      };
      const torch::Tensor q = project(layer->query->weight), k = project(layer->key->weight);
      const torch::Tensor v = project(layer->value->weight);
      return dense({q, k, v}, same, everywhere, /*scale=*/1.0).output.reshape({2, 8, 9});
    };
    CHECK(max_difference(reshaped(x.index_select(2, order)), reshaped(x).index_select(2, order)) > 0.1);
  }
}

TEST_CASE("SelfAttention1d: rows of attention_map sum to 1, and the map of head h comes from the channels of head h") {
  SelfAttention1d layer(SelfAttention1dOptions(6, 4, 8).num_heads(2));
  const torch::Tensor x = torch::randn({2, 6, 9});
  const torch::Tensor map = layer->attention_map(x);
  CHECK(map.sizes() == torch::IntArrayRef{2, 2, 9, 9});
  CHECK((map.sum(-1) - 1).abs().max().item<double>() < 1e-6);
  torch::NoGradGuard no_grad;
  layer->query->weight.slice(0, 0, 4).zero_();  // the first head's queries
  const torch::Tensor uniform_first = layer->attention_map(x);
  CHECK((uniform_first.select(1, 0) - 1.0 / 9).abs().max().item<double>() < 1e-6);
  CHECK(max_difference(uniform_first.select(1, 1), map.select(1, 1)) < 1e-6);
}

TEST_CASE("SelfAttention1d: channels not divisible by num_heads and sizes below 1 are refused with the rule") {
  const std::pair<SelfAttention1dOptions, std::string> cases[] = {
      {SelfAttention1dOptions(0, 4, 4), "attend::SelfAttention1d: in_channels (0) must be at least 1"},
      {SelfAttention1dOptions(4, -1, 4), "attend::SelfAttention1d: out_channels (-1) must be at least 1"},
      {SelfAttention1dOptions(4, 4, 0), "attend::SelfAttention1d: key_channels (0) must be at least 1"},
      {SelfAttention1dOptions(4, 4, 4).num_heads(0), "attend::SelfAttention1d: num_heads (0) must be at least 1"},
      {SelfAttention1dOptions(4, 4, 10).num_heads(4),
       "attend::SelfAttention1d: key_channels (10) must be divisible by num_heads (4)"},
      {SelfAttention1dOptions(4, 10, 4).num_heads(4),
       "attend::SelfAttention1d: out_channels (10) must be divisible by num_heads (4)"},
  };
  for (const auto& c : cases)
    CHECK(message_of<c10::ValueError>([&] { SelfAttention1d layer(c.first); }).find(c.second) != std::string::npos);
}

TEST_CASE("SelfAttention1d: a backend requested by name is not replaced") {
  SelfAttention1d layer(SelfAttention1dOptions(4, 6, 4).backend(Backend::kSdpa));  // values wider than keys
  CHECK(message_of<c10::NotImplementedError>([&] {
          layer(torch::randn({1, 4, 5}));
        }).find("kSdpa needs the same width for query and value; query has 4 and value has 6.") != std::string::npos);
}

TEST_CASE("SelfAttention1d: explain() names the backend that forward() uses, in the words of attention()") {
  torch::manual_seed(3);
  const auto text = [](const attend::Explanation& explanation) {
    std::ostringstream stream;
    stream << explanation;
    return stream.str();
  };
  std::map<Backend, int> seen;
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16, torch::kHalf}) {
    for (const bool is_autocast : {false, true}) {
      for (const bool has_gradients : {false, true}) {
        for (const Backend backend : kAllBackendsWithAllOptions) {
          for (const std::int64_t length : {1, 2, 3, 4, 20, 200}) {
            for (const std::int64_t out_channels : {16, 32}) {
              CAPTURE(dtype);
              CAPTURE(is_autocast);
              CAPTURE(has_gradients);
              CAPTURE(backend);
              CAPTURE(length);
              CAPTURE(out_channels);
              SelfAttention1d layer(SelfAttention1dOptions(16, out_channels, 16).num_heads(2).backend(backend));
              layer->to(dtype);
              const c10::AutoGradMode mode(has_gradients);
              const torch::Tensor x = torch::randn({2, 16, length}, dtype);
              std::optional<attend::test::Autocast> autocast;
              if (is_autocast) autocast.emplace();
              const auto heads = [&](const torch::nn::Conv1d& projection) {
                const torch::Tensor rows = torch::linear(x.transpose(1, 2), projection->weight.squeeze(2));
                return rows.unflatten(2, {2, -1}).transpose(1, 2);
              };
              const attend::Explanation plan = layer->explain(x);
              CHECK(text(plan) == text(attend::explain(heads(layer->query), heads(layer->key), heads(layer->value),
                                                       attend::AttentionOptions().scale(1.0).backend(backend))));
              const OperatorLog log;
              layer(x);
              CHECK(log.count("aten::_scaled_dot_product_flash_attention_for_cpu") ==
                    (plan.backend == Backend::kSdpa ? 1 : 0));
              CHECK(log.count("aten::_safe_softmax") == (plan.backend == Backend::kReference ? 1 : 0));
              ++seen[plan.backend];
            }
          }
        }
      }
    }
  }
  for (const Backend backend : attend::test::kNamedBackends) CHECK(seen[backend] > 5);
}
