// SPDX-License-Identifier: MIT

// Tests the errors of torch::load for an archive that was saved with other options.

#include <attend/data/standardize.h>
#include <attend/layers/conv_stack.h>
#include <attend/layers/multihead_attention.h>
#include <attend/layers/self_attention1d.h>
#include <attend/positions/binary.h>
#include <attend/positions/learned.h>
#include <attend/positions/linear.h>
#include <attend/positions/sinusoidal.h>

#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/serialize.h>

#include <cstddef>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

using attend::test::message_of;

namespace load_test {
namespace {

using Layer = std::shared_ptr<torch::nn::Module>;

void load(const Layer& to, const Layer& from) {
  std::stringstream stream;
  torch::save(from, stream);
  torch::load(to, stream);
}

std::vector<torch::Tensor> tensors_of(const Layer& module) {
  std::vector<torch::Tensor> tensors = module->parameters();
  for (const torch::Tensor& buffer : module->buffers()) tensors.push_back(buffer);
  return tensors;
}

/// The error message of loading an archive of `from` into `to`, which must not change.
template <class Error>
std::string refusal(const Layer& to, const Layer& from) {
  std::vector<torch::Tensor> before;
  for (const torch::Tensor& tensor : tensors_of(to)) before.push_back(tensor.detach().clone());
  const std::string message = message_of<Error>([&] { load(to, from); });
  const std::vector<torch::Tensor> after = tensors_of(to);
  REQUIRE(after.size() == before.size());
  for (std::size_t i = 0; i < after.size(); ++i) CHECK(after[i].equal(before[i]));
  return message;
}

/// A model that contains a layer.
struct Model : torch::nn::Module {
  explicit Model(const Layer& layer) { register_module("layer", layer); }
};

struct Case {
  Layer to, from;
  std::string expected;
};

}  // namespace

TEST_CASE("torch::load: an archive of other options is refused with the parameter, both shapes and the option") {
  using attend::ConvStack, attend::ConvStackOptions, attend::MultiheadAttention, attend::SelfAttention1d;
  using attend::LearnedPositions, attend::LearnedPositionsOptions;
  const auto options = [] { return attend::MultiheadAttentionOptions(16, 4); };
  const auto attention = [](const attend::MultiheadAttentionOptions& each) { return MultiheadAttention(each).ptr(); };
  const auto self_attention = [](std::int64_t in, std::int64_t out, std::int64_t key) {
    return SelfAttention1d(in, out, key).ptr();
  };
  const auto convolutions = [](const ConvStackOptions& each) { return ConvStack(each).ptr(); };
  const auto positions = [](std::int64_t channels, std::int64_t length) {
    return LearnedPositions(LearnedPositionsOptions(channels, length)).ptr();
  };
  const Case cases[] = {
      {attention(options()), attention(options().num_kv_heads(2)),
       "attend::MultiheadAttention: cannot load: in_proj_bias is [32] in the archive and [48] in this layer. The saved "
       "layer has a different num_heads, num_kv_heads or head_dim."},
      {attention(options().bias(false)), attention(options().bias(false).num_kv_heads(2)),
       "attend::MultiheadAttention: cannot load: in_proj_weight is [32, 16] in the archive and [48, 16] in this layer. "
       "The saved layer has a different num_heads, num_kv_heads or head_dim."},
      {attention(attend::MultiheadAttentionOptions(32, 4).head_dim(4)), attention(options()),
       "in_proj_weight is [48, 16] in the archive and [48, 32] in this layer. The saved layer has a different "
       "embed_dim."},
      {attention(options()), attention(options().bias(false)),
       "the archive has no in_proj_bias, which this layer has. The saved layer has a different bias, qkv_bias or "
       "separate_projections."},
      {attention(options().bias(false)), attention(options()),
       "the archive has in_proj_bias [48], which this layer does not have. The saved layer has a different bias, "
       "qkv_bias or separate_projections."},
      {attention(options()), attention(options().add_bias_kv(true)),
       "the archive has bias_k [1, 1, 16], which this layer does not have. The saved layer has a different "
       "add_bias_kv."},
      {attention(options()), attention(options().kdim(5)),
       "the archive has no in_proj_weight, which this layer has. The saved layer has a different kdim, vdim or "
       "separate_projections."},
      {attention(options().bias(false).kdim(5)), attention(options().bias(false).kdim(6)),
       "k_proj_weight is [16, 6] in the archive and [16, 5] in this layer. The saved layer has a different kdim."},
      {attention(options().bias(false).vdim(5)), attention(options().bias(false).vdim(6)),
       "v_proj_weight is [16, 6] in the archive and [16, 5] in this layer. The saved layer has a different vdim."},

      {self_attention(4, 6, 8), self_attention(4, 6, 2),
       "attend::SelfAttention1d: cannot load: key.weight is [2, 4, 1] in the archive and [8, 4, 1] in this layer. The "
       "saved layer has a different key_channels."},
      {self_attention(4, 6, 8), self_attention(5, 6, 2),
       "The saved layer has a different key_channels, and a different in_channels."},
      {self_attention(4, 6, 8), self_attention(4, 9, 8),
       "value.weight is [9, 4, 1] in the archive and [6, 4, 1] in this layer. The saved layer has a different "
       "out_channels."},

      {convolutions({1, 4, 1}), convolutions(ConvStackOptions(1, 4, 1).depth(3)),
       "attend::ConvStack: cannot load: the archive has no 6.bias, which this layer has. The saved layer has a "
       "different depth."},
      {convolutions(ConvStackOptions(1, 4, 1).depth(3)), convolutions({1, 4, 1}),
       "attend::ConvStack: cannot load: the archive has 6.bias [4], which this layer does not have. The saved layer "
       "has a different depth."},
      {convolutions({1, 4, 1}), convolutions(ConvStackOptions(1, 4, 1).kernel_size(3)),
       "0.weight is [4, 1, 3] in the archive and [4, 1, 5] in this layer. The saved layer has a different "
       "kernel_size."},
      {convolutions({1, 4, 1}), convolutions({1, 6, 1}),
       "0.bias is [6] in the archive and [4] in this layer. The saved layer has a different hidden_channels."},
      {convolutions({1, 4, 1}), convolutions({2, 4, 1}),
       "0.weight is [4, 2, 5] in the archive and [4, 1, 5] in this layer. The saved layer has a different "
       "in_channels."},
      {convolutions({1, 4, 1}), convolutions({1, 4, 2}),
       "8.bias is [2] in the archive and [1] in this layer. The saved layer has a different out_channels."},

      {positions(4, 16), positions(4, 32),
       "attend::LearnedPositions: cannot load: weight is [4, 32] in the archive and [4, 16] in this layer. The saved "
       "layer has a different max_length."},
      {positions(4, 16), positions(8, 16), "The saved layer has a different num_channels."},

      // Archives of other layers.
      {attention(options()), self_attention(4, 6, 8), "the archive has no in_proj_bias, which this layer has."},
      {attend::SinusoidalPositions(4).ptr(), positions(4, 16),
       "attend::SinusoidalPositions: cannot load: the archive has weight [4, 16], which this layer does not have. Was "
       "the archive saved by the same kind of layer?"},
      {attend::LinearPositions().ptr(), positions(4, 16),
       "attend::LinearPositions: cannot load: the archive has weight"},
      {attend::BinaryPositions().ptr(), positions(4, 16),
       "attend::BinaryPositions: cannot load: the archive has weight"},
      {attend::Standardize().ptr(), positions(4, 16),
       "attend::Standardize: cannot load: the archive has no deviation, which this layer has. Was the archive saved by "
       "the same kind of layer?"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.expected);
    const std::string message = refusal<c10::ValueError>(c.to, c.from);
    CAPTURE(message);
    CHECK(message.find(c.expected) != std::string::npos);
    // The same as part of a model.
    const auto model = std::make_shared<Model>(c.to), saved = std::make_shared<Model>(c.from);
    CHECK(refusal<c10::ValueError>(model, saved) == message);
  }
}

TEST_CASE("torch::load: an archive in another dtype is refused; a layer that is converted first loads it") {
  const std::pair<Layer, Layer> layers[] = {
      {attend::MultiheadAttention(16, 4).ptr(), attend::MultiheadAttention(16, 4).ptr()},
      {attend::SelfAttention1d(4, 6, 8).ptr(), attend::SelfAttention1d(4, 6, 8).ptr()},
      {attend::ConvStack(1, 4, 1).ptr(), attend::ConvStack(1, 4, 1).ptr()},
      {attend::LearnedPositions(4, 16).ptr(), attend::LearnedPositions(4, 16).ptr()},
      {attend::Standardize().ptr(), attend::Standardize(attend::StandardizeOptions().mean(3).deviation(2)).ptr()},
  };
  for (const auto& [to, from] : layers) {
    CAPTURE(to->name());
    from->to(torch::kDouble);
    CHECK(refusal<c10::TypeError>(to, from).find(" is Double in the archive and Float in this layer. Convert the layer "
                                                 "with .to(torch::kDouble) before loading") != std::string::npos);
    CHECK(refusal<c10::TypeError>(from, to).find(" is Float in the archive and Double in this layer. Convert the layer "
                                                 "with .to(torch::kFloat) before loading") != std::string::npos);
    to->to(torch::kDouble);
    load(to, from);
    for (std::size_t i = 0; i < tensors_of(to).size(); ++i) CHECK(tensors_of(to)[i].equal(tensors_of(from)[i]));
  }
}

TEST_CASE("ConvStack: it loads a torch::nn::Sequential of convolutions and activations") {
  torch::nn::Sequential saved(torch::nn::Conv1d(1, 4, 5), torch::nn::ReLU(), torch::nn::Conv1d(4, 1, 5));
  const Layer loaded = attend::ConvStack(attend::ConvStackOptions(1, 4, 1).depth(2)).ptr();
  load(loaded, saved.ptr());
  for (std::size_t i = 0; i < 4; ++i) CHECK(loaded->parameters()[i].equal(saved->parameters()[i]));
}

}  // namespace load_test
