// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/layers/drop_path.h>
#include <attend/layers/feed_forward.h>
#include <attend/layers/layer_norm.h>
#include <attend/layers/layer_scale.h>
#include <attend/layers/multihead_attention.h>
#include <attend/layers/multihead_attention_call.h>
#include <attend/layers/rms_norm.h>
#include <attend/layers/transformer_block_options.h>
#include <attend/version.h>

#include <ATen/ops/dropout.h>
#include <c10/util/Exception.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A block of a transformer: self-attention, optional cross-attention and a feed-forward network. Each of them is a
/// branch with a residual connection.
///
/// The block applies its branches f one after the other:
/// - with kPre and kPreAndPost: x ← α · x + s · f'(norm(x));
/// - with kPost: x ← norm(α · x + s · f'(x)).
///
/// α is deep_norm_alpha and s is residual_scale. f' is f, followed by post_norm, dropout, LayerScale and DropPath. The
/// options say which of these four exist. With the parallel orders both branches read the same x, and the sum of their
/// outputs is added once.
///
/// Shapes: x (N, L, E) → (N, L, E). E = embed_dim of the attention.
///
/// | Submodule | Type | Exists |
/// | --- | --- | --- |
/// | `self_attn` | MultiheadAttention | always |
/// | `cross_attn` | MultiheadAttention | with cross_attention |
/// | `feed_forward` | FeedForward | always |
/// | `…_norm`, … = name of the branch | LayerNorm or RMSNorm | always; for `feed_forward` not with kParallel |
/// | `…_post_norm` | LayerNorm or RMSNorm | with kPreAndPost |
/// | `…_scale` | LayerScale | with layer_scale |
/// | `…_drop_path` | DropPath, without parameters | with drop_path |
///
/// @throws c10::ValueError if options or sizes do not fit.
/// @throws c10::TypeError if dtypes do not fit.
///
/// Differs from torch::nn::TransformerEncoderLayer: the norm comes first by default, and there are more options.
/// attend::TransformerEncoderLayer replaces torch's layer.
///
/// Sources: Vaswani et al., "Attention is all you need", 2017; for the options see TransformerBlockOptions.
///
/// @code
/// attend::TransformerBlock block(attend::TransformerBlockOptions(attend::MultiheadAttentionOptions(512, 8),
///                                                                attend::FeedForwardOptions(512, 2048)));
/// torch::Tensor y = block(x);  // (N, L, 512) → (N, L, 512)
/// @endcode
class TransformerBlockImpl : public torch::nn::Cloneable<TransformerBlockImpl> {
 public:
  /// The block with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit TransformerBlockImpl(const TransformerBlockOptions& options_) : options(options_) { reset(); }

  /// Creates new submodules according to the options, with initial weights. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    check_options();
    options.attention().batch_first(true);
    self_attn = register_module("self_attn", MultiheadAttention(options.attention()));
    of_self_attn_ = branch("self_attn", /*has_norm=*/true);
    if (options.cross_attention()) {
      options.cross_attention()->batch_first(true);
      cross_attn = register_module("cross_attn", MultiheadAttention(*options.cross_attention()));
      of_cross_attn_ = branch("cross_attn", /*has_norm=*/true);
    }
    feed_forward = register_module("feed_forward", FeedForward(options.feed_forward()));
    of_feed_forward_ = branch("feed_forward", /*has_norm=*/options.order() != BlockOrder::kParallel);
    apply_deep_norm_beta();
  }

  /// Draws new initial weights of all submodules.
  void reset_parameters() {
    self_attn->reset_parameters();
    if (cross_attn) cross_attn->reset_parameters();
    feed_forward->reset_parameters();
    for (Branch* each : {&of_self_attn_, &of_cross_attn_, &of_feed_forward_}) each->reset_parameters();
    apply_deep_norm_beta();
  }

  /// Loads the parameters, and checks that they have the shapes of this block.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The block is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The block is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive(kName, *this, archive);
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, without those of submodules, as `std::cout << block` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::TransformerBlock(norm=" << options.norm() << ", norm_place=" << options.norm_place()
           << ", order=" << options.order() << ", dropout=" << options.dropout();
    if (options.residual_scale() != 1.0) stream << ", residual_scale=" << options.residual_scale();
    if (options.deep_norm_alpha() != 1.0) stream << ", deep_norm_alpha=" << options.deep_norm_alpha();
    if (options.deep_norm_beta() != 1.0) stream << ", deep_norm_beta=" << options.deep_norm_beta();
    stream << ")";
  }

  /// Applies the block without masks and without a cache.
  ///
  /// @param x (N, L, E)
  /// @return (N, L, E)
  /// @throws c10::ValueError with the option cross_attention, which needs a second sequence; see forward_with().
  torch::Tensor forward(const torch::Tensor& x) { return forward_with(x, MultiheadAttentionCall()); }

  /// Applies the block with masks, positions, a cache or a packed batch, and with the second sequence of a decoder.
  ///
  /// @param x (N, L, E). For a packed batch N = 1.
  /// @param call Passed to MultiheadAttention::self_attention().
  /// @param memory (N, S, kdim): the second sequence, with the option cross_attention only. It may be undefined if
  /// memory_call has a cache. Default: undefined.
  /// @param memory_call Passed to MultiheadAttention::cross_attention(). Default: no options.
  /// @return (N, L, E)
  ///
  /// @code
  /// attend::TransformerBlock block(attend::TransformerBlockOptions(attend::MultiheadAttentionOptions(512, 8),
  ///                                                                attend::FeedForwardOptions(512, 2048)));
  /// torch::Tensor y = block->forward_with(x, attend::MultiheadAttentionCall().key_padding_mask(key_padding_mask));
  /// @endcode
  torch::Tensor forward_with(const torch::Tensor& x, const MultiheadAttentionCall& call,
                             const torch::Tensor& memory = {}, const MultiheadAttentionCall& memory_call = {}) {
    detail::check_tokens(kName, x, options.attention().embed_dim(), "embed_dim", feed_forward->down->weight);
    TORCH_CHECK_VALUE(!cross_attn.is_empty() || !memory.defined(), kName, ": memory needs the option cross_attention");
    TORCH_CHECK_VALUE(cross_attn.is_empty() || memory.defined() || memory_call.cache() != nullptr, kName,
                      ": the option cross_attention needs memory, or memory_call with a cache that has it");
    const auto attend_to_self = [&](const torch::Tensor& of) { return self_attn->self_attention(of, call); };
    const auto feed = [&](const torch::Tensor& of) { return feed_forward->forward(of); };
    if (options.order() != BlockOrder::kInTurn) {
      const torch::Tensor normed = of_self_attn_.norm(x);
      const torch::Tensor both =
          of_self_attn_.finish(*this, attend_to_self(normed)) +
          of_feed_forward_.finish(*this, feed(of_feed_forward_.norm.has_norm() ? of_feed_forward_.norm(x) : normed));
      return sum(x, both);
    }
    torch::Tensor y = add(x, of_self_attn_, attend_to_self);
    if (!cross_attn.is_empty())
      y = add(y, of_cross_attn_,
              [&](const torch::Tensor& of) { return cross_attn->cross_attention(of, memory, memory_call); });
    return add(y, of_feed_forward_, feed);
  }

  /// The options that the block was made with.
  TransformerBlockOptions options;

  MultiheadAttention self_attn{nullptr},  ///< the self-attention
      cross_attn{nullptr};                ///< the attention to the second sequence; empty without cross_attention
  FeedForward feed_forward{nullptr};      ///< the feed-forward network

 private:
  static constexpr const char* kName = "attend::TransformerBlock";

  /// A LayerNorm, an RMSNorm, or none.
  struct Norm {
    LayerNorm layer{nullptr};
    RMSNorm rms{nullptr};

    bool has_norm() const { return !layer.is_empty() || !rms.is_empty(); }
    torch::Tensor operator()(const torch::Tensor& x) {
      return !layer.is_empty() ? layer->forward(x) : !rms.is_empty() ? rms->forward(x) : x;
    }
    void reset_parameters() {
      if (!layer.is_empty()) layer->reset_parameters();
      if (!rms.is_empty()) rms->reset_parameters();
    }
  };

  /// The other modules of a branch, besides its main module.
  struct Branch {
    Norm norm, post_norm;
    LayerScale scale{nullptr};
    DropPath drop_path{nullptr};

    void reset_parameters() {
      norm.reset_parameters();
      post_norm.reset_parameters();
      if (!scale.is_empty()) scale->reset_parameters();
    }

    /// Turns the output of the main module into the output of the branch.
    torch::Tensor finish(const TransformerBlockImpl& block, torch::Tensor y) {
      y = post_norm(y);
      if (block.options.dropout() > 0.0 && block.is_training()) y = at::dropout(y, block.options.dropout(), true);
      if (!scale.is_empty()) y = scale(y);
      return drop_path.is_empty() ? y : drop_path(y);
    }
  };

  void check_options() const {
    const std::int64_t width = options.attention().embed_dim();
    TORCH_CHECK_VALUE(options.feed_forward().embed_dim() == width, kName, ": embed_dim of feed_forward (",
                      options.feed_forward().embed_dim(), ") must be embed_dim of attention (", width, ")");
    const MultiheadAttentionOptions& attention = options.attention();
    TORCH_CHECK_VALUE(attention.kdim() == width && attention.vdim() == width, kName,
                      ": kdim and vdim of attention must be its embed_dim (", width, "), got ", attention.kdim(),
                      " and ", attention.vdim());
    if (options.cross_attention())
      TORCH_CHECK_VALUE(options.cross_attention()->embed_dim() == width, kName, ": embed_dim of cross_attention (",
                        options.cross_attention()->embed_dim(), ") must be embed_dim of attention (", width, ")");
    TORCH_CHECK_VALUE(options.order() == BlockOrder::kInTurn || options.norm_place() != NormPlace::kPost, kName,
                      ": the order ", options.order(), " needs another norm_place than kPost");
    TORCH_CHECK_VALUE(options.order() == BlockOrder::kInTurn || !options.cross_attention(), kName, ": the order ",
                      options.order(), " excludes cross_attention");
    TORCH_CHECK_VALUE(options.dropout() >= 0.0 && options.dropout() <= 1.0, kName, ": dropout (", options.dropout(),
                      ") must be a probability from 0 to 1");
    const auto finite = [](const char* name, double value) {
      TORCH_CHECK_VALUE(std::isfinite(value), kName, ": ", name, " (", value, ") must be finite");
    };
    finite("residual_scale", options.residual_scale());
    finite("deep_norm_alpha", options.deep_norm_alpha());
    finite("deep_norm_beta", options.deep_norm_beta());
  }

  Norm norm(const std::string& name) {
    const std::int64_t width = options.attention().embed_dim();
    Norm norm;
    if (options.norm() == NormKind::kLayer)
      norm.layer =
          register_module(name, LayerNorm(LayerNormOptions({width}).eps(options.norm_eps()).bias(options.norm_bias())));
    else
      norm.rms = register_module(name, RMSNorm(RMSNormOptions(width).eps(options.norm_eps())));
    return norm;
  }

  Branch branch(const std::string& name, bool has_norm) {
    Branch branch;
    if (has_norm) branch.norm = norm(name + "_norm");
    if (options.norm_place() == NormPlace::kPreAndPost) branch.post_norm = norm(name + "_post_norm");
    if (options.layer_scale())
      branch.scale = register_module(
          name + "_scale", LayerScale(LayerScaleOptions(options.attention().embed_dim()).init(*options.layer_scale())));
    if (options.drop_path() != 0.0)
      branch.drop_path = register_module(name + "_drop_path", DropPath(options.drop_path()));
    return branch;
  }

  /// α · x + s · y.
  torch::Tensor sum(const torch::Tensor& x, const torch::Tensor& y) const {
    return (options.deep_norm_alpha() == 1.0 ? x : x * options.deep_norm_alpha()).add(y, options.residual_scale());
  }

  template <class Main>
  torch::Tensor add(const torch::Tensor& x, Branch& branch, const Main& main) {
    if (options.norm_place() == NormPlace::kPost) return branch.norm(sum(x, branch.finish(*this, main(x))));
    return sum(x, branch.finish(*this, main(branch.norm(x))));
  }

  void apply_deep_norm_beta() {
    if (options.deep_norm_beta() == 1.0) return;
    const torch::NoGradGuard no_grad;
    std::vector<torch::Tensor> scaled{feed_forward->up->weight, feed_forward->down->weight};
    if (!feed_forward->gate.is_empty()) scaled.push_back(feed_forward->gate->weight);
    for (MultiheadAttention* attention : {&self_attn, &cross_attn})
      if (!attention->is_empty()) {
        scaled.push_back((*attention)->out_proj->weight);
        scaled.push_back(weight_of_values(**attention));
      }
    for (const torch::Tensor& weight : scaled) weight.mul_(options.deep_norm_beta());
  }

  /// A view of the rows that project to values.
  static torch::Tensor weight_of_values(const MultiheadAttentionImpl& attention) {
    if (attention.options.separate_projections()) return attention.v_proj->weight;
    if (attention.v_proj_weight.defined()) return attention.v_proj_weight;
    const std::int64_t rows =
        attention.options.num_kv_heads().value_or(attention.options.num_heads()) * attention.head_dim;
    return attention.in_proj_weight.narrow(0, attention.in_proj_weight.size(0) - rows, rows);
  }

  Branch of_self_attn_, of_cross_attn_, of_feed_forward_;
};

TORCH_MODULE(TransformerBlock);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
