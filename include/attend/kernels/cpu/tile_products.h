// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cpu/bf16_operations.h>
#include <attend/kernels/cpu/head_view.h>
#include <attend/kernels/cpu/key_rows.h>
#include <attend/kernels/cpu/plan.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/kernels/cpu/tile_operations.h>
#include <attend/kernels/cpu/workspace.h>
#include <attend/simd/bfloat16.h>
#include <attend/simd/product.h>
#include <attend/version.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// The matrix products of one tile of queries with tiles of keys: in float32 or float64, or in pairs of bfloat16 if the
/// tensors and the processor have them. The matrices of the queries are packed once.
///
/// If is_careful, a masked entry adds nothing to any sum, even if it is not finite (masked_products.h).
template <class T>
class TileProducts {
 public:
  /// For a forward pass, or for a backward pass, which needs scores() unless the weights were saved.
  TileProducts(const AttentionPlan<T>& plan, const WorkItem& item, bool has_scores, bool is_careful,
               Workspace<T>& memory)
      : operations_(*plan.operations),
        bf16_(is_careful ? nullptr : plan.bf16),
        is_careful_(is_careful),
        tile_(item.tile),
        columns_(columns_for(item.tile.queries)),
        head_dim_(plan.head_dim),
        value_dim_(plan.value_dim),
        scale_(plan.scale),
        queries_(plan.query.of(item.batch, item.head)),
        keys_(plan.key.of(item.batch, plan.kv_head(item.head))),
        values_(plan.value.of(item.batch, plan.kv_head(item.head))) {
    query_columns_ = memory.take(head_dim_ * kTileQueries);
    converted_keys_ = memory.take(kTileKeys * row_of(head_dim_));
    converted_values_ = memory.take(kTileKeys * row_of(value_dim_));
    packed_ = memory.take(kTileSize);
    paired_ = memory.take(kTileKeys * std::max(row_of(head_dim_), row_of(value_dim_)));
    if (!has_scores) return;
    if (bf16_ == nullptr)
      operations_.read_transposed(queries_, tile_.query_begin, tile_.queries, columns_, head_dim_, scale_,
                                  query_columns_);
    else
      transpose_pairs(queries_, head_dim_, query_columns_);
  }

  /// Reads what only the backward pass needs: Q in rows, and the gradient of the output.
  void set_output_gradient(const HeadView<T>& gradients, Workspace<T>& memory) {
    query_rows_ = memory.take(kTileQueries * row_of(head_dim_));
    gradient_rows_ = memory.take(kTileQueries * row_of(value_dim_));
    gradient_columns_ = memory.take(value_dim_ * kTileQueries);
    gradient_pairs_ = memory.take(value_dim_ * kTileQueries);
    // In float32, for δ.
    operations_.read_transposed(gradients, tile_.query_begin, tile_.queries, columns_, value_dim_, T(1),
                                gradient_columns_);
    pack_rows(queries_, head_dim_, query_rows_);
    pack_rows(gradients, value_dim_, gradient_rows_);
    if (bf16_ != nullptr) transpose_pairs(gradients, value_dim_, gradient_pairs_);
  }

  /// The length of a row of the gradients of keys and values: whole vectors.
  static std::int64_t row_of(std::int64_t width) { return Workspace<T>::rounded(width); }

  /// Whether Q and dO of the tile are finite.
  bool is_finite() const {
    if (!operations_.is_finite(gradient_columns_, kTileQueries, value_dim_, columns_)) return false;
    const int row = static_cast<int>(row_of(head_dim_));
    if (bf16_ == nullptr) return operations_.is_finite(query_rows_, row, tile_.queries, row);
    Bf16x2 infinities = 0;  // the highest bit of each half: whether all bits of an exponent are set
    const Bf16x2* const pairs = words(query_rows_);
    for (int i = 0; i < (tile_.queries + 1) / 2 * row; ++i) infinities |= (pairs[i] & 0x7F807F80) + 0x00800080;
    return (infinities & 0x80008000) == 0;
  }

  /// dOᵀ
  const T* gradient_columns() const { return gradient_columns_; }

  /// Sets the tile of keys that the functions below use.
  void set_tile(std::int32_t first_key, int keys) {
    tile_keys_ = keys;
    if (bf16_ == nullptr) {
      key_ = keys_.rows(first_key, keys, head_dim_, converted_keys_);
      value_ = values_.rows(first_key, keys, value_dim_, converted_values_);
    } else if constexpr (kHasPairs) {
      key_pairs_ = keys_.pairs(first_key, keys, head_dim_, words(converted_keys_));
      value_pairs_ = values_.pairs(first_key, keys, value_dim_, words(converted_values_));
    }
  }

  /// Sᵀ = scale · K Qᵀ
  void scores(T* to) { columns_product(key_, key_pairs_, query_columns_, head_dim_, scale_, to); }

  /// dP = V dOᵀ
  void weight_gradients(T* to) {
    columns_product(value_, value_pairs_, bf16_ == nullptr ? gradient_columns_ : gradient_pairs_, value_dim_, T(1), to);
  }

  /// Oᵀ += Vᵀ P
  void add_values(const T* weights, T* to) { add_columns(value_, value_pairs_, weights, value_dim_, to); }

  /// dQᵀ += Kᵀ dS
  void add_query_gradients(const T* score_gradients, T* to) {
    add_columns(key_, key_pairs_, score_gradients, head_dim_, to);
  }

  /// dV += P dO
  void add_value_gradients(const T* weights, T* to) { add_rows(weights, gradient_rows_, row_of(value_dim_), to); }

  /// dK / scale += dS Q
  void add_key_gradients(const T* score_gradients, T* to) {
    add_rows(score_gradients, query_rows_, row_of(head_dim_), to);
  }

 private:
  void columns_product(const Strided<T>& left, const Strided<Bf16x2>& left_pairs, const T* right, int width, T factor,
                       T* to) {
    if constexpr (kHasPairs)
      if (bf16_ != nullptr)
        return bf16_->product(left_pairs, words(right), kTileQueries, to, kTileQueries, tile_keys_, columns_,
                              (width + 1) / 2, /*add=*/false, factor);
    operations_.product(left, right, kTileQueries, to, kTileQueries, tile_keys_, columns_, width, /*add=*/false);
  }

  void add_columns(const Strided<T>& left, const Strided<Bf16x2>& left_pairs, const T* tile, int width, T* to) {
    if (is_careful_)
      return operations_.add_columns_of_nonzeros(left.transposed(), tile, to, width, columns_, tile_keys_);
    if constexpr (kHasPairs)
      if (bf16_ != nullptr) {
        const std::int64_t row = row_of(width);
        bf16_->pack_rows(halves(left_pairs), 2 * left_pairs.row, tile_keys_, width, words(paired_), row);
        bf16_->pack_keys(tile, tile_keys_, columns_, words(packed_));
        return bf16_->product({words(paired_), 1, row}, words(packed_), kTileQueries, to, kTileQueries, width, columns_,
                              (tile_keys_ + 1) / 2, /*add=*/true, 1.0f);
      }
    operations_.product(left.transposed(), tile, kTileQueries, to, kTileQueries, width, columns_, tile_keys_,
                        /*add=*/true);
  }

  void add_rows(const T* tile, const T* rows, std::int64_t row, T* to) {
    const int columns = static_cast<int>(row), queries = tile_.queries;
    if (is_careful_) return operations_.add_rows_of_nonzeros(tile, rows, to, row, tile_keys_, columns, queries);
    if constexpr (kHasPairs)
      if (bf16_ != nullptr) {
        bf16_->pack_queries(tile, tile_keys_, queries, columns_, words(packed_));
        return bf16_->product({words(packed_), kTileQueries / 2, 1}, words(rows), row, to, row, tile_keys_, columns,
                              (queries + 1) / 2, /*add=*/true, 1.0f);
      }
    operations_.product({tile, kTileQueries, 1}, rows, row, to, row, tile_keys_, columns, queries, /*add=*/true);
  }

  void pack_rows(const HeadView<T>& rows, int width, T* to) {
    const std::int64_t row = row_of(width);
    if constexpr (kHasPairs)
      if (bf16_ != nullptr) {
        const Strided<Bf16x2> given = rows.pairs(tile_.query_begin, tile_.queries, width, words(paired_));
        return bf16_->pack_rows(halves(given), 2 * given.row, tile_.queries, width, words(to), row);
      }
    if (row > width) std::fill_n(to, kTileQueries * row, T(0));
    rows.read(tile_.query_begin, tile_.queries, width, to, row);
  }

  void transpose_pairs(const HeadView<T>& rows, int width, T* to) {
    if constexpr (kHasPairs) {
      const Strided<Bf16x2> given = rows.pairs(tile_.query_begin, tile_.queries, width, words(paired_));
      bf16_->transpose_words(given.data, given.row, tile_.queries, columns_, (width + 1) / 2, words(to));
    }
  }

  static constexpr bool kHasPairs = std::is_same_v<T, float>;

  // The same memory holds numbers, or pairs of them.
  static Bf16x2* words(T* memory) { return reinterpret_cast<Bf16x2*>(memory); }
  static const Bf16x2* words(const T* memory) { return reinterpret_cast<const Bf16x2*>(memory); }
  static const std::uint16_t* halves(const Strided<Bf16x2>& pairs) {
    return reinterpret_cast<const std::uint16_t*>(pairs.data);
  }

  const TileOperations<T>& operations_;
  const Bf16Operations* const bf16_;  // null: products in T
  const bool is_careful_;
  const QueryTile tile_;
  const int columns_, head_dim_, value_dim_;
  const T scale_;
  const HeadView<T> queries_;
  const KeyRows<T> keys_, values_;

  // Of the queries.
  T* query_columns_ = nullptr;     // scale · Qᵀ, or pairs of Q
  T* query_rows_ = nullptr;        // Q
  T* gradient_rows_ = nullptr;     // dO
  T* gradient_columns_ = nullptr;  // dOᵀ
  T* gradient_pairs_ = nullptr;    // dOᵀ in pairs

  // Of the tile of keys.
  int tile_keys_ = 0;
  Strided<T> key_{}, value_{};
  Strided<Bf16x2> key_pairs_{}, value_pairs_{};
  T *converted_keys_ = nullptr, *converted_values_ = nullptr;
  T *packed_ = nullptr, *paired_ = nullptr;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
