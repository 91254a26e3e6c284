// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention.h>
#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/without_data.h>
#include <attend/layers/detail/fused_linear.h>
#include <attend/layers/detail/head_transforms.h>
#include <attend/layers/detail/multihead_inputs.h>
#include <attend/layers/detail/multihead_options.h>
#include <attend/layers/detail/multihead_projection.h>
#include <attend/layers/detail/multihead_step.h>
#include <attend/layers/multihead_attention_call.h>
#include <attend/layers/multihead_attention_options.h>
#include <attend/layers/position_bias.h>
#include <attend/positions/alibi_slopes.h>
#include <attend/positions/detail/table_cache.h>
#include <attend/positions/rotary.h>
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
#include <memory>
#include <ostream>
#include <tuple>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Multi-head attention: each head projects query, key and value and computes attention. A last projection mixes the
/// outputs of the heads.
///
/// y = W_o · concat(head₁ … head_H) + b_o with head = softmax(scale · QKᵀ) V and Q = W_q q + b_q, K = W_k k + b_k, V =
/// W_v v + b_v. The options change Q and K in this order: qk_norm, rotary. They change the scores in this order:
/// softcap, alibi, a floating-point mask, position_bias.
///
/// Replaces torch::nn::MultiheadAttention. Options, forward(), masks, results, names and shapes of parameters are the
/// same. After the same torch::manual_seed the initial weights are the same. With the same options, each of the two
/// layers loads the files that torch::save wrote for the other. self_attention() and cross_attention() also take
/// positions, a cache or a packed batch.
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
/// Each of the options add_bias_kv and add_zero_attn adds one column to the weights.
///
/// Masks: in a bool or uint8 mask, true means ignore. A floating-point mask is added to the scores. Both masks,
/// is_causal and window can be combined.
///
/// | Parameter | Shape |
/// | --- | --- |
/// | `in_proj_weight` | ((H + 2G)·head_dim, E), if kdim = vdim = E, without separate_projections |
/// | `q_proj_weight` | (H·head_dim, E), if kdim or vdim differs from E, without separate_projections |
/// | `k_proj_weight` | (G·head_dim, kdim), as `q_proj_weight` |
/// | `v_proj_weight` | (G·head_dim, vdim), as `q_proj_weight` |
/// | `in_proj_bias` | ((H + 2G)·head_dim), without separate_projections |
/// | `out_proj.weight`, `out_proj.bias` | (E, H·head_dim), (E) |
/// | `bias_k`, `bias_v` | (1, 1, G·head_dim) |
/// | `q_proj.weight`, `q_proj.bias` | (H·head_dim, E), (H·head_dim), with separate_projections |
/// | `k_proj.weight`, `k_proj.bias` | (G·head_dim, kdim), (G·head_dim), with separate_projections |
/// | `v_proj.weight`, `v_proj.bias` | (G·head_dim, vdim), (G·head_dim), with separate_projections |
/// | `q_norm.weight`, `k_norm.weight` | (head_dim), with qk_norm |
/// | `q_norm.bias`, `k_norm.bias` | (head_dim), with QkNorm::kLayer |
/// | `position_bias.…` | those of the option position_bias |
///
/// Differs from torch::nn::MultiheadAttention:
/// - A bool mask excludes keys. torch adds it to the scores as 0 and 1.
/// - attn_mask may have a mask for each head. Masks may be bfloat16 or float16, also under autocast.
/// - kdim and vdim may differ.
/// - A query that may attend to no key gives b_o, and adds zeros to the gradients of query, key and value. torch gives
///   NaN.
/// - The fastest backend computes the output, even if the weights are asked for. The dense formula computes them.
/// - The returned weights are those before dropout. torch returns them after dropout.
/// - Arguments share a projection if they are the same tensor object. torch compares the contents of the tensors.
///
/// @throws c10::ValueError if options or sizes do not fit.
/// @throws c10::TypeError if dtypes do not fit.
/// @throws c10::NotImplementedError if the requested backend cannot compute the attention. The message has the reason.
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
  ///
  /// @param embed_dim As the option embed_dim.
  /// @param num_heads As the option num_heads.
  /// @throws c10::ValueError for options out of range.
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
    const std::int64_t width = options.num_heads() * head_dim, kv_width = detail::num_kv_heads(options) * head_dim;
    _qkv_same_embed_dim = options.kdim() == options.embed_dim() && options.vdim() == options.embed_dim();
    const bool has_qkv_bias = detail::has_qkv_bias(options), is_separate = options.separate_projections(),
               is_packed = _qkv_same_embed_dim && !is_separate, is_unpacked = !_qkv_same_embed_dim && !is_separate;
    // A missing parameter is registered as an undefined tensor, as in torch.
    const auto parameter = [this](const char* name, bool is_there, torch::IntArrayRef sizes) {
      return register_parameter(name, is_there ? torch::empty(sizes) : torch::Tensor(), is_there);
    };
    const auto linear = [this](const char* name, std::int64_t from, std::int64_t to, bool has_bias) {
      return register_module(name, torch::nn::Linear(torch::nn::LinearOptions(from, to).bias(has_bias)));
    };
    in_proj_weight = parameter("in_proj_weight", is_packed, {width + 2 * kv_width, options.embed_dim()});
    q_proj_weight = parameter("q_proj_weight", is_unpacked, {width, options.embed_dim()});
    k_proj_weight = parameter("k_proj_weight", is_unpacked, {kv_width, options.kdim()});
    v_proj_weight = parameter("v_proj_weight", is_unpacked, {kv_width, options.vdim()});
    in_proj_bias = parameter("in_proj_bias", has_qkv_bias && !is_separate, {width + 2 * kv_width});
    if (is_separate) {
      q_proj = linear("q_proj", options.embed_dim(), width, has_qkv_bias);
      k_proj = linear("k_proj", options.kdim(), kv_width, has_qkv_bias);
      v_proj = linear("v_proj", options.vdim(), kv_width, has_qkv_bias);
    }
    out_proj = linear("out_proj", width, options.embed_dim(), detail::has_out_bias(options));
    bias_k = parameter("bias_k", options.add_bias_kv(), {1, 1, kv_width});
    bias_v = parameter("bias_v", options.add_bias_kv(), {1, 1, kv_width});
    if (options.qk_norm() != QkNorm::kNone) {
      q_norm = detail::head_norm(options, head_dim);
      k_norm = detail::head_norm(options, head_dim);
      register_module("q_norm", q_norm.ptr());
      register_module("k_norm", k_norm.ptr());
    }
    if (options.rotary()) rotary = register_module("rotary", RotaryEmbedding(*options.rotary()));
    if (options.position_bias()) {
      position_bias = detail::clone_of(options.position_bias());
      register_module("position_bias", detail::module_of(position_bias));
    }
    _reset_parameters();
  }

  /// Draws new initial weights, of the same distribution as torch's. Those of q_norm and k_norm become 1, their biases
  /// become 0. The parameters of position_bias do not change.
  void reset_parameters() {
    out_proj->reset_parameters();
    _reset_parameters();
    for (const torch::nn::AnyModule& norm : {q_norm, k_norm}) {
      if (norm.is_empty()) continue;
      for (const auto& parameter : norm.ptr()->named_parameters())
        torch::nn::init::constant_(parameter.value(), parameter.key() == "weight" ? 1.0 : 0.0);
    }
  }

  /// Draws new initial weights except out_proj->weight, as torch's function of this name does. The order is torch's, so
  /// the same seed gives the same weights.
  void _reset_parameters() {
    for (const torch::Tensor& weight : {in_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight})
      if (weight.defined()) torch::nn::init::xavier_uniform_(weight);
    if (in_proj_bias.defined()) torch::nn::init::zeros_(in_proj_bias);
    for (const torch::nn::Linear& projection : {q_proj, k_proj, v_proj}) {
      if (projection.is_empty()) continue;
      torch::nn::init::xavier_uniform_(projection->weight);
      if (projection->bias.defined()) torch::nn::init::zeros_(projection->bias);
    }
    if (out_proj->bias.defined()) torch::nn::init::zeros_(out_proj->bias);
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
    detail::check_archive(detail::kMultiheadAttention, *this, archive, detail::multihead_parameters());
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them. Options that torch lacks and that are not set
  /// are left out.
  void pretty_print(std::ostream& stream) const override { detail::print_options(stream, options, head_dim); }

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
  /// @throws c10::NotImplementedError if the requested backend cannot compute the attention, and with need_weights if
  /// the option attention_function is set.
  ///
  /// Differs from Python's module, where is_causal is a hint that attn_mask is the causal mask. Here is_causal needs no
  /// attn_mask, and a given attn_mask applies as well. A call that is correct in Python gives the same results here.
  std::tuple<torch::Tensor, torch::Tensor> forward(const torch::Tensor& query, const torch::Tensor& key,
                                                   const torch::Tensor& value,
                                                   const torch::Tensor& key_padding_mask = {}, bool need_weights = true,
                                                   const torch::Tensor& attn_mask = {},
                                                   bool average_attn_weights = true, bool is_causal = false) {
    TORCH_CHECK_NOT_IMPLEMENTED(!need_weights || !options.attention_function(), detail::kMultiheadAttention,
                                ": need_weights: the option attention_function has no weights; pass need_weights = "
                                "false");
    const auto call =
        MultiheadAttentionCall().key_padding_mask(key_padding_mask).attn_mask(attn_mask).is_causal(is_causal);
    const detail::MultiheadStep step = step_of(query, key, value, call);
    const torch::Tensor output = output_of(step, query.dim() == 3);
    if (!need_weights) return {output, torch::Tensor()};
    torch::Tensor weights = step.weights();  // (N, H, L, S)
    if (average_attn_weights) weights = weights.mean(1);
    return {output, query.dim() == 3 ? weights : weights.squeeze(0)};
  }

  /// Self-attention: forward() with x as query, key and value, without weights. The call can have masks, positions, a
  /// cache, a packed batch and a bias.
  ///
  /// @param x (L, N, E), with batch_first (N, L, E), or (L, E) without a batch. For a packed batch N = 1.
  /// @param call The optional arguments of the call. Default: none.
  /// @return The output, of the shape of x.
  /// @throws c10::Error of the same kinds as forward(), and of KeyValueCache::append().
  ///
  /// @code
  /// attend::MultiheadAttention layer(attend::MultiheadAttentionOptions(512, 8).batch_first(true).is_causal(true));
  /// attend::KeyValueCache cache(attend::KeyValueCacheOptions(1, 2, 8, 64, 1024));  // N 2, 8 heads of width 64
  /// torch::NoGradGuard no_grad;
  /// auto call = attend::MultiheadAttentionCall().cache(&cache);
  /// torch::Tensor y = layer->self_attention(x, call);      // the prompt, (2, L, 512)
  /// torch::Tensor next = layer->self_attention(y, call);  // more tokens, which attend to the prompt too
  /// @endcode
  torch::Tensor self_attention(const torch::Tensor& x, const MultiheadAttentionCall& call = {}) {
    if (!call.query_offsets().defined() || call.key_offsets().defined())
      return output_of(step_of(x, x, x, call), x.dim() == 3);
    return self_attention(x, MultiheadAttentionCall(call).key_offsets(call.query_offsets()));
  }

  /// Cross-attention: the queries of x attend to the keys and values of another sequence.
  ///
  /// @param x (L, N, E), with batch_first (N, L, E), or (L, E) without a batch.
  /// @param memory (S, N, kdim), with batch_first (N, S, kdim), or (S, kdim) without a batch. The options kdim and vdim
  /// must be equal. With a cache it may be undefined: x then attends to the keys in the cache.
  /// @param call As in self_attention().
  /// @return The output, of the shape of x.
  /// @throws c10::Error of the same kinds as self_attention().
  torch::Tensor cross_attention(const torch::Tensor& x, const torch::Tensor& memory,
                                const MultiheadAttentionCall& call = {}) {
    return output_of(step_of(x, memory, memory, call), x.dim() == 3);
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
  /// @throws c10::NotImplementedError with the option attention_function.
  Explanation explain(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
                      const torch::Tensor& key_padding_mask = {}, bool need_weights = true,
                      const torch::Tensor& attn_mask = {}, bool average_attn_weights = true, bool is_causal = false) {
    static_cast<void>(need_weights);
    static_cast<void>(average_attn_weights);
    const auto call =
        MultiheadAttentionCall().key_padding_mask(key_padding_mask).attn_mask(attn_mask).is_causal(is_causal);
    return step_of(query, key, value, call, /*has_data=*/false).explain();
  }

  /// The options that the layer was made with.
  MultiheadAttentionOptions options;

  /// Whether kdim and vdim are embed_dim. The name is torch's.
  bool _qkv_same_embed_dim = false;
  torch::Tensor in_proj_weight,  ///< the three projections, if kdim = vdim = embed_dim, without separate_projections
      in_proj_bias,              ///< the biases; undefined without qkv_bias, and with separate_projections
      bias_k,                    ///< the added key; undefined without add_bias_kv
      bias_v;                    ///< the added value; undefined without add_bias_kv
  /// The projection of the heads' outputs.
  torch::nn::Linear out_proj{nullptr};
  torch::Tensor q_proj_weight,  ///< the projection of the query; see the table of parameters
      k_proj_weight,            ///< the same for the key
      v_proj_weight;            ///< the same for the value
  /// Width of one head.
  std::int64_t head_dim = 0;

  torch::nn::Linear q_proj{nullptr},  ///< the projection of the query, with separate_projections; otherwise empty
      k_proj{nullptr},                ///< the projection of the key, with separate_projections; otherwise empty
      v_proj{nullptr};                ///< the projection of the value, with separate_projections; otherwise empty
  torch::nn::AnyModule q_norm,        ///< RMSNorm or LayerNorm of the queries; empty without qk_norm
      k_norm;                         ///< the same for the keys
  /// The rotary embedding; empty without the option rotary.
  RotaryEmbedding rotary{nullptr};
  /// The copy of the option position_bias; null without it.
  std::shared_ptr<PositionBias> position_bias;

 protected:
  FORWARD_HAS_DEFAULT_ARGS({3, torch::nn::AnyValue(torch::Tensor())}, {4, torch::nn::AnyValue(true)},
                           {5, torch::nn::AnyValue(torch::Tensor())}, {6, torch::nn::AnyValue(true)},
                           {7, torch::nn::AnyValue(false)})

 private:
  /// Projects, and sets the options of attention(). Without has_data, the tensors that forward() would compute have no
  /// data; see detail::without_data().
  detail::MultiheadStep step_of(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
                                const MultiheadAttentionCall& call, bool has_data = true) {
    detail::check_call(options, call);
    if (call.cache() == nullptr || key.defined() || value.defined())
      detail::check_inputs(options, query, key, value, out_proj->weight);
    else
      detail::check_inputs_without_memory(options, query, call, out_proj->weight);
    const detail::MultiheadProjection projection{options, head_dim, projection_weights(), bias_k, bias_v, has_data};
    detail::MultiheadStep step{projection.heads_of(query, key, value), {}, nullptr, options.attention_function()};
    step.bias = call.position_bias() != nullptr ? call.position_bias() : position_bias.get();
    if (!q_norm.is_empty()) step.query = detail::normalized_heads(q_norm, step.query, options.batch_first(), has_data);
    if (!k_norm.is_empty() && step.key.defined())
      step.key = detail::normalized_heads(k_norm, step.key, options.batch_first(), has_data);
    if (!rotary.is_empty() && has_data) {
      const detail::HeadTables tables =
          detail::tables_of(step, *rotary, detail::positions_of(call, step, /*is_self_attention=*/query.is_same(key)));
      // A backend object may rotate them when it loads them. A cache holds rotated keys.
      if (call.cache() == nullptr && !step.function && detail::given_backend(options.backend()) != nullptr)
        step.options.rotary(tables.key).query_rotary(tables.query);
      else
        detail::rotate_heads(step, tables);
    }
    step.options.scale(options.scale()).backend(options.backend()).dropout(is_training() ? options.dropout() : 0.0);
    step.options.softcap(options.softcap()).query_offsets(call.query_offsets()).key_offsets(call.key_offsets());
    if (options.alibi()) step.options.alibi_slopes(slopes(step.query, has_data));
    detail::add_masks(step, options, call, query.dim() == 3, has_data);
    if (call.cache() != nullptr && step.key.defined())
      call.cache()->append(call.cache_layer(), step.key, step.value, call.cache_valid());
    if (call.cache() != nullptr) detail::read_cache(step, call);
    return step;
  }

  torch::Tensor output_of(const detail::MultiheadStep& step, bool is_batched) const {
    const torch::Tensor heads = step.attention();  // (N, H, L, head_dim)
    const torch::Tensor rows =
        options.batch_first() || !is_batched ? heads.transpose(1, 2) : heads.permute({2, 0, 1, 3});
    const torch::Tensor output = detail::FusedLinear::run(rows.flatten(2), {{out_proj->weight, out_proj->bias}},
                                                          options.backend())[0];  // (N, L, E) or (L, N, E)
    return is_batched ? output : output.squeeze(0);
  }

  detail::ProjectionWeights projection_weights() const {
    if (in_proj_weight.defined()) return {{in_proj_weight, in_proj_bias}, {}};
    if (!q_proj.is_empty())
      return {{}, {{{q_proj->weight, q_proj->bias}, {k_proj->weight, k_proj->bias}, {v_proj->weight, v_proj->bias}}}};
    const std::int64_t width = options.num_heads() * head_dim, kv_width = detail::num_kv_heads(options) * head_dim;
    const auto biases = in_proj_bias.defined() ? in_proj_bias.split_with_sizes({width, kv_width, kv_width})
                                               : std::vector<torch::Tensor>(3);
    return {{}, {{{q_proj_weight, biases[0]}, {k_proj_weight, biases[1]}, {v_proj_weight, biases[2]}}}};
  }

  /// The slopes of ALiBi for these queries: float64 for float64, otherwise float32.
  torch::Tensor slopes(const torch::Tensor& query, bool has_data) {
    const auto dtype = query.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
    const torch::TensorOptions kind = query.options().dtype(dtype);
    if (!has_data) return detail::without_data({options.num_heads()}, kind, /*requires_grad=*/false);
    return slopes_.get(1, kind, [&](std::int64_t) { return alibi_slopes(options.num_heads()).unsqueeze(1); })
        .select(1, 0);
  }

  detail::TableCache slopes_;  // (H, 1)
};

TORCH_MODULE(MultiheadAttention);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
