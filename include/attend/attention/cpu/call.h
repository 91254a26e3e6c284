// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/cpu/pairs.h>
#include <attend/attention/cpu/rows.h>
#include <attend/attention/cpu/tile_operations.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace attend::cpu {

/// Up to kTileQueries queries of every head that are computed together, and the keys among which they stand: all of
/// them, or those of one sequence of a packed batch.
struct Block {
  std::int32_t query_begin, queries;
  std::int32_t key_begin, key_end;
  std::int32_t position;  // where the first query stands among the keys
};

/// One call of attention, as the kernels see it: memory, strides and sizes. T is float or double, in which all is
/// computed; the tensors may also hold bfloat16.
template <class T>
struct Call {
  const TileOperations<T>* operations;
  const PairOperations* pairs = nullptr;  // for products of bfloat16; null: converted to T
  TensorRows<T> query, key, value, output;
  T* log_sum_exp;       // (batch, heads, queries), contiguous
  T* log_sum_exp_rest;  // what it has lost by rounding; may be null in a forward pass
  std::int32_t batch, heads, kv_heads;
  std::int32_t queries, keys, width, value_width;
  T scale;
  std::vector<Block> blocks;

  std::int32_t kv_head(std::int32_t head) const { return head / (heads / kv_heads); }
  std::int64_t row_of(std::int32_t n, std::int32_t head) const {
    return (static_cast<std::int64_t>(n) * heads + head) * queries;
  }
};

/// One block of one head.
struct Place {
  std::int32_t batch, head;
  Block block;

  template <class T>
  static Place at(const Call<T>& call, std::int64_t i) {
    const auto blocks = static_cast<std::int64_t>(call.blocks.size());
    const std::int64_t head = i / blocks;
    return {static_cast<std::int32_t>(head / call.heads), static_cast<std::int32_t>(head % call.heads),
            call.blocks[static_cast<std::size_t>(i % blocks)]};
  }
};

/// Memory of one thread, cut into pieces that begin at a cache line.
template <class T>
class Workspace {
 public:
  explicit Workspace(std::int64_t size) : memory_(std::make_unique_for_overwrite<T[]>(size + kLine)) { begin_again(); }

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

}  // namespace attend::cpu
