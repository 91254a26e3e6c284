// SPDX-License-Identifier: MIT
#pragma once

// Backward pass of fused attention on the CPU, from the log-sum-exp or the weights that the forward pass has kept.
//
//   for each block of 64 queries of a head, with δ = ΣP · dP − d(log-sum-exp):
//     for each tile of 64 keys that the scores do not rule out:
//       Sᵀ = scale · K Qᵀ,    P = exp(score(Sᵀ) − log-sum-exp)     (keys, queries)
//       dP = V dOᵀ,           dS = P (dP − δ) score′(Sᵀ)           (keys, queries)
//       dV += P dO                                                  (keys, value width)
//       dK += dS Q                                                  (keys, width)
//       dQᵀ += Kᵀ dS                                                (width, queries)
//     write scale · dQ; dK is multiplied with the scale at the end
//
// δ is Σ dO · O as well, known before any tile is. But where a query attends almost to a single key, dP − δ is a
// difference of nearly equal numbers, and δ must have the errors of dP. So where a block sees a few tiles only, which
// is where single keys count, all of them are computed before δ; it costs no arithmetic, and makes the gradients as
// accurate as those of the dense formula. The gradient of a slope adds up dS times a distance over whole rows, and with
// it every error of δ: where such sums are wanted, long blocks compute their tiles twice, first for δ.
//
// The forward pass keeps P of a call with few keys: then Sᵀ and P are not computed again.
//
// The blocks of all heads stand in one row, which is cut into pieces of equal cost, one for each thread. Heads that
// share a key head stand together; the thread adds up their dK and dV in a buffer of its own, and writes it. Where a
// cut goes through such a group, each side keeps its part, and the parts are added in the order of the threads: the
// same number of threads gives the same bits. The gradient of what the scores read (a mask that is added, slopes, the
// tensors of a score_mod) is added up in float64 (sums.h).

#include <attend/attention/cpu/block_products.h>
#include <attend/attention/cpu/call.h>
#include <attend/attention/cpu/forward.h>
#include <attend/attention/cpu/scores.h>
#include <attend/attention/cpu/sums.h>
#include <attend/version.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// What a backward pass has besides the call: the gradient that comes, and those that go.
template <class T>
struct Gradients {
  TensorRows<T> output;
  const T* log_sum_exp = nullptr;  // (batch, heads, queries), contiguous; null for zeros
  TensorRows<T> query, key, value;
  Sums mask, slopes;               // set to zero
  std::vector<Sums> modification;  // of each tensor of the score_mod
};

/// Gradients of the keys (but for the scale) and values of one group, in rows that are padded to whole vectors.
template <class T>
struct KeyValueGradients {
  std::int64_t key_row = 0, value_row = 0;
  std::vector<T> key, value;

  KeyValueGradients() = default;
  explicit KeyValueGradients(const Call<T>& call)
      : key_row(BlockProducts<T>::row_of(call.width)),
        value_row(BlockProducts<T>::row_of(call.value_width)),
        key(static_cast<std::size_t>(call.keys * key_row)),
        value(static_cast<std::size_t>(call.keys * value_row)) {}

  void set_to_zero() {
    std::fill(key.begin(), key.end(), T(0));
    std::fill(value.begin(), value.end(), T(0));
  }
};

/// A whole backward pass: work(t) for every thread t in any order, again if must_begin_again(), and then finish(t) for
/// every one.
template <class T>
class Backward {
 public:
  Backward(const Call<T>& call, const Gradients<T>& gradients, const Scores<T>& scores, int threads)
      : call_(call),
        gradients_(gradients),
        scores_(scores),
        has_sums_(gradients.mask.data != nullptr || gradients.slopes.data != nullptr ||
                  std::any_of(gradients.modification.begin(), gradients.modification.end(),
                              [](const auto& sums) { return sums.data != nullptr; })),
        blocks_of_a_group_(std::ssize(call.blocks) * (call.heads / call.kv_heads)),
        pieces_(static_cast<std::size_t>(threads)) {
    const std::int64_t blocks = blocks_of_a_group_ * call.batch * call.kv_heads;
    std::vector<std::int64_t> cost{0};  // of all blocks before this one
    cost.reserve(static_cast<std::size_t>(blocks) + 1);
    for (std::int64_t i = 0; i < blocks; ++i) {
      const KeyRange range = scores.keys(call, Place::at(call, i));
      cost.push_back(cost.back() + 1 + (std::max(0, range.end - range.begin) + kTileKeys - 1) / kTileKeys);
    }
    std::int64_t begin = 0;
    for (int t = 0; t < threads; ++t) {
      const std::int64_t target = cost.back() * (t + 1) / threads;
      const std::int64_t end = std::lower_bound(cost.begin(), cost.end(), target) - cost.begin();
      Piece& piece = piece_of(t);
      piece.begin = begin;
      piece.end = begin = t + 1 == threads ? blocks : end;
    }
  }

  /// All blocks of a thread. is_careful as in BlockProducts.
  void work(int thread, bool is_careful) {
    Piece& piece = piece_of(thread);
    piece.parts.clear();
    if (piece.begin == piece.end) return;
    Workspace<T> memory(workspace());
    KeyValueGradients<T> sums(call_);
    for (std::int64_t i = piece.begin; i < piece.end; ++i) {
      if (!is_careful && must_begin_again_) return;
      if (!block(Place::at(call_, i), thread, is_careful, sums, memory)) {
        must_begin_again_ = true;
        return;
      }
      const bool is_last_of_group = (i + 1) % blocks_of_a_group_ == 0;
      if (!is_last_of_group && i + 1 < piece.end) continue;
      const std::int64_t group = i / blocks_of_a_group_;
      if (is_last_of_group && group * blocks_of_a_group_ >= piece.begin) {
        write(group, 0, call_.keys, sums);
        sums.set_to_zero();
      } else {
        piece.parts.push_back({group, std::move(sums)});
        sums = i + 1 < piece.end ? KeyValueGradients<T>(call_) : KeyValueGradients<T>();
      }
    }
  }

  /// Whether a thread that was not careful met numbers that are not finite and may be ruled out. Then nothing that has
  /// been computed counts: all sums are to be set to zero again, and all threads to work carefully.
  bool must_begin_again() const { return must_begin_again_; }

  /// Adds up the parts of groups that several threads have worked on; each thread does some of the keys.
  void finish(int thread) {
    const std::int64_t threads = static_cast<std::int64_t>(pieces_.size());
    const std::int64_t begin = call_.keys * thread / threads, end = call_.keys * (thread + 1) / threads;
    KeyValueGradients<T>* total = nullptr;
    std::int64_t group = -1;
    for (Piece& piece : pieces_)
      for (Part& part : piece.parts) {
        if (part.group != group) {
          if (total != nullptr) write(group, begin, end, *total);
          group = part.group;
          total = &part.sums;
          continue;
        }
        add(part.sums.key.data(), total->key.data(), begin * total->key_row, end * total->key_row);
        add(part.sums.value.data(), total->value.data(), begin * total->value_row, end * total->value_row);
      }
    if (total != nullptr) write(group, begin, end, *total);
  }

 private:
  /// What one thread has added up for a group that others work on too.
  struct Part {
    std::int64_t group;
    KeyValueGradients<T> sums;
  };
  struct Piece {
    std::int64_t begin = 0, end = 0;
    std::vector<Part> parts;
  };

  Piece& piece_of(int thread) { return pieces_[static_cast<std::size_t>(thread)]; }

  // Blocks that see no more tiles than this have all of them kept until δ is known.
  static constexpr int kShort = 6;
  static_assert(kFewKeys <= kShort * kTileKeys);

  std::int64_t workspace() const {
    return BlockProducts<T>::size(call_) +
           kTileQueries * (call_.width + call_.value_width + 6 * kShort * kTileKeys + 7);
  }

  /// What is computed of one tile: before δ is needed, and after.
  struct TileMemory {
    T *weights, *gradients, *slopes, *modified_slopes, *before, *factors;
    bool has_slopes = false, has_modified_slopes = false;

    /// `kept`: the weights, if they are there already.
    explicit TileMemory(Workspace<T>& memory, T* kept = nullptr)
        : weights(kept != nullptr ? kept : memory.take(kTileSize)),
          gradients(memory.take(kTileSize)),
          slopes(memory.take(kTileSize)),
          modified_slopes(memory.take(kTileSize)),
          before(memory.take(kTileSize)),
          factors(memory.take(kTileSize)) {}
  };

  /// The query gradient of one block of queries, and what it adds to all others. False as soon as a block that is not
  /// careful meets numbers that are not finite and may be ruled out.
  bool block(const Place& place, int thread, bool is_careful, KeyValueGradients<T>& sums, Workspace<T>& memory) {
    const TileOperations<T>& operations = *call_.operations;
    const int queries = place.block.queries, columns = columns_for(queries);
    const std::int64_t row = call_.row_of(place.batch, place.head) + place.block.query_begin;
    const bool is_kept = call_.weights != nullptr;
    T* const weights = is_kept ? call_.weights_of(place) : nullptr;
    memory.begin_again();
    BlockProducts<T> products(call_, place, gradients_.output, is_careful, memory);
    const bool is_watched = call_.may_rule_out && !is_careful;
    if (is_watched && !products.is_finite()) return false;
    T* query_gradient = memory.take(call_.width * kTileQueries);  // dQᵀ / scale
    T *log_sum_exp = memory.take(kTileQueries), *rest = memory.take(kTileQueries);
    T *delta = memory.take(kTileQueries), *delta_rest = memory.take(kTileQueries);
    T *weight_sum = memory.take(kTileQueries), *nans = memory.take(kTileQueries);
    std::fill_n(query_gradient, call_.width * kTileQueries, T(0));
    std::fill_n(log_sum_exp, kTileQueries, std::numeric_limits<T>::infinity());  // of a query with no key
    std::fill_n(rest, kTileQueries, T(0));
    std::fill_n(delta, kTileQueries, T(0));
    std::fill_n(delta_rest, kTileQueries, T(0));
    std::fill_n(weight_sum, kTileQueries, is_kept ? T(1) : T(0));
    for (int i = 0; i < queries && !is_kept; ++i) {
      if (call_.log_sum_exp[row + i] != kNever<T>) log_sum_exp[i] = call_.log_sum_exp[row + i];
      rest[i] = call_.log_sum_exp_rest[row + i];
    }
    if (is_careful) take_nans(rest, columns, T(0), nans);  // NaN where the log-sum-exp is not finite
    if (is_careful) take_nans(log_sum_exp, columns, T(0), nans);

    const KeyRange range = scores_.keys(call_, place);
    const auto begin_tile = [&](std::int32_t first_key, TileMemory& tile_memory) {
      const Tile<T> tile = scores_.tile(call_, place, first_key, range, tile_memory.weights);
      products.set_tile(first_key, tile.keys);
      weights_and_gradients(products, tile, is_careful, tile_memory);
      return tile;
    };
    const auto end_tile = [&](const Tile<T>& tile, TileMemory& tile_memory) {
      operations.softmax_gradient(tile.scores, tile_memory.gradients, tile.keys, columns, delta, delta_rest);
      to_first_scores(tile, tile_memory, thread);
      products.add_value_gradients(tile.scores, sums.value.data() + tile.first.key * sums.value_row);
      products.add_key_gradients(tile_memory.gradients, sums.key.data() + tile.first.key * sums.key_row);
      products.add_query_gradients(tile_memory.gradients, query_gradient);
    };

    const auto each_tile = [&](const auto& visit) {
      for (std::int32_t key = range.begin; key < range.end; key += kTileKeys) visit(key);
    };
    const auto softmax_again = [&](const Tile<T>& tile, const TileMemory& tile_memory, T* gradient_sum) {
      if (is_careful) operations.spread_nans(tile.scores, tile.scores, tile.keys, columns, nans);
      operations.softmax_again(tile.scores, tile_memory.gradients, tile.keys, columns, log_sum_exp, rest, weight_sum,
                               gradient_sum);
    };
    const auto add_excess = [&](const Tile<T>& tile, const TileMemory& tile_memory) {
      operations.add_excess(tile.scores, tile_memory.gradients, tile.keys, columns, delta, delta_rest);
    };
    const auto divide_by_weights = [&](T* row_sums) {
      for (int i = 0; i < queries; ++i) row_sums[i] = weight_sum[i] > T(0) ? row_sums[i] / weight_sum[i] : T(0);
    };
    const auto finish_rest = [&] {
      for (int i = 0; i < queries; ++i)
        if (!std::isfinite(delta_rest[i])) delta_rest[i] = T(0);  // where some dP is infinite, δ says all
      subtract_log_sum_exp_gradient(row, queries, delta_rest);
    };

    if (range.end - range.begin <= kShort * kTileKeys) {
      std::vector<std::pair<Tile<T>, TileMemory>> tiles;
      each_tile([&](std::int32_t first_key) {
        TileMemory tile_memory(memory, is_kept ? weights + (first_key - range.begin) * kTileQueries : nullptr);
        const Tile<T> tile = begin_tile(first_key, tile_memory);
        if (is_kept)
          operations.add_excess(tile.scores, tile_memory.gradients, tile.keys, columns, /*delta=*/delta_rest, delta);
        else
          softmax_again(tile, tile_memory, delta);
        tiles.emplace_back(tile, tile_memory);
      });
      divide_by_weights(delta);
      for (const auto& [tile, tile_memory] : tiles) add_excess(tile, tile_memory);
      divide_by_weights(delta_rest);
      finish_rest();
      for (auto& [tile, tile_memory] : tiles) {
        products.set_tile(tile.first.key, tile.keys);
        end_tile(tile, tile_memory);
      }
    } else {
      TileMemory tile_memory(memory);
      T* ignored = memory.take(kTileQueries);
      std::fill_n(ignored, kTileQueries, T(0));
      set_delta(place, products, memory, delta, delta_rest);
      if (has_sums_) {
        std::fill_n(delta_rest, kTileQueries, T(0));
        each_tile([&](std::int32_t first_key) {
          const Tile<T> tile = begin_tile(first_key, tile_memory);
          softmax_again(tile, tile_memory, ignored);
          add_excess(tile, tile_memory);
        });
        divide_by_weights(delta_rest);
      }
      finish_rest();
      each_tile([&](std::int32_t first_key) {
        const Tile<T> tile = begin_tile(first_key, tile_memory);
        softmax_again(tile, tile_memory, ignored);
        end_tile(tile, tile_memory);
      });
    }
    operations.write_transposed(gradients_.query.of(place.batch, place.head), place.block.query_begin, queries,
                                call_.width, call_.scale, query_gradient);
    return !is_watched || operations.is_finite(query_gradient, kTileQueries, call_.width, columns);
  }

  /// Scores as the softmax wants them, with their slopes, unless the weights have been kept; and dP.
  void weights_and_gradients(BlockProducts<T>& products, const Tile<T>& tile, bool is_careful,
                             TileMemory& memory) const {
    const TileOperations<T>& operations = *call_.operations;
    const StandardScores<T>& standard = scores_.standard;
    if (call_.weights == nullptr) {
      products.scores(tile.scores);
      memory.has_slopes = standard.change(operations, tile, memory.slopes, is_careful);
      if (!gradients_.modification.empty()) std::copy_n(tile.scores, tile.keys * kTileQueries, memory.before);
      memory.has_modified_slopes = scores_.modified != nullptr && scores_.modified->apply(tile, memory.modified_slopes);
      standard.rule_out(operations, tile);
    }
    products.weight_gradients(memory.gradients);
    if (is_careful)
      operations.clear_gradients(tile.scores, memory.gradients, tile.keys, tile.columns,
                                 call_.weights != nullptr ? T(0) : kNever<T>);
    if (standard.dropout > 0) {
      standard.dropout_factors(operations, tile, memory.factors);
      operations.multiply(memory.gradients, memory.factors, tile.keys);
    }
  }

  /// From the gradients of the last scores back to those of the first, and to what the scores read. The weights become
  /// those after dropout.
  void to_first_scores(const Tile<T>& tile, TileMemory& memory, int thread) {
    const TileOperations<T>& operations = *call_.operations;
    const StandardScores<T>& standard = scores_.standard;
    if (standard.dropout > 0) operations.multiply(tile.scores, memory.factors, tile.keys);
    Tile<T> before = tile;
    before.scores = memory.before;
    for (std::size_t k = 0; k < gradients_.modification.size(); ++k) {
      const auto& tensor_sums = gradients_.modification[k];
      if (tensor_sums.data == nullptr) continue;
      scores_.modified->add_gradients(before, memory.gradients, static_cast<int>(k), thread, tensor_sums.of(thread));
    }
    if (memory.has_modified_slopes) operations.multiply(memory.gradients, memory.modified_slopes, tile.keys);
    if (gradients_.mask.data != nullptr) standard.add_mask_gradient(tile, memory.gradients, gradients_.mask.of(thread));
    if (gradients_.slopes.data != nullptr)
      standard.add_slope_gradient(tile, memory.gradients, call_.heads, gradients_.slopes.of(thread));
    if (memory.has_slopes) operations.multiply(memory.gradients, memory.slopes, tile.keys);
  }

  /// δ = Σ dO · O, in two parts
  void set_delta(const Place& place, const BlockProducts<T>& products, Workspace<T>& memory, T* delta, T* rest) const {
    const int columns = columns_for(place.block.queries);
    T* output = memory.take(call_.value_width * kTileQueries);  // Oᵀ
    call_.operations->read_transposed(call_.output.of(place.batch, place.head), place.block.query_begin,
                                      place.block.queries, columns, call_.value_width, T(1), output);
    double sums[kTileQueries] = {};
    for (int d = 0; d < call_.value_width; ++d)
      for (int i = 0; i < columns; ++i) {
        const int entry = d * kTileQueries + i;
        sums[i] += static_cast<double>(products.gradient_columns()[entry]) * static_cast<double>(output[entry]);
      }
    for (int i = 0; i < place.block.queries; ++i) {
      delta[i] = static_cast<T>(sums[i]);
      rest[i] = static_cast<T>(sums[i] - delta[i]);
    }
  }

  void subtract_log_sum_exp_gradient(std::int64_t row, int queries, T* delta) const {
    if (gradients_.log_sum_exp == nullptr) return;
    for (int i = 0; i < queries; ++i) delta[i] -= gradients_.log_sum_exp[row + i];
  }

  static void add(const T* from, T* to, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) to[i] += from[i];
  }

  void write(std::int64_t group, std::int64_t begin, std::int64_t end, const KeyValueGradients<T>& sums) const {
    const std::int64_t batch = group / call_.kv_heads, head = group % call_.kv_heads;
    const Rows<T> keys = gradients_.key.of(batch, head), values = gradients_.value.of(batch, head);
    keys.write(begin, end - begin, call_.width, call_.scale, sums.key.data() + begin * sums.key_row, sums.key_row);
    values.write(begin, end - begin, call_.value_width, T(1), sums.value.data() + begin * sums.value_row,
                 sums.value_row);
  }

  Call<T> call_;
  Gradients<T> gradients_;
  Scores<T> scores_;
  bool has_sums_;  // some gradient adds up dS over many scores
  std::int64_t blocks_of_a_group_;
  std::vector<Piece> pieces_;
  std::atomic<bool> must_begin_again_{false};
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
