// SPDX-License-Identifier: MIT
#include <attend/layers/transformer_block.h>

#include "support/accuracy.h"
#include "support/errors.h"
#include "support/reference_data.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/serialize.h>
#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

using attend::BlockOrder;
using attend::FeedForwardOptions;
using attend::MultiheadAttentionCall;
using attend::MultiheadAttentionOptions;
using attend::NormKind;
using attend::NormPlace;
using attend::TransformerBlock;
using attend::TransformerBlockOptions;
using attend::test::check_equal_in_float64;
using attend::test::max_difference;
using attend::test::message_of;
using attend::test::reference_data;
using attend::test::Refused;

namespace transformer_block_test {
namespace {

constexpr std::int64_t kWidth = 16, kHidden = 24;

MultiheadAttentionOptions attention(bool is_separate = true) {
  return MultiheadAttentionOptions(kWidth, 4).separate_projections(is_separate);
}

FeedForwardOptions feed_forward(attend::Activation activation) {
  return FeedForwardOptions(kWidth, kHidden).activation(activation);
}

/// The layers of tests/python/make_block_reference.py.
std::map<std::string, TransformerBlockOptions> hugging_face_layers() {
  const auto llama_attention =
      attention().num_kv_heads(2).head_dim(8).bias(false).is_causal(true).rotary(attend::RotaryEmbeddingOptions(8));
  const auto gated = [](attend::Activation activation) {
    return feed_forward(activation).gated(true).bias(false).names(attend::FeedForwardNames::kLlama);
  };
  const auto partial = attend::RotaryEmbeddingOptions(4).rotary_dim(2);
  return {
      {"llama", TransformerBlockOptions(llama_attention, gated(attend::kSiLU)).norm(NormKind::kRms)},
      {"gemma2",
       TransformerBlockOptions(MultiheadAttentionOptions(llama_attention).window({2, 0}).softcap(0.5).scale(0.25),
                               gated(attend::kGELUTanh))
           .norm(NormKind::kRms)
           .norm_eps(1e-6)
           .norm_place(NormPlace::kPreAndPost)},
      {"gpt2", TransformerBlockOptions(attention(false).is_causal(true), feed_forward(attend::kGELUTanh))},
      {"bert",
       TransformerBlockOptions(attention(), feed_forward(torch::kGELU)).norm_place(NormPlace::kPost).norm_eps(1e-12)},
      {"gptj",
       TransformerBlockOptions(attention().bias(false).is_causal(true).rotary(
                                   attend::RotaryEmbeddingOptions(partial).layout(attend::RotaryLayout::kInterleaved)),
                               feed_forward(attend::kGELUTanh))
           .order(BlockOrder::kParallel)},
      {"gpt_neox", TransformerBlockOptions(attention(false).is_causal(true).rotary(partial), feed_forward(torch::kGELU))
                       .order(BlockOrder::kParallelTwoNorms)},
      {"dinov2", TransformerBlockOptions(attention(), FeedForwardOptions(kWidth, 32).activation(torch::kGELU))
                     .norm_eps(1e-6)
                     .layer_scale(1.0)},
      {"bart", TransformerBlockOptions(attention().is_causal(true), feed_forward(torch::kGELU))
                   .cross_attention(attention())
                   .norm_place(NormPlace::kPost)},
  };
}

TransformerBlockOptions simple() { return {attention(false), feed_forward(torch::kReLU)}; }

}  // namespace

TEST_CASE("TransformerBlock: outputs and gradients equal the layers of Hugging Face's transformers") {
  const std::map<std::string, torch::Tensor> data = reference_data("transformer_block");
  for (const auto& [name, options] : hugging_face_layers()) {
    CAPTURE(name);
    TransformerBlock block(options);
    block->to(torch::kDouble);
    {
      const torch::NoGradGuard no_grad;
      for (auto& parameter : block->named_parameters()) {
        CAPTURE(parameter.key());
        REQUIRE(data.count(name + "/parameters/" + parameter.key()) == 1);
        parameter.value().copy_(data.at(name + "/parameters/" + parameter.key()));
      }
    }
    const torch::Tensor x = data.at(name + "/x").clone().requires_grad_();
    const torch::Tensor y =
        options.cross_attention() ? block->forward_with(x, MultiheadAttentionCall(), data.at("memory")) : block(x);
    check_equal_in_float64(y, data.at(name + "/output"));
    y.backward(data.at(name + "/weight"));
    check_equal_in_float64(x.grad(), data.at(name + "/x_gradient"));
    for (const auto& parameter : block->named_parameters()) {
      CAPTURE(parameter.key());
      check_equal_in_float64(parameter.value().grad(), data.at(name + "/gradients/" + parameter.key()));
    }
  }
}

TEST_CASE("TransformerBlock: residual_scale, deep_norm_alpha and deep_norm_beta follow their formulas") {
  const torch::Tensor x = torch::randn({2, 5, kWidth}, torch::kDouble);
  for (const NormPlace place : {NormPlace::kPre, NormPlace::kPost}) {
    TransformerBlock block(simple().norm_place(place).residual_scale(0.5).deep_norm_alpha(3));
    block->to(torch::kDouble);
    const auto norm = [&](const char* name, const torch::Tensor& of) {
      return std::dynamic_pointer_cast<attend::LayerNormImpl>(block->named_children()[name])->forward(of);
    };
    torch::Tensor y = x;
    for (const bool is_attention : {true, false}) {
      const char* const name = is_attention ? "self_attn_norm" : "feed_forward_norm";
      const torch::Tensor normed = place == NormPlace::kPre ? norm(name, y) : y;
      const torch::Tensor branch =
          is_attention ? block->self_attn->self_attention(normed) : block->feed_forward->forward(normed);
      y = 3 * y + 0.5 * branch;
      if (place == NormPlace::kPost) y = norm(name, y);
    }
    check_equal_in_float64(block(x), y);
  }
  const auto deep = simple().deep_norm(12);
  CHECK(deep.deep_norm_alpha() == doctest::Approx(std::pow(24.0, 0.25)));
  CHECK(deep.deep_norm_beta() == doctest::Approx(std::pow(96.0, -0.25)));
  CHECK(message_of<c10::ValueError>([] { simple().deep_norm(0); }) ==
        "attend::TransformerBlockOptions::deep_norm: num_layers (0) must be at least 1");
  CHECK((deep.norm_place() == NormPlace::kPost));
  torch::manual_seed(1);
  TransformerBlock plain(simple());
  torch::manual_seed(1);
  TransformerBlock scaled(simple().deep_norm_beta(0.25));
  const auto own = scaled->named_parameters();
  for (const auto& parameter : plain->named_parameters()) {
    CAPTURE(parameter.key());
    torch::Tensor expected = parameter.value().detach().clone();
    if (parameter.key() == "self_attn.in_proj_weight") expected.narrow(0, 2 * kWidth, kWidth).mul_(0.25);
    if (parameter.key() == "self_attn.out_proj.weight" || parameter.key() == "feed_forward.linear1.weight" ||
        parameter.key() == "feed_forward.linear2.weight")
      expected.mul_(0.25);
    CHECK(own[parameter.key()].equal(expected));
  }
}

TEST_CASE("TransformerBlock: drop_path leaves out a branch for whole batch entries, in training mode only") {
  TransformerBlock block(simple().drop_path(0.5));
  const torch::Tensor x = torch::randn({64, 3, kWidth});
  const torch::Tensor y = block(x);
  const std::int64_t unchanged = (y == x).flatten(1).all(1).sum().item<std::int64_t>();
  CHECK(unchanged > 4);  // both branches are left out for a quarter of the entries
  CHECK(unchanged < 32);
  block->eval();
  CHECK_FALSE((block(x) == x).flatten(1).all(1).any().item<bool>());
  TransformerBlock always(simple().dropout(1.0));
  CHECK(always(x).equal(x));
}

TEST_CASE("TransformerBlock: masks and packed batches of a call reach the attention") {
  TransformerBlock block(simple());
  block->to(torch::kDouble);
  const torch::Tensor x = torch::randn({2, 5, kWidth}, torch::kDouble);
  const torch::Tensor padding = torch::tensor({{0, 0, 0, 1, 1}, {0, 0, 0, 0, 0}}, torch::kBool);
  const torch::Tensor padded = block->forward_with(x, MultiheadAttentionCall().key_padding_mask(padding));
  check_equal_in_float64(padded[0].narrow(0, 0, 3), block(x.narrow(0, 0, 1).narrow(1, 0, 3))[0]);
  const torch::Tensor packed = torch::cat({x[0].narrow(0, 0, 3), x[1]}).unsqueeze(0);
  const torch::Tensor y =
      block->forward_with(packed, MultiheadAttentionCall().query_offsets(torch::tensor({0, 3, 8}, torch::kInt)));
  check_equal_in_float64(y[0].narrow(0, 0, 3), padded[0].narrow(0, 0, 3));
  check_equal_in_float64(y[0].narrow(0, 3, 5), padded[1]);
}

TEST_CASE("TransformerBlock: clones, archives, Sequential and printing") {
  const auto options = simple().norm(NormKind::kRms).norm_place(NormPlace::kPreAndPost).layer_scale(0.1);
  TransformerBlock block(options), loaded(options);
  const torch::Tensor x = torch::randn({2, 5, kWidth});
  const torch::Tensor y = block(x);
  const auto clone = std::dynamic_pointer_cast<attend::TransformerBlockImpl>(block->clone());
  CHECK(clone->forward(x).equal(y));
  {
    const torch::NoGradGuard no_grad;
    for (torch::Tensor& parameter : clone->parameters()) parameter.zero_();
  }
  CHECK(block(x).equal(y));
  std::stringstream archive;
  torch::save(block, archive);
  torch::load(loaded, archive);
  CHECK(loaded(x).equal(y));
  CHECK(torch::nn::Sequential(block)->forward(x).equal(y));
  CHECK(torch::nn::AnyModule(block).forward(x).equal(y));
  const torch::Tensor before = block->self_attn->in_proj_weight.detach().clone();
  block->reset_parameters();
  CHECK_FALSE(block->self_attn->in_proj_weight.equal(before));
  std::ostringstream stream;
  TransformerBlock(simple().residual_scale(0.5).deep_norm_alpha(2).deep_norm_beta(0.5))->pretty_print(stream);
  CHECK(stream.str() ==
        "attend::TransformerBlock(norm=kLayer, norm_place=kPre, order=kInTurn, dropout=0, residual_scale=0.5, "
        "deep_norm_alpha=2, deep_norm_beta=0.5)");
}

TEST_CASE("TransformerBlock: bad input is refused with the rule and the values") {
  const std::string name = "attend::TransformerBlock: ";
  const auto make = [](const TransformerBlockOptions& options) { return [options] { TransformerBlock{options}; }; };
  TransformerBlock block(simple()), decoder(simple().cross_attention(attention()));
  const torch::Tensor x = torch::randn({2, 5, kWidth});
  const Refused cases[] = {
      {name + "embed_dim of feed_forward (8) must be embed_dim of attention (16)", false,
       make({attention(), FeedForwardOptions(8, 24)})},
      {name + "embed_dim of cross_attention (8) must be embed_dim of attention (16)", false,
       make(simple().cross_attention(MultiheadAttentionOptions(8, 2)))},
      {name + "kdim and vdim of attention must be its embed_dim (16), got 8 and 16", false,
       make({attention().kdim(8), feed_forward(torch::kReLU)})},
      {name + "the order kParallel needs another norm_place than kPost", false,
       make(simple().order(BlockOrder::kParallel).norm_place(NormPlace::kPost))},
      {name + "the order kParallelTwoNorms excludes cross_attention", false,
       make(simple().order(BlockOrder::kParallelTwoNorms).cross_attention(attention()))},
      {name + "dropout (2) must be a probability from 0 to 1", false, make(simple().dropout(2))},
      {"attend::DropPath: p (-1) must be a probability from 0 to 1", false, make(simple().drop_path(-1))},
      {name + "residual_scale (inf) must be finite", false, make(simple().residual_scale(INFINITY))},
      {name + "memory needs the option cross_attention", false,
       [=]() mutable { block->forward_with(x, MultiheadAttentionCall(), x); }},
      {name + "the option cross_attention needs memory, or memory_call with a cache that has it", false,
       [=]() mutable { decoder(x); }},
      {name + "x must be a tensor, got an undefined one", false, [=]() mutable { block(torch::Tensor()); }},
      {name + "the last size of x must be embed_dim (16), got [2, 5, 8]", false,
       [=]() mutable { block(x.narrow(2, 0, 8)); }},
      {name + "x (Double) must have the dtype of the weights (Float)", true,
       [=]() mutable { block(x.to(torch::kDouble)); }},
  };
  for (const Refused& each : cases) each.check();
}

}  // namespace transformer_block_test
