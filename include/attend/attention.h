// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/attention/cpu.h>
#include <attend/attention/detail/option_mask.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/modification.h>
#include <attend/attention/options.h>
#include <attend/attention/preference.h>
#include <attend/attention/reference.h>
#include <attend/attention/sdpa.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <string>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {
namespace detail {

/// One backend, as the choice sees it.
struct BackendEntry {
  Backend backend;
  bool (*can_run)(const Problem&, std::string* reason);  // if not, with a sentence that says why, unless that is null
  std::string (*copies)(const Problem&);
  std::string (*how)(const Problem&);
  AttentionResult (*run)(const Problem&);
};

template <class B>
inline constexpr BackendEntry kEntry{B::kBackend, &B::can_run, &B::copies, &B::how, &B::run};

/// All backends, the fastest first. The last one can do everything.
inline constexpr BackendEntry kBackends[] = {kEntry<Cpu>, kEntry<Sdpa>, kEntry<Reference>};

/// The backend for a call. Adds to `why_not_faster`, unless that is null, why not one of those before it. Throws
/// c10::NotImplementedError if a backend asked for by name cannot run.
inline const BackendEntry& choose(const Problem& problem, Backend asked_for, std::string* why_not_faster = nullptr) {
  const Backend wanted = asked_for == Backend::kAuto ? BackendGuard::current() : asked_for;
  bool sdpa_can_run = false;
  for (const BackendEntry& entry : kBackends) {
    if (wanted == entry.backend) {
      if (entry.can_run(problem, nullptr)) return entry;
      std::string reason;
      entry.can_run(problem, &reason);
      TORCH_CHECK_NOT_IMPLEMENTED(false, "attend::attention: the requested backend cannot run. ", reason);
    }
    if (wanted != Backend::kAuto) continue;
    std::string reason;
    std::string* const sentence = why_not_faster == nullptr ? nullptr : &reason;
    if (sdpa_can_run || entry.can_run(problem, sentence)) {
      sdpa_can_run = entry.backend == Backend::kCpu && is_sdpa_faster(problem, sentence);
      if (!sdpa_can_run) return entry;
    }
    if (sentence != nullptr) *why_not_faster += (why_not_faster->empty() ? "" : " ") + reason;
  }
  TORCH_CHECK_VALUE(false, "attend::attention: there is no ", c10::str(wanted));
}

/// @throws c10::ValueError if a score_mod or mask_mod read outside of a tensor for a score that is allowed. Looks for
/// it where the result shows that it may be so: a TensorView gives NaN there, and an IntegerView leaves a mark.
inline void check_reads(const Problem& problem, Backend backend, const at::Tensor& output) {
  const auto is_whole = [](const at::Tensor& tensor) { return !tensor.is_floating_point(); };
  const std::vector<at::Tensor>& tensors = problem.modification_tensors;
  if (tensors.empty()) return;
  const bool has_nan = output.numel() > 0 && output.detach().select(3, 0).isnan().any().item<bool>();
  const bool leaves_no_mark = backend == Backend::kReference && std::any_of(tensors.begin(), tensors.end(), is_whole);
  if (has_nan || leaves_no_mark || problem.modification->has_seen_outside())
    problem.modification->check_reads(
        {problem.batch_size(), problem.num_heads(), problem.query_length(), problem.key_length()}, tensors,
        OptionMask(problem));
}

inline AttentionResult run(Problem problem, Backend asked_for) {
  check_has_data(problem);
  const WithoutAutocast without_autocast;
  const BackendEntry& entry = choose(problem, asked_for);
  if (problem.dropout > 0.0) problem.dropout_seed = draw_dropout_seed(problem.query);
  const AttentionResult result = entry.run(problem);
  if (problem.modification != nullptr) check_reads(problem, entry.backend, result.output);
  return {as_given(result.output, problem), as_given(result.log_sum_exp, problem)};
}

inline Explanation explain(const Problem& problem, Backend asked_for) {
  std::string why_not_faster;
  const BackendEntry& entry = choose(problem, asked_for, &why_not_faster);
  return {entry.backend, why_not_faster, entry.copies(problem), entry.how(problem)};
}

}  // namespace detail

/// Attention: each query's output is an average of the values, weighted by how well the query matches each key.
///
/// output = softmax(scale · q·kᵀ) v for every batch entry and head. The options change the scores, mask keys and drop
/// weights. Query head h uses key and value head h · G / H: G < H is grouped-query attention, and G = 1 is multi-query
/// attention. The softmax is computed in float32, and in float64 for float64 tensors.
///
/// @param query (N, H, L, D). float64, float32, bfloat16 or float16, with any strides. N and L may be 0.
/// @param key (N, G, S, D), of the same dtype and device. G divides H. S may be 0.
/// @param value (N, G, S, Dv), of the same dtype and device.
/// @param options Masks, windows, scale, softcap, ALiBi, dropout, packed batches and the backend.
/// @return (N, H, L, Dv). A query that may attend to nothing gives zeros, and so does S = 0; their gradients are zero.
/// @throws c10::ValueError for shapes, devices and options that do not fit.
/// @throws c10::TypeError for dtypes that do not fit, and for tensors that are sparse, nested, mkldnn or quantized.
/// @throws c10::NotImplementedError if a backend asked for by name cannot compute the call. The message has the reason.
///
/// Shapes: all three tensors may also be 3-d, (H, L, D), or 2-d, (L, D). Missing sizes are 1, and the output has as
/// many dimensions as query. Batch sizes and heads of 1 are broadcast without a copy, as in torch, those of query too.
///
/// Autocast: query, key and value are cast first, except float64. A float attn_mask keeps its dtype.
///
/// Gradients: for query, key and value, and for an attn_mask or alibi_slopes that requires one. On the CPU they can be
/// differentiated any number of times.
///
/// Memory: on the CPU the rows of the output are in memory in the order of the rows of query, with every backend. If
/// the last dimension of query is strided, the order is (N, H, L). On other devices ATen's kernels choose.
///
/// Differs from torch's scaled_dot_product_attention:
/// - The causal diagonal ends at the last key, for every L and S.
/// - A mask may come together with is_causal, on every device.
/// - explain() tells when the dense formula is used.
///
/// Source: Vaswani et al., "Attention is all you need", 2017; grouped heads: Ainslie et al., "GQA", 2023.
///
/// @code
/// torch::Tensor y = attend::attention(q, k, v, attend::AttentionOptions().is_causal(true));
/// @endcode
inline at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const AttentionOptions& options = {}) {
  return detail::run(detail::attention_problem(query, key, value, options), options.backend()).output;
}

/// attention(), together with the logarithm of the sum of each row's exponentials. Merging two results and some losses
/// need it.
///
/// @param query As in attention().
/// @param key As in attention().
/// @param value As in attention().
/// @param options As in attention().
/// @return The output, (N, H, L, Dv), and the log-sum-exp, (N, H, L). Both may be differentiated.
/// @throws c10::Error of the same kinds as attention(). Fewer backends can compute
/// the log-sum-exp: pass with_lse = true to explain().
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
  detail::Problem problem = detail::attention_problem(query, key, value, options);
  problem.needs_log_sum_exp = true;
  return detail::run(problem, options.backend());
}

/// The weights of attention(), computed by the dense formula: to look at a map, not to compute with it.
///
/// @param query (N, H, L, D), as in attention().
/// @param key (N, G, S, D), as in attention().
/// @param options As in attention(). The options dropout and backend have no effect.
/// @return (N, H, L, S). Each row sums to 1, or to 0 if the query may attend to nothing.
/// @throws c10::Error of the same kinds as attention().
///
/// @code
/// torch::Tensor weights = attend::attention_weights(q, k);
/// @endcode
inline at::Tensor attention_weights(const at::Tensor& query, const at::Tensor& key,
                                    const AttentionOptions& options = {}) {
  const detail::Problem problem = detail::scores_problem(query, key, options);
  detail::check_has_data(problem);
  const detail::WithoutAutocast without_autocast;
  return detail::as_given(detail::Reference::weights(problem), problem);
}

/// Which backend attention() takes for these arguments, why not a faster one, and what it copies. Computes nothing.
///
/// @param query As in attention().
/// @param key As in attention().
/// @param value As in attention().
/// @param options As in attention().
/// @param with_lse Whether the question is about attention_with_lse(). Default: false.
/// @return The backend and the reasons. It can be written to a stream.
/// @throws c10::Error of the same kinds as attention().
///
/// @code
/// attend::Explanation plan = attend::explain(q, k, v);  // plan.backend == attend::Backend::kCpu
/// std::cout << plan << '\n';                          // the same in a few sentences
/// @endcode
inline Explanation explain(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const AttentionOptions& options = {}, bool with_lse = false) {
  detail::Problem problem = detail::attention_problem(query, key, value, options, detail::Purpose::kExplain);
  problem.needs_log_sum_exp = with_lse;
  return detail::explain(problem, options.backend());
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
