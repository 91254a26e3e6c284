// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention.h>
#include <attend/attention/backend.h>
#include <attend/attention/options.h>
#include <attend/version.h>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/sigmoid.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <limits>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Adds a sink to a result of attention: an additional key without a value, with a given score for each head.
///
/// output · sigmoid(log_sum_exp − sink). The result equals attention whose softmax includes the score of the sink, with
/// the value 0.
///
/// @param result The output, (N, H, L, Dv), and the log-sum-exp, (N, H, L), as attention_with_lse() and
/// flex_attention_with_lse() return them. Without a batch or heads, these dimensions are missing in both.
/// @param sinks (H), floating-point, on the same device. The scores of the sinks. Gradients reach them.
/// @return The output, with the dtype and sizes of result.output. A query that may attend to no key gives zeros.
/// @throws c10::ValueError if sinks is not (H) on the device of the output.
/// @throws c10::TypeError if sinks is not floating-point.
///
/// Source: Xiao et al., "Efficient streaming language models with attention sinks", 2023; learned sinks: OpenAI,
/// "gpt-oss", 2025.
///
/// @code
/// auto result = attend::flex_attention_with_lse(q, k, v, attend::Softcap{30}, attend::Causal{});
/// torch::Tensor y = attend::with_sinks(result, /*sinks=*/torch::zeros({8}));
/// @endcode
inline at::Tensor with_sinks(const AttentionResult& result, const at::Tensor& sinks) {
  const char* const kName = "attend::with_sinks";
  TORCH_CHECK_VALUE(result.output.defined() && result.log_sum_exp.defined(), kName,
                    ": the result must have an output and a log-sum-exp");
  const std::int64_t heads = result.output.dim() >= 3 ? result.output.size(-3) : 1;
  TORCH_CHECK_VALUE(sinks.defined(), kName, ": sinks must be a tensor (", heads, "), got an undefined one");
  TORCH_CHECK_VALUE(sinks.dim() == 1 && sinks.size(0) == heads, kName, ": sinks must be (", heads,
                    "), one score for each head, got ", sinks.sizes());
  TORCH_CHECK_TYPE(sinks.is_floating_point(), kName, ": sinks (", sinks.scalar_type(), ") must have a floating dtype");
  TORCH_CHECK_VALUE(sinks.device() == result.output.device(), kName, ": sinks (", sinks.device(),
                    ") must be on the device of the output (", result.output.device(), ")");
  const at::Tensor& log_sum_exp = result.log_sum_exp;  // (N, H, L), float32 or float64
  const at::Tensor wide = sinks.to(log_sum_exp.scalar_type());
  const at::Tensor above = log_sum_exp - (log_sum_exp.dim() >= 2 ? wide.unsqueeze(1) : wide);
  constexpr double kNegativeInfinity = -std::numeric_limits<double>::infinity();
  // A query without a key gets a share of 0, also if its sink is −∞: −∞ − (−∞) is NaN.
  const at::Tensor shares = at::sigmoid(above.masked_fill(log_sum_exp.eq(kNegativeInfinity), kNegativeInfinity));
  return (result.output * shares.unsqueeze(-1)).to(result.output.scalar_type());
}

/// attention() with a sink for each head; see with_sinks().
///
/// @param query (N, H, L, D), as in attention().
/// @param key (N, G, S, D), as in attention().
/// @param value (N, G, S, Dv), as in attention().
/// @param sinks (H), as in with_sinks().
/// @param options As in attention().
/// @return (N, H, L, Dv), with the dtype of query.
/// @throws c10::Error of the same kinds as attention() and with_sinks().
///
/// @code
/// torch::Tensor y = attend::attention_with_sinks(q, k, v, /*sinks=*/torch::zeros({8}));
/// @endcode
inline at::Tensor attention_with_sinks(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                       const at::Tensor& sinks, const AttentionOptions& options = {}) {
  return with_sinks(attention_with_lse(query, key, value, options), sinks);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
