// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/score/mask_mod.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>

#include <algorithm>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A mask given as data: a table that has one entry for each block of 64 queries and 64 keys. The entry says whether
/// the block is empty, partial or full. In partial blocks `mask` decides. With LibTorch use BlockMask, which makes the
/// table from the lists of PyTorch's BlockMask.
///
/// The entries of `table` are the numbers of MaskCover: 0, 1 and 2. Its shape is (N, H, ⌈L / 64⌉, ⌈S / 64⌉); the last
/// two sizes may be larger. If N or H is 1 with the stride 0, all batch entries or heads share the entries. The sizes
/// are not checked.
template <class Mask = EveryKey>
struct BlockMaskView : detail::MaskOperators {
  /// The number of queries and of keys in a block of the table.
  static constexpr std::int32_t kBlock = 64;

  IntegerView table;  ///< the MaskCover of each block
  Mask mask;          ///< decides for each score in partial blocks

  /// @param blocks The table.
  /// @param of_partial_blocks The mask that decides in partial blocks.
  ATTEND_HOST_DEVICE constexpr explicit BlockMaskView(const IntegerView& blocks, const Mask& of_partial_blocks = {})
      : table(blocks), mask(of_partial_blocks) {}
  /// Called by attention for a query and a key: whether the query may attend to the key.
  ATTEND_HOST_DEVICE bool operator()(Coordinate at) const {
    const MaskCover here = block(at.batch, at.head, at.query / kBlock, at.key / kBlock);
    return here == MaskCover::kFull || (here == MaskCover::kPartial && mask(at));
  }
  /// Called by attention for a block of queries and keys: how much of it is allowed.
  ATTEND_HOST_DEVICE MaskCover cover(QueryBlock queries, KeyRange keys) const {
    if (only_mask(queries, keys) != nullptr) return detail::mask_cover(mask, queries, keys);
    const MaskCover first = block(queries.batch, queries.head, queries.query_begin / kBlock, keys.begin / kBlock);
    return is_uniform(queries, keys, first) ? first : MaskCover::kPartial;
  }
  /// Called by attention: `mask` if all entries for these queries and keys are partial, else null. If it is not null,
  /// the kernel calls `mask` directly instead of reading the table for each score. Kernels on a GPU do not ask: there
  /// the table is read from the cache, and a second loop over the scores would cost registers.
  ATTEND_HOST_DEVICE const Mask* only_mask(QueryBlock queries, KeyRange keys) const {
    return is_uniform(queries, keys, MaskCover::kPartial) ? &mask : nullptr;
  }

 private:
  ATTEND_HOST_DEVICE bool is_uniform(const QueryBlock& queries, const KeyRange& keys, MaskCover cover) const {
    for (std::int32_t i = queries.query_begin / kBlock; i <= (queries.query_end - 1) / kBlock; ++i)
      for (std::int32_t j = keys.begin / kBlock; j <= (keys.end - 1) / kBlock; ++j)
        if (block(queries.batch, queries.head, i, j) != cover) return false;
    return true;
  }

  ATTEND_HOST_DEVICE MaskCover block(std::int32_t batch, std::int32_t head, std::int32_t i, std::int32_t j) const {
    return static_cast<MaskCover>(table.read_unchecked(batch, head, i, j));
  }
};

/// Says how much of a block of scores a mask allows. If cover() of the mask returns kPartial, the mask is called for
/// every score, until both an allowed and a masked score are found.
///
/// @param mask A struct as MaskMod describes, without tensors of LibTorch.
/// @param queries The queries of the block, at least one.
/// @param keys The keys of the block, at least one.
/// @return kEmpty if no score is allowed, kFull if all scores are allowed, otherwise kPartial.
///
/// @code
/// attend::MaskCover cover = attend::exact_cover(attend::Causal{}, {0, 0, 0, 64, 256, 256}, {128, 192});  // kEmpty
/// @endcode
template <class Mask>
ATTEND_HOST_DEVICE constexpr MaskCover exact_cover(const Mask& mask, const QueryBlock& queries, const KeyRange& keys) {
  const MaskCover known = detail::mask_cover(mask, queries, keys);
  if (known != MaskCover::kPartial) return known;
  bool has_allowed = false, has_masked = false;
  Coordinate at{queries.batch, queries.head, 0, 0, queries.query_length, queries.key_length};
  for (at.query = queries.query_begin; at.query < queries.query_end; ++at.query)
    for (at.key = keys.begin; at.key < keys.end; ++at.key) {
      (mask(at) ? has_allowed : has_masked) = true;
      if (has_allowed && has_masked) return MaskCover::kPartial;
    }
  return detail::cover_of(!has_allowed, !has_masked);
}

/// Lists of key blocks, one for each block of queries, as in PyTorch's BlockMask.
struct KeyBlockLists {
  const std::int32_t *num_blocks,  ///< (rows): the length of each list
      *indices;                    ///< (rows, columns): the blocks of each list; the rest of a row is not read
  std::int64_t rows,               ///< the number of blocks of queries
      columns;                     ///< the number of blocks of keys
};

/// Writes lists of blocks into a table for BlockMaskView.
///
/// @param lists The lists of one head.
/// @param query_block, key_block The number of queries and of keys in a listed block, multiples of 64.
/// @param cover The cover that is written for the listed blocks.
/// @param table (rows · query_block / 64, columns · key_block / 64). The entries of other blocks do not change.
/// @return True, or false if the length of a list or the index of a block is negative or too large. The blocks after it
/// are then not written.
inline bool mark_blocks(const KeyBlockLists& lists, std::int64_t query_block, std::int64_t key_block, MaskCover cover,
                        std::int32_t* table) {
  const std::int64_t height = query_block / BlockMaskView<>::kBlock, width = key_block / BlockMaskView<>::kBlock;
  for (std::int64_t i = 0; i < lists.rows; ++i) {
    if (lists.num_blocks[i] < 0 || lists.num_blocks[i] > lists.columns) return false;
    for (std::int64_t k = 0; k < lists.num_blocks[i]; ++k) {
      const std::int64_t j = lists.indices[i * lists.columns + k];
      if (j < 0 || j >= lists.columns) return false;
      for (std::int64_t row = i * height; row < (i + 1) * height; ++row)
        std::fill_n(table + (row * lists.columns + j) * width, width, static_cast<std::int32_t>(cover));
    }
  }
  return true;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
