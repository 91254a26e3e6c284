// SPDX-License-Identifier: MIT
#pragma once

// Forward pass for a few queries, as in decoding.
//
//   for each key head and chunk of its keys (one work item):
//     for each tile of 64 keys:
//       for each query head of the key head: scores, changed and masked; online softmax
//       for each query head of the key head: O += P V
//     the last item of a key head to end adds up all of its chunks: O = Σ exp(m_c − m) O_c, and the same for the
//     sums of weights
//
// Each key and value is read from memory once for all query heads that share it. The chunks depend on the call alone,
// so the results have the same bits with any number of threads.

#include <attend/kernels/cpu/few_query_products.h>
#include <attend/kernels/cpu/forward.h>
#include <attend/kernels/cpu/head_view.h>
#include <attend/kernels/cpu/key_rows.h>
#include <attend/kernels/cpu/plan.h>
#include <attend/kernels/cpu/scores.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/kernels/cpu/tile_operations.h>
#include <attend/kernels/cpu/workspace.h>
#include <attend/version.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// A forward pass of a few queries: work() for all items in any order, each once.
template <class T>
class FewQueryPass {
 public:
  /// Whether the pass can compute a call and is faster. It saves nothing for a backward pass, which would compute
  /// scores with other rounding errors than this one.
  static bool is_for(const AttentionPlan<T>& plan, const AttentionResults<T>& results) {
    if (results.weights != nullptr || results.saved_log_sum_exp != nullptr) return false;
    if (plan.heads / plan.kv_heads > kMostHeads) return false;
    return std::all_of(plan.tiles.begin(), plan.tiles.end(), [&](const QueryTile& tile) {
      const std::int32_t keys = plan.most_keys(tile);
      return keys >= kFewestKeys && tile.queries <= (keys <= kSinglePassKeys ? 6 : most_queries(plan));
    });
  }

  FewQueryPass(const AttentionPlan<T>& plan, const Scores<T>& scores, const AttentionResults<T>& results)
      : plan_(plan),
        scores_(scores),
        results_(results),
        group_(plan.heads / plan.kv_heads),
        groups_(static_cast<std::int64_t>(plan.tiles.size()) * plan.batch_size * plan.kv_heads),
        output_row_(Workspace<T>::rounded(plan.value_dim)) {
    std::int32_t keys = 0;
    for (const QueryTile& tile : plan.tiles) {
      keys = std::max(keys, plan.most_keys(tile));
      queries_ = std::max(queries_, tile.queries);
    }
    part_size_ = Workspace<T>::rounded((2 + output_row_) * queries_ * group_);
    const std::int64_t wanted = groups_ == 0 ? 1 : (kItems + groups_ - 1) / groups_;
    chunks_ = static_cast<int>(std::clamp<std::int64_t>(keys / kChunkKeys, 1, wanted));
    if (chunks_ == 1) return;
    parts_.resize(static_cast<std::size_t>(groups_ * chunks_ * part_size_));
    finished_ = std::vector<std::atomic<int>>(static_cast<std::size_t>(groups_));
  }

  std::int64_t num_items() const { return groups_ * chunks_; }

  /// Query heads that see the same tiles of keys.
  struct Band {
    std::int32_t first_head, num_heads;  // within the group
    KeyTiles keys;
  };

  /// The memory of a thread, which it uses for one item after the other.
  struct Scratch {
    Workspace<T> memory, careful;  // `careful` is for forward_item(), which calls begin_again()
    std::vector<Band> bands;
    std::vector<T*> scores_of_row, rescale_of_row;  // a row is a query of a head: all of the first head, then the next
  };

  void work(std::int64_t item, Scratch& scratch) {
    const std::int64_t number = item / chunks_;
    const Group group = this->group(number);
    scratch.memory.begin_again();
    T* const part = chunks_ == 1 ? scratch.memory.take(part_size_) : part_of(item);
    attend_to_chunk(group, static_cast<int>(item % chunks_), part, scratch);
    if (chunks_ > 1) {
      // The thread that finishes the last chunk sees what the others have written.
      if (finished_[static_cast<std::size_t>(number)].fetch_add(1, std::memory_order_acq_rel) + 1 < chunks_) return;
      add_parts(part_of(number * chunks_), group.tile.queries);
    }
    write(group, chunks_ == 1 ? part : part_of(number * chunks_), scratch);
  }

 private:
  // This pass is faster than forward_item() within these limits: benchmarks/results/few_queries.md.
  static constexpr int kFewestKeys = 16;
  static constexpr int kMostHeads = 256;  // of a key head: each takes memory for a tile of scores
  static int most_queries(const AttentionPlan<T>& plan) {
    if (plan.operations->vector_bytes >= 64) return 16;
    return plan.is_bfloat16 ? 4 : 8;  // each four rows convert the keys again
  }

  static constexpr int kChunkKeys = 256;      // fewest keys of a chunk
  static constexpr std::int64_t kItems = 64;  // keys are cut into chunks until there are this many items

  /// The query heads of one key head, and their queries.
  struct Group {
    std::int32_t batch, kv_head;
    QueryTile tile;
  };

  Group group(std::int64_t number) const {
    const auto tiles = static_cast<std::int64_t>(plan_.tiles.size());
    const std::int64_t head = number / tiles, batch = head / plan_.kv_heads;
    return {static_cast<std::int32_t>(batch), static_cast<std::int32_t>(head % plan_.kv_heads),
            plan_.tile_of(batch, number % tiles)};
  }

  // A part: for each query head, the largest scores, the sums of weights, and the rows of the output.
  T* part_of(std::int64_t item) { return parts_.data() + item * part_size_; }
  T* largest_of(T* part, std::int32_t head) const { return part + head * queries_; }
  T* sums_of(T* part, std::int32_t head) const { return part + (group_ + head) * queries_; }
  T* outputs_of(T* part) const { return part + 2 * group_ * queries_; }  // row head · queries + i

  void attend_to_chunk(const Group& group, int chunk, T* part, Scratch& scratch) const {
    Workspace<T>& memory = scratch.memory;
    const TileOperations<T>& operations = *plan_.operations;
    const int queries = group.tile.queries, columns = columns_for(queries);
    const std::int64_t query_row = Workspace<T>::rounded(plan_.head_dim);
    const std::int32_t num_rows = group_ * queries;
    std::fill_n(largest_of(part, 0), group_ * queries_, kNegativeInfinity<T>);
    std::fill_n(outputs_of(part), num_rows * output_row_, T(0));

    QueryTile tile = group.tile;
    set_to_chunk(tile, chunk);
    const auto item_of_head = [&](std::int32_t head) {
      return WorkItem{0, group.batch, group.kv_head * group_ + head, tile};
    };
    // A mask_mod may give each head other keys.
    const std::int32_t band_heads = scores_.variant == nullptr ? group_ : 1;
    scratch.bands.resize(static_cast<std::size_t>(group_ / band_heads));
    std::size_t steps = 0;
    std::int32_t first_head = 0;
    for (Band& band : scratch.bands) {
      band.first_head = first_head;
      band.num_heads = band_heads;
      scores_.find_tiles(plan_, item_of_head(first_head), band.keys);
      steps = std::max(steps, band.keys.tiles.size());
      first_head += band_heads;
    }

    T* const rows = memory.take(num_rows * query_row);
    std::fill_n(rows, num_rows * query_row, T(0));
    T* const tiles = memory.take(group_ * kTileSize);
    for (int j = 0; j < group_ * kTileKeys; ++j) std::fill_n(tiles + j * kTileQueries, columns, T(0));  // the padding
    T* const sums = memory.take(group_ * kTileQueries);
    std::fill_n(sums, group_ * kTileQueries, T(0));
    T* const largest = memory.take(group_ * kTileQueries);
    std::fill_n(largest, group_ * kTileQueries, kNegativeInfinity<T>);
    T* const rescale = memory.take(group_ * kTileQueries);
    T* const factors = scores_.options.dropout > 0 ? memory.take(kTileSize) : nullptr;
    std::vector<T*>&scores_of_row = scratch.scores_of_row, &rescale_of_row = scratch.rescale_of_row;
    scores_of_row.clear();
    rescale_of_row.clear();
    for (std::int32_t head = 0; head < group_; ++head) {
      const HeadView<T> query = plan_.query.of(group.batch, group.kv_head * group_ + head);
      query.read(tile.query_begin, queries, plan_.head_dim, rows + head * queries * query_row, query_row);
      for (int i = 0; i < queries; ++i) {
        scores_of_row.push_back(tiles + head * kTileSize + i);
        rescale_of_row.push_back(rescale + head * kTileQueries + i);
      }
    }
    for (std::int64_t i = 0; i < num_rows * query_row; ++i) rows[i] *= plan_.scale;
    const std::int32_t num_keys = plan_.keys_of(group.batch);
    RowReader keys(plan_.key.of(group.batch, group.kv_head), num_keys, plan_.head_dim, memory);
    RowReader values(plan_.value.of(group.batch, group.kv_head), num_keys, plan_.value_dim, memory);

    for (std::size_t step = 0; step < steps; ++step)
      for (const Band& band : scratch.bands) {
        if (step >= band.keys.tiles.size()) continue;
        const KeyTiles::Tile& found = band.keys.tiles[step];
        const std::int32_t row = band.first_head * queries, count = band.num_heads * queries;
        keys.read(found, [&](const DenseRows<T>& run, int first, int run_keys) {
          operations.few_query_scores(run, first, run_keys, rows + row * query_row, query_row, count, keys.width,
                                      scores_of_row.data() + row);
        });
        for (std::int32_t head = band.first_head; head < band.first_head + band.num_heads; ++head) {
          const Tile<T> scores = scores_.tile(plan_, item_of_head(head), found, tiles + head * kTileSize);
          scores_.apply(operations, scores, /*is_careful=*/false);
          // From three queries on, the step with queries in the lanes is at least as fast: it needs no operation across
          // lanes.
          const auto softmax_step = queries <= 2 ? operations.few_query_softmax_step : operations.softmax_step;
          softmax_step(scores.scores, found.keys, queries <= 2 ? queries : columns, largest + head * kTileQueries,
                       sums + head * kTileQueries, rescale + head * kTileQueries);
          if (factors == nullptr) continue;
          scores_.options.dropout_factors(operations, scores, factors);
          operations.multiply(scores.scores, factors, found.keys);
        }
        values.read(found, [&](const DenseRows<T>& run, int first, int run_keys) {
          operations.add_few_query_values(run, first, run_keys, scores_of_row.data() + row, count, values.width,
                                          first == 0 ? rescale_of_row.data() + row : nullptr,
                                          outputs_of(part) + row * output_row_, output_row_);
        });
      }
    for (std::int32_t head = 0; head < group_; ++head) {
      std::copy_n(largest + head * kTileQueries, queries, largest_of(part, head));
      std::copy_n(sums + head * kTileQueries, queries, sums_of(part, head));
    }
  }

  /// Cuts the keys that the options allow into chunks of whole tiles.
  void set_to_chunk(QueryTile& tile, int chunk) const {
    if (chunks_ == 1) return;
    const KeyRange range = scores_.options.keys(tile);
    const std::int32_t tiles = (std::max(range.end - range.begin, 0) + kTileKeys - 1) / kTileKeys;
    const auto begin_of = [&](int c) {
      return std::min<std::int32_t>(
          range.begin + static_cast<std::int32_t>(std::int64_t{tiles} * c / chunks_) * kTileKeys, range.end);
    };
    tile.key_begin = begin_of(chunk);
    tile.key_end = begin_of(chunk + 1);
  }

  /// Rows of keys or values as whole vectors: in place, or copied if they are not side by side or need padding.
  struct RowReader {
    KeyRows<T> rows;
    std::int32_t num_rows;
    int given, width;
    T* copies = nullptr;

    RowReader(const KeyRows<T>& of_head, std::int32_t number_of_rows, int row_width, Workspace<T>& memory)
        : rows(of_head),
          num_rows(number_of_rows),
          given(row_width),
          width(static_cast<int>(Workspace<T>::rounded(row_width))) {
      if (rows.page.column == 1 && width == given) return;
      copies = memory.take(kTileKeys * width);
      std::fill_n(copies, kTileKeys * width, T(0));
    }
    /// Calls action(rows, first key within the tile, number of keys) for each run of rows that are side by side.
    template <class Action>
    void read(const KeyTiles::Tile& tile, const Action& action) const {
      if (copies != nullptr) {
        rows.read(tile.key, tile.keys, given, copies, width);
        return action(DenseRows<T>{copies, copies, width, false}, 0, tile.keys);
      }
      rows.for_each_run(tile.key, tile.keys, [&](const HeadView<T>& run, int first, int count) {
        const std::int64_t row_bytes = run.row * run.number_size();
        const auto dense = [&](int i, const char* ahead) {
          return DenseRows<T>{run.data + i * row_bytes, ahead, run.row, run.is_bfloat16};
        };
        if (rows.table == nullptr) return action(dense(0, run.data + kRowsAhead * row_bytes), first, count);
        for (int i = 0, n; i < count; i += n) {  // as long as the rows ahead are in one page
          const std::int64_t ahead = tile.key + first + i + kRowsAhead;
          const bool is_there = ahead < num_rows;
          n = count - i;
          if (is_there) n = static_cast<int>(std::min<std::int64_t>(n, rows.page_size - ahead % rows.page_size));
          action(dense(i, is_there ? rows.row_of_page(ahead) : run.data + i * row_bytes), first + i, n);
        }
      });
    }
  };

  /// Adds the parts of all chunks to the first, in their order.
  void add_parts(T* first, int queries) const {
    const std::int64_t row = output_row_;
    for (std::int32_t head = 0; head < group_; ++head)
      for (int i = 0; i < queries; ++i) {
        T* const largest = largest_of(first, head) + i;
        T* const sum = sums_of(first, head) + i;
        T* const output = outputs_of(first) + (head * queries + i) * row;
        for (int c = 1; c < chunks_; ++c) {
          T* const part = first + c * part_size_;
          if (sums_of(part, head)[i] == T(0)) continue;  // no key of the chunk
          const T other = largest_of(part, head)[i], most = std::max(*largest, other);
          const T factor = std::exp(*largest - most), other_factor = std::exp(other - most);
          const T* const from = outputs_of(part) + (head * queries + i) * row;
          for (std::int64_t d = 0; d < row; ++d) output[d] = factor * output[d] + other_factor * from[d];
          *sum = factor * *sum + other_factor * sums_of(part, head)[i];
          *largest = most;
        }
      }
  }

  void write(const Group& group, T* part, Scratch& scratch) const {
    const std::int64_t row = output_row_;
    const int queries = group.tile.queries;
    for (std::int32_t head = 0; head < group_; ++head) {
      const WorkItem item{0, group.batch, group.kv_head * group_ + head, group.tile};
      const T* const sums = sums_of(part, head);
      T* const output = outputs_of(part) + head * queries * row;
      for (int i = 0; i < queries; ++i)
        for (int d = 0; sums[i] != T(0) && d < plan_.value_dim; ++d) output[i * row + d] /= sums[i];
      if (plan_.may_mask && !plan_.operations->is_finite(output, row, queries, static_cast<int>(row))) {
        // Masked numbers must have no effect.
        forward_item(plan_, scores_, results_, item, scratch.bands[0].keys, scratch.careful);
        continue;
      }
      write_log_sum_exp(plan_, results_, item, largest_of(part, head), sums);
      results_.output.of(item.batch, item.head)
          .write(item.tile.query_begin, queries, plan_.value_dim, T(1), output, row);
    }
  }

  const AttentionPlan<T>& plan_;
  const Scores<T>& scores_;
  const AttentionResults<T>& results_;
  const std::int32_t group_;   // query heads of a key head
  const std::int64_t groups_;  // key heads, for each tile of queries
  const std::int64_t output_row_;
  std::int32_t queries_ = 0;  // of the longest sequence
  std::int64_t part_size_ = 0;
  int chunks_ = 1;
  std::vector<T> parts_;
  std::vector<std::atomic<int>> finished_;  // chunks of a group
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
