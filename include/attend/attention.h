// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/attention/detail/calls.h>
#include <attend/attention/options.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

#if !defined(ATTEND_COMPILED)
#include <attend/attention/detail/calls_impl.h>
#endif

namespace attend::inline ATTEND_VERSION_NAMESPACE {
/// Attention: each query's output is an average of the values, weighted by how well the query matches each key.
///
/// output = softmax(scale · q·kᵀ) v for every batch entry and head. The options change the scores, mask keys and drop
/// weights. Query head h uses key and value head ⌊h · G / H⌋. G < H is grouped-query attention, and G = 1 is
/// multi-query attention. The softmax is computed in float64 for float64 tensors, and in float32 for all others.
///
/// @param query (N, H, L, D). float64, float32, bfloat16 or float16, with any strides. N and L may be 0.
/// @param key (N, G, S, D), of the same dtype and device. G divides H. S may be 0.
/// @param value (N, G, S, Dv), of the same dtype and device.
/// @param options Masks, windows, scale, softcap, ALiBi, dropout, packed batches and the backend. Default: no mask, the
/// scale 1/√D, no dropout, Backend::kAuto.
/// @return (N, H, L, Dv), with the dtype of query. A query that may attend to no key gives zeros, also if S = 0. Its
/// gradients are zero.
/// @throws c10::ValueError for shapes, devices and options that do not fit.
/// @throws c10::TypeError for dtypes that do not fit, and for tensors that are sparse, nested, mkldnn or quantized.
/// @throws c10::NotImplementedError if the backend that the option or a BackendGuard requests cannot compute the call.
/// The message has the reason.
///
/// Shapes: all three tensors may also be 3-d, (H, L, D), or 2-d, (L, D). A missing size counts as 1. The output has as
/// many dimensions as query. A batch size of 1 and a single head are broadcast without a copy, in query as well.
///
/// Autocast: query, key and value are cast first, except float64. The output has the dtype of autocast. A float
/// attn_mask keeps its dtype.
///
/// Gradients: for query, key and value, and for an attn_mask or alibi_slopes that requires one. On the CPU they can be
/// differentiated any number of times. On a GPU, Backend::kSdpa may have no second derivative.
///
/// Memory layout: on the CPU the dimensions N, H and L of the output are in memory in the order that they have in
/// query, with every backend. If the last dimension of query has a stride other than 1, or its rows overlap, the output
/// is contiguous. On other devices the backend chooses the layout.
///
/// Differs from torch's scaled_dot_product_attention:
/// - The causal diagonal ends at the last key, for every L and S.
/// - attn_mask and is_causal can be combined, on every device.
/// - explain() says whether a call uses the dense formula, and why.
///
/// Source: Vaswani et al., "Attention is all you need", 2017; grouped heads: Ainslie et al., "GQA", 2023.
///
/// @code
/// torch::Tensor y = attend::attention(q, k, v, attend::AttentionOptions().is_causal(true));
/// @endcode
inline at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const AttentionOptions& options = {}) {
  return detail::attention(query, key, value, options, /*with_lse=*/false).output;
}

/// attention(), together with the log-sum-exp: for each query, the logarithm of the sum of exp(score) over all keys.
/// Use it to merge two results over different keys, or in a loss.
///
/// @param query As in attention().
/// @param key As in attention().
/// @param value As in attention().
/// @param options As in attention().
/// @return The output, (N, H, L, Dv), and the log-sum-exp, (N, H, L). Both may be differentiated.
/// @throws c10::Error of the same kinds as attention().
///
/// Fewer backends can compute the log-sum-exp. explain() with with_lse = true names the one that does.
///
/// Example: two halves of the keys, merged.
/// @code
/// auto [y1, lse1] = attend::attention_with_lse(q, k1, v1);
/// auto [y2, lse2] = attend::attention_with_lse(q, k2, v2);
/// torch::Tensor share = torch::sigmoid(lse1 - lse2).unsqueeze(3);  // (N, H, L, 1); NaN where both are −∞
/// torch::Tensor y = share * y1 + (1 - share) * y2;
/// @endcode
inline AttentionResult attention_with_lse(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                          const AttentionOptions& options = {}) {
  return detail::attention(query, key, value, options, /*with_lse=*/true);
}

/// The weights of attention(): for each query, how much of each value its output takes.
///
/// weights = softmax(scores). The dense formula computes them and allocates (N, H, L, S). Use this function to look at
/// the weights, and attention() to compute with them.
///
/// @param query (N, H, L, D), as in attention().
/// @param key (N, G, S, D), as in attention().
/// @param options As in attention(). The options dropout and backend have no effect.
/// @return (N, H, L, S), with the dtype of query. Each row sums to 1, or to 0 if the query may attend to no key. Its
/// gradients reach query, key, attn_mask and alibi_slopes.
/// @throws c10::Error of the same kinds as attention().
///
/// @code
/// torch::Tensor weights = attend::attention_weights(q, k);
/// @endcode
inline at::Tensor attention_weights(const at::Tensor& query, const at::Tensor& key,
                                    const AttentionOptions& options = {}) {
  return detail::attention_weights(query, key, options);
}

/// Says which backend attention() uses for these arguments, why not a faster one, and what it copies. Computes nothing.
///
/// @param query As in attention().
/// @param key As in attention().
/// @param value As in attention().
/// @param options As in attention().
/// @param with_lse Whether the question is about attention_with_lse(). Default: false.
/// @return The backend and the reasons, as text for people. Write it to a stream, or read its members.
/// @throws c10::Error of the same kinds as attention().
///
/// @code
/// attend::Explanation plan = attend::explain(q, k, v);  // plan.backend == attend::Backend::kCpu
/// std::cout << plan << '\n';                          // the same in a few sentences
/// @endcode
inline Explanation explain(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const AttentionOptions& options = {}, bool with_lse = false) {
  return detail::explain(query, key, value, options, with_lse);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
