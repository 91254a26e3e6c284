// SPDX-License-Identifier: MIT
#pragma once

#include "attention.h"

#include <attend/attend.h>
#include <attend/data.h>
#include <attend/layers/conv_stack.h>

#include <torch/nn/cloneable.h>
#include <torch/nn/functional/activation.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/serialize.h>

#include <cmath>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace conformance {

/// The gradients of a weighted sum of `output` with respect to the parameters of a module, in their order, and `input`.
template <class Module>
Tensors gradients_of(const torch::Tensor& output, Module& module, const torch::Tensor& input) {
  torch::manual_seed(4);
  Tensors all = module->parameters();
  all.push_back(input);
  return torch::autograd::grad({output}, all, {random_numbers(output.sizes(), at::kBFloat16).to(output.scalar_type())},
                               /*retain_graph=*/true, /*create_graph=*/false, /*allow_unused=*/true);
}

/// Writes one module to a stream and reads it into another.
template <class From, class To>
void save_and_load(const From& from, To& to) {
  std::stringstream file;
  torch::save(from, file);
  torch::load(to, file);
}

/// Compares MultiheadAttention with torch::nn's for the same seed: parameters, output, weights and gradients.
inline void require_multihead(const torch::nn::MultiheadAttentionOptions& theirs_options,
                              const attend::MultiheadAttentionOptions& ours_options,
                              const torch::Tensor& key_padding_mask = {}, const torch::Tensor& attn_mask = {}) {
  torch::manual_seed(3);
  torch::nn::MultiheadAttention theirs(theirs_options);
  torch::manual_seed(3);
  attend::MultiheadAttention ours(ours_options);
  const auto our_parameters = ours->named_parameters(), their_parameters = theirs->named_parameters();
  require(our_parameters.keys() == their_parameters.keys(), "the parameters have other names");
  for (const std::string& name : their_parameters.keys())
    require(our_parameters[name].equal(their_parameters[name]), name + " has other values at first");
  ours->to(torch::kDouble);
  theirs->to(torch::kDouble);
  const torch::Tensor query = torch::randn({5, 2, 12}, torch::kDouble).requires_grad_(),
                      key = torch::randn({7, 2, theirs_options.kdim()}, torch::kDouble),
                      value = torch::randn({7, 2, theirs_options.vdim()}, torch::kDouble);
  const auto [our_output, our_weights] = ours->forward(query, key, value, key_padding_mask, true, attn_mask);
  const auto [their_output, their_weights] = theirs->forward(query, key, value, key_padding_mask, true, attn_mask);
  require_equal("the output", our_output, their_output);
  require_equal("the weights", our_weights, their_weights);
  const Tensors our_gradients = gradients_of(our_output, ours, query),
                their_gradients = gradients_of(their_output, theirs, query);
  for (std::size_t i = 0; i < their_gradients.size(); ++i)
    if (their_gradients[i].defined())
      require_equal(c10::str("gradient ", i), our_gradients[i], their_gradients[i]);
    else
      require(!our_gradients[i].defined(), c10::str("gradient ", i, " is defined"));
}

/// A sequence of convolutions in torch's operators.
inline torch::Tensor convolved_by_torch(const torch::Tensor& x, const Tensors& parameters, bool is_gelu) {
  torch::Tensor y = x;
  for (std::size_t i = 0; i + 1 < parameters.size(); i += 2) {
    const std::int64_t before = (parameters[i].size(2) - 1) / 2, after = parameters[i].size(2) - 1 - before;
    y = torch::conv1d(torch::constant_pad_nd(y, {before, after}), parameters[i], parameters[i + 1]);
    if (i + 2 < parameters.size()) y = is_gelu ? torch::gelu(y) : torch::relu(y);
  }
  return y;
}

/// Compares results and gradients of ConvStack with torch's convolutions in each dtype.
inline void require_convolutions(attend::ConvStackOptions options, bool is_gelu, Accuracy& accuracy) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    torch::manual_seed(6);
    attend::ConvStack layer(options);
    layer->to(dtype);
    const torch::Tensor x = random_numbers({3, options.in_channels(), 40}, dtype);
    const auto evaluated = [&](at::ScalarType type, bool by_layer) {
      const torch::Tensor input = x.to(type).clone().requires_grad_();
      Tensors parameters;
      for (const torch::Tensor& parameter : layer->parameters())
        parameters.push_back(by_layer ? parameter : parameter.detach().to(type).clone().requires_grad_());
      Evaluated result;
      result.results = {by_layer ? layer(input) : convolved_by_torch(input, parameters, is_gelu)};
      parameters.push_back(input);
      torch::manual_seed(2);
      result.gradients = torch::autograd::grad(result.results, parameters,
                                               {random_numbers(result.results[0].sizes(), at::kBFloat16).to(type)});
      for (std::size_t i = 0; i < parameters.size(); ++i) result.names.push_back(c10::str("parameter ", i));
      return result;
    };
    require_as_accurate(c10::str(dtype), dtype, evaluated(dtype, true), evaluated(dtype, false),
                        evaluated(at::kDouble, false), Accuracy::kOurFactor, accuracy);
  }
}

/// A model with a module of every kind.
struct EveryLayerImpl : torch::nn::Cloneable<EveryLayerImpl> {
  EveryLayerImpl() { reset(); }

  void reset() override {
    standardize =
        register_module("standardize", attend::Standardize(attend::StandardizeOptions().mean(0.5).deviation(2.0)));
    learned = register_module("learned", attend::LearnedPositions(1, 32));
    sinusoidal = register_module(
        "sinusoidal",
        attend::SinusoidalPositions(attend::SinusoidalPositionsOptions(3).combine(attend::Combine::kConcatenate)));
    before = register_module("before", attend::ConvStack(attend::ConvStackOptions(4, 8, 8).depth(2)));
    middle = register_module("middle", attend::SelfAttention1d(attend::SelfAttention1dOptions(8, 8, 8).num_heads(2)));
    multihead = register_module(
        "multihead",
        attend::MultiheadAttention(attend::MultiheadAttentionOptions(8, 2).batch_first(true).is_causal(true)));
    after = register_module("after", torch::nn::Conv1d(torch::nn::Conv1dOptions(8, 1, 1)));
  }

  torch::Tensor forward(const torch::Tensor& x) {
    torch::Tensor y = middle(before(sinusoidal(learned(standardize(x)))));  // (N, 8, L)
    const torch::Tensor rows = y.transpose(1, 2);
    y = y + std::get<0>(multihead->forward(rows, rows, rows, {}, /*need_weights=*/false)).transpose(1, 2);
    return after(y);
  }

  attend::Standardize standardize{nullptr};
  attend::LearnedPositions learned{nullptr};
  attend::SinusoidalPositions sinusoidal{nullptr};
  attend::ConvStack before{nullptr};
  attend::SelfAttention1d middle{nullptr};
  attend::MultiheadAttention multihead{nullptr};
  torch::nn::Conv1d after{nullptr};
};
TORCH_MODULE(EveryLayer);

inline void multihead_checks(Checks& checks) {
  using Theirs = torch::nn::MultiheadAttentionOptions;
  using Ours = attend::MultiheadAttentionOptions;
  checks.check("MultiheadAttention: equal to torch::nn's", [] { require_multihead(Theirs(12, 3), Ours(12, 3)); });
  checks.check("MultiheadAttention: equal to torch::nn's with bias(false)",
               [] { require_multihead(Theirs(12, 3).bias(false), Ours(12, 3).bias(false)); });
  checks.check("MultiheadAttention: equal to torch::nn's with kdim and vdim",
               [] { require_multihead(Theirs(12, 3).kdim(6).vdim(6), Ours(12, 3).kdim(6).vdim(6)); });
  checks.check("MultiheadAttention: equal to torch::nn's with add_bias_kv and add_zero_attn", [] {
    require_multihead(Theirs(12, 3).add_bias_kv(true).add_zero_attn(true),
                      Ours(12, 3).add_bias_kv(true).add_zero_attn(true));
  });
  checks.check("MultiheadAttention: equal to torch::nn's with key_padding_mask", [] {
    torch::Tensor ignored = torch::zeros({2, 7}, torch::kBool);
    ignored.select(0, 1).slice(0, 4).fill_(true);
    require_multihead(Theirs(12, 3), Ours(12, 3), ignored);
  });
  checks.check("MultiheadAttention: equal to torch::nn's with a float attn_mask", [] {
    const torch::Tensor mask = torch::randn({5, 7}, torch::kDouble);
    require_multihead(Theirs(12, 3), Ours(12, 3), {}, mask);
  });
  checks.check("MultiheadAttention: is_causal with num_kv_heads equals the dense formula", [] {
    attend::MultiheadAttention layer(Ours(12, 4).batch_first(true).num_kv_heads(2).is_causal(true));
    layer->to(torch::kDouble);
    const torch::Tensor x = torch::randn({2, 9, 12}, torch::kDouble).requires_grad_();
    const torch::Tensor ours = std::get<0>(layer->forward(x, x, x, {}, /*need_weights=*/false));
    const torch::Tensor rows = torch::matmul(x, layer->in_proj_weight.t()) + layer->in_proj_bias;  // (N, L, 12 + 6 + 6)
    const auto heads = [&](std::int64_t begin, std::int64_t count) {
      return rows.slice(2, begin, begin + 3 * count).reshape({2, 9, count, 3}).transpose(1, 2);
    };
    const AttentionOptions causal = AttentionOptions().is_causal(true);
    const DenseResult dense =
        dense_attention({heads(0, 4), heads(12, 2), heads(18, 2), {}, {}}, causal, geometry_of(9, 9, causal, {}, {}));
    const torch::Tensor theirs =
        torch::matmul(dense.output.transpose(1, 2).reshape({2, 9, 12}), layer->out_proj->weight.t()) +
        layer->out_proj->bias;
    require_equal("the output", ours, theirs);
    const Tensors our_gradients = gradients_of(ours, layer, x), their_gradients = gradients_of(theirs, layer, x);
    for (std::size_t i = 0; i < their_gradients.size(); ++i)
      require_equal(c10::str("gradient ", i), our_gradients[i], their_gradients[i]);
  });
  checks.check("MultiheadAttention: options that torch lacks, and a cache, equal the dense formula", [] {
    attend::MultiheadAttention layer(Ours(12, 3)
                                         .batch_first(true)
                                         .separate_projections(true)
                                         .qk_norm(attend::QkNorm::kRms)
                                         .rotary(attend::RotaryEmbeddingOptions(4))
                                         .softcap(2)
                                         .alibi(true)
                                         .is_causal(true));
    layer->to(torch::kDouble);
    const torch::Tensor x = torch::randn({2, 9, 12}, torch::kDouble).requires_grad_();
    const torch::Tensor ours = layer->self_attention(x);
    const auto heads = [&](const torch::nn::Linear& projection) {
      return torch::linear(x, projection->weight, projection->bias).reshape({2, 9, 3, 4}).transpose(1, 2);
    };
    const torch::Tensor angles =
        torch::arange(9, torch::kDouble).unsqueeze(1) * torch::tensor({1.0, 0.01}, torch::kDouble);  // (L, 2)
    const auto rotated = [&](const torch::Tensor& given, const std::string& norm) {
      const torch::Tensor normed = given / torch::sqrt(given.pow(2).mean({3}, /*keepdim=*/true) + 1e-6) *
                                   layer->named_parameters()[norm + ".weight"];
      const torch::Tensor a = normed.slice(3, 0, 2), b = normed.slice(3, 2, 4);
      return torch::cat({a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()}, 3);
    };
    const AttentionOptions options = AttentionOptions().is_causal(true).softcap(2);
    const torch::Tensor slopes = torch::tensor({0.0625, 0.00390625, 0.25}, torch::kDouble);
    const DenseResult dense = dense_attention({rotated(heads(layer->q_proj), "q_norm"),
                                               rotated(heads(layer->k_proj), "k_norm"),
                                               heads(layer->v_proj),
                                               {},
                                               slopes},
                                              options, geometry_of(9, 9, options, {}, {}));
    const torch::Tensor theirs =
        torch::linear(dense.output.transpose(1, 2).reshape({2, 9, 12}), layer->out_proj->weight, layer->out_proj->bias);
    require_equal("the output", ours, theirs);
    const Tensors our_gradients = gradients_of(ours, layer, x), their_gradients = gradients_of(theirs, layer, x);
    for (std::size_t i = 0; i < their_gradients.size(); ++i)
      require_equal(c10::str("gradient ", i), our_gradients[i], their_gradients[i]);
    const torch::NoGradGuard no_grad;
    attend::KeyValueCache cache(attend::KeyValueCacheOptions(1, 2, 3, 4, 16).dtype(torch::kDouble));
    for (const auto& [begin, length] : {std::pair(0, 7), std::pair(7, 1), std::pair(8, 1)})
      require_equal("with a cache",
                    layer->self_attention(x.narrow(1, begin, length), attend::MultiheadAttentionCall().cache(&cache)),
                    theirs.narrow(1, begin, length));
  });
  checks.check("MultiheadAttention: torch::load reads an archive of torch::nn's", [] {
    const torch::nn::MultiheadAttention theirs(Theirs(12, 3));
    attend::MultiheadAttention ours(Ours(12, 3));
    save_and_load(theirs, ours);
    for (const auto& parameter : theirs->named_parameters())
      require(ours->named_parameters()[parameter.key()].equal(parameter.value()), parameter.key() + " differs");
  });
}

inline void layer_checks(Checks& checks) {
  multihead_checks(checks);
  checks.check("SelfAttention1d: equal to torch's 1x1 convolutions and the dense formula", [] {
    attend::SelfAttention1d layer(attend::SelfAttention1dOptions(6, 8, 4).num_heads(2).scale(attend::kInverseSqrt));
    layer->to(torch::kDouble);
    const torch::Tensor x = torch::randn({3, 6, 17}, torch::kDouble).requires_grad_();
    const auto heads = [&](torch::nn::Conv1d& projection) {  // (N, H, L, channels / H)
      return projection(x).reshape({3, 2, -1, 17}).transpose(2, 3);
    };
    const AttentionOptions none;
    const DenseResult dense = dense_attention({heads(layer->query), heads(layer->key), heads(layer->value), {}, {}},
                                              none, geometry_of(17, 17, none, {}, {}));
    const torch::Tensor theirs = dense.output.transpose(2, 3).reshape({3, 8, 17}), ours = layer(x);
    require_equal("the output", ours, theirs);
    require_equal("attention_map", layer->attention_map(x), dense.weights);
    const Tensors our_gradients = gradients_of(ours, layer, x), their_gradients = gradients_of(theirs, layer, x);
    for (std::size_t i = 0; i < their_gradients.size(); ++i)
      require_equal(c10::str("gradient ", i), our_gradients[i], their_gradients[i]);
  });
  Accuracy accuracy;
  checks.check("ConvStack: equal to torch's conv1d and relu, odd kernel_size", [&] {
    require_convolutions(attend::ConvStackOptions(2, 16, 3).depth(4).kernel_size(5), false, accuracy);
  });
  checks.check("ConvStack: equal to torch's conv1d and relu, even kernel_size", [&] {
    require_convolutions(attend::ConvStackOptions(3, 9, 9).depth(3).kernel_size(4), false, accuracy);
  });
  checks.check("ConvStack: equal to torch's conv1d and gelu", [&] {
    require_convolutions(attend::ConvStackOptions(2, 16, 3).depth(2).activation(torch::kGELU), true, accuracy);
  });
  checks.check("ConvStack: results of fewer than 64 numbers, over all cases",
               [&] { accuracy.require_of_few_numbers(); });
  checks.check("Activation: each equals torch's function", [] {
    const torch::Tensor x = torch::linspace(-3.0, 3.0, 31, torch::kDouble);
    require_equal("kReLU", attend::Activation(torch::kReLU)(x), torch::relu(x));
    require_equal("kGELU", attend::Activation(torch::kGELU)(x), torch::gelu(x));
    require_equal("kGELUTanh", attend::Activation(attend::kGELUTanh)(x),
                  0.5 * x * (1.0 + torch::tanh(std::sqrt(2.0 / std::acos(-1.0)) * (x + 0.044715 * x.pow(3)))));
    require_equal("kSiLU", attend::Activation(attend::kSiLU)(x), x * torch::sigmoid(x));
    require_equal("kTanh", attend::Activation(torch::kTanh)(x), torch::tanh(x));
  });

  checks.check("positions: sinusoidal, linear, binary and learned functions equal their formulas", [] {
    const torch::Tensor waves = attend::sinusoidal_positions(9, attend::SinusoidalPositionsOptions(5).base(100.0));
    const torch::Tensor ramp = attend::linear_positions(9), bits = attend::binary_positions(9);
    torch::Tensor exact = torch::empty({5, 9}, torch::kDouble);
    auto numbers = exact.accessor<double, 2>();
    std::int64_t wrong = 0;
    for (std::int64_t t = 0; t < 9; ++t) {
      for (std::int64_t channel = 0; channel < 5; ++channel) {
        const double frequency = std::pow(100.0, -static_cast<double>(channel - channel % 2) / 5.0);
        const double angle = static_cast<double>(t) * frequency;
        numbers[channel][t] = channel % 2 == 0 ? std::cos(angle) : std::sin(angle);
      }
      wrong += ramp[0][t].item<double>() != static_cast<double>(t) / 9.0;
      for (std::int64_t bit = 0; bit < 4; ++bit)
        wrong += bits[bit][t].item<double>() != static_cast<double>(t >> bit & 1);
    }
    require_equal("sinusoidal_positions", waves, exact);
    require(wrong == 0 && bits.size(0) == 4, "linear_positions or binary_positions is wrong");
    const torch::Tensor table = torch::randn({3, 12}, torch::kDouble);
    require(attend::learned_positions(table, 9).equal(table.slice(1, 0, 9)), "learned_positions is wrong");
  });
  checks.check("positions: the layers add positions to the signal or concatenate them", [] {
    const torch::Tensor x = torch::randn({2, 3, 9}, torch::kDouble);
    const auto beside = [&](const torch::Tensor& y, const torch::Tensor& positions) {
      return y.equal(torch::cat({x, positions.to(x.scalar_type()).expand({2, -1, -1})}, 1));
    };
    attend::LinearPositions linear;
    attend::BinaryPositions binary;
    attend::SinusoidalPositions sinusoidal(3);
    attend::LearnedPositions learned(3, 12);
    learned->to(torch::kDouble);
    require(beside(linear(x), attend::linear_positions(9)), "LinearPositions is wrong");
    require(beside(binary(x), attend::binary_positions(9)), "BinaryPositions is wrong");
    require(sinusoidal(x).equal(x + attend::sinusoidal_positions(9, attend::SinusoidalPositionsOptions(3))),
            "SinusoidalPositions is wrong");
    require(learned(x).equal(x + learned->weight.slice(1, 0, 9)), "LearnedPositions is wrong");
  });
  checks.check("layers: run in torch::nn::Sequential", [] {
    torch::nn::Sequential model(attend::LinearPositions(),
                                attend::ConvStack(attend::ConvStackOptions(2, 8, 8).depth(2)),
                                attend::SelfAttention1d(attend::SelfAttention1dOptions(8, 1, 8)));
    const torch::Tensor y = model->forward(torch::randn({2, 1, 20}));
    require(y.sizes() == torch::IntArrayRef({2, 1, 20}) && y.isfinite().all().item<bool>(), "the output is wrong");
  });
  checks.check("layers: torch::save, torch::load and clone() give the same bits", [] {
    torch::manual_seed(1);
    EveryLayer model;
    torch::manual_seed(2);
    EveryLayer other;
    const torch::Tensor x = torch::randn({2, 1, 30}), y = model(x);
    require(!other(x).equal(y), "the models are equal at first");
    save_and_load(model, other);
    require(other(x).equal(y), "the loaded model gives other bits");
    const auto clone = std::dynamic_pointer_cast<EveryLayerImpl>(model->clone());
    require(clone != nullptr && clone->forward(x).equal(y), "the clone gives other bits");
  });
  checks.check("layers: all parameters get finite gradients, and to(dtype) converts all of them", [] {
    EveryLayer model;
    model->to(torch::kDouble);
    const torch::Tensor y = model(torch::randn({2, 1, 30}, torch::kDouble));
    y.pow(2).sum().backward();
    for (const auto& parameter : model->named_parameters()) {
      const torch::Tensor& gradient = parameter.value().grad();
      require(gradient.defined() && gradient.scalar_type() == torch::kDouble && gradient.isfinite().all().item<bool>(),
              parameter.key() + " has no finite float64 gradient");
    }
  });
  checks.check("layers: rotate() and its gradient are those of the formula", [] {
    const torch::Tensor angles = torch::randn({5, 3}, torch::kDouble),
                        given = random_numbers({2, 2, 5, 8}, at::kDouble);
    const torch::Tensor x = torch::randn({2, 2, 5, 8}, torch::kDouble).requires_grad_();
    const torch::Tensor c = angles.cos(), s = angles.sin(), a = x.narrow(3, 0, 3), b = x.narrow(3, 3, 3);
    const torch::Tensor formula = torch::cat({a * c - b * s, b * c + a * s, x.narrow(3, 6, 2)}, 3);
    const torch::Tensor ours = attend::rotate(x, c, s);
    require_equal("rotate()", ours, formula);
    require_equal("gradient", torch::autograd::grad({ours}, {x}, {given})[0],
                  torch::autograd::grad({formula}, {x}, {given})[0]);
  });
  checks.check("layers: RMSNorm and its gradients are those of the formula", [] {
    attend::RMSNorm norm(attend::RMSNormOptions(6).eps(1e-3));
    norm->to(torch::kDouble);
    const torch::Tensor x = torch::randn({3, 6}, torch::kDouble).requires_grad_(),
                        given = random_numbers({3, 6}, at::kDouble);
    const torch::Tensor formula = x * (x.pow(2).mean(-1, /*keepdim=*/true) + 1e-3).rsqrt() * norm->weight;
    const torch::Tensor ours = norm(x);
    require_equal("RMSNorm", ours, formula);
    const Tensors our_gradients = torch::autograd::grad({ours}, {x, norm->weight}, {given});
    const Tensors gradients = torch::autograd::grad({formula}, {x, norm->weight}, {given});
    for (std::size_t i = 0; i < 2; ++i) require_equal("gradient", our_gradients[i], gradients[i]);
  });
  checks.check("layers: types of errors", [] {
    require_throws<c10::ValueError>("MultiheadAttention", "must be divisible by num_heads",
                                    [] { attend::MultiheadAttention(attend::MultiheadAttentionOptions(10, 3)); });
    require_throws<c10::ValueError>("ConvStack", "kernel_size",
                                    [] { attend::ConvStack(attend::ConvStackOptions(1, 1, 1).kernel_size(0)); });
    attend::SelfAttention1d layer(attend::SelfAttention1dOptions(2, 2, 2));
    require_throws<c10::ValueError>("SelfAttention1d", "channels", [&] { layer(torch::randn({1, 3, 5})); });
    require_throws<c10::TypeError>("SelfAttention1d, dtype", "Double", [&] {
      layer(torch::randn({1, 2, 5}, torch::kDouble));
    });
    require_throws<c10::ValueError>("linear_positions", "length", [] { attend::linear_positions(0); });
  });
}

}  // namespace conformance
