// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/kernels/check_params.h>
#include <attend/kernels/cpu/bf16_operations.h>
#include <attend/kernels/cpu/head_view.h>
#include <attend/kernels/cpu/key_rows.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/kernels/cpu/tile_operations.h>
#include <attend/kernels/cpu/variant.h>
#include <attend/version.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Up to kTileQueries queries of every head that are computed together, and their keys: all keys, or those of one
/// sequence of a packed batch.
struct QueryTile {
  std::int32_t query_begin, queries;
  std::int32_t key_begin, key_end;
  std::int32_t position;  // of the first query among the keys
};

/// One tile of queries of one head: the unit of work.
struct WorkItem {
  std::int64_t number;
  std::int32_t batch, head;
  QueryTile tile;
};

// A call with at most kSinglePassKeys keys takes the softmax of all keys at once. It saves its weights for the backward
// pass, unless they take more than kMaxSavedWeightsRatio times the memory of query and key. Forward and backward pass
// together, N 16, H 8, float32, two threads of a Zen 4: with 25 to 128 keys this is 1.1 to 1.5 times as fast; with 256
// keys 0.5 times for head_dim 8, and 1.1 times for head_dim 64.
inline constexpr int kSinglePassKeys = 128;
inline constexpr int kMaxSavedWeightsRatio = 8;

/// The functions that a call uses: those of an instruction set, or, in tests, of any table.
template <class T>
struct KernelTables {
  const TileOperations<T>* tile;
  const Bf16Operations* bf16;  // null: there are no products of bfloat16

  KernelTables(InstructionSet set) : tile(&tile_operations<T>(set)), bf16(bf16_operations(set)) {}
  explicit KernelTables(const TileOperations<T>& operations) : tile(&operations), bf16(nullptr) {}
};

/// The numbers that the kernels derive from AttentionParams. T, float or double, is the type that they compute in.
template <class T>
struct AttentionPlan {
  const TileOperations<T>* operations;
  const Bf16Operations* bf16;  // for products of bfloat16; null: they are computed in T
  bool is_bfloat16;
  HeadTensor<T> query;
  KeyTensor<T> key, value;
  const std::int32_t* key_lengths;  // of each batch entry; null: `keys`
  std::int32_t batch_size, heads, kv_heads;
  std::int32_t queries, keys, head_dim, value_dim;
  T scale;
  bool is_single_pass = false;  // one softmax of all keys of a tile of queries
  bool may_mask;                // whether a key may be masked for a query of its sequence
  std::vector<QueryTile> tiles;

  AttentionPlan(const AttentionParams& params, const KernelTables<T>& tables, const CpuVariant<T>* variant)
      : operations(tables.tile),
        bf16(params.dtype == NumberType::kBFloat16 ? tables.bf16 : nullptr),
        is_bfloat16(params.dtype == NumberType::kBFloat16),
        query(params.query, is_bfloat16),
        key(params.key, params, is_bfloat16),
        value(params.value, params, is_bfloat16),
        key_lengths(params.key_lengths),
        batch_size(static_cast<std::int32_t>(params.batch_size)),
        heads(static_cast<std::int32_t>(params.num_heads)),
        kv_heads(static_cast<std::int32_t>(params.num_kv_heads)),
        queries(static_cast<std::int32_t>(params.query_length)),
        keys(static_cast<std::int32_t>(params.key_length)),
        head_dim(static_cast<std::int32_t>(params.head_dim)),
        value_dim(static_cast<std::int32_t>(params.value_dim)),
        scale(static_cast<T>(params.scale ? *params.scale : 1 / std::sqrt(static_cast<double>(params.head_dim)))),
        may_mask(params.mask_type != MaskType::kNone || variant != nullptr || params.window_left >= 0 ||
                 params.window_right >= 0) {
    if (params.num_sequences == 0) add_tiles(0, queries, 0, keys);
    for (std::int64_t b = 0; b < params.num_sequences; ++b)
      add_tiles(params.query_offsets[b], params.query_offsets[b + 1], params.key_offsets[b], params.key_offsets[b + 1]);
    // A single pass needs a backward pass that reads only the weights, and weights that are not too large.
    const double query_and_key = static_cast<double>(head_dim) * batch_size *
                                 (static_cast<double>(heads) * queries + static_cast<double>(kv_heads) * keys);
    is_single_pass = keys <= kSinglePassKeys && params.softcap == 0 && params.dropout == 0 &&
                     (variant == nullptr || !variant->has_derivatives()) &&
                     static_cast<double>(size_of_weights()) <= kMaxSavedWeightsRatio * query_and_key;
  }

  std::int32_t kv_head(std::int32_t head) const { return head / (heads / kv_heads); }

  /// The number of keys of a batch entry.
  std::int32_t keys_of(std::int64_t n) const { return key_lengths == nullptr ? keys : key_lengths[n]; }

  /// The largest number of keys that a batch entry has for the tile.
  std::int32_t most_keys(const QueryTile& tile) const {
    if (key_lengths == nullptr) return tile.key_end - tile.key_begin;
    return batch_size == 0 ? 0 : *std::max_element(key_lengths, key_lengths + batch_size);
  }

  /// Number `i` of `tiles`, for a batch entry.
  QueryTile tile_of(std::int64_t n, std::int64_t i) const {
    QueryTile tile = tiles[static_cast<std::size_t>(i)];
    const std::int32_t missing = keys - keys_of(n);
    tile.key_end -= missing;
    tile.position -= missing;
    return tile;
  }

  /// The first entry of a head in (N, H, L).
  std::int64_t row_of(std::int32_t n, std::int32_t head) const {
    return (static_cast<std::int64_t>(n) * heads + head) * queries;
  }

  std::int64_t num_items() const { return static_cast<std::int64_t>(tiles.size()) * batch_size * heads; }

  WorkItem item(std::int64_t i) const {
    const auto count = static_cast<std::int64_t>(tiles.size());
    const std::int64_t head = i / count;
    return {i, static_cast<std::int32_t>(head / heads), static_cast<std::int32_t>(head % heads),
            tile_of(head / heads, i % count)};
  }

  /// The weights of all items, each (keys, kTileQueries), in numbers.
  std::int64_t size_of_weights() const { return num_items() * keys * kTileQueries; }

 private:
  void add_tiles(std::int32_t query_begin, std::int32_t query_end, std::int32_t key_begin, std::int32_t key_end) {
    for (std::int32_t i = query_begin; i < query_end; i += kTileQueries)
      tiles.push_back({i, std::min(kTileQueries, query_end - i), key_begin, key_end, i + key_end - query_end});
  }
};

/// The memory that a forward pass writes, and its parts that are saved for the backward pass.
template <class T>
struct AttentionResults {
  HeadTensor<T> output;
  T* log_sum_exp = nullptr;  // (N, H, L); null: not wanted

  // Saved by a call with one pass: the weights of each item, (keys, kTileQueries). By another call: the log-sum-exp,
  // its rounding error and, for bfloat16, the output in float32 (N, H, L, Dv). Without the last two the gradients
  // would have several times the error of the dense formula, because an error in them affects all keys of a query.
  T *weights = nullptr, *saved_log_sum_exp = nullptr, *log_sum_exp_lo = nullptr, *exact_output = nullptr;

  AttentionResults(const AttentionPlan<T>& plan, const AttentionOutputs& given)
      : output(given.output, plan.is_bfloat16), log_sum_exp(static_cast<T*>(given.log_sum_exp)) {
    if (given.saved == nullptr) return;
    const std::int64_t bytes = saved_size(plan) * static_cast<std::int64_t>(sizeof(T));
    attend::detail::check_saved_bytes(given, bytes);
    T* next = static_cast<T*>(given.saved);
    for (const Piece& piece : pieces(plan)) {
      if (piece.size > 0) this->*piece.pointer = next;
      next += piece.size;
    }
  }

  /// The size of AttentionOutputs::saved, in numbers of T.
  static std::int64_t saved_size(const AttentionPlan<T>& plan) {
    std::int64_t size = 0;
    for (const Piece& piece : pieces(plan)) size += piece.size;
    return size;
  }

  T* weights_of(const AttentionPlan<T>& plan, const WorkItem& item) const {
    return weights == nullptr ? nullptr : weights + item.number * plan.keys * kTileQueries;
  }

  /// The output as the backward pass reads it.
  HeadTensor<T> read_output(const AttentionPlan<T>& plan) const {
    if (exact_output == nullptr) return output;
    const std::int64_t row = plan.value_dim, head = row * plan.queries;
    return {ConstTensorView4d{exact_output, {head * plan.heads, head, row, 1}}, /*is_bfloat16=*/false};
  }

 private:
  using Pointer = T* AttentionResults::*;  // nvcc writes the type of a member in parentheses: g++ warns about them
  struct Piece {
    Pointer pointer;
    std::int64_t size;
  };

  static std::vector<Piece> pieces(const AttentionPlan<T>& plan) {
    if (plan.is_single_pass) return {{&AttentionResults::weights, plan.size_of_weights()}};
    const std::int64_t rows = static_cast<std::int64_t>(plan.batch_size) * plan.heads * plan.queries;
    return {{&AttentionResults::saved_log_sum_exp, rows},
            {&AttentionResults::log_sum_exp_lo, rows},
            {&AttentionResults::exact_output, plan.is_bfloat16 ? rows * plan.value_dim : 0}};
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
