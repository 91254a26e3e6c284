// SPDX-License-Identifier: MIT

// Tests docs/torch_nn_defects.md: the behaviour of torch::nn::MultiheadAttention of 2.11 to 2.15 and that of
// attend::MultiheadAttention. If LibTorch fixes a defect, the test says so; then remove the row from that page and
// README.

#include <attend/layers/multihead_attention.h>

#include "support/accuracy.h"
#include "support/allocator_peak.h"
#include "support/autocast.h"
#include "support/errors.h"

#include <ATen/Parallel.h>
#include <doctest/doctest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/transformerlayer.h>

#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

using attend::test::max_difference;
using attend::test::message_of;

namespace multihead_attention_stock_and_ours_test {
namespace {

constexpr const char* kMended =
    "torch::nn::MultiheadAttention does this right now: take the row out of docs/torch_nn_defects.md and README";

using Results = std::tuple<torch::Tensor, torch::Tensor>;

/// Both modules with the same parameters: embed_dim 16, 4 heads.
struct Pair {
  torch::nn::MultiheadAttention stock{nullptr};
  attend::MultiheadAttention ours{nullptr};

  explicit Pair(std::int64_t key_width = 16, std::int64_t value_dim = 16, double dropout = 0.0) {
    torch::manual_seed(0);
    stock = torch::nn::MultiheadAttention(
        torch::nn::MultiheadAttentionOptions(16, 4).kdim(key_width).vdim(value_dim).dropout(dropout));
    torch::manual_seed(0);
    ours = attend::MultiheadAttention(
        attend::MultiheadAttentionOptions(16, 4).kdim(key_width).vdim(value_dim).dropout(dropout));
  }
};

template <class Module>
Results self_attention(Module& module, const torch::Tensor& x, const torch::Tensor& key_padding_mask,
                       const torch::Tensor& attn_mask) {
  return module->forward(x, x, x, key_padding_mask, /*need_weights=*/true, attn_mask);
}

torch::Tensor sequence() {
  torch::manual_seed(1);
  return torch::randn({4, 2, 16});
}

/// A causal mask for 4 tokens: true above the diagonal, for the keys that a query must not attend to.
torch::Tensor later_keys() { return torch::ones({4, 4}, torch::kBool).triu(1); }

/// The mask as a float mask.
torch::Tensor added(const torch::Tensor& ignored) {
  return torch::zeros(ignored.sizes()).masked_fill(ignored, -std::numeric_limits<float>::infinity());
}

/// The change of the first output if the last token changes. It is 0 in causal attention.
template <class Layer>
double change_of_the_past(const Layer& output_of, const torch::Tensor& x) {
  torch::Tensor changed = x.clone();
  changed[3] += 1;
  return max_difference(output_of(changed)[0], output_of(x)[0]);
}

double largest(const torch::Tensor& tensor) { return tensor.max().item<double>(); }

}  // namespace

TEST_CASE("bool and uint8 attn_mask: torch::nn adds 1 to the scores of ignored keys, attend ignores them") {
  Pair pair;
  const torch::Tensor x = sequence();
  for (const auto dtype : {torch::kBool, torch::kByte}) {
    CAPTURE(dtype);
    const torch::Tensor mask = later_keys().to(dtype);
    const Results stock = self_attention(pair.stock, x, {}, mask), ours = self_attention(pair.ours, x, {}, mask);
    const auto weight_of_the_ignored = [](const Results& results) {
      return largest(std::get<1>(results).masked_select(later_keys()));
    };
    MESSAGE("the largest weight of an ignored key: stock " << weight_of_the_ignored(stock) << ", ours "
                                                           << weight_of_the_ignored(ours));
    CHECK_MESSAGE(weight_of_the_ignored(stock) > 0.4, kMended);
    CHECK(weight_of_the_ignored(ours) == 0);
    // The right result is that of torch::nn for the same mask as a float mask.
    const Results meant = self_attention(pair.stock, x, {}, added(later_keys()));
    CHECK_MESSAGE(max_difference(std::get<0>(stock), std::get<0>(meant)) > 0.1, kMended);
    CHECK(max_difference(std::get<0>(ours), std::get<0>(meant)) < 1e-6);
  }
}

TEST_CASE("bool causal mask, also in TransformerEncoder: torch::nn attends to later tokens, attend does not") {
  torch::manual_seed(0);
  torch::nn::TransformerEncoderLayer encoder(torch::nn::TransformerEncoderLayerOptions(16, 4));
  encoder->eval();
  Pair pair;
  const torch::Tensor x = sequence();
  const double stock_encoder =
      change_of_the_past([&](const torch::Tensor& tokens) { return encoder(tokens, later_keys()); }, x);
  const double stock = change_of_the_past(
      [&](const torch::Tensor& tokens) { return std::get<0>(self_attention(pair.stock, tokens, {}, later_keys())); },
      x);
  const double ours = change_of_the_past(
      [&](const torch::Tensor& tokens) { return std::get<0>(self_attention(pair.ours, tokens, {}, later_keys())); }, x);
  MESSAGE("the first output's change with the last token: stock encoder " << stock_encoder << ", stock " << stock
                                                                          << ", ours " << ours);
  CHECK_MESSAGE(stock_encoder > 0.1, kMended);
  CHECK_MESSAGE(stock > 0.1, kMended);
  CHECK(ours == 0);
}

TEST_CASE("attn_mask for each head, (N·H, L, S): torch::nn throws, attend masks") {
  Pair pair;
  const torch::Tensor x = sequence();
  torch::Tensor mask = torch::zeros({8, 4, 4}, torch::kBool);
  mask[6].copy_(later_keys());  // batch entry 1, head 2
  {
    INFO(kMended);
    CHECK(message_of<c10::Error>([&] { self_attention(pair.stock, x, {}, added(mask)); }) ==
          "output with shape [8, 4, 4] doesn't match the broadcast shape [1, 8, 4, 4]");
  }
  for (const torch::Tensor& given : {mask, added(mask)}) {
    const torch::Tensor weights = std::get<1>(pair.ours->forward(x, x, x, {}, true, given, false));  // (N, H, L, S)
    CHECK(weights[1][2].masked_select(later_keys()).eq(0).all().item<bool>());
    CHECK(weights[1][1].gt(0).all().item<bool>());
    CHECK(weights[0].gt(0).all().item<bool>());
  }
}

TEST_CASE("input without a batch, (L, E): torch::nn throws, attend treats it as a batch of one") {
  Pair pair;
  const torch::Tensor x = sequence().select(1, 0);
  {
    INFO(kMended);
    CHECK(message_of<c10::Error>([&] { pair.stock(x, x, x); }).find("INTERNAL ASSERT FAILED") != std::string::npos);
  }
  const Results results = pair.ours(x, x, x);
  const torch::Tensor batch = x.unsqueeze(1);
  const Results expected = pair.stock(batch, batch, batch);
  CHECK(max_difference(std::get<0>(results), std::get<0>(expected).squeeze(1)) < 1e-6);
  CHECK(max_difference(std::get<1>(results), std::get<1>(expected).squeeze(0)) < 1e-6);
}

TEST_CASE("kdim and vdim that differ: torch::nn has the options and throws, attend computes") {
  Pair pair(/*key_width=*/5, /*value_dim=*/7);
  const torch::Tensor x = sequence(), key = torch::randn({3, 2, 5}), value = torch::randn({3, 2, 7});
  {
    INFO(kMended);
    CHECK(message_of<c10::Error>([&] {
            pair.stock(x, key, value);
          }).find("key.sizes() == value.sizes() INTERNAL ASSERT FAILED") != std::string::npos);
  }
  // torch::nn accepts keys padded with zeros to the width of the values.
  torch::nn::MultiheadAttention wider(torch::nn::MultiheadAttentionOptions(16, 4).kdim(7).vdim(7));
  const auto widened = [](const torch::Tensor& tensor) { return torch::constant_pad_nd(tensor, {0, 2}); };
  wider->q_proj_weight = pair.ours->q_proj_weight;
  wider->k_proj_weight = widened(pair.ours->k_proj_weight);
  wider->v_proj_weight = pair.ours->v_proj_weight;
  wider->out_proj = pair.stock->out_proj;
  const Results results = pair.ours(x, key, value), expected = wider(x, widened(key), value);
  CHECK(max_difference(std::get<0>(results), std::get<0>(expected)) < 1e-6);
  CHECK(max_difference(std::get<1>(results), std::get<1>(expected)) < 1e-6);
}

TEST_CASE("key_padding_mask in bfloat16, in float16 and under autocast: torch::nn throws, attend masks") {
  torch::Tensor ignored = torch::zeros({2, 4}, torch::kBool);
  ignored[1].slice(0, 2) = true;
  struct Case {
    torch::Dtype dtype;
    bool is_autocast;
    std::string name;  // of the dtype in torch::nn's message
  };
  for (const Case& c : {Case{torch::kBFloat16, false, "BFloat16"}, Case{torch::kHalf, false, "Half"},
                        Case{torch::kFloat, true, "BFloat16"}}) {
    CAPTURE(c.name);
    CAPTURE(c.is_autocast);
    Pair pair;
    pair.stock->to(c.dtype);
    pair.ours->to(c.dtype);
    const torch::Tensor x = sequence().to(c.dtype);
    std::optional<attend::test::Autocast> autocast;
    if (c.is_autocast) autocast.emplace();
    {
      INFO(kMended);
      CHECK(message_of<c10::NotImplementedError>([&] { self_attention(pair.stock, x, ignored, {}); }) ==
            "\"attn_output_weights.masked_fill\" not implemented for '" + c.name + "'");
    }
    const Results ours = self_attention(pair.ours, x, ignored, {});
    CHECK(std::get<1>(ours)[1].slice(1, 2).eq(0).all().item<bool>());
    CHECK(std::get<1>(ours)[1].slice(1, 0, 2).gt(0).all().item<bool>());
  }
}

TEST_CASE("key_padding_mask of a fully padded batch entry: torch::nn gives NaN, attend gives zeros") {
  Pair pair;
  const torch::Tensor x = sequence();
  torch::Tensor ignored = torch::zeros({2, 4}, torch::kBool);
  ignored[1] = true;
  const auto run = [&](auto& module) {
    torch::Tensor leaf = x.clone().requires_grad_();
    const Results results = self_attention(module, leaf, ignored, {});
    std::get<0>(results).sum().backward();
    return std::tuple(std::get<0>(results).select(1, 1), leaf.grad().select(1, 1), module->in_proj_weight.grad());
  };
  const auto [stock, stock_gradient, stock_weight_gradient] = run(pair.stock);
  const auto [ours, our_gradient, our_weight_gradient] = run(pair.ours);
  CHECK_MESSAGE(stock.isnan().all().item<bool>(), kMended);
  CHECK_MESSAGE(stock_gradient.isnan().all().item<bool>(), kMended);
  CHECK_MESSAGE(stock_weight_gradient.isnan().any().item<bool>(), kMended);
  CHECK(ours.eq(0).all().item<bool>());  // the bias of the output projection is initialized with zeros
  CHECK(our_gradient.eq(0).all().item<bool>());
  CHECK(our_weight_gradient.isfinite().all().item<bool>());
}

TEST_CASE("memory without need_weights: torch::nn holds several L × L matrices for each head, attend holds none") {
  Pair pair;
  constexpr std::int64_t kLength = 2048, kHeads = 4;
  const torch::Tensor x = torch::randn({kLength, 1, 16});
  torch::Tensor ignored = torch::zeros({1, kLength}, torch::kBool);
  ignored[0].slice(0, 2000) = true;
  const auto peak = [&](auto& module) {  // forward and backward, in bytes
    const torch::Tensor leaf = x.clone().requires_grad_();
    const attend::test::AllocatorPeak memory;
    std::get<0>(module->forward(leaf, leaf, leaf, ignored, /*need_weights=*/false)).sum().backward();
    return static_cast<double>(memory.peak());
  };
  const int threads = at::get_num_threads();
  at::set_num_threads(1);  // each thread has its own buffer
  const double stock = peak(pair.stock), ours = peak(pair.ours), mebibyte = 1 << 20;
  at::set_num_threads(threads);
  const double matrices = kHeads * kLength * kLength * sizeof(float);
  MESSAGE("held at once: stock " << stock / mebibyte << " MiB, ours " << ours / mebibyte
                                 << " MiB; L × L for each head: " << matrices / mebibyte << " MiB");
  CHECK_MESSAGE(stock > 2 * matrices, kMended);
  CHECK(ours < 0.1 * matrices);
}

TEST_CASE("weights returned in training: torch::nn returns them after dropout, attend before dropout") {
  Pair pair(16, 16, /*dropout=*/0.5);
  const torch::Tensor x = sequence();
  const auto row_sums = [](const Results& results) { return std::get<1>(results).sum(-1); };
  const torch::Tensor stock = row_sums(pair.stock(x, x, x)), ours = row_sums(pair.ours(x, x, x));
  MESSAGE("sums of rows of weights: stock " << stock.min().item<double>() << " to " << largest(stock) << ", ours "
                                            << ours.min().item<double>() << " to " << largest(ours));
  CHECK_MESSAGE((stock - 1).abs().max().item<double>() > 0.2, kMended);
  CHECK((ours - 1).abs().max().item<double>() < 1e-6);
}

namespace {

template <class Options>
constexpr bool kHasBatchFirst = requires(Options options) {
  options.batch_first(true);
};
template <class Options>
constexpr bool kHasGroupedHeads = requires(Options options) {
  options.num_kv_heads(2);
};
template <class Options>
constexpr bool kHasCausal = requires(Options options) {
  options.is_causal(true);
};
template <class Options>
constexpr bool kHasWindow = requires(Options options) {
  options.window({1, 0});
};

}  // namespace

TEST_CASE("batch_first, num_kv_heads, is_causal, window: options of attend that torch::nn lacks") {
  using Stock = torch::nn::MultiheadAttentionOptions;
  using Ours = attend::MultiheadAttentionOptions;
  CHECK_MESSAGE(!kHasBatchFirst<Stock>, kMended);
  CHECK_MESSAGE(!kHasGroupedHeads<Stock>, kMended);
  CHECK_MESSAGE(!kHasCausal<Stock>, kMended);
  CHECK_MESSAGE(!kHasWindow<Stock>, kMended);
  CHECK(kHasBatchFirst<Ours>);
  CHECK(kHasGroupedHeads<Ours>);
  CHECK(kHasCausal<Ours>);
  CHECK(kHasWindow<Ours>);
}

}  // namespace multihead_attention_stock_and_ours_test
