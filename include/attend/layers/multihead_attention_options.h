// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/attention/options.h>
#include <attend/detail/torch/checks.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/arg.h>

#include <cstdint>
#include <optional>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of MultiheadAttention: those of torch::nn::MultiheadAttentionOptions, then options that torch lacks.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::MultiheadAttentionOptions(512, 8).batch_first(true).num_kv_heads(2).is_causal(true)
/// @endcode
struct MultiheadAttentionOptions {
  /// Sets the two options that have no default.
  ///
  /// @param embed_dim As the option embed_dim.
  /// @param num_heads As the option num_heads.
  MultiheadAttentionOptions(std::int64_t embed_dim, std::int64_t num_heads)
      : embed_dim_(embed_dim), num_heads_(num_heads), kdim_(embed_dim), vdim_(embed_dim) {}

  /// Width E of the query and of the output, at least 1. No default.
  TORCH_ARG(std::int64_t, embed_dim);
  /// The number of query heads. It must divide embed_dim, unless head_dim is given. No default.
  TORCH_ARG(std::int64_t, num_heads);
  /// The probability with which a weight is set to 0 in training mode, from 0 to 1. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;
  /// Whether the projections have a bias. Default: true.
  TORCH_ARG(bool, bias) = true;
  /// Whether to append one learned key and value, which every query may attend to. Default: false.
  TORCH_ARG(bool, add_bias_kv) = false;
  /// Whether to append one key and value of zeros, which every query may attend to. Default: false.
  TORCH_ARG(bool, add_zero_attn) = false;
  /// Width of the keys. Default: embed_dim.
  TORCH_ARG(std::int64_t, kdim);
  /// Width of the values. Default: embed_dim.
  TORCH_ARG(std::int64_t, vdim);

  /// Whether query, key, value and output are (N, L, E). Otherwise they are (L, N, E). Default: false, as in torch.
  TORCH_ARG(bool, batch_first) = false;
  /// The number of key and value heads G. It must divide num_heads. num_heads / num_kv_heads query heads share one of
  /// them. Default: num_heads.
  TORCH_ARG(std::optional<std::int64_t>, num_kv_heads);
  /// Width of one head of queries, keys and values. Default: embed_dim / num_heads.
  TORCH_ARG(std::optional<std::int64_t>, head_dim);
  /// Whether a query attends only to the keys up to its own position. The last query is at the last key. Default:
  /// false.
  TORCH_ARG(bool, is_causal) = false;
  /// Limits a query to the keys near its position: `.window({left, right})`, −1 = unlimited. Default: unlimited.
  TORCH_ARG(Window, window) = {};
  /// The factor by which q·k is multiplied: a number or kInverseSqrt. Default: kInverseSqrt, 1/√head_dim.
  TORCH_ARG(Scale, scale) = kInverseSqrt;
  /// Which backend computes the attention; see AttentionOptions::backend(). With kReference torch computes the
  /// projections too. With the other values attend's kernels compute them where they are faster. Default: kAuto.
  TORCH_ARG(BackendChoice, backend) = Backend::kAuto;
};

namespace detail {

inline void check_options(const MultiheadAttentionOptions& options) {
  constexpr const char* kName = "attend::MultiheadAttention";
  const std::int64_t num_kv_heads = options.num_kv_heads().value_or(options.num_heads());
  check_positive(kName, "embed_dim", options.embed_dim());
  check_positive(kName, "num_heads", options.num_heads());
  check_positive(kName, "kdim", options.kdim());
  check_positive(kName, "vdim", options.vdim());
  check_positive(kName, "num_kv_heads", num_kv_heads);
  TORCH_CHECK_VALUE(options.num_heads() % num_kv_heads == 0, kName, ": num_heads (", options.num_heads(),
                    ") must be divisible by num_kv_heads (", num_kv_heads, ")");
  if (options.head_dim())
    check_positive(kName, "head_dim", *options.head_dim());
  else
    TORCH_CHECK_VALUE(options.embed_dim() % options.num_heads() == 0, kName, ": embed_dim (", options.embed_dim(),
                      ") must be divisible by num_heads (", options.num_heads(), "), or set head_dim");
  TORCH_CHECK_VALUE(options.dropout() >= 0.0 && options.dropout() <= 1.0, kName, ": dropout (", options.dropout(),
                    ") must be a probability from 0 to 1");
  TORCH_CHECK_VALUE(options.window().left >= -1 && options.window().right >= -1, kName,
                    ": both sides of window must be at least 0, or -1 for unlimited, got ", options.window());
}

}  // namespace detail

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
