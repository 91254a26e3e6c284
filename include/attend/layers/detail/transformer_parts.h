// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/layers/detail/feed_forward.h>
#include <attend/layers/detail/fused_layer_norm.h>
#include <attend/layers/layer_norm.h>
#include <attend/layers/multihead_attention.h>
#include <attend/version.h>

#include <ATen/ops/dropout.h>
#include <c10/util/Exception.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/options/transformerlayer.h>
#include <torch/types.h>

#include <cstdint>
#include <ostream>
#include <string>
#include <variant>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

// What TransformerEncoderLayer and TransformerDecoderLayer share.

/// The probability with which the module drops a number in this call.
inline double dropout_of(const torch::nn::Dropout& module) { return module->is_training() ? module->options.p() : 0.0; }

/// linear2(dropout(activation(linear1(x)))).
inline torch::Tensor feed_forward(const torch::Tensor& x, const torch::nn::Linear& linear1,
                                  const torch::nn::Dropout& dropout, const torch::nn::Linear& linear2,
                                  const torch::nn::activation_t& activation) {
  return std::visit(
      [&](const auto& kind) {
        return feed_forward(x, {linear1->weight, linear1->bias}, kind, dropout_of(dropout),
                            {linear2->weight, linear2->bias}, Backend::kAuto);
      },
      activation);
}

/// What a norm computes with its present parameters and options.
inline Norm norm_of(const LayerNorm& layer) {
  return {layer->options.normalized_shape(), layer->weight, layer->bias, layer->options.eps()};
}

/// residual + dropout(branch).
inline torch::Tensor add(const torch::Tensor& residual, const torch::Tensor& branch,
                         const torch::nn::Dropout& dropout) {
  return residual + at::dropout(branch, dropout_of(dropout), /*train=*/true);
}

/// residual + dropout(branch), and its norm.
inline AddedNorm add_and_norm(const torch::Tensor& residual, const torch::Tensor& branch,
                              const torch::nn::Dropout& dropout, const LayerNorm& norm) {
  return FusedLayerNorm::add(residual, branch, dropout_of(dropout), norm_of(norm));
}

/// An input (L, N, E), with batch_first (N, L, E), or (L, E) without a batch.
inline void check_transformer_input(const char* layer, const char* name, const torch::Tensor& x, std::int64_t d_model,
                                    bool batch_first, const torch::Tensor& weight) {
  check_tensor(layer, name, x);
  TORCH_CHECK_VALUE(x.dim() == 2 || x.dim() == 3, layer, ": ", name, " must be 3-d ",
                    batch_first ? "(N, length, d_model)" : "(length, N, d_model)",
                    ", or 2-d (length, d_model) without a batch, got ", x.dim(), "-d ", x.sizes());
  TORCH_CHECK_VALUE(x.size(-1) == d_model, layer, ": the width of ", name, " must be d_model (", d_model, "), got ",
                    x.sizes());
  check_fits_weights(layer, name, x, weight);
}

/// Two inputs must have the same batch size, or both must have no batch.
inline void check_same_batch(const char* layer, const char* name, const torch::Tensor& x, const char* other_name,
                             const torch::Tensor& other, bool batch_first) {
  const int batch = batch_first ? 0 : 1;
  TORCH_CHECK_VALUE(x.dim() == other.dim() && (x.dim() == 2 || x.size(batch) == other.size(batch)), layer, ": ", name,
                    " ", x.sizes(), " must have the batch size of ", other_name, " ", other.sizes());
}

/// The parameters of an attention, of the feed-forward network and of the norms, for check_archive().
inline std::vector<ParameterOptions> transformer_parameters(const std::vector<std::string>& attentions, int norms) {
  std::vector<ParameterOptions> parameters{{"linear1.weight", {"dim_feedforward", "d_model"}},
                                           {"linear1.bias", {"dim_feedforward"}, "bias"},
                                           {"linear2.weight", {"d_model", "dim_feedforward"}},
                                           {"linear2.bias", {"d_model"}, "bias"}};
  for (const std::string& attention : attentions)
    parameters.insert(parameters.end(), {{attention + ".in_proj_weight", {"d_model", "d_model"}},
                                         {attention + ".in_proj_bias", {"d_model"}, "bias"},
                                         {attention + ".out_proj.weight", {"d_model", "d_model"}},
                                         {attention + ".out_proj.bias", {"d_model"}, "bias"}});
  for (int i = 1; i <= norms; ++i) {
    const std::string norm = "norm" + std::to_string(i);
    parameters.insert(parameters.end(), {{norm + ".weight", {"d_model"}}, {norm + ".bias", {"d_model"}, "bias"}});
  }
  return parameters;
}

/// The options of a layer, as pretty_print() shows them.
template <class Options>
void print_transformer_options(std::ostream& stream, const Options& options) {
  const char* activation = std::holds_alternative<torch::enumtype::kReLU>(options.activation())   ? "ReLU"
                           : std::holds_alternative<torch::enumtype::kGELU>(options.activation()) ? "GELU"
                                                                                                  : "a function";
  stream << std::boolalpha << "dim_feedforward=" << options.dim_feedforward() << ", dropout=" << options.dropout()
         << ", activation=" << activation << ", layer_norm_eps=" << options.layer_norm_eps()
         << ", batch_first=" << options.batch_first() << ", norm_first=" << options.norm_first()
         << ", bias=" << options.bias() << std::noboolalpha;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
