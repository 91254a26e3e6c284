// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention.h>
#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/layers/detail/fused_linear.h>
#include <attend/layers/detail/ignore_masks.h>
#include <attend/layers/detail/multihead_projection.h>
#include <attend/layers/multihead_attention_options.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/common.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Multi-head attention: each head projects query, key and value and computes attention. A last projection mixes the
/// outputs of the heads.
///
/// y = W_o · concat(head₁ … head_H) + b_o with head = softmax(scale · QKᵀ) V and Q = W_q q + b_q, K = W_k k + b_k, V =
/// W_v v + b_v.
///
/// Replaces torch::nn::MultiheadAttention. Options, forward(), masks, results, names and shapes of parameters are the
/// same. After the same torch::manual_seed the initial weights are the same. With the same options, each of the two
/// layers loads what torch::save wrote of the other.
///
/// Shapes: N batch entries, L queries, S keys, E = embed_dim, H = num_heads, G = num_kv_heads.
///
/// | Tensor | Shape | with batch_first | without a batch |
/// | --- | --- | --- | --- |
/// | query | (L, N, E) | (N, L, E) | (L, E) |
/// | key | (S, N, kdim) | (N, S, kdim) | (S, kdim) |
/// | value | (S, N, vdim) | (N, S, vdim) | (S, vdim) |
/// | key_padding_mask | (N, S) | (N, S) | (S) |
/// | attn_mask | (L, S) or (N·H, L, S) | the same | (L, S) or (H, L, S) |
/// | output | (L, N, E) | (N, L, E) | (L, E) |
/// | weights, averaged over the heads | (N, L, S) | (N, L, S) | (L, S) |
/// | weights of each head | (N, H, L, S) | (N, H, L, S) | (H, L, S) |
///
/// With add_bias_kv and add_zero_attn the weights have S + 1 or S + 2 columns.
///
/// Masks: in a bool or uint8 mask, true means ignore. A floating-point mask is added to the scores. Both masks,
/// is_causal and window can be combined.
///
/// | Parameter | Shape |
/// | --- | --- |
/// | `in_proj_weight` | ((H + 2G)·head_dim, E), if kdim = vdim = E |
/// | `q_proj_weight` | (H·head_dim, E), if kdim or vdim differs from E |
/// | `k_proj_weight` | (G·head_dim, kdim), if kdim or vdim differs from E |
/// | `v_proj_weight` | (G·head_dim, vdim), if kdim or vdim differs from E |
/// | `in_proj_bias` | ((H + 2G)·head_dim) |
/// | `out_proj.weight`, `out_proj.bias` | (E, H·head_dim), (E) |
/// | `bias_k`, `bias_v` | (1, 1, G·head_dim) |
///
/// Differs from torch::nn::MultiheadAttention:
/// - A bool mask masks. torch adds it as 0 and 1.
/// - attn_mask may have a mask for each head. Masks may be bfloat16 or float16, also under autocast.
/// - kdim and vdim may differ.
/// - A query that may attend to no key gives b_o, and adds zeros to the gradients of query, key and value. torch gives
///   NaN.
/// - The fastest backend computes the output, even if the weights are asked for. The dense formula computes them.
/// - The weights are those before dropout. torch returns them after dropout.
/// - Arguments share a projection if they are the same tensor object. torch compares the contents of the tensors.
///
/// @throws c10::ValueError if options or sizes do not fit.
/// @throws c10::TypeError if dtypes do not fit.
/// @throws c10::NotImplementedError if a backend asked for by name cannot compute the attention. The message has the
/// reason.
///
/// Source: Vaswani et al., "Attention is all you need", 2017.
///
/// @code
/// auto options = attend::MultiheadAttentionOptions(512, 8).batch_first(true).is_causal(true);
/// attend::MultiheadAttention layer(options);
/// auto [y, weights] = layer->forward(x, x, x, key_padding_mask, /*need_weights=*/false);
/// @endcode
class MultiheadAttentionImpl : public torch::nn::Cloneable<MultiheadAttentionImpl> {
 public:
  /// The layer with default values of all other options.
  MultiheadAttentionImpl(std::int64_t embed_dim, std::int64_t num_heads)
      : MultiheadAttentionImpl(MultiheadAttentionOptions(embed_dim, num_heads)) {}

  /// The layer with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit MultiheadAttentionImpl(const MultiheadAttentionOptions& options_) : options(options_) { reset(); }

  /// Creates new parameters according to the options, with initial weights. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    detail::check_options(options);
    head_dim = options.head_dim().value_or(options.embed_dim() / options.num_heads());
    const std::int64_t width = options.num_heads() * head_dim, kv_width = num_kv_heads() * head_dim;
    _qkv_same_embed_dim = options.kdim() == options.embed_dim() && options.vdim() == options.embed_dim();
    // A missing parameter is registered as an undefined tensor, as in torch.
    const auto parameter = [this](const char* name, bool is_there, torch::IntArrayRef sizes) {
      return register_parameter(name, is_there ? torch::empty(sizes) : torch::Tensor(), is_there);
    };
    in_proj_weight = parameter("in_proj_weight", _qkv_same_embed_dim, {width + 2 * kv_width, options.embed_dim()});
    q_proj_weight = parameter("q_proj_weight", !_qkv_same_embed_dim, {width, options.embed_dim()});
    k_proj_weight = parameter("k_proj_weight", !_qkv_same_embed_dim, {kv_width, options.kdim()});
    v_proj_weight = parameter("v_proj_weight", !_qkv_same_embed_dim, {kv_width, options.vdim()});
    in_proj_bias = parameter("in_proj_bias", options.bias(), {width + 2 * kv_width});
    out_proj = register_module(
        "out_proj", torch::nn::Linear(torch::nn::LinearOptions(width, options.embed_dim()).bias(options.bias())));
    bias_k = parameter("bias_k", options.add_bias_kv(), {1, 1, kv_width});
    bias_v = parameter("bias_v", options.add_bias_kv(), {1, 1, kv_width});
    _reset_parameters();
  }

  /// Draws new initial weights, of the same distribution as torch's.
  void reset_parameters() {
    out_proj->reset_parameters();
    _reset_parameters();
  }

  /// Draws new initial weights except out_proj->weight, as torch's function of this name does. The order is torch's, so
  /// the same seed gives the same weights.
  void _reset_parameters() {
    for (const torch::Tensor& weight : {in_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight})
      if (weight.defined()) torch::nn::init::xavier_uniform_(weight);
    if (options.bias()) {
      torch::nn::init::zeros_(in_proj_bias);
      torch::nn::init::zeros_(out_proj->bias);
    }
    for (const torch::Tensor& bias : {bias_k, bias_v})
      if (bias.defined()) torch::nn::init::xavier_normal_(bias);
  }

  /// Loads the parameters, and checks that they have the shapes of this layer. LibTorch itself would take over other
  /// shapes without an error.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The layer is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The layer is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    const std::string all = "num_heads, num_kv_heads or head_dim", keys = "num_kv_heads or head_dim",
                      queries = "num_heads or head_dim", widths = "kdim or vdim";
    detail::check_archive(kName, *this, archive,
                          {{"in_proj_weight", {all, "embed_dim"}, widths},
                           {"q_proj_weight", {queries, "embed_dim"}, widths},
                           {"k_proj_weight", {keys, "kdim"}, widths},
                           {"v_proj_weight", {keys, "vdim"}, widths},
                           {"in_proj_bias", {all}, "bias"},
                           {"out_proj.weight", {"embed_dim", queries}},
                           {"out_proj.bias", {"embed_dim"}, "bias"},
                           {"bias_k", {"", "", keys}, "add_bias_kv"},
                           {"bias_v", {"", "", keys}, "add_bias_kv"}});
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::MultiheadAttention(" << options.embed_dim() << ", " << options.num_heads()
           << ", num_kv_heads=" << num_kv_heads() << ", head_dim=" << head_dim << ", kdim=" << options.kdim()
           << ", vdim=" << options.vdim() << std::boolalpha << ", bias=" << options.bias()
           << ", dropout=" << options.dropout() << ", add_bias_kv=" << options.add_bias_kv()
           << ", add_zero_attn=" << options.add_zero_attn() << ", batch_first=" << options.batch_first()
           << ", is_causal=" << options.is_causal() << ", window=" << options.window() << ", scale=" << options.scale()
           << std::noboolalpha << ")";
  }

  /// Computes the output, and the attention weights if they are asked for.
  ///
  /// @param query (L, N, E), with batch_first (N, L, E), or (L, E) without a batch.
  /// @param key (S, N, kdim), with batch_first (N, S, kdim), or (S, kdim) without a batch.
  /// @param value (S, N, vdim), with batch_first (N, S, vdim), or (S, vdim) without a batch.
  /// @param key_padding_mask (N, S), or (S) without a batch. Keys to ignore, true = ignore. Default: none.
  /// @param need_weights Whether to return the weights, which have a gradient. Default: true, as in torch.
  /// @param attn_mask (L, S) or (N·H, L, S). Keys that each query ignores, true = ignore, or numbers that are added to
  /// the scores. Default: none.
  /// @param average_attn_weights Whether the returned weights are averaged over the heads. Default: true.
  /// @param is_causal Applies the causal mask to this call, as the option is_causal does to every call. Default: false.
  /// @return The output, of the shape of query. The weights, (N, L, S), or (N, H, L, S) if they are not averaged; an
  /// undefined tensor without need_weights.
  /// @throws c10::ValueError if the sizes or devices of the tensors do not fit the options or one another.
  /// @throws c10::TypeError if their dtypes do not fit.
  /// @throws c10::NotImplementedError if a backend asked for by name cannot compute the attention.
  ///
  /// Differs from Python's module, where is_causal is a hint that attn_mask is the causal mask. Here is_causal needs no
  /// attn_mask, and a given attn_mask applies as well. A call that is correct in Python gives the same results here.
  std::tuple<torch::Tensor, torch::Tensor> forward(const torch::Tensor& query, const torch::Tensor& key,
                                                   const torch::Tensor& value,
                                                   const torch::Tensor& key_padding_mask = {}, bool need_weights = true,
                                                   const torch::Tensor& attn_mask = {},
                                                   bool average_attn_weights = true, bool is_causal = false) {
    const Call call = call_of(query, key, value, key_padding_mask, attn_mask, is_causal, /*has_data=*/true);
    const bool is_batched = query.dim() == 3;
    const torch::Tensor heads = attention(call.query, call.key, call.value, call.options);  // (N, H, L, head_dim)
    const torch::Tensor rows =
        options.batch_first() || !is_batched ? heads.transpose(1, 2) : heads.permute({2, 0, 1, 3});
    torch::Tensor output = detail::FusedLinear::run(rows.flatten(2), {{out_proj->weight, out_proj->bias}},
                                                    options.backend())[0];  // (N, L, E) or (L, N, E)
    if (!is_batched) output = output.squeeze(0);
    if (!need_weights) return {output, torch::Tensor()};
    torch::Tensor weights = attention_weights(call.query, call.key, call.options);  // (N, H, L, S)
    if (average_attn_weights) weights = weights.mean(1);
    return {output, is_batched ? weights : weights.squeeze(0)};
  }

  /// Says which backend forward() uses for these arguments, and why not a faster one. The arguments are those of
  /// forward(). Computes nothing and allocates no tensor.
  ///
  /// @param query As in forward().
  /// @param key As in forward().
  /// @param value As in forward().
  /// @param key_padding_mask As in forward().
  /// @param need_weights As in forward(). It does not change the answer: the weights are always computed densely.
  /// @param attn_mask As in forward().
  /// @param average_attn_weights As in forward(). It does not change the answer.
  /// @param is_causal As in forward().
  /// @return The backend and the reasons, as attend::explain() returns them.
  /// @throws c10::Error of the same kinds as forward().
  Explanation explain(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
                      const torch::Tensor& key_padding_mask = {}, bool need_weights = true,
                      const torch::Tensor& attn_mask = {}, bool average_attn_weights = true, bool is_causal = false) {
    static_cast<void>(need_weights);
    static_cast<void>(average_attn_weights);
    const Call call = call_of(query, key, value, key_padding_mask, attn_mask, is_causal, /*has_data=*/false);
    return attend::explain(call.query, call.key, call.value, call.options);
  }

  /// The options that the layer was made with.
  MultiheadAttentionOptions options;

  /// Whether kdim and vdim are embed_dim. If so, in_proj_weight holds all three projections. The name is torch's.
  bool _qkv_same_embed_dim = false;
  torch::Tensor in_proj_weight,  ///< the three projections, if kdim and vdim are embed_dim; otherwise undefined
      in_proj_bias,              ///< the biases of the three projections; undefined without bias
      bias_k,                    ///< the added key; undefined without add_bias_kv
      bias_v;                    ///< the added value; undefined without add_bias_kv
  /// The projection of the heads' outputs.
  torch::nn::Linear out_proj{nullptr};
  torch::Tensor q_proj_weight,  ///< the projection of the query, if kdim or vdim differs from embed_dim
      k_proj_weight,            ///< the projection of the key, if kdim or vdim differs from embed_dim
      v_proj_weight;            ///< the projection of the value, if kdim or vdim differs from embed_dim
  /// Width of one head.
  std::int64_t head_dim = 0;

 protected:
  FORWARD_HAS_DEFAULT_ARGS({3, torch::nn::AnyValue(torch::Tensor())}, {4, torch::nn::AnyValue(true)},
                           {5, torch::nn::AnyValue(torch::Tensor())}, {6, torch::nn::AnyValue(true)},
                           {7, torch::nn::AnyValue(false)})

 private:
  static constexpr const char* kName = "attend::MultiheadAttention";

  /// The arguments of attention().
  struct Call : detail::HeadTensors {
    AttentionOptions options;
  };

  std::int64_t num_kv_heads() const { return options.num_kv_heads().value_or(options.num_heads()); }

  /// Without has_data, the tensors that forward() would compute have no data; see detail::without_data().
  Call call_of(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
               const torch::Tensor& key_padding_mask, const torch::Tensor& attn_mask, bool is_causal, bool has_data) {
    check(query, key, value);
    const detail::MultiheadProjection projection{options,       head_dim,      in_proj_weight, q_proj_weight,
                                                 k_proj_weight, v_proj_weight, in_proj_bias,   bias_k,
                                                 bias_v,        has_data};
    Call call{projection.heads_of(query, key, value), {}};
    call.options.scale(options.scale()).backend(options.backend()).dropout(is_training() ? options.dropout() : 0.0);
    Window window = options.window();
    if (is_causal || options.is_causal()) window.right = 0;
    add_masks(call, key_padding_mask, attn_mask, window, query.dim() == 3, has_data);
    return call;
  }

  void check(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value) const {
    const auto check_one = [&](const char* name, const torch::Tensor& x, const char* width_name, std::int64_t width) {
      detail::check_tensor(kName, name, x);
      TORCH_CHECK_VALUE(x.dim() == 2 || x.dim() == 3, kName, ": ", name, " must be 3-d ",
                        options.batch_first() ? "(N, length, width)" : "(length, N, width)",
                        ", or 2-d (length, width) without a batch, got ", x.dim(), "-d ", x.sizes());
      TORCH_CHECK_VALUE(x.size(-1) == width, kName, ": the width of ", name, " must be ", width_name, " (", width,
                        "), got ", x.sizes());
      detail::check_fits_weights(kName, name, x, out_proj->weight);
    };
    check_one("query", query, "embed_dim", options.embed_dim());
    check_one("key", key, "kdim", options.kdim());
    check_one("value", value, "vdim", options.vdim());
    TORCH_CHECK_VALUE(key.dim() == query.dim(), kName, ": key ", key.sizes(), " must have as many dimensions as query ",
                      query.sizes());
    const auto all_but_width = [](const torch::Tensor& x) { return x.sizes().slice(0, x.sizes().size() - 1); };
    TORCH_CHECK_VALUE(all_but_width(value) == all_but_width(key), kName, ": value ", value.sizes(),
                      " must have the batch size and length of key ", key.sizes());
    const int batch = options.batch_first() ? 0 : 1;
    TORCH_CHECK_VALUE(query.dim() == 2 || key.size(batch) == query.size(batch), kName, ": key ", key.sizes(),
                      " must have the batch size of query ", query.sizes());
  }

  void add_masks(Call& call, const torch::Tensor& key_padding_mask, const torch::Tensor& attn_mask,
                 const Window& window, bool is_batched, bool has_data) {
    const std::int64_t added_keys = options.add_bias_kv() + options.add_zero_attn();
    const detail::MaskSizes sizes{call.query.size(0), options.num_heads(), call.query.size(2),
                                  call.key.size(2) - added_keys, is_batched};
    detail::MaskParts parts{{}, {}, added_keys, sizes};
    if (key_padding_mask.defined())
      parts.given.push_back(detail::checked_key_padding_mask(kName, key_padding_mask, sizes, call.query));
    if (attn_mask.defined()) parts.given.push_back(detail::checked_attn_mask(kName, attn_mask, sizes, call.query));
    if (added_keys == 0)
      call.options.window(window);
    else if (window.left >= 0 || window.right >= 0)
      parts.window = window;  // a mask, because the added keys have no position
    if (parts.given.empty() && !parts.window) return;
    call.options.attn_mask(has_data ? detail::attention_mask(parts, call.query)
                                    : detail::attention_mask_without_data(parts, call.query));
  }
};

TORCH_MODULE(MultiheadAttention);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
