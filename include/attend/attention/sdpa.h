// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/problem.h>

#include <ATen/SDPBackend.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/util/StringUtil.h>

#include <optional>
#include <string>

namespace attend::detail {

/// ATen's fused kernels, for what they compute exactly as attention() promises.
///
/// ATen falls back to a dense path of its own in silence; here that is a reason not to run, so whoever asks for kSdpa
/// gets a fused kernel or an error. Two things stay ATen's: the kernels have no second derivative (torch says so when
/// one is asked for), and on the CPU a query that holds NaN gives zeros where the reference gives NaN.
struct Sdpa {
  static constexpr Backend kBackend = Backend::kSdpa;

  static std::optional<std::string> why_not(const Problem& problem) {
    if (problem.batch_size() == 0 || problem.query_length() == 0 || problem.key_length() == 0)
      return "kSdpa: there is nothing to compute for an empty batch, query or key";
    if (problem.value_width() != problem.head_width())
      return c10::str("kSdpa: the value width (", problem.value_width(), ") differs from the query width (",
                      problem.head_width(), ")");
    if (problem.mask_needs_gradient()) return "kSdpa: ATen's kernels give no gradient for attn_mask";
    if (is_causal(problem) && problem.attn_mask.defined())
      return "kSdpa: ATen's kernels take attn_mask or is_causal, not both";
    if (is_causal(problem) && problem.query_length() != problem.key_length())
      return c10::str("kSdpa: for unequal lengths (L ", problem.query_length(), ", S ", problem.key_length(),
                      ") ATen counts the causal diagonal from the first key, not from the last");
    if (problem.scale <= 0.0)  // the causal kernel for the CPU scales its -inf
      return c10::str("kSdpa: ATen's fused kernels need a positive scale, got ", problem.scale);
    const auto choice = static_cast<at::SDPBackend>(at::_fused_sdp_choice(
        stand_in(problem.query), stand_in(problem.key), stand_in(problem.value), optional(stand_in(problem.attn_mask)),
        /*dropout_p=*/0.0, is_causal(problem), problem.scale, is_grouped(problem)));
    if (choice == at::SDPBackend::math || choice == at::SDPBackend::error)
      return c10::str("kSdpa: ATen has no fused kernel for this call (", problem.query.device().type(), ", ",
                      problem.query.scalar_type(), ", width ", problem.head_width(), ")");
    return std::nullopt;
  }

  static std::string copies(const Problem& problem) {
    std::string names;
    const auto add = [&names](const char* name, const at::Tensor& tensor) {
      if (!is_readable(tensor)) names += (names.empty() ? "" : ", ") + std::string(name);
    };
    add("query", problem.query);
    add("key", problem.key);
    add("value", problem.value);
    add("attn_mask", problem.attn_mask);
    return names.empty() ? "" : "kSdpa copies what is not contiguous along its last dimension: " + names;
  }

  static at::Tensor run(const Problem& problem) {
    return at::scaled_dot_product_attention(readable(problem.query), readable(problem.key), readable(problem.value),
                                            optional(readable(problem.attn_mask)), /*dropout_p=*/0.0,
                                            is_causal(problem), problem.scale, is_grouped(problem));
  }

 private:
  /// A single query stands at the last key and sees them all.
  static bool is_causal(const Problem& problem) { return problem.is_causal && problem.query_length() > 1; }

  static bool is_grouped(const Problem& problem) { return problem.num_kv_heads() != problem.num_heads(); }

  static std::optional<at::Tensor> optional(const at::Tensor& tensor) {
    return tensor.defined() ? std::make_optional(tensor) : std::nullopt;
  }

  // Any other stride along the last dimension sends ATen to its dense path.
  static bool is_readable(const at::Tensor& tensor) { return !tensor.defined() || tensor.stride(3) == 1; }

  static at::Tensor readable(const at::Tensor& tensor) {
    return is_readable(tensor) ? tensor : tensor.clone(at::MemoryFormat::Contiguous);
  }

  /// What readable() gives, without its contents: to ask ATen with.
  static at::Tensor stand_in(const at::Tensor& tensor) {
    if (is_readable(tensor)) return tensor;
    return at::empty_like(tensor, at::MemoryFormat::Contiguous).requires_grad_(tensor.requires_grad());
  }
};

}  // namespace attend::detail
