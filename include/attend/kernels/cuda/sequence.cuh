// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/instructions.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

/// Queries and the keys that they may attend to: those of a batch entry, or of one sequence of a packed batch.
struct Sequence {
  std::int32_t batch;
  KeyRange queries, keys;
  std::int32_t key_length;  // of the batch entry, as in Coordinate

  /// The position of query i among the keys: the last query is at the last key.
  ATTEND_HOST_DEVICE std::int32_t position(std::int32_t i) const { return i + keys.end - queries.end; }
};

/// A tile of rows (queries, or keys) of one head. The work of one block of threads.
struct Tile {
  Sequence sequence;
  std::int32_t head;  // of queries, or of keys
  KeyRange rows;      // empty if begin ≥ end: then the block has no work
};

/// How many tiles a head has for `rows` rows. In a packed batch it is an upper bound, because the host does not know
/// the lengths of the sequences.
ATTEND_HOST_DEVICE inline std::int64_t tiles_of(const Call& call, std::int32_t rows, std::int32_t tile_rows) {
  if (call.num_sequences > 0) return rows / tile_rows + std::int64_t{call.num_sequences};
  return (std::int64_t{rows} + tile_rows - 1) / tile_rows;
}

/// The number of tiles of queries of a call, and the number of its tiles of keys.
ATTEND_HOST_DEVICE inline std::int64_t query_tiles(const Call& call, std::int32_t tile_rows) {
  return tiles_of(call, call.queries, tile_rows) * call.heads * call.batch_size;
}
ATTEND_HOST_DEVICE inline std::int64_t key_tiles(const Call& call, std::int32_t tile_rows) {
  return tiles_of(call, call.keys, tile_rows) * call.kv_heads * call.batch_size;
}

/// Sequence b of a packed batch.
ATTEND_HOST_DEVICE inline Sequence packed_sequence(const Call& call, std::int32_t batch, std::int32_t b) {
  return {batch,
          {load_global(call.query_offsets + b), load_global(call.query_offsets + b + 1)},
          {load_global(call.key_offsets + b), load_global(call.key_offsets + b + 1)},
          call.keys};
}

/// The queries and keys of a batch entry.
ATTEND_HOST_DEVICE inline Sequence whole_sequence(const Call& call, std::int32_t batch) {
  const std::int32_t keys = call.key_lengths == nullptr ? call.keys : load_global(call.key_lengths + batch);
  return {batch, {0, call.queries}, {0, keys}, keys};
}

/// Tile number `index` of all tiles of `rows` rows and `heads` heads: batch entry by batch entry, head by head.
///
/// In a packed batch sequence b has the tiles from ⌊begin / tile_rows⌋ + b on, where `begin` is its first row. So a
/// search in the offsets finds the sequence of a tile; some tiles are empty.
ATTEND_HOST_DEVICE inline Tile tile_at(const Call& call, std::int64_t index, std::int32_t rows,
                                       const std::int32_t* offsets, std::int32_t heads, std::int32_t tile_rows,
                                       KeyRange Sequence::*own_rows) {
  const std::int64_t count = tiles_of(call, rows, tile_rows);
  const auto number = static_cast<std::int32_t>(index % count);
  const std::int64_t head = index / count;
  const auto batch = static_cast<std::int32_t>(head / heads);
  Tile tile{{}, static_cast<std::int32_t>(head % heads), {}};
  std::int32_t begin = number * tile_rows;
  if (call.num_sequences > 0) {
    const auto first_tile = [&](std::int32_t b) { return load_global(offsets + b) / tile_rows + b; };
    std::int32_t b = 0, end = call.num_sequences;  // first_tile(b) ≤ number < first_tile(end)
    while (end - b > 1) {
      const std::int32_t middle = b + (end - b) / 2;
      (first_tile(middle) <= number ? b : end) = middle;
    }
    tile.sequence = packed_sequence(call, batch, b);
    begin = (tile.sequence.*own_rows).begin + (number - first_tile(b)) * tile_rows;
  } else {
    tile.sequence = whole_sequence(call, batch);
  }
  const std::int32_t last = (tile.sequence.*own_rows).end;
  tile.rows = {begin, last - begin < tile_rows ? last : begin + tile_rows};
  return tile;
}

/// Tile number `index` of the queries; the head is a query head.
ATTEND_HOST_DEVICE inline Tile query_tile(const Call& call, std::int64_t index, std::int32_t tile_rows) {
  return tile_at(call, index, call.queries, call.query_offsets, call.heads, tile_rows, &Sequence::queries);
}

/// Tile number `index` of the keys; the head is a key head.
ATTEND_HOST_DEVICE inline Tile key_tile(const Call& call, std::int64_t index, std::int32_t tile_rows) {
  return tile_at(call, index, call.keys, call.key_offsets, call.kv_heads, tile_rows, &Sequence::keys);
}

/// The place of row i of a head in a tensor (N, H, rows, columns), in numbers after its data.
ATTEND_HOST_DEVICE inline std::int64_t row_place(const std::int64_t (&strides)[4], std::int32_t batch,
                                                 std::int32_t head, std::int32_t i) {
  return batch * strides[0] + head * strides[1] + i * strides[2];
}

/// The same for row j of a key head in `key` or `value`, which may be in pages.
ATTEND_HOST_DEVICE inline std::int64_t key_place(const Call& call, const ConstTensorView4d& tensor, std::int32_t batch,
                                                 std::int32_t kv_head, std::int32_t j) {
  if (call.block_table == nullptr) return row_place(tensor.strides, batch, kv_head, j);
  const std::int32_t page = load_global(call.block_table + batch * call.block_table_stride + j / call.page_size);
  return row_place(tensor.strides, page, kv_head, j % call.page_size);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
