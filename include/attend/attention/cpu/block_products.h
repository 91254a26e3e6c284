// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/cpu/call.h>
#include <attend/attention/cpu/pairs.h>
#include <attend/version.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// The matrix products of one block of queries with tiles of keys, in float32 or float64, or in pairs of bfloat16 where
/// the tensors and the processor have them. Matrices of the block's own are packed once.
///
/// If is_careful, what is ruled out adds nothing to any sum, even if it is not finite (ruled_out.h).
template <class T>
class BlockProducts {
 public:
  /// For a forward pass, or a backward pass without scores(). The workspace must have size() left.
  BlockProducts(const Call<T>& call, const Place& place, bool has_scores, bool is_careful, Workspace<T>& memory)
      : operations_(*call.operations),
        pairs_(is_careful ? nullptr : call.pairs),
        is_careful_(is_careful),
        block_(place.block),
        columns_(columns_for(place.block.queries)),
        width_(call.width),
        value_width_(call.value_width),
        scale_(call.scale),
        queries_(call.query.of(place.batch, place.head)),
        keys_(call.key.of(place.batch, call.kv_head(place.head))),
        values_(call.value.of(place.batch, call.kv_head(place.head))) {
    query_columns_ = memory.take(width_ * kTileQueries);
    converted_keys_ = memory.take(kTileKeys * row_of(width_));
    converted_values_ = memory.take(kTileKeys * row_of(value_width_));
    packed_ = memory.take(kTileSize);
    paired_ = memory.take(kTileKeys * std::max(row_of(width_), row_of(value_width_)));
    if (!has_scores) return;
    if (pairs_ == nullptr)
      operations_.read_transposed(queries_, block_.query_begin, block_.queries, columns_, width_, scale_,
                                  query_columns_);
    else
      transpose_pairs(queries_, width_, query_columns_);
  }

  /// For a backward pass, with the gradient of the output.
  BlockProducts(const Call<T>& call, const Place& place, const TensorRows<T>& output_gradient, bool is_careful,
                Workspace<T>& memory)
      : BlockProducts(call, place, /*has_scores=*/call.weights == nullptr, is_careful, memory) {
    const Rows<T> gradients = output_gradient.of(place.batch, place.head);
    query_rows_ = memory.take(kTileQueries * row_of(width_));
    gradient_rows_ = memory.take(kTileQueries * row_of(value_width_));
    gradient_columns_ = memory.take(value_width_ * kTileQueries);
    gradient_pairs_ = memory.take(value_width_ * kTileQueries);
    // In float32, for δ.
    operations_.read_transposed(gradients, block_.query_begin, block_.queries, columns_, value_width_, T(1),
                                gradient_columns_);
    pack_rows(queries_, width_, query_rows_);
    pack_rows(gradients, value_width_, gradient_rows_);
    if (pairs_ != nullptr) transpose_pairs(gradients, value_width_, gradient_pairs_);
  }

  /// In numbers of T, for both.
  static std::int64_t size(const Call<T>& call) {
    const std::int64_t widths = row_of(call.width) + row_of(call.value_width);
    return (3 * kTileQueries + 2 * kTileKeys) * widths + kTileKeys * widths + kTileSize;
  }

  /// Rows of the gradients of keys and values are so long: whole vectors.
  static std::int64_t row_of(std::int64_t width) { return Workspace<T>::rounded(width); }

  /// Whether Q and dO of the block are finite.
  bool is_finite() const {
    if (!operations_.is_finite(gradient_columns_, kTileQueries, value_width_, columns_)) return false;
    const int row = static_cast<int>(row_of(width_));
    if (pairs_ == nullptr) return operations_.is_finite(query_rows_, row, block_.queries, row);
    Pair infinities = 0;  // the last bit of each half: whether all bits of an exponent are set
    const Pair* const pairs = words(query_rows_);
    for (int i = 0; i < (block_.queries + 1) / 2 * row; ++i) infinities |= (pairs[i] & 0x7F807F80) + 0x00800080;
    return (infinities & 0x80008000) == 0;
  }

  /// dOᵀ
  const T* gradient_columns() const { return gradient_columns_; }

  /// Takes the next keys; all below is about them.
  void set_tile(std::int32_t first_key, int keys) {
    tile_keys_ = keys;
    if (pairs_ == nullptr) {
      key_ = keys_.rows(first_key, keys, width_, converted_keys_);
      value_ = values_.rows(first_key, keys, value_width_, converted_values_);
    } else if constexpr (kHasPairs) {
      key_pairs_ = keys_.pairs(first_key, keys, width_, words(converted_keys_));
      value_pairs_ = values_.pairs(first_key, keys, value_width_, words(converted_values_));
    }
  }

  /// Sᵀ = scale · K Qᵀ
  void scores(T* to) { columns_product(key_, key_pairs_, query_columns_, width_, scale_, to); }

  /// dP = V dOᵀ
  void weight_gradients(T* to) {
    columns_product(value_, value_pairs_, pairs_ == nullptr ? gradient_columns_ : gradient_pairs_, value_width_, T(1),
                    to);
  }

  /// Oᵀ += Vᵀ P
  void add_values(const T* weights, T* to) { add_columns(value_, value_pairs_, weights, value_width_, to); }

  /// dQᵀ += Kᵀ dS
  void add_query_gradients(const T* score_gradients, T* to) {
    add_columns(key_, key_pairs_, score_gradients, width_, to);
  }

  /// dV += P dO
  void add_value_gradients(const T* weights, T* to) { add_rows(weights, gradient_rows_, row_of(value_width_), to); }

  /// dK / scale += dS Q
  void add_key_gradients(const T* score_gradients, T* to) {
    add_rows(score_gradients, query_rows_, row_of(width_), to);
  }

 private:
  void columns_product(const Strided<T>& left, const Strided<Pair>& left_pairs, const T* right, int width, T factor,
                       T* to) {
    if constexpr (kHasPairs)
      if (pairs_ != nullptr)
        return pairs_->product(left_pairs, words(right), kTileQueries, to, kTileQueries, tile_keys_, columns_,
                               (width + 1) / 2, /*add=*/false, factor);
    operations_.product(left, right, kTileQueries, to, kTileQueries, tile_keys_, columns_, width, /*add=*/false);
  }

  void add_columns(const Strided<T>& left, const Strided<Pair>& left_pairs, const T* tile, int width, T* to) {
    if (is_careful_)
      return operations_.add_columns_of_nonzeros(left.transposed(), tile, to, width, columns_, tile_keys_);
    if constexpr (kHasPairs)
      if (pairs_ != nullptr) {
        const std::int64_t row = row_of(width);
        pairs_->pair_rows(halves(left_pairs), 2 * left_pairs.row, tile_keys_, width, words(paired_), row);
        pairs_->pair_keys(tile, tile_keys_, columns_, words(packed_));
        return pairs_->product({words(paired_), 1, row}, words(packed_), kTileQueries, to, kTileQueries, width,
                               columns_, (tile_keys_ + 1) / 2, /*add=*/true, 1.0f);
      }
    operations_.product(left.transposed(), tile, kTileQueries, to, kTileQueries, width, columns_, tile_keys_,
                        /*add=*/true);
  }

  void add_rows(const T* tile, const T* rows, std::int64_t row, T* to) {
    const int columns = static_cast<int>(row), queries = block_.queries;
    if (is_careful_) return operations_.add_rows_of_nonzeros(tile, rows, to, row, tile_keys_, columns, queries);
    if constexpr (kHasPairs)
      if (pairs_ != nullptr) {
        pairs_->pair_queries(tile, tile_keys_, queries, columns_, words(packed_));
        return pairs_->product({words(packed_), kTileQueries / 2, 1}, words(rows), row, to, row, tile_keys_, columns,
                               (queries + 1) / 2, /*add=*/true, 1.0f);
      }
    operations_.product({tile, kTileQueries, 1}, rows, row, to, row, tile_keys_, columns, queries, /*add=*/true);
  }

  void pack_rows(const Rows<T>& rows, int width, T* to) {
    const std::int64_t row = row_of(width);
    if constexpr (kHasPairs)
      if (pairs_ != nullptr) {
        const Strided<Pair> given = rows.pairs(block_.query_begin, block_.queries, width, words(paired_));
        return pairs_->pair_rows(halves(given), 2 * given.row, block_.queries, width, words(to), row);
      }
    if (row > width) std::fill_n(to, kTileQueries * row, T(0));
    rows.read(block_.query_begin, block_.queries, width, to, row);
  }

  void transpose_pairs(const Rows<T>& rows, int width, T* to) {
    if constexpr (kHasPairs) {
      const Strided<Pair> given = rows.pairs(block_.query_begin, block_.queries, width, words(paired_));
      pairs_->transpose_words(given.data, given.row, block_.queries, columns_, (width + 1) / 2, words(to));
    }
  }

  static constexpr bool kHasPairs = std::is_same_v<T, float>;

  // The same memory holds numbers, or pairs of them.
  static Pair* words(T* memory) { return reinterpret_cast<Pair*>(memory); }
  static const Pair* words(const T* memory) { return reinterpret_cast<const Pair*>(memory); }
  static const std::uint16_t* halves(const Strided<Pair>& pairs) {
    return reinterpret_cast<const std::uint16_t*>(pairs.data);
  }

  const TileOperations<T>& operations_;
  const PairOperations* const pairs_;  // null: in T
  const bool is_careful_;
  const Block& block_;
  const int columns_, width_, value_width_;
  const T scale_;
  const Rows<T> queries_, keys_, values_;

  // Of the block.
  T* query_columns_ = nullptr;     // scale · Qᵀ, or pairs of Q
  T* query_rows_ = nullptr;        // Q
  T* gradient_rows_ = nullptr;     // dO
  T* gradient_columns_ = nullptr;  // dOᵀ
  T* gradient_pairs_ = nullptr;    // dOᵀ in pairs

  // Of the tile.
  int tile_keys_ = 0;
  Strided<T> key_{}, value_{};
  Strided<Pair> key_pairs_{}, value_pairs_{};
  T *converted_keys_ = nullptr, *converted_values_ = nullptr;
  T *packed_ = nullptr, *paired_ = nullptr;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
