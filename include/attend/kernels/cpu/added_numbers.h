// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cpu/option_kernels.h>
#include <attend/kernels/cpu/sums.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/simd/dispatch.h>
#include <attend/version.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Adds the gradients of the scores of a tile to those of the numbers that a score_mod adds. The places of kRun
/// neighbours are computed at a time, as in ApplyVariant. `gradients` begins with the tile's first query.
template <class T, class Score, class Gradient>
struct AddGradientsOfNumbers {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const Score& given_score, const Tile<T>& tile, const Gradient* gradients,
                                       const Sums::Row& sums) {
    const Score score = given_score;
    const std::int32_t last = tile.first.query + tile.queries - 1;
    for (int j = 0; j < tile.keys; ++j)
      for (int begin = 0; begin < tile.queries; begin += kRun) {
        std::int64_t places[kRun];
        Coordinate at = tile.first;
        at.key += j;
        const std::int32_t query = tile.first.query + begin;
        for (int i = 0; i < kRun; ++i) {
          at.query = query + i < last ? query + i : last;
          places[i] = score.added_place(at);
        }
        const Gradient* const row = gradients + j * kTileQueries + begin;
        const int count = tile.queries - begin < kRun ? tile.queries - begin : kRun;
        for (int i = 0; i < count; ++i) sums.add(places[i], static_cast<double>(row[i]));
      }
  }
};

/// sums += numbers, for the rows of a tile.
template <class T, class Sum>
struct AddTile {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const T* numbers, int keys, int columns, Sum* sums) {
    for (int j = 0; j < keys; ++j)
      for (int begin = 0; begin < columns; begin += kRun)
        for (int i = 0; i < kRun; ++i)
          sums[j * kTileQueries + begin + i] += static_cast<Sum>(numbers[j * kTileQueries + begin + i]);
  }
};

/// The numbers that a score_mod adds in a call of many small windows: one tile for each head, because they are the same
/// for all batch entries. So they are not read one by one for each entry. A tile is computed when it is first needed.
/// Each thread adds up the gradients of each tile. After that, they are added up for each number.
template <class T>
class HeadTiles {
 public:
  /// Whether a call consists of many small windows. The tiles then take less memory than its scores would.
  static bool are_for(std::int32_t batch_size, std::int32_t heads, std::int32_t queries, std::int32_t keys) {
    constexpr std::int32_t kFewestEntries = 8, kMostHeads = 32;
    return batch_size >= kFewestEntries && heads <= kMostHeads && queries <= kTileQueries && keys <= kTileKeys;
  }

  HeadTiles(std::int32_t heads, std::int32_t queries, std::int32_t keys)
      : queries_(queries), keys_(keys), tiles_(static_cast<std::size_t>(heads)) {}
  ~HeadTiles() {
    for (std::atomic<T*>& tile : tiles_) delete[] tile.load();
  }
  HeadTiles(const HeadTiles&) = delete;
  HeadTiles& operator=(const HeadTiles&) = delete;

  /// The tile of all queries and keys of a head.
  Tile<T> whole(std::int32_t head, T* scores) const {
    return {scores,          {0, head, 0, 0, queries_, keys_}, keys_ - queries_, queries_, columns_for(queries_), keys_,
            MaskCover::kFull};
  }

  /// The numbers of a head. compute(tile) adds them to the zeros of a tile.
  template <class Compute>
  const T* numbers(std::int32_t head, const Compute& compute) {
    std::atomic<T*>& tile = tiles_[static_cast<std::size_t>(head)];
    if (const T* const found = tile.load(std::memory_order_acquire)) return found;
    auto own = std::make_unique<T[]>(kTileSize);
    compute(whole(head, own.get()));
    T* none = nullptr;
    return tile.compare_exchange_strong(none, own.get(), std::memory_order_acq_rel) ? own.release() : none;
  }

  void prepare_gradients(int threads) {
    gradients_.assign(static_cast<std::size_t>(threads), std::vector<double>(tiles_.size() * kTileSize));
  }
  void clear_gradients() {
    for (std::vector<double>& each : gradients_) std::fill(each.begin(), each.end(), 0.0);
  }
  double* gradients(int thread, std::int32_t head) {
    return gradients_[static_cast<std::size_t>(thread)].data() + head * kTileSize;
  }

  std::int32_t heads() const { return static_cast<std::int32_t>(tiles_.size()); }

 private:
  std::int32_t queries_, keys_;
  std::vector<std::atomic<T*>> tiles_;
  std::vector<std::vector<double>> gradients_;  // of each thread: (heads, kTileKeys, kTileQueries)
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
