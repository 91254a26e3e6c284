// SPDX-License-Identifier: MIT

// Tests the common promises of all layers.

#include <attend/layers/conv_stack.h>
#include <attend/layers/drop_path.h>
#include <attend/layers/feed_forward.h>
#include <attend/layers/layer_norm.h>
#include <attend/layers/layer_scale.h>
#include <attend/layers/multihead_attention.h>
#include <attend/layers/rms_norm.h>
#include <attend/layers/self_attention1d.h>
#include <attend/layers/self_attention2d.h>
#include <attend/layers/transformer.h>
#include <attend/layers/transformer_block.h>
#include <attend/positions/rotary.h>

#include "support/accuracy.h"
#include "support/allocator_peak.h"
#include "support/autocast.h"
#include "support/errors.h"
#include "support/operator_log.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/serialize.h>

#include <cstdint>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <vector>

using attend::test::max_difference;
using attend::test::message_of;

namespace every_layer_test {
namespace {

struct SelfAttentionCase {
  static constexpr const char* kName = "attend::SelfAttention1d";
  static constexpr const char* kPrinted = "attend::SelfAttention1d(4, 6, 8, num_heads=2, scale=kInverseSqrt)";
  static constexpr std::int64_t kOutChannels = 6;
  static attend::SelfAttention1d make() {
    return attend::SelfAttention1d(attend::SelfAttention1dOptions(4, 6, 8).num_heads(2).scale(attend::kInverseSqrt));
  }
};

struct ConvStackCase {
  static constexpr const char* kName = "attend::ConvStack";
  static constexpr const char* kPrinted =
      "attend::ConvStack(4, 5, 6, depth=3, kernel_size=4, activation=SiLU, activation_after_last=true)";
  static constexpr std::int64_t kOutChannels = 6;
  static attend::ConvStack make() {
    return attend::ConvStack(attend::ConvStackOptions(4, 5, 6)
                                 .depth(3)
                                 .kernel_size(4)
                                 .activation(attend::kSiLU)
                                 .activation_after_last(true));
  }
};

struct MultiheadAttentionCase {
  static constexpr const char* kPrinted =
      "attend::MultiheadAttention(4, 2, num_kv_heads=1, head_dim=3, kdim=4, vdim=4, bias=true, dropout=0, "
      "add_bias_kv=true, add_zero_attn=true, batch_first=true, is_causal=true, window=Window{2, 0}, scale=0.5)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::MultiheadAttention make() {
    return attend::MultiheadAttention(attend::MultiheadAttentionOptions(4, 2)
                                          .num_kv_heads(1)
                                          .head_dim(3)
                                          .add_bias_kv(true)
                                          .add_zero_attn(true)
                                          .batch_first(true)
                                          .is_causal(true)
                                          .window({2, 0})
                                          .scale(0.5));
  }
};

struct ModernMultiheadAttentionCase {
  static constexpr const char* kPrinted =
      "attend::MultiheadAttention(4, 2, num_kv_heads=1, head_dim=6, kdim=4, vdim=4, bias=true, dropout=0, "
      "add_bias_kv=false, add_zero_attn=false, batch_first=true, is_causal=true, window=Window{-1, -1}, "
      "scale=kInverseSqrt, qkv_bias=false, separate_projections=true, qk_norm=kRms, qk_norm_eps=1e-06, rotary=(given), "
      "softcap=5, alibi=true)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::MultiheadAttention make() {
    return attend::MultiheadAttention(attend::MultiheadAttentionOptions(4, 2)
                                          .num_kv_heads(1)
                                          .head_dim(6)
                                          .batch_first(true)
                                          .is_causal(true)
                                          .qkv_bias(false)
                                          .separate_projections(true)
                                          .qk_norm(attend::QkNorm::kRms)
                                          .rotary(attend::RotaryEmbeddingOptions(6))
                                          .softcap(5)
                                          .alibi(true));
  }
};

struct SelfAttention2dCase {
  static constexpr const char* kPrinted =
      "attend::SelfAttention2d(4, 6, 8, num_heads=2, scale=kInverseSqrt, axis=kHeight)";
  static constexpr std::int64_t kOutChannels = 6;
  static attend::SelfAttention2d make() {
    return attend::SelfAttention2d(attend::SelfAttention2dOptions(4, 6, 8)
                                       .num_heads(2)
                                       .scale(attend::kInverseSqrt)
                                       .axis(attend::ImageAxis::kHeight));
  }
};

attend::TransformerEncoderLayerOptions encoder_layer_options() {
  return attend::TransformerEncoderLayerOptions(4, 2).dim_feedforward(6).dropout(0.0).batch_first(true);
}

struct TransformerEncoderLayerCase {
  static constexpr const char* kPrinted =
      "attend::TransformerEncoderLayer(4, 2, dim_feedforward=6, dropout=0, activation=GELU, layer_norm_eps=0.5, "
      "batch_first=true, norm_first=true, bias=false)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::TransformerEncoderLayer make() {
    return attend::TransformerEncoderLayer(
        encoder_layer_options().activation(torch::kGELU).layer_norm_eps(0.5).norm_first(true).bias(false));
  }
};

struct TransformerDecoderLayerCase {
  static constexpr const char* kPrinted =
      "attend::TransformerDecoderLayer(4, 2, dim_feedforward=6, dropout=0, activation=ReLU, layer_norm_eps=1e-05, "
      "batch_first=true, norm_first=false, bias=true)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::TransformerDecoderLayer make() {
    return attend::TransformerDecoderLayer(
        attend::TransformerDecoderLayerOptions(4, 2).dim_feedforward(6).dropout(0.0).batch_first(true));
  }
};

struct TransformerEncoderCase {
  static constexpr const char* kPrinted = "attend::TransformerEncoder(num_layers=2, enable_nested_tensor=true)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::TransformerEncoder make() {
    return attend::TransformerEncoder(attend::TransformerEncoderOptions(encoder_layer_options(), 2));
  }
};

struct TransformerDecoderCase {
  static constexpr const char* kPrinted = "attend::TransformerDecoder(num_layers=2)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::TransformerDecoder make() {
    return attend::TransformerDecoder(attend::TransformerDecoderOptions(TransformerDecoderLayerCase::make(), 2));
  }
};

struct TransformerCase {
  static constexpr const char* kPrinted =
      "attend::Transformer(4, 2, 1, 1, dim_feedforward=6, dropout=0, activation=a function, layer_norm_eps=1e-05, "
      "batch_first=true, norm_first=false, bias=true)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::Transformer make() {
    return attend::Transformer(attend::TransformerOptions(4, 2, 1, 1)
                                   .dim_feedforward(6)
                                   .dropout(0.0)
                                   .activation([](const torch::Tensor& x) { return x.tanh(); })
                                   .batch_first(true));
  }
};

struct FeedForwardCase {
  static constexpr const char* kPrinted =
      "attend::FeedForward(4, 6, activation=SiLU, gated=true, bias=true, dropout=0, names=kLlama)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::FeedForward make() {
    return attend::FeedForward(
        attend::FeedForwardOptions(4, 6).activation(attend::kSiLU).gated(true).names(attend::FeedForwardNames::kLlama));
  }
};

struct RMSNormCase {
  static constexpr const char* kPrinted = "attend::RMSNorm([4], eps=1e-05, elementwise_affine=true)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::RMSNorm make() { return attend::RMSNorm(attend::RMSNormOptions(4).eps(1e-5)); }
};

struct LayerNormCase {
  static constexpr const char* kPrinted = "attend::LayerNorm([4], eps=0.001, elementwise_affine=true, bias=true)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::LayerNorm make() { return attend::LayerNorm(attend::LayerNormOptions({4}).eps(1e-3)); }
};

struct DropPathCase {
  static constexpr const char* kPrinted = "attend::DropPath(p=0.5)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::DropPath make() {
    attend::DropPath layer(0.5);
    layer->eval();
    return layer;
  }
};

struct RotaryEmbeddingCase {
  static constexpr const char* kPrinted = "attend::RotaryEmbedding(4, theta=500, rotary_dim=4, layout=kHalfSplit)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::RotaryEmbedding make() {
    return attend::RotaryEmbedding(attend::RotaryEmbeddingOptions(4).theta(500));
  }
};

struct LayerScaleCase {
  static constexpr const char* kPrinted = "attend::LayerScale(4, init=0.5)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::LayerScale make() { return attend::LayerScale(attend::LayerScaleOptions(4).init(0.5)); }
};

struct TransformerBlockCase {
  static constexpr const char* kPrinted =
      "attend::TransformerBlock(norm=kRms, norm_place=kPreAndPost, order=kInTurn, dropout=0)";
  static constexpr std::int64_t kOutChannels = 4;
  static attend::TransformerBlock make() {
    return attend::TransformerBlock(
        attend::TransformerBlockOptions(attend::MultiheadAttentionOptions(4, 2), attend::FeedForwardOptions(4, 6))
            .norm(attend::NormKind::kRms)
            .norm_place(attend::NormPlace::kPreAndPost)
            .layer_scale(0.5));
  }
};

/// Layers of tokens (N, L, 4).
template <class Layer>
constexpr bool kTakesTokens =
    std::is_same_v<Layer, attend::FeedForwardImpl> || std::is_same_v<Layer, attend::RMSNormImpl> ||
    std::is_same_v<Layer, attend::LayerNormImpl> || std::is_same_v<Layer, attend::LayerScaleImpl> ||
    std::is_same_v<Layer, attend::TransformerBlockImpl>;

/// The output of a layer for a signal (N, 4, L).
template <class Layer>
torch::Tensor run(Layer& layer, const torch::Tensor& x) {
  if constexpr (kTakesTokens<Layer>)
    return layer.forward(x.transpose(1, 2)).transpose(1, 2);
  else
    return layer.forward(x);
}

/// The output of a transformer layer as a signal. The weights of the channels make the sum of its squares depend on the
/// parameters, also behind a norm.
torch::Tensor signal_of(const torch::Tensor& tokens) {
  return (tokens * torch::arange(1, 5, tokens.options()) / 8).transpose(1, 2);
}
template <class Layer>
torch::Tensor run_encoder(Layer& layer, const torch::Tensor& x) {
  return signal_of(layer.forward(x.transpose(1, 2)));
}
template <class Layer>
torch::Tensor run_decoder(Layer& layer, const torch::Tensor& x) {
  return signal_of(layer.forward(x.transpose(1, 2), x.transpose(1, 2)));
}
torch::Tensor run(attend::TransformerEncoderLayerImpl& layer, const torch::Tensor& x) { return run_encoder(layer, x); }
torch::Tensor run(attend::TransformerEncoderImpl& layer, const torch::Tensor& x) { return run_encoder(layer, x); }
torch::Tensor run(attend::TransformerDecoderLayerImpl& layer, const torch::Tensor& x) { return run_decoder(layer, x); }
torch::Tensor run(attend::TransformerDecoderImpl& layer, const torch::Tensor& x) { return run_decoder(layer, x); }
torch::Tensor run(attend::TransformerImpl& layer, const torch::Tensor& x) { return run_decoder(layer, x); }

torch::Tensor run(attend::MultiheadAttentionImpl& layer, const torch::Tensor& x) {
  const torch::Tensor tokens = x.transpose(1, 2);
  return std::get<0>(layer.forward(tokens, tokens, tokens)).transpose(1, 2);
}

/// The signal has the queries of one head.
torch::Tensor run(attend::RotaryEmbeddingImpl& layer, const torch::Tensor& x) {
  return layer.forward(x.transpose(1, 2).unsqueeze(1)).squeeze(1).transpose(1, 2);
}

/// The signal is an image of width 1.
torch::Tensor run(attend::SelfAttention2dImpl& layer, const torch::Tensor& x) {
  return layer.forward(x.unsqueeze(3)).squeeze(3);
}

template <class Layer>
attend::Explanation explain(Layer& layer, const torch::Tensor& x) {
  return layer.explain(x);
}

attend::Explanation explain(attend::MultiheadAttentionImpl& layer, const torch::Tensor& x) {
  const torch::Tensor tokens = x.transpose(1, 2);
  // Masks of other dtypes than the layer's. forward() would convert them.
  const torch::Tensor padding = torch::zeros({x.size(0), x.size(2)}, torch::kByte);
  const torch::Tensor added = torch::zeros({x.size(2), x.size(2)}, torch::kDouble);
  return layer.explain(tokens, tokens, tokens, padding, /*need_weights=*/true, added,
                       /*average_attn_weights=*/true, /*is_causal=*/true);
}

attend::Explanation explain(attend::SelfAttention2dImpl& layer, const torch::Tensor& x) {
  return layer.explain(x.unsqueeze(3));
}

}  // namespace

template <class Case>
constexpr bool is_transformer =
    std::is_same_v<Case, TransformerEncoderLayerCase> || std::is_same_v<Case, TransformerDecoderLayerCase> ||
    std::is_same_v<Case, TransformerEncoderCase> || std::is_same_v<Case, TransformerDecoderCase> ||
    std::is_same_v<Case, TransformerCase>;

// Layers from a signal (N, 4, L) to a signal; those that have explain(); and all layers, whose inputs and outputs run()
// converts to signals.
#define SIGNAL_LAYERS SelfAttentionCase, ConvStackCase
#define EXPLAINED_LAYERS SIGNAL_LAYERS, MultiheadAttentionCase, ModernMultiheadAttentionCase, SelfAttention2dCase
#define TRANSFORMER_LAYERS                                                                                  \
  TransformerEncoderLayerCase, TransformerDecoderLayerCase, TransformerEncoderCase, TransformerDecoderCase, \
      TransformerCase
#define LAYERS_WITH_PARAMETERS                                                                       \
  EXPLAINED_LAYERS, TRANSFORMER_LAYERS, FeedForwardCase, RMSNormCase, LayerNormCase, LayerScaleCase, \
      TransformerBlockCase
#define EVERY_LAYER LAYERS_WITH_PARAMETERS, DropPathCase, RotaryEmbeddingCase

TEST_CASE_TEMPLATE("every layer: it accepts any length from 1 and any batch size from 0", Case, EVERY_LAYER) {
  auto layer = Case::make();
  for (const std::int64_t batch : {0, 1, 3})
    for (const std::int64_t length : {1, 2, 17})
      CHECK(run(*layer, torch::randn({batch, 4, length})).sizes() ==
            torch::IntArrayRef{batch, Case::kOutChannels, length});
}

TEST_CASE_TEMPLATE("every layer: a clone computes the same and shares nothing", Case, EVERY_LAYER) {
  auto layer = Case::make();
  const auto clone = std::dynamic_pointer_cast<typename decltype(layer)::Impl>(layer->clone());
  const torch::Tensor x = torch::randn({2, 4, 9});
  const torch::Tensor y = run(*layer, x);
  CHECK(run(*clone, x).equal(y));
  torch::NoGradGuard no_grad;
  for (torch::Tensor& parameter : clone->parameters()) parameter.zero_();
  CHECK(run(*layer, x).equal(y));
  if (!clone->parameters().empty()) CHECK_FALSE(run(*clone, x).equal(y));
}

TEST_CASE_TEMPLATE("every layer: torch::save and torch::load restore it", Case, EVERY_LAYER) {
  auto saved = Case::make(), loaded = Case::make();
  std::stringstream stream;
  torch::save(saved, stream);
  torch::load(loaded, stream);
  const torch::Tensor x = torch::randn({2, 4, 9});
  CHECK(run(*loaded, x).equal(run(*saved, x)));
}

TEST_CASE_TEMPLATE("every layer: .to(dtype) converts it", Case, EVERY_LAYER) {
  auto layer = Case::make();
  const torch::Tensor x = torch::randn({2, 4, 9});
  const torch::Tensor y = run(*layer, x);
  layer->to(torch::kDouble);
  CHECK(max_difference(run(*layer, x.to(torch::kDouble)), y) < 1e-5);
  layer->to(torch::kBFloat16);
  CHECK((run(*layer, x.to(torch::kBFloat16)).scalar_type() == torch::kBFloat16));
  CHECK(max_difference(run(*layer, x.to(torch::kBFloat16)), y) < 0.05);
}

TEST_CASE_TEMPLATE("every layer: it runs in Sequential and AnyModule", Case, SIGNAL_LAYERS) {
  auto layer = Case::make();
  const torch::Tensor x = torch::randn({2, 4, 9});
  torch::nn::Sequential sequential(layer);
  CHECK(sequential->forward(x).equal(layer(x)));
  torch::nn::AnyModule any(layer);
  CHECK(any.forward(x).equal(layer(x)));
}

TEST_CASE_TEMPLATE("every layer: it prints its options", Case, EVERY_LAYER) {
  std::ostringstream stream;
  Case::make()->pretty_print(stream);
  CHECK(stream.str() == Case::kPrinted);
}

TEST_CASE_TEMPLATE("every layer: two threads may use it at the same time", Case, EVERY_LAYER) {
  auto layer = Case::make();
  const torch::Tensor x = torch::randn({2, 4, 9});
  const torch::Tensor y = run(*layer, x);
  std::vector<torch::Tensor> results(2);
  std::vector<std::thread> threads;
  for (torch::Tensor& result : results)
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) result = run(*layer, x);
    });
  for (std::thread& thread : threads) thread.join();
  for (const torch::Tensor& result : results) CHECK(max_difference(result, y) < 1e-6);
}

TEST_CASE_TEMPLATE("every layer: every parameter receives a gradient; reset_parameters draws new weights", Case,
                   LAYERS_WITH_PARAMETERS) {
  auto layer = Case::make();
  run(*layer, torch::randn({2, 4, 9})).pow(2).sum().backward();
  for (const auto& parameter : layer->named_parameters()) {
    CAPTURE(parameter.key());
    REQUIRE(parameter->grad().defined());
    CHECK(parameter->grad().abs().sum().template item<double>() > 0);
  }
  {
    const torch::NoGradGuard no_grad;
    layer->parameters()[0].fill_(7);
  }
  layer->reset_parameters();
  CHECK_FALSE(layer->parameters()[0].eq(7).any().template item<bool>());
}

TEST_CASE_TEMPLATE("every layer: explain() computes nothing and allocates no memory for tensors", Case,
                   EXPLAINED_LAYERS) {
  // Operators that make another view or handle of a tensor.
  const std::set<std::string> free_operators{
      "aten::as_strided", "aten::detach",           "aten::empty",     "aten::expand",
      "aten::narrow",     "aten::permute",          "aten::reshape",   "aten::select",
      "aten::slice",      "aten::split_with_sizes", "aten::squeeze",   "aten::_fused_sdp_choice",
      "detach",           "aten::unflatten",        "aten::transpose", "aten::unsqueeze",
      "aten::view",       "aten::_reshape_alias"};
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16, torch::kHalf}) {
    for (const bool is_autocast : {false, true}) {
      for (const bool has_gradients : {false, true}) {
        for (const std::int64_t length : {1, 40}) {
          CAPTURE(dtype);
          CAPTURE(is_autocast);
          CAPTURE(has_gradients);
          CAPTURE(length);
          auto layer = Case::make();
          layer->to(dtype);
          const torch::Tensor x = torch::randn({3, 4, length}, dtype);
          const c10::AutoGradMode mode(has_gradients);
          std::optional<attend::test::Autocast> autocast;
          if (is_autocast) autocast.emplace();
          const attend::test::OperatorLog log;
          const attend::test::AllocatorPeak memory;
          explain(*layer, x);
          // The test itself allocates two masks for MultiheadAttention.
          constexpr bool has_masks =
              std::is_same_v<Case, MultiheadAttentionCase> || std::is_same_v<Case, ModernMultiheadAttentionCase>;
          CHECK(memory.peak() == (has_masks ? 3 * length + 8 * length * length : 0));
          for (const std::string& name : log.names()) {
            if (has_masks && (name == "aten::zeros" || name == "aten::zero_" || name == "aten::fill_")) continue;
            CAPTURE(name);
            CHECK(free_operators.count(name) == 1);
          }
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("every layer: it runs under autocast", Case, EXPLAINED_LAYERS, FeedForwardCase) {
  auto layer = Case::make();
  const torch::Tensor x = torch::randn({2, 4, 9});
  const torch::Tensor y = run(*layer, x);
  const attend::test::Autocast autocast;
  for (const auto dtype : {torch::kFloat, torch::kBFloat16}) {
    const torch::Tensor cast = run(*layer, x.to(dtype));
    // The norms and residual connections of transformer layers may stay in float32, as in torch.
    if constexpr (!is_transformer<Case>) CHECK((cast.scalar_type() == torch::kBFloat16));
    CHECK(max_difference(cast, y) < 0.05);
  }
  CHECK(message_of<c10::TypeError>([&] {
          run(*layer, x.to(torch::kDouble));
        }).find("must have the dtype of the weights") != std::string::npos);
}

TEST_CASE_TEMPLATE("every layer: signals that do not fit are refused with the rule and the values", Case,
                   SIGNAL_LAYERS) {
  auto layer = Case::make();
  const std::string name = Case::kName;
  const auto check = [&](auto type, const torch::Tensor& x, const std::string& expected) {
    using Error = typename decltype(type)::type;
    const std::string message = message_of<Error>([&] { layer(x); });
    CAPTURE(message);
    CHECK(message.find(name + ": " + expected) != std::string::npos);
  };
  const std::type_identity<c10::ValueError> value_error;
  const std::type_identity<c10::TypeError> type_error;
  check(value_error, {}, "x must be a tensor (N, 4, L), got an undefined one");
  check(value_error, torch::randn({4, 9}), "x must be 3-d (N, 4, L), got 2-d [4, 9]");
  check(value_error, torch::randn({2, 3, 9}), "x must have 4 channels (N, 4, L), got [2, 3, 9]");
  check(value_error, torch::randn({2, 4, 0}), "x must have a length of at least 1, got [2, 4, 0]");
  check(value_error, torch::randn({2, 4, 9}).to(torch::kMeta), "x (meta) must be on the device of the weights (cpu)");
  check(type_error, torch::randn({2, 4, 9}, torch::kDouble), "x (Double) must have the dtype of the weights (Float)");
}

TEST_CASE_TEMPLATE("every layer: the error for an input of another dtype, device or layout says how to convert it",
                   Case, EXPLAINED_LAYERS) {
  auto layer = Case::make();
  const torch::Tensor x = torch::randn({2, 4, 9});
  const auto check = [&](auto type, const torch::Tensor& given, const std::string& expected) {
    using Error = typename decltype(type)::type;
    CAPTURE(expected);
    const std::string message = message_of<Error>([&] { run(*layer, given); });
    CAPTURE(message);
    CHECK(message.find(expected) != std::string::npos);
    if constexpr (!is_transformer<Case>) CHECK(message_of<Error>([&] { explain(*layer, given); }) == message);
  };
  const std::type_identity<c10::ValueError> value_error;
  const std::type_identity<c10::TypeError> type_error;
  check(type_error, x.to(torch::kDouble),
        " (Double) must have the dtype of the weights (Float); convert one of them with .to(dtype)");
  check(type_error, x.to(torch::kLong),
        " (Long) must have the dtype of the weights (Float); convert one of them with .to(dtype)");
  for (const auto dtype : {torch::kBFloat16, torch::kHalf})
    check(type_error, x.to(dtype),
          ") must have the dtype of the weights (Float); convert one of them with .to(dtype), "
          "or turn on autocast");
  check(value_error, x.to(torch::kMeta),
        " (meta) must be on the device of the weights (cpu); move one of them with "
        ".to(device)");
}

TEST_CASE_TEMPLATE("every layer: sparse, nested and mkldnn inputs are refused", Case, SIGNAL_LAYERS) {
  auto layer = Case::make();
  const torch::Tensor x = torch::randn({2, 4, 9});
  const auto message = [&](const torch::Tensor& given) { return message_of<c10::TypeError>([&] { layer(given); }); };
  const std::string start = std::string(Case::kName) + ": x must be dense, got ";
  CHECK(message(x.to_sparse()) == start + "the layout Sparse; convert it with .to_dense()");
  CHECK(message(x.to_mkldnn()) == start + "the layout Mkldnn; convert it with .to_dense()");
  CHECK(message(at::_nested_tensor_from_tensor_list({x[0], x[1]})) == start + "a nested tensor; pad it first");
}

TEST_CASE("MultiheadAttention: sparse, nested and mkldnn inputs and masks are refused") {
  attend::MultiheadAttention layer(attend::MultiheadAttentionOptions(4, 2).batch_first(true));
  const torch::Tensor x = torch::randn({2, 9, 4});
  const std::string start = "attend::MultiheadAttention: ";
  const auto message = [&](const auto&... given) { return message_of<c10::TypeError>([&] { layer(given...); }); };
  CHECK(message(x.to_sparse(), x, x) ==
        start + "query must be dense, got the layout Sparse; convert it with .to_dense()");
  CHECK(message(x, x.to_mkldnn(), x) ==
        start + "key must be dense, got the layout Mkldnn; convert it with .to_dense()");
  CHECK(message(x, x, at::_nested_tensor_from_tensor_list({x[0], x[1]})) ==
        start + "value must be dense, got a nested tensor; pad it first");
  CHECK(message(x, x, x, torch::zeros({2, 9}).to_sparse()) ==
        start + "key_padding_mask must be dense, got the layout Sparse; convert it with .to_dense()");
  CHECK(message(x, x, x, torch::Tensor(), false, torch::zeros({9, 9}).to_sparse()) ==
        start + "attn_mask must be dense, got the layout Sparse; convert it with .to_dense()");
}

}  // namespace every_layer_test
