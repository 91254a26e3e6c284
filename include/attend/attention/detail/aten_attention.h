// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/attention_node.h>
#include <attend/attention/backend.h>
#include <attend/attention/detail/log_sum_exp_gradient.h>
#include <attend/attention/detail/problem.h>
#include <attend/detail/torch/expanded.h>
#include <attend/detail/torch/refused.h>
#include <attend/version.h>

#include <ATen/Context.h>
#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_efficient_attention_backward.h>
#include <ATen/ops/_efficient_attention_forward.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// ATen's attention operators for CUDA, called directly. They can do more than scaled_dot_product_attention():
///
/// | Operator | Dtypes | Additional options |
/// | --- | --- | --- |
/// | flash | float16, bfloat16 | windows, is_causal for L ≠ S, packed batches, log-sum-exp, dropout |
/// | efficient | also float32 | attn_mask with is_causal or a gradient, is_causal for L < S, log-sum-exp, dropout |
///
/// flash is _flash_attention_forward, efficient is _efficient_attention_forward. With attn_mask, efficient has no
/// log-sum-exp. If both can compute a call, flash does. None of this has ever run on a GPU (docs/cuda.md).
///
/// Dropout draws from ATen's random numbers, so other weights are dropped than by the other backends.
///
/// The gradient of a mask in float16 or bfloat16 is rounded for each score, before it is summed over dimensions of size
/// 1.
///
/// Packed batches: the longest sequence is not known without waiting for the GPU, so L and S are passed instead.
struct AtenAttention {
  /// Whether the problem, on a GPU, needs more than scaled_dot_product_attention().
  static bool is_needed(const Problem& problem) {
    const bool has_mask = problem.attn_mask.defined();
    return problem.has_window() || problem.is_packed() || problem.dropout > 0.0 || problem.needs_log_sum_exp ||
           needs_gradient(problem.attn_mask) ||
           (problem.is_causal() && (has_mask || problem.query_length() != problem.key_length()));
  }

  /// Whether an operator computes the problem as attention() promises. Sdpa::can_run() has checked the rest.
  static bool can_run(const Problem& problem, std::string* reason) {
    const std::int64_t D = problem.head_dim(), L = problem.query_length(), S = problem.key_length();
    if (problem.query.scalar_type() == at::kDouble)
      return refused(reason, "kSdpa has no kernel for float64 on a GPU with these options.");
    if (problem.dropout >= 1.0) return refused(reason, "kSdpa needs a dropout below 1.");
    const std::int64_t multiple = is_half(problem) ? 8 : 4;
    if (D % multiple != 0)
      return refused(reason, "kSdpa needs a width that is a multiple of ", multiple,
                     " on a GPU with these options; this one is ", D, ".");
    if (is_flash(problem)) {
      if (D > 256)
        return refused(reason, "kSdpa supports a width of at most 256 on a GPU with these options; this one is ", D,
                       ".");
      if (problem.window.right >= S)
        return refused(reason, "kSdpa does not support a window of ", problem.window.right,
                       " keys to the right for L = ", L, " and S = ", S, ", because ATen takes it as unlimited.");
      if (problem.window.left >= 0 && problem.window.right < 0 && L > S + 1)
        return refused(reason, "kSdpa does not support a window without a limit to the right for L = ", L,
                       " and S = ", S, ", because ATen limits it to S keys.");
      if (!at::globalContext().userEnabledFlashSDP())
        return refused(reason, "kSdpa cannot run, because setSDPUseFlash(false) was called.");
      return true;
    }
    const char* const dtypes = problem.attn_mask.defined() ? "without attn_mask" : "in float16 and bfloat16";
    if (problem.has_window()) return refused(reason, "kSdpa supports a window on a GPU only ", dtypes, ".");
    if (problem.is_packed())
      return refused(reason, "kSdpa supports query_offsets and key_offsets on a GPU only ", dtypes, ".");
    if (problem.is_causal() && L > S)
      return refused(reason, "kSdpa supports is_causal for L > S on a GPU only ", dtypes, ".");
    if (has_other_mask(problem))
      return refused(reason, "kSdpa needs a bool attn_mask or one of the query's dtype, ", problem.query.scalar_type(),
                     "; this one is ", problem.attn_mask.scalar_type(), ".");
    if (!at::globalContext().userEnabledMemEfficientSDP())
      return refused(reason, "kSdpa cannot run, because setSDPUseMemEfficient(false) was called.");
    return true;
  }

  static bool is_flash(const Problem& problem) { return is_half(problem) && !problem.attn_mask.defined(); }

  /// Explanation::copies, besides those that Sdpa names.
  static std::string copies(const Problem& problem) {
    if (is_flash(problem)) return "";
    std::string copies;
    if (problem.num_kv_heads() != problem.num_heads()) copies = "It copies key and value for each query head.";
    if (needs_gradient(problem.attn_mask))
      copies += std::string(copies.empty() ? "" : " ") + "It allocates the gradients of all L · S scores of each head.";
    return copies;
  }

  static KernelResult forward(const Problem& problem, bool with_backward) {
    return is_flash(problem) ? flash_forward(problem) : efficient_forward(problem, with_backward);
  }

  static AttentionTensors backward(const Problem& problem, const KernelResult& result,
                                   const AttentionResult& gradients) {
    const auto run = [&problem, &result](const Problem& of, const at::Tensor& gradient) {
      return is_flash(problem) ? flash_backward(of, result, gradient) : efficient_backward(of, result, gradient);
    };
    AttentionTensors results;
    if (gradients.output.defined()) results = run(problem, gradients.output);
    if (gradients.log_sum_exp.defined()) {
      Problem weights = problem;  // the log-sum-exp does not depend on dropout
      weights.dropout = 0.0;
      add_log_sum_exp_gradient(
          weights, gradients.log_sum_exp, results,
          [](const Problem& averaged) { return forward(averaged, /*with_backward=*/false).output; },
          [&](const at::Tensor& gradient) { return run(weights, gradient).value; });
    }
    return results;
  }

 private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  static constexpr std::int64_t kNoMask = 0, kCausalFromBottomRight = 2;  // custom_mask_type of ATen
  static constexpr std::int64_t kAlignedNumbers = 16;                     // of a mask's rows
  static constexpr std::int64_t kAlignedRows = 32;                        // of the log-sum-exp

  static bool is_half(const Problem& problem) {
    return problem.query.scalar_type() == at::kHalf || problem.query.scalar_type() == at::kBFloat16;
  }

  static bool has_other_mask(const Problem& problem) {
    if (!problem.attn_mask.defined()) return false;
    const at::ScalarType dtype = problem.attn_mask.scalar_type();
    return dtype != at::kBool && dtype != problem.query.scalar_type();
  }

  static std::optional<at::Tensor> optional(const at::Tensor& tensor) {
    return tensor.defined() ? std::make_optional(tensor) : std::nullopt;
  }

  /// The tensor with rows that can be read 16 bytes at a time, which the operators do without a check.
  static at::Tensor with_aligned_rows(const at::Tensor& tensor) {
    const auto numbers = static_cast<std::int64_t>(16 / tensor.element_size());
    bool is_aligned = tensor.stride(3) == 1 && reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
    for (int i = 0; i < 3; ++i) is_aligned &= tensor.size(i) == 1 || tensor.stride(i) % numbers == 0;
    return is_aligned ? tensor : tensor.clone(at::MemoryFormat::Contiguous);
  }

  // ---- _flash_attention_forward: (N, L, H, D), or (L, H, D) in a packed batch

  static at::Tensor to_flash(const at::Tensor& tensor, const Problem& problem) {
    const at::Tensor rows = with_aligned_rows(tensor);
    return problem.is_packed() ? rows.squeeze(0).transpose(0, 1) : rows.transpose(1, 2);
  }

  static at::Tensor from_flash(const at::Tensor& tensor, const Problem& problem) {
    return problem.is_packed() ? tensor.transpose(0, 1).unsqueeze(0) : tensor.transpose(1, 2);
  }

  static KernelResult flash_forward(const Problem& problem) {
    auto [output, log_sum_exp, random_state, unused, mask] = at::_flash_attention_forward(
        to_flash(problem.query, problem), to_flash(problem.key, problem), to_flash(problem.value, problem),
        optional(problem.query_offsets), optional(problem.key_offsets), problem.query_length(), problem.key_length(),
        problem.dropout, problem.is_causal(), /*return_debug_mask=*/false, std::make_optional(problem.scale),
        std::make_optional(problem.window.left), std::make_optional(problem.window.right));
    KernelResult result;
    result.output = from_flash(output, problem);
    log_sum_exp = log_sum_exp.view({problem.batch_size(), problem.num_heads(), problem.query_length()});
    // ATen gives +∞ for a query without a key, and for one whose scores are NaN.
    result.log_sum_exp =
        at::where(log_sum_exp.isposinf(), result.output.select(3, 0).to(at::kFloat) - kInfinity, log_sum_exp);
    if (problem.dropout > 0.0) result.saved = random_state;
    return result;
  }

  static AttentionTensors flash_backward(const Problem& problem, const KernelResult& result,
                                         const at::Tensor& gradient) {
    at::Tensor log_sum_exp = result.log_sum_exp.masked_fill(result.log_sum_exp.isneginf(), kInfinity).contiguous();
    if (problem.is_packed()) log_sum_exp = log_sum_exp.squeeze(0);
    auto [query, key, value] = at::_flash_attention_backward(
        to_flash(gradient, problem), to_flash(problem.query, problem), to_flash(problem.key, problem),
        to_flash(problem.value, problem), to_flash(result.output, problem), log_sum_exp, problem.query_offsets,
        problem.key_offsets, problem.query_length(), problem.key_length(), problem.dropout, problem.is_causal(),
        result.saved, at::Tensor(), std::make_optional(problem.scale), std::make_optional(problem.window.left),
        std::make_optional(problem.window.right));
    AttentionTensors results;
    results.query = from_flash(query, problem);
    results.key = from_flash(key, problem);
    results.value = from_flash(value, problem);
    return results;
  }

  // ---- _efficient_attention_forward: (N, L, H, D), as many key heads as query heads

  static at::Tensor to_efficient(const at::Tensor& tensor, std::int64_t heads) {
    const at::Tensor rows = with_aligned_rows(tensor);
    return (rows.size(1) == heads ? rows : rows.repeat_interleave(heads / rows.size(1), 1)).transpose(1, 2);
  }

  static at::Tensor from_efficient(const at::Tensor& gradient, std::int64_t kv_heads) {
    const at::Tensor in_order = gradient.transpose(1, 2);
    return in_order.size(1) == kv_heads ? in_order : in_order.unflatten(1, {kv_heads, -1}).sum(2);
  }

  static std::int64_t mask_type(const Problem& problem) {
    return problem.is_causal() ? kCausalFromBottomRight : kNoMask;
  }

  /// The mask as numbers (N, H, L, S), whose rows are aligned.
  static std::optional<at::Tensor> bias(const Problem& problem) {
    at::Tensor mask = problem.attn_mask;
    if (!mask.defined()) return std::nullopt;
    if (mask.scalar_type() == at::kBool)
      mask = at::zeros(mask.sizes(), problem.query.options()).masked_fill_(mask.logical_not(), -kInfinity);
    const std::int64_t S = problem.key_length();
    mask = mask.expand({-1, -1, -1, S});
    bool is_aligned = mask.stride(3) == 1 && mask.storage_offset() % kAlignedNumbers == 0;
    for (int i = 0; i < 3; ++i) is_aligned &= mask.size(i) == 1 || mask.stride(i) % kAlignedNumbers == 0;
    if (!is_aligned)
      mask = at::constant_pad_nd(mask, {0, (kAlignedNumbers - S % kAlignedNumbers) % kAlignedNumbers})
                 .contiguous()
                 .narrow(3, 0, S);
    return mask.expand({problem.batch_size(), problem.num_heads(), problem.query_length(), S});
  }

  static KernelResult efficient_forward(const Problem& problem, bool with_backward) {
    const std::int64_t H = problem.num_heads();
    auto [output, log_sum_exp, seed, offset, queries, keys] = at::_efficient_attention_forward(
        to_efficient(problem.query, H), to_efficient(problem.key, H), to_efficient(problem.value, H), bias(problem),
        std::nullopt, std::nullopt, std::nullopt, std::nullopt, problem.dropout, mask_type(problem),
        /*compute_log_sumexp=*/with_backward || problem.needs_log_sum_exp, problem.scale);
    KernelResult result;
    result.output = output.transpose(1, 2);
    if (with_backward || problem.needs_log_sum_exp)
      result.log_sum_exp = log_sum_exp.narrow(2, 0, problem.query_length());
    if (problem.dropout > 0.0 && with_backward) result.saved = at::stack({seed, offset});
    return result;
  }

  static AttentionTensors efficient_backward(const Problem& problem, const KernelResult& result,
                                             const at::Tensor& gradient) {
    const std::int64_t H = problem.num_heads(), G = problem.num_kv_heads(), L = problem.query_length();
    const std::int64_t missing = (kAlignedRows - L % kAlignedRows) % kAlignedRows;
    const at::Tensor log_sum_exp = at::constant_pad_nd(result.log_sum_exp, {0, missing}, kInfinity).contiguous();
    const at::Tensor &mask = problem.attn_mask, none;
    const bool needs_mask = mask.defined() && mask.requires_grad();
    auto [query, key, value, scores] = at::_efficient_attention_backward(
        to_efficient(gradient, H), to_efficient(problem.query, H), to_efficient(problem.key, H),
        to_efficient(problem.value, H), bias(problem), to_efficient(result.output, H), std::nullopt, std::nullopt, L,
        problem.key_length(), log_sum_exp, problem.dropout, result.saved.defined() ? result.saved.select(0, 0) : none,
        result.saved.defined() ? result.saved.select(0, 1) : none, mask_type(problem), needs_mask, problem.scale);
    AttentionTensors results;
    results.query = query.transpose(1, 2);
    results.key = from_efficient(key, G);
    results.value = from_efficient(value, G);
    if (needs_mask) {
      // ATen leaves blocks of scores above the diagonal as they were in memory.
      if (problem.is_causal()) scores = scores.tril(problem.key_length() - L);
      results.attn_mask = at::sum_to(scores.to(at::kFloat), one_copy(mask).sizes());
    }
    return results;
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
