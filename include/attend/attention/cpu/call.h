// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/cpu/pairs.h>
#include <attend/attention/cpu/rows.h>
#include <attend/attention/cpu/tile_operations.h>
#include <attend/version.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Up to kTileQueries queries of every head that are computed together, and the keys among which they stand: all of
/// them, or those of one sequence of a packed batch.
struct Block {
  std::int32_t query_begin, queries;
  std::int32_t key_begin, key_end;
  std::int32_t position;  // where the first query stands among the keys
};

/// One block of one head.
struct Place {
  std::int64_t number;
  std::int32_t batch, head;
  Block block;

  template <class Call>
  static Place at(const Call& call, std::int64_t i) {
    const auto blocks = static_cast<std::int64_t>(call.blocks.size());
    const std::int64_t head = i / blocks;
    return {i, static_cast<std::int32_t>(head / call.heads), static_cast<std::int32_t>(head % call.heads),
            call.blocks[static_cast<std::size_t>(i % blocks)]};
  }
};

/// A call with no more keys than this keeps its weights for the backward pass, unless they take more than kMostWeights
/// times the memory of q and k: a seventh of the arithmetic and all exponentials saved. Forward + backward, N 16, H 8,
/// two threads of a Zen 4, float32: 1.1 to 1.5 times as fast as without for 25 to 128 keys and D 8 to 128; for 256 keys
/// 0.5 for D 8, 1.1 for D 64. In bfloat16 about the same as without.
inline constexpr int kFewKeys = 128;
inline constexpr int kMostWeights = 8;

/// One call of attention, as the kernels see it: memory, strides and sizes. T is float or double, in which all is
/// computed; the tensors may also hold bfloat16.
template <class T>
struct Call {
  const TileOperations<T>* operations;
  const PairOperations* pairs = nullptr;  // for products of bfloat16; null: converted to T
  TensorRows<T> query, key, value, output;
  T* log_sum_exp = nullptr;       // (batch, heads, queries), contiguous; null: nobody wants it
  T* log_sum_exp_rest = nullptr;  // what it has lost by rounding, for the backward pass
  T* weights = nullptr;           // of each block, (keys, kTileQueries), for the backward pass instead of those two
  std::int32_t batch, heads, kv_heads;
  std::int32_t queries, keys, width, value_width;
  T scale;
  bool takes_keys_at_once = false;  // all of a block's in one softmax, with a backward pass to come or not
  bool may_rule_out = false;        // a mask, a mask_mod or a window; not the sequences of a packed batch
  std::vector<Block> blocks;

  std::int32_t kv_head(std::int32_t head) const { return head / (heads / kv_heads); }
  std::int64_t row_of(std::int32_t n, std::int32_t head) const {
    return (static_cast<std::int64_t>(n) * heads + head) * queries;
  }

  /// In numbers of T.
  std::int64_t size_of_weights() const {
    return static_cast<std::int64_t>(blocks.size()) * batch * heads * keys * kTileQueries;
  }
  T* weights_of(const Place& place) const { return weights + place.number * keys * kTileQueries; }
};

/// Memory of one thread, cut into pieces that begin at a cache line.
template <class T>
class Workspace {
 public:
  explicit Workspace(std::int64_t size)
      : memory_(std::make_unique_for_overwrite<T[]>(static_cast<std::size_t>(size + kLine))) {
    begin_again();
  }

  /// All pieces are given back.
  void begin_again() {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
    next_ = memory_.get() + (64 - address % 64) % 64 / sizeof(T);
  }

  T* take(std::int64_t size) {
    T* taken = next_;
    next_ += rounded(size);
    return taken;
  }

  static std::int64_t rounded(std::int64_t size) { return (size + kLine - 1) / kLine * kLine; }

 private:
  static constexpr std::int64_t kLine = 64 / sizeof(T);
  std::unique_ptr<T[]> memory_;
  T* next_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
