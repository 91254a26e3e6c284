// SPDX-License-Identifier: MIT

// Compares the transformer layers and LayerNorm with torch::nn's and with Python's modules.

#include <attend/layers/transformer.h>

#include "support/accuracy.h"
#include "support/layers.h"
#include "support/reference_data.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/transformer.h>
#include <torch/nn/modules/transformercoder.h>
#include <torch/nn/modules/transformerlayer.h>
#include <torch/serialize.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

using attend::test::check_as_accurate_as;
using attend::test::check_equal_in_float64;
using attend::test::copy_parameters;
using attend::test::max_difference;
using attend::test::reference_data;

namespace transformer_as_torch_test {
namespace {

constexpr std::int64_t kWidth = 12, kHeads = 3, kHidden = 20;

// One kind of module in both libraries, with the same options, and a call of it.

struct EncoderLayerCase {
  using Ours = attend::TransformerEncoderLayer;
  using Torchs = torch::nn::TransformerEncoderLayer;
  template <class Options>
  static auto options() {
    return Options(kWidth, kHeads).dim_feedforward(kHidden).dropout(0.0).activation(torch::kGELU);
  }
  static Ours ours() { return Ours(options<attend::TransformerEncoderLayerOptions>()); }
  static Torchs torchs() { return Torchs(options<torch::nn::TransformerEncoderLayerOptions>()); }
  template <class Module>
  static torch::Tensor call(Module& module, const std::vector<torch::Tensor>& inputs, const torch::Tensor& mask,
                            const torch::Tensor& padding) {
    return module->forward(inputs[0], mask, padding);
  }
  static constexpr int kInputs = 1;
};

struct DecoderLayerCase {
  using Ours = attend::TransformerDecoderLayer;
  using Torchs = torch::nn::TransformerDecoderLayer;
  template <class Options>
  static auto options() {
    return Options(kWidth, kHeads).dim_feedforward(kHidden).dropout(0.0);
  }
  static Ours ours() { return Ours(options<attend::TransformerDecoderLayerOptions>()); }
  static Torchs torchs() { return Torchs(options<torch::nn::TransformerDecoderLayerOptions>()); }
  template <class Module>
  static torch::Tensor call(Module& module, const std::vector<torch::Tensor>& inputs, const torch::Tensor& mask,
                            const torch::Tensor& padding) {
    return module->forward(inputs[0], inputs[1], mask, mask, padding, padding);
  }
  static constexpr int kInputs = 2;
};

struct EncoderCase {
  using Ours = attend::TransformerEncoder;
  using Torchs = torch::nn::TransformerEncoder;
  static Ours ours() {
    return Ours(attend::TransformerEncoderOptions(EncoderLayerCase::ours(), 2)
                    .norm(torch::nn::AnyModule(attend::LayerNorm(attend::LayerNormOptions({kWidth})))));
  }
  static Torchs torchs() {
    return Torchs(torch::nn::TransformerEncoderOptions(EncoderLayerCase::torchs(), 2)
                      .norm(torch::nn::AnyModule(torch::nn::LayerNorm(torch::nn::LayerNormOptions({kWidth})))));
  }
  template <class Module>
  static torch::Tensor call(Module& module, const std::vector<torch::Tensor>& inputs, const torch::Tensor& mask,
                            const torch::Tensor& padding) {
    return module->forward(inputs[0], mask, padding);
  }
  static constexpr int kInputs = 1;
};

struct DecoderCase {
  using Ours = attend::TransformerDecoder;
  using Torchs = torch::nn::TransformerDecoder;
  static Ours ours() { return Ours(attend::TransformerDecoderOptions(DecoderLayerCase::ours(), 2)); }
  static Torchs torchs() { return Torchs(torch::nn::TransformerDecoderOptions(DecoderLayerCase::torchs(), 2)); }
  template <class Module>
  static torch::Tensor call(Module& module, const std::vector<torch::Tensor>& inputs, const torch::Tensor& mask,
                            const torch::Tensor& padding) {
    return module->forward(inputs[0], inputs[1], mask, mask, padding, padding);
  }
  static constexpr int kInputs = 2;
};

struct TransformerCase {
  using Ours = attend::Transformer;
  using Torchs = torch::nn::Transformer;
  template <class Options>
  static auto options() {
    return Options(kWidth, kHeads, 2, 1).dim_feedforward(kHidden).dropout(0.0).activation(torch::kReLU);
  }
  static Ours ours() { return Ours(options<attend::TransformerOptions>()); }
  static Torchs torchs() { return Torchs(options<torch::nn::TransformerOptions>()); }
  template <class Module>
  static torch::Tensor call(Module& module, const std::vector<torch::Tensor>& inputs, const torch::Tensor& mask,
                            const torch::Tensor& padding) {
    return module->forward(inputs[0], inputs[1], mask, mask, mask, padding, padding, padding);
  }
  static constexpr int kInputs = 2;
};

#define EVERY_CASE EncoderLayerCase, DecoderLayerCase, EncoderCase, DecoderCase, TransformerCase

template <class Torchs, class Ours>
void check_same_parameters(const Torchs& torchs, const Ours& ours) {
  const auto expected = torchs->named_parameters().pairs(), parameters = ours->named_parameters().pairs();
  REQUIRE(parameters.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(expected[i].first);
    CHECK(parameters[i].first == expected[i].first);
    CHECK(parameters[i].second.equal(expected[i].second));
  }
  CHECK(ours->named_children().keys() == torchs->named_children().keys());
}

template <class Torchs, class Ours>
void share_random_parameters(Torchs& torchs, Ours& ours) {
  const torch::NoGradGuard no_grad;
  std::map<std::string, torch::Tensor> parameters;
  for (auto& parameter : torchs->named_parameters()) {
    parameter->normal_(0.0, 0.5);
    parameters[parameter.key()] = parameter.value();
  }
  copy_parameters(parameters, "", *ours);
}

/// Tensors (L, N, E): of the same length, so that one mask fits every attention.
std::vector<torch::Tensor> inputs_of(int count, torch::Dtype dtype = torch::kDouble) {
  std::vector<torch::Tensor> inputs;
  for (int i = 0; i < count; ++i) inputs.push_back(torch::randn({5, 2, kWidth}, dtype).requires_grad_());
  return inputs;
}

}  // namespace

// ---- torch::nn ------------------------------------------------------------------------------------------------------

TEST_CASE_TEMPLATE("transformer layers: the same seed gives torch's parameters (names, order, values) and children",
                   Case, EVERY_CASE) {
  torch::manual_seed(5);
  typename Case::Torchs torchs = Case::torchs();
  torch::manual_seed(5);
  typename Case::Ours ours = Case::ours();
  check_same_parameters(torchs, ours);
  torch::manual_seed(6);
  torchs->reset_parameters();
  torch::manual_seed(6);
  ours->reset_parameters();
  check_same_parameters(torchs, ours);
}

TEST_CASE_TEMPLATE("transformer layers: results and all gradients equal those of torch::nn", Case, EVERY_CASE) {
  torch::manual_seed(7);
  typename Case::Torchs torchs = Case::torchs();
  typename Case::Ours ours = Case::ours();
  torchs->to(torch::kDouble);
  ours->to(torch::kDouble);
  share_random_parameters(torchs, ours);
  const torch::Tensor added = torch::randn({5, 5}, torch::kDouble);
  const torch::Tensor ignored = torch::arange(5).unsqueeze(0) >= torch::tensor({5, 3}).unsqueeze(1);
  for (const bool has_mask : {false, true}) {
    for (const bool has_padding : {false, true}) {
      CAPTURE(has_mask);
      CAPTURE(has_padding);
      const torch::Tensor mask = has_mask ? added : torch::Tensor(), padding = has_padding ? ignored : torch::Tensor();
      const std::vector<torch::Tensor> inputs = inputs_of(Case::kInputs);
      const torch::Tensor expected = Case::call(torchs, inputs, mask, padding);
      const torch::Tensor output = Case::call(ours, inputs, mask, padding);
      CHECK(max_difference(output, expected) < 1e-12);
      const torch::Tensor weight = torch::randn_like(output);
      const auto gradients = [&](const torch::Tensor& y, std::vector<torch::Tensor> leaves) {
        leaves.insert(leaves.end(), inputs.begin(), inputs.end());
        return torch::autograd::grad({(y * weight).sum()}, leaves);
      };
      const std::vector<torch::Tensor> found = gradients(output, ours->parameters()),
                                       wanted = gradients(expected, torchs->parameters());
      REQUIRE(found.size() == wanted.size());
      for (std::size_t i = 0; i < found.size(); ++i) check_equal_in_float64(found[i], wanted[i]);
    }
  }
}

TEST_CASE_TEMPLATE("transformer layers: float32 is as accurate as in torch::nn", Case, EVERY_CASE) {
  torch::manual_seed(8);
  typename Case::Torchs torchs = Case::torchs();
  typename Case::Ours ours = Case::ours();
  share_random_parameters(torchs, ours);
  const std::vector<torch::Tensor> inputs = inputs_of(Case::kInputs, torch::kFloat);
  const torch::Tensor plain = Case::call(torchs, inputs, {}, {}), result = Case::call(ours, inputs, {}, {});
  torchs->to(torch::kDouble);
  std::vector<torch::Tensor> exact_inputs;
  for (const torch::Tensor& input : inputs) exact_inputs.push_back(input.to(torch::kDouble));
  check_as_accurate_as(plain, result, Case::call(torchs, exact_inputs, {}, {}));
}

TEST_CASE_TEMPLATE("transformer layers: torch::save of torch::nn loads here, and the other way; a clone is independent",
                   Case, EVERY_CASE) {
  typename Case::Torchs torchs = Case::torchs();
  typename Case::Ours ours = Case::ours();
  share_random_parameters(torchs, ours);
  typename Case::Torchs other_torchs = Case::torchs();
  typename Case::Ours other_ours = Case::ours();
  std::stringstream from_torch, from_ours;
  torch::save(torchs, from_torch);
  torch::load(other_ours, from_torch);
  check_same_parameters(torchs, other_ours);
  torch::save(ours, from_ours);
  torch::load(other_torchs, from_ours);
  check_same_parameters(other_torchs, ours);

  const auto clone = std::dynamic_pointer_cast<typename Case::Ours::Impl>(ours->clone());
  check_same_parameters(torchs, clone);
  const torch::NoGradGuard no_grad;
  for (torch::Tensor& parameter : clone->parameters()) parameter.zero_();
  check_same_parameters(torchs, ours);
}

TEST_CASE("transformer layers: they run in AnyModule and Sequential, with and without forward's default arguments") {
  const std::vector<torch::Tensor> x = inputs_of(2, torch::kFloat);
  const torch::Tensor mask = torch::randn({5, 5}), padding = torch::zeros({2, 5}, torch::kBool), none;
  attend::TransformerEncoder encoder = EncoderCase::ours();
  attend::TransformerDecoder decoder = DecoderCase::ours();
  attend::Transformer transformer = TransformerCase::ours();
  torch::nn::AnyModule any_encoder(encoder), any_decoder(decoder), any_transformer(transformer);
  CHECK(any_encoder.forward(x[0]).equal(encoder(x[0])));
  CHECK(any_encoder.forward(x[0], mask, padding, true).equal(encoder(x[0], mask, padding, true)));
  CHECK(any_decoder.forward(x[0], x[1]).equal(decoder(x[0], x[1])));
  CHECK(any_decoder.forward(x[0], x[1], mask, mask, padding, padding, true, true)
            .equal(decoder(x[0], x[1], mask, mask, padding, padding, true, true)));
  CHECK(any_transformer.forward(x[0], x[1]).equal(transformer(x[0], x[1])));
  CHECK(any_transformer.forward(x[0], x[1], mask, mask, mask, padding, padding, padding, true, true, true)
            .equal(transformer(x[0], x[1], mask, mask, mask, padding, padding, padding, true, true, true)));
  torch::nn::Sequential sequential(EncoderLayerCase::ours(), EncoderLayerCase::ours());
  CHECK(sequential->forward(x[0]).sizes() == x[0].sizes());
}

TEST_CASE("Transformer: custom_encoder and custom_decoder may be modules of torch::nn or of attend") {
  torch::manual_seed(9);
  const std::vector<torch::Tensor> x = inputs_of(2, torch::kFloat);
  const auto with_custom = [](auto encoder, auto decoder) {
    return attend::Transformer(attend::TransformerOptions(kWidth, kHeads)
                                   .custom_encoder(torch::nn::AnyModule(encoder))
                                   .custom_decoder(torch::nn::AnyModule(decoder)));
  };
  torch::manual_seed(3);
  attend::Transformer of_torch = with_custom(EncoderCase::torchs(), DecoderCase::torchs());
  torch::manual_seed(3);
  attend::Transformer of_attend = with_custom(EncoderCase::ours(), DecoderCase::ours());
  check_same_parameters(of_torch, of_attend);
  CHECK(max_difference(of_torch(x[0], x[1]), of_attend(x[0], x[1])) < 1e-5);
  // The flags reach modules that take them.
  const torch::Tensor none, later = attend::TransformerImpl::generate_square_subsequent_mask(5);
  CHECK(max_difference(of_attend(x[0], x[1], none, none, none, none, none, none, true, true),
                       of_attend(x[0], x[1], later, later)) < 1e-5);
}

TEST_CASE("Transformer: generate_square_subsequent_mask() equals that of torch::nn") {
  for (const std::int64_t size : {0, 1, 4})
    CHECK(attend::TransformerImpl::generate_square_subsequent_mask(size).equal(
        torch::nn::TransformerImpl::generate_square_subsequent_mask(size)));
}

// ---- Python ---------------------------------------------------------------------------------------------------------

namespace {

/// Options of a case of tests/python/transformer_reference.py.
template <class Options>
Options with_settings(Options options, const std::string& name) {
  options.dim_feedforward(kHidden).dropout(0.0);
  const auto has = [&](const std::string& part) { return name.find(part) != std::string::npos; };
  if (has("gelu")) options.activation(torch::kGELU);
  if (has("function")) options.activation([](const torch::Tensor& x) { return x.tanh(); });
  if (has("eps")) options.layer_norm_eps(0.3);
  if (has("no_bias")) options.bias(false);
  if (has("norm_first")) options.norm_first(true);
  options.batch_first(has("batch_first") || has("function") || has("eps") || name == "norm_first" ||
                      name == "norm_first_masks" || name == "no_bias" || name == "no_bias_masks");
  return options;
}

/// The tensors of one case, and leaves for those that have a gradient.
class PythonCase {
 public:
  PythonCase(const std::map<std::string, torch::Tensor>& data, std::string prefix)
      : data_(data), prefix_(std::move(prefix)) {}

  torch::Tensor tensor(const std::string& name) {
    const auto found = data_.find(prefix_ + name);
    if (found == data_.end()) return {};
    const torch::Tensor copy = found->second.clone();
    if (data_.count(prefix_ + name + "_gradient") == 1) leaves_[name] = copy.requires_grad_();
    return copy;
  }

  template <class Module>
  void prepare(Module& module) const {
    module->to(torch::kDouble);
    copy_parameters(data_, prefix_, *module);
  }

  template <class Module>
  void check(Module& module, const torch::Tensor& output) {
    check_equal_in_float64(output, data_.at(prefix_ + "output"));
    output.backward(data_.at(prefix_ + "output_gradient"));
    for (const auto& parameter : module->named_parameters()) leaves_[parameter.key()] = parameter.value();
    for (const auto& [name, leaf] : leaves_) {
      CAPTURE(name);
      check_equal_in_float64(leaf.grad(), data_.at(prefix_ + name + "_gradient"));
    }
  }

 private:
  const std::map<std::string, torch::Tensor>& data_;
  const std::string prefix_;
  std::map<std::string, torch::Tensor> leaves_;
};

constexpr const char* kSettings[] = {"default",  "batch_first", "norm_first", "gelu",
                                     "function", "eps",         "no_bias",    "no_bias_norm_first"};

torch::nn::AnyModule norm_like(const std::string& name) {
  return torch::nn::AnyModule(attend::LayerNorm(attend::LayerNormOptions({kWidth})
                                                    .eps(name == "eps" ? 0.3 : 1e-5)
                                                    .bias(name.find("no_bias") == std::string::npos)));
}

}  // namespace

TEST_CASE("TransformerEncoderLayer, TransformerDecoderLayer: results and all gradients equal Python's") {
  const std::map<std::string, torch::Tensor> data = reference_data("transformer");
  std::vector<std::string> names{"float_mask", "causal", "unbatched"};
  for (const std::string settings : kSettings) names.insert(names.end(), {settings, settings + "_masks"});
  for (const std::string& name : names) {
    CAPTURE(name);
    const std::string prefix = "encoder_layer/" + name + "/";
    PythonCase c(data, prefix);
    attend::TransformerEncoderLayer layer(with_settings(attend::TransformerEncoderLayerOptions(kWidth, kHeads), name));
    c.prepare(layer);
    const torch::Tensor src = c.tensor("src"), mask = c.tensor("src_mask"), padding = c.tensor("src_key_padding_mask");
    if (name == "causal") CHECK(max_difference(layer(src, torch::Tensor(), padding, true), layer(src, mask)) < 1e-12);
    c.check(layer, layer(src, mask, padding, /*is_causal=*/name == "causal"));
  }
  names.assign({"unbatched"});
  for (const std::string settings : kSettings) names.insert(names.end(), {settings, settings + "_masks"});
  for (const std::string& name : names) {
    CAPTURE(name);
    const std::string prefix = "decoder_layer/" + name + "/";
    PythonCase c(data, prefix);
    attend::TransformerDecoderLayer layer(with_settings(attend::TransformerDecoderLayerOptions(kWidth, kHeads), name));
    c.prepare(layer);
    c.check(layer, layer(c.tensor("tgt"), c.tensor("memory"), c.tensor("tgt_mask"), c.tensor("memory_mask"),
                         c.tensor("tgt_key_padding_mask"), c.tensor("memory_key_padding_mask")));
  }
}

TEST_CASE("TransformerEncoder, TransformerDecoder, Transformer: results and all gradients equal Python's") {
  const std::map<std::string, torch::Tensor> data = reference_data("transformer");
  for (const std::string name : kSettings) {
    CAPTURE(name);
    PythonCase of_encoder(data, "encoder/" + name + "/");
    attend::TransformerEncoder encoder(
        attend::TransformerEncoderOptions(with_settings(attend::TransformerEncoderLayerOptions(kWidth, kHeads), name),
                                          2)
            .norm(norm_like(name)));
    of_encoder.prepare(encoder);
    of_encoder.check(encoder,
                     encoder(of_encoder.tensor("src"), torch::Tensor(), of_encoder.tensor("src_key_padding_mask")));

    // The causal mask of these cases is given by is_causal, without a tensor.
    const torch::Tensor none;
    PythonCase of_decoder(data, "decoder/" + name + "/");
    attend::TransformerDecoder decoder(
        attend::TransformerDecoderOptions(with_settings(attend::TransformerDecoderLayerOptions(kWidth, kHeads), name),
                                          2)
            .norm(norm_like(name)));
    of_decoder.prepare(decoder);
    of_decoder.check(decoder, decoder(of_decoder.tensor("tgt"), of_decoder.tensor("memory"), none, none, none,
                                      of_decoder.tensor("memory_key_padding_mask"), /*tgt_is_causal=*/true));

    PythonCase of_transformer(data, "transformer/" + name + "/");
    attend::Transformer transformer(with_settings(attend::TransformerOptions(kWidth, kHeads, 2, 1), name));
    of_transformer.prepare(transformer);
    of_transformer.check(transformer, transformer(of_transformer.tensor("src"), of_transformer.tensor("tgt"), none,
                                                  none, none, of_transformer.tensor("src_key_padding_mask"), none,
                                                  of_transformer.tensor("memory_key_padding_mask"),
                                                  /*src_is_causal=*/false, /*tgt_is_causal=*/true));
  }
}

TEST_CASE("TransformerEncoder: enable_nested_tensor packs a padded batch in inference, and gives Python's results") {
  const std::map<std::string, torch::Tensor> data = reference_data("transformer");
  for (const std::string name : {"no_norm", "norm"}) {
    CAPTURE(name);
    PythonCase c(data, "packed/" + name + "/");
    attend::TransformerEncoderOptions options(
        attend::TransformerEncoderLayerOptions(kWidth, 4).dim_feedforward(kHidden).batch_first(true), 2);
    if (name == "norm") options.norm(norm_like("default"));
    attend::TransformerEncoder encoder(options);
    c.prepare(encoder);
    encoder->eval();
    const torch::Tensor src = c.tensor("src"), padding = c.tensor("src_key_padding_mask"), none;
    const torch::NoGradGuard no_grad;
    const torch::Tensor output = encoder(src, none, padding);
    check_equal_in_float64(output, data.at("packed/" + name + "/output"));
    encoder->options.enable_nested_tensor(false);
    const torch::Tensor unpacked = encoder(src, none, padding);
    check_equal_in_float64(output.index({padding.logical_not()}), unpacked.index({padding.logical_not()}));
    CHECK(max_difference(output.index({padding}), unpacked.index({padding})) > 0.1);
  }
}

TEST_CASE("LayerNorm: results and all gradients equal Python's") {
  const std::map<std::string, torch::Tensor> data = reference_data("transformer");
  const std::pair<std::string, attend::LayerNormOptions> cases[] = {
      {"default", attend::LayerNormOptions({kWidth})},
      {"two_sizes", attend::LayerNormOptions({7, kWidth})},
      {"eps", attend::LayerNormOptions({kWidth}).eps(0.1)},
      {"no_bias", attend::LayerNormOptions({kWidth}).bias(false)},
      {"no_parameters", attend::LayerNormOptions({kWidth}).elementwise_affine(false)},
  };
  for (const auto& [name, options] : cases) {
    CAPTURE(name);
    PythonCase c(data, "layer_norm/" + name + "/");
    attend::LayerNorm layer(options);
    c.prepare(layer);
    c.check(layer, layer(c.tensor("x")));
  }
}

}  // namespace transformer_as_torch_test
