// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/options.h>
#include <attend/score/rotary_layout.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

class AttentionBackend;  // attention/attention_backend.h
class Variant;           // attention/variant.h
class CpuVariantMaker;   // attention/detail/cpu_variant.h

/// The tensors that a call reads, or their gradients.
struct AttentionTensors {
  at::Tensor query;         // (N, H, L, D)
  at::Tensor key;           // (N, G, S, D); with block_table (num_pages, G, page_size, D)
  at::Tensor value;         // (N, G, S, Dv); with block_table (num_pages, G, page_size, Dv)
  at::Tensor attn_mask;     // undefined, or 4-d and broadcastable to (N, H, L, S): bool, float32, or the query's dtype
  at::Tensor alibi_slopes;  // undefined, or (1 or N, H)
  at::Tensor query_offsets, key_offsets;  // undefined, or int32 (sequences + 1)
  at::Tensor key_lengths;                 // undefined, or int32 (N), contiguous
  at::Tensor block_table;                 // undefined, or int32 (N, pages of an entry) with rows side by side
  // Undefined, or (1 or N, L, R/2) and (1 or N, S, R/2): query and key are not rotated yet, and need no gradient of
  // them.
  at::Tensor query_cos, query_sin, key_cos, key_sin;
  std::vector<at::Tensor> variant_tensors;  // those that the variant reads
};

/// One call of attention(), checked: what every backend is given.
///
/// The tensors are the caller's, with the caller's strides; a backend copies what it cannot read in place. Missing
/// sizes are there as 1, and sizes of 1 are expanded to those of the other tensors.
struct Problem : AttentionTensors {
  at::Tensor dropout_seed;                 // undefined without dropout, or int64 (1) on the device, drawn once per call
  std::shared_ptr<const Variant> variant;  // of flex_attention(); null without
  std::shared_ptr<const CpuVariantMaker> cpu_variant;     // the same for the CPU kernels
  std::shared_ptr<const AttentionBackend> given_backend;  // that of the call or its guard; null for built-in ones
  RotaryLayout rotary_layout = RotaryLayout::kHalfSplit;
  Window window;  // includes is_causal; unlimited where it would mask nothing
  double scale = 1.0;
  double softcap = 0.0;
  double dropout = 0.0;
  bool needs_log_sum_exp = false;
  std::int64_t dimensions = 4;  // of the caller's query: 4, 3 (H, L, D) or 2 (L, D)

  std::int64_t batch_size() const { return query.size(0); }
  std::int64_t num_heads() const { return query.size(1); }
  std::int64_t num_kv_heads() const { return key.size(1); }
  std::int64_t query_length() const { return query.size(2); }
  std::int64_t key_length() const { return has_pages() ? block_table.size(1) * key.size(2) : key.size(2); }
  std::int64_t head_dim() const { return query.size(3); }
  std::int64_t value_dim() const { return value.size(3); }

  bool is_causal() const { return window.left < 0 && window.right == 0; }
  bool has_window() const { return window.left >= 0 || window.right > 0; }
  bool is_packed() const { return query_offsets.defined(); }
  bool has_pages() const { return block_table.defined(); }
  bool has_rotary() const { return key_cos.defined(); }
  std::int64_t rotary_dim() const { return has_rotary() ? 2 * key_cos.size(2) : 0; }

  /// Whether a key may be masked for a query of its sequence. Keys of other sequences of a packed batch do not count,
  /// and neither do those beyond key_lengths.
  bool may_mask() const { return attn_mask.defined() || variant != nullptr || window.left >= 0 || window.right >= 0; }
};

/// Whether a backward pass to this tensor may follow.
inline bool needs_gradient(const at::Tensor& tensor) {
  return tensor.defined() && tensor.requires_grad() && c10::GradMode::is_enabled();
}

/// Why a problem is made. For kExplain nothing is converted: a tensor that would be converted has no data.
enum class Purpose { kCompute, kExplain };

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
