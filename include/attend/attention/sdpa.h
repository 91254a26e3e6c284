// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/attention_node.h>
#include <attend/attention/backend.h>
#include <attend/attention/detail/aten_attention.h>
#include <attend/attention/detail/finite.h>
#include <attend/attention/detail/log_sum_exp_gradient.h>
#include <attend/attention/detail/output_layout.h>
#include <attend/attention/detail/problem.h>
#include <attend/detail/torch/refused.h>
#include <attend/detail/torch/without_data.h>
#include <attend/version.h>

#include <ATen/SDPBackend.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/util/StringUtil.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// ATen's fused kernels, for the calls that they compute exactly as attention() promises.
///
/// scaled_dot_product_attention() falls back to a dense path without a message. Here this is a reason not to run: kSdpa
/// gives a fused kernel or an error.
///
/// On the CPU the kernel is called directly. It accepts a mask together with is_causal, returns the log-sum-exp, and
/// can be differentiated any number of times. On other devices scaled_dot_product_attention() is called, whose backward
/// pass has no second derivative. For the calls that it does not compute, AtenAttention calls an operator of ATen
/// directly.
///
/// Accuracy on the CPU: gradients in float32 may have about four times the largest error of the dense formula
/// (benchmarks/results/accuracy.md). ATen computes the scores a second time with other rounding, unless the scale is a
/// power of two.
///
/// NaN on the CPU: ATen's kernel returns zeros if all scores of a query are NaN. A NaN or an infinity in a masked key
/// or value changes its result. Calls in which one of the two may have happened are computed again by `exact`. On other
/// devices ATen's results are returned.
class Sdpa final : public KernelBackend {
 public:
  /// `exact` can compute every problem on the CPU that ATen's kernel can.
  explicit constexpr Sdpa(const KernelBackend& exact) : exact_(exact) {}

  /// Up to this number of queries, is_causal for L < S is passed to ATen as a mask; see masks_causally().
  static constexpr std::int64_t kMostMaskedQueries = 32;

  Backend name() const override { return Backend::kSdpa; }

  bool can_run(const Problem& problem, std::string* reason = nullptr) const override {
    const bool on_cpu = problem.query.is_cpu();
    if (problem.batch_size() == 0 || problem.query_length() == 0 || problem.key_length() == 0)
      return refused(reason, "kSdpa needs at least one batch entry, one query and one key.");
    if (problem.value_dim() != problem.head_dim())
      return refused(reason, "kSdpa needs the same width for query and value; query has ", problem.head_dim(),
                     " and value has ", problem.value_dim(), ".");
    if (problem.variant != nullptr) return refused(reason, "kSdpa does not support a score_mod or a mask_mod.");
    if (problem.has_pages()) return refused(reason, "kSdpa does not support block_table.");
    if (problem.key_lengths.defined()) return refused(reason, "kSdpa does not support key_lengths.");
    if (problem.softcap > 0.0) return refused(reason, "kSdpa does not support softcap.");
    if (problem.alibi_slopes.defined()) return refused(reason, "kSdpa supports ALiBi only as an (H, L, S) attn_mask.");
    if (problem.scale <= 0.0)  // the causal kernel for the CPU scales its -inf
      return refused(reason, "kSdpa needs a positive scale; this one is ", problem.scale, ".");
    if (problem.needs_log_sum_exp && problem.attn_mask.defined())
      return refused(reason,
                     "kSdpa returns no log-sum-exp with attn_mask, because ATen's is wrong for a query that may attend "
                     "to nothing.");
    if (on_cpu && !can_run_on_cpu(problem, reason)) return false;
    if (uses_operators(problem) && !problem.query.is_cuda())
      return refused(reason, "kSdpa supports these options on the CPU and on CUDA only; the tensors are on ",
                     problem.query.device().type(), ".");
    if (uses_operators(problem) && !AtenAttention::can_run(problem, reason)) return false;
    if (!has_fused_kernel(problem))
      return refused(reason, "kSdpa cannot run, because ATen has no fused kernel for this call (",
                     problem.query.device().type(), ", ", problem.query.scalar_type(), ", width ", problem.head_dim(),
                     ").");
    return true;
  }

  std::string how(const Problem&) const override { return "kSdpa runs ATen's fused kernels."; }

  bool drops_other_weights(const Problem& problem) const override { return problem.dropout > 0.0; }

  std::string copies(const Problem& problem) const override {
    std::string names;
    const auto add = [&names](const char* name, const at::Tensor& tensor, bool is_mask = false) {
      if (!is_readable(tensor, is_mask)) names += (names.empty() ? "" : ", ") + std::string(name);
    };
    add("query", problem.query);
    add("key", problem.key);
    add("value", problem.value);
    add("attn_mask", problem.attn_mask, kIsMask);
    std::string copies = names.empty() ? "" : "It copies the inputs whose strides ATen cannot read: " + names + ".";
    const auto also = [&copies](const std::string& sentence) { copies += (copies.empty() ? "" : " ") + sentence; };
    if (problem.attn_mask.defined() && problem.attn_mask.scalar_type() == at::kBool)
      also("It converts the bool attn_mask to a float mask.");
    if (masks_causally(problem)) also("It makes an (L, S) mask for is_causal.");
    const bool needs_backward =
        needs_gradient(problem.query) || needs_gradient(problem.key) || needs_gradient(problem.value);
    if (problem.query.is_cpu() && is_half(problem) && needs_backward)
      also("It converts all inputs to float32 for the backward pass.");
    if (uses_operators(problem)) {
      const std::string more = AtenAttention::copies(problem);
      if (!more.empty()) also(more);
    }
    return copies;
  }

  AttentionResult run(const Problem& given) const override {
    if (given.query.is_cpu() || uses_operators(given)) return KernelBackend::run(given);
    const Problem problem = readable(given);
    return {
        at::scaled_dot_product_attention(problem.query, problem.key, problem.value, optional(problem.attn_mask),
                                         /*dropout_p=*/0.0, problem.is_causal(), problem.scale, is_grouped(problem)),
        at::Tensor()};
  }

  /// ATen's kernels cannot read all strides; see is_readable().
  Problem readable(const Problem& given) const override {
    Problem problem = given;
    problem.query = readable(given.query);
    problem.key = readable(given.key);
    problem.value = readable(given.value);
    problem.attn_mask = readable(given.attn_mask, kIsMask);
    return problem;
  }

  KernelResult forward(const Problem& problem, bool with_backward) const override {
    if (!problem.query.is_cpu()) return AtenAttention::forward(problem, with_backward);
    auto [output, log_sum_exp] =
        at::_scaled_dot_product_flash_attention_for_cpu(problem.query, problem.key, problem.value, /*dropout_p=*/0.0,
                                                        aten_is_causal(problem), additive_mask(problem), problem.scale);
    // ATen gives 0 as the log-sum-exp of a row of NaN, and of a query that may attend to no key. The latter needs a
    // mask.
    const bool may_hide_nan = holds_zero(log_sum_exp) && (!problem.attn_mask.defined() || !is_finite(problem.key));
    if (is_finite(problem.query) && !may_hide_nan && (!problem.may_mask() || is_finite(output)))
      return {{output, log_sum_exp}, {}};
    Problem again = exact_.readable(problem);
    again.needs_log_sum_exp = true;
    const KernelResult result = exact_.forward(again, /*with_backward=*/false);
    return {{result.output.to(output.scalar_type()), result.log_sum_exp}, {}};
  }

  /// Half precision is computed in float32: ATen's kernel would round P, dS and, for grouped heads, every partial sum
  /// to half precision.
  AttentionTensors backward(const Problem& given, const KernelResult& result,
                            const AttentionResult& gradients) const override {
    if (!given.query.is_cpu()) return AtenAttention::backward(given, result, gradients);
    const at::ScalarType wide = is_half(given) ? at::kFloat : given.query.scalar_type();
    Problem problem = given;
    problem.query = given.query.to(wide);
    problem.key = given.key.to(wide);
    problem.value = given.value.to(wide);
    const std::optional<at::Tensor> mask = additive_mask(problem);
    const auto run = [&](const at::Tensor& gradient) {
      AttentionTensors results;
      std::tie(results.query, results.key, results.value) = at::_scaled_dot_product_flash_attention_for_cpu_backward(
          gradient, problem.query, problem.key, problem.value, result.output.to(wide), result.log_sum_exp,
          /*dropout_p=*/0.0, aten_is_causal(problem), mask, problem.scale);
      return results;
    };
    AttentionTensors results;
    if (gradients.output.defined()) results = run(readable(gradients.output.to(wide)));
    if (gradients.log_sum_exp.defined())
      add_log_sum_exp_gradient(
          problem, gradients.log_sum_exp, results,
          [this](const Problem& averaged) { return forward(averaged, /*with_backward=*/false).output; },
          [&](const at::Tensor& gradient) { return run(readable(gradient)).value; });
    if (!is_finite(given.query) || (given.may_mask() && !is_finite(results.query))) {
      const Problem again = exact_.readable(given);
      results = exact_.backward(
          again, exact_.forward(again, /*with_backward=*/true),
          {gradients.output.defined() ? gradients.output.to(again.query.scalar_type()) : gradients.output,
           gradients.log_sum_exp});
    }
    return results;
  }

 private:
  static bool uses_operators(const Problem& problem) {
    return !problem.query.is_cpu() && AtenAttention::is_needed(problem);
  }

  static bool can_run_on_cpu(const Problem& problem, std::string* reason) {
    if (problem.is_packed()) return refused(reason, "kSdpa does not support query_offsets and key_offsets on the CPU.");
    if (problem.has_window()) return refused(reason, "kSdpa supports a window on the CPU only as an (L, S) attn_mask.");
    if (problem.dropout > 0.0) return refused(reason, "kSdpa does not support dropout on the CPU.");
    if (needs_gradient(problem.attn_mask))
      return refused(reason, "kSdpa computes no gradient for attn_mask on the CPU.");
    if (problem.is_causal() && problem.query_length() != problem.key_length() && !masks_causally(problem))
      return refused(reason, "kSdpa does not support is_causal on the CPU for L = ", problem.query_length(),
                     " and S = ", problem.key_length(),
                     ", because ATen counts the diagonal from the first key, not from the last.");
    return true;
  }

  /// Whether ATen has a kernel for the device, the dtype and the width.
  static bool has_fused_kernel(const Problem& problem) {
    if (uses_operators(problem)) {
      // ATen is asked about a call without options. For flash attention it is asked about bfloat16, which needs the
      // same GPUs.
      const at::ScalarType dtype = AtenAttention::is_flash(problem) ? at::kBFloat16 : problem.query.scalar_type();
      const auto of_length = [&](std::int64_t length) {
        return without_data({problem.batch_size(), problem.num_heads(), length, problem.head_dim()},
                            problem.query.options().dtype(dtype), /*requires_grad=*/false);
      };
      const at::Tensor keys = of_length(problem.key_length());
      return is_fused(at::_fused_sdp_choice(of_length(problem.query_length()), keys, keys));
    }
    // The mask is detached, because ATen reads its requires_grad even if no gradients are recorded. With is_causal the
    // mask is left out: _fused_sdp_choice() refuses both together, but the CPU kernel accepts them.
    const bool is_causal = aten_is_causal(problem);
    const at::Tensor mask = is_causal ? at::Tensor() : stand_in(detached(problem.attn_mask), kIsMask);
    return is_fused(at::_fused_sdp_choice(stand_in(problem.query), stand_in(problem.key), stand_in(problem.value),
                                          optional(mask), /*dropout_p=*/0.0, is_causal, problem.scale,
                                          is_grouped(problem)));
  }

  static bool is_fused(std::int64_t choice) {
    return choice != static_cast<std::int64_t>(at::SDPBackend::math) &&
           choice != static_cast<std::int64_t>(at::SDPBackend::error);
  }

  /// The kernel takes a mask of float32 or of the query's dtype. The copy is of the mask's own size, before it is
  /// broadcast.
  static std::optional<at::Tensor> additive_mask(const Problem& problem) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    at::Tensor mask = problem.attn_mask;
    if (mask.defined() && mask.scalar_type() == at::kBool) {
      mask = at::zeros(mask.sizes(), problem.query.options()).masked_fill_(mask.logical_not(), -kInfinity);
    } else if (mask.defined() && mask.scalar_type() != at::kFloat) {
      mask = mask.to(problem.query.scalar_type());
    }
    if (masks_causally(problem)) {
      const std::int64_t L = problem.query_length(), S = problem.key_length();
      const at::Tensor causal = at::full({L, S}, -kInfinity, problem.query.options()).triu_(S - L + 1);
      mask = mask.defined() ? at::where(causal.isneginf(), causal, mask) : causal;
    }
    return optional(mask);
  }

  /// ATen's causal diagonal begins at the first key. For fewer queries than keys an (L, S) mask says what is_causal
  /// means. With few queries this mask is small.
  static bool masks_causally(const Problem& problem) {
    return problem.is_causal() && problem.query.is_cpu() && problem.query_length() < problem.key_length() &&
           problem.query_length() <= kMostMaskedQueries;
  }

  static bool aten_is_causal(const Problem& problem) { return problem.is_causal() && !masks_causally(problem); }

  static bool is_grouped(const Problem& problem) { return problem.num_kv_heads() != problem.num_heads(); }

  static bool is_half(const Problem& problem) {
    return problem.query.scalar_type() == at::kHalf || problem.query.scalar_type() == at::kBFloat16;
  }

  static std::optional<at::Tensor> optional(const at::Tensor& tensor) {
    return tensor.defined() ? std::make_optional(tensor) : std::nullopt;
  }

  static at::Tensor detached(const at::Tensor& tensor) { return tensor.defined() ? tensor.detach() : tensor; }

  // ATen cannot read every tensor:
  // - If the last dimension has a stride other than 1, it uses its dense path.
  // - If rows overlap (windows of one signal, or one expanded row), its matrix products read wrong numbers. Only a mask
  //   may have such rows.
  // - If rows of several heads or batch entries of a query overlap, it writes the output in another order than the
  //   strides of that output say.
  static constexpr bool kIsMask = true;

  static bool is_readable(const at::Tensor& tensor, bool is_mask = false) {
    if (!tensor.defined()) return true;
    return is_mask ? tensor.stride(3) == 1 : has_rows(tensor);
  }

  static at::Tensor readable(const at::Tensor& tensor, bool is_mask = false) {
    return is_readable(tensor, is_mask) ? tensor : tensor.clone(at::MemoryFormat::Contiguous);
  }

  /// A tensor with the sizes and strides of readable(tensor), to ask ATen about. It may have no data.
  static at::Tensor stand_in(const at::Tensor& tensor, bool is_mask = false) {
    if (is_readable(tensor, is_mask)) return tensor;
    return without_data(tensor.sizes(), tensor.options(), tensor.requires_grad());
  }

  const KernelBackend& exact_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
