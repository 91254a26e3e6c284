// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cpu/added_numbers.h>
#include <attend/kernels/cpu/option_kernels.h>
#include <attend/kernels/cpu/sums.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/kernels/cpu/variant.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/dual.h>
#include <attend/score/mask_cover.h>
#include <attend/score/mask_mod.h>
#include <attend/score/real.h>
#include <attend/score/score_mod.h>
#include <attend/score/tensor_view.h>
#include <attend/simd/dispatch.h>
#include <attend/version.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

template <class Score, class Mask>
struct ScoreAndMask {
  Score score;
  Mask mask;
};

/// A score_mod and a mask_mod applied to every score of a tile, kRun neighbours at a time. All memory that a run reads
/// and writes is local, and the mask has a loop of its own: so the compilers vectorize a caller's struct at -O2. The
/// mask is not called for a tile that it allows as a whole.
///
/// Padding repeats the last query, because the struct may read outside of its memory for a query that does not exist.
template <class T, class Score, class Mask>
struct ApplyVariant {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const ScoreAndMask<Score, Mask>& mod, const Tile<T>& tile, T* derivatives) {
    if constexpr (attend::detail::HasCover<Mask>)
      if (tile.cover == MaskCover::kFull) {
        if constexpr (!std::is_same_v<Score, Unchanged>) apply</*kHasMask=*/false>(mod, tile, derivatives);
        return;
      }
    if constexpr (attend::detail::HasOnlyMask<Mask>) {
      const Coordinate& first = tile.first;
      const auto* const only = mod.mask.only_mask(
          {first.batch, first.head, first.query, first.query + tile.queries, first.query_length, first.key_length},
          {first.key, first.key + tile.keys});
      using OnlyMask = std::remove_cvref_t<decltype(*only)>;
      if (only != nullptr)
        return apply</*kHasMask=*/true>(ScoreAndMask<Score, OnlyMask>{mod.score, *only}, tile, derivatives);
    }
    if constexpr (!std::is_same_v<Mask, EveryKey>) apply</*kHasMask=*/true>(mod, tile, derivatives);
  }

 private:
  template <bool kHasMask, class Mod>
  static ATTEND_ALWAYS_INLINE void apply(const Mod& given_mod, const Tile<T>& given_tile, T* derivatives) {
    const Mod mod = given_mod;
    const Tile<T> tile = given_tile;
    const std::int32_t last = tile.first.query + tile.queries - 1;
    for (int j = 0; j < tile.keys; ++j)
      for (int begin = 0; begin < tile.columns; begin += kRun) {
        T* const scores = tile.scores + j * kTileQueries + begin;
        T before[kRun], after[kRun], slopes[kRun];
        [[maybe_unused]] std::int32_t is_allowed[kRun];
        Coordinate at = tile.first;
        at.key += j;
        const std::int32_t query = tile.first.query + begin;
        const auto query_at = [&](int i) { return query + i < last ? query + i : last; };
        for (int i = 0; i < kRun; ++i) before[i] = scores[i];
        for (int i = 0; kHasMask && i < kRun; ++i) {
          at.query = query_at(i);
          is_allowed[i] = mod.mask(at);
        }
        if (derivatives == nullptr) {
          for (int i = 0; i < kRun; ++i) {
            at.query = query_at(i);
            const Real<T> changed = mod.score(Real<T>(before[i]), at);
            after[i] = changed.value;
          }
        } else {
          for (int i = 0; i < kRun; ++i) {
            at.query = query_at(i);
            const Dual<T> changed = mod.score(Dual<T>(before[i], T(1)), at);
            after[i] = changed.value.value;
            slopes[i] = changed.derivative.value;
          }
          for (int i = 0; i < kRun; ++i) derivatives[j * kTileQueries + begin + i] = slopes[i];
        }
        for (int i = 0; i < kRun; ++i) scores[i] = !kHasMask || is_allowed[i] != 0 ? after[i] : kNegativeInfinity<T>;
      }
  }
};

/// The CpuVariant of one pair of types. Only this class is compiled for them.
template <class T, class Score, class Mask>
class TypedCpuVariant final : public CpuVariant<T> {
 public:
  /// Makes a score_mod that computes derivatives (as Duals) with respect to the value of tensor k that `reads` names.
  using BindBy = std::function<Score(int k, attend::detail::TensorReads* reads)>;

  TypedCpuVariant(const Score& score, const Mask& mask, int tensors, BindBy bind_by, InstructionSet set)
      : mod_{score, mask}, tensors_(tensors), bind_by_(std::move(bind_by)), functions_(set) {}

  void prepare(std::int32_t batch_size, std::int32_t heads, std::int32_t queries, std::int32_t keys) override {
    if constexpr (kIsSameForBatch)
      if (mod_.score.is_same_for_batch() && HeadTiles<T>::are_for(batch_size, heads, queries, keys))
        tiles_.emplace(heads, queries, keys);
  }

  KeyRange keys(const QueryBlock& block) const override { return attend::detail::key_range(mod_.mask, block); }

  MaskCover cover(const QueryBlock& queries, const KeyRange& keys) const override {
    if constexpr (attend::detail::HasCover<Mask>)
      return mod_.mask.cover(queries, keys);
    else  // the kernels ask only about keys within keys()
      return MaskCover::kPartial;
  }

  bool apply(const Tile<T>& tile, T* derivatives) const override {
    if (tiles_) {
      const T* const numbers = tiles_->numbers(tile.first.head, [&](const Tile<T>& whole) {
        functions_.add_all({mod_.score, EveryKey{}}, whole, nullptr);
      });
      functions_.add_tile(numbers + tile.first.key * kTileQueries, tile.keys, tile.columns, tile.scores);
      functions_.mask({Unchanged{}, mod_.mask}, tile, nullptr);
      return false;
    }
    functions_.apply(mod_, tile, has_derivatives() ? derivatives : nullptr);
    return has_derivatives() && derivatives != nullptr;
  }

  bool has_derivatives() const override { return !std::is_same_v<Score, Unchanged> && !kAddsNumber; }

  int tensors() const override { return tensors_; }

  void prepare_gradients(int threads) override {
    if (tiles_) tiles_->prepare_gradients(threads);
    for (int i = 0; i < threads * tensors_ && !kAddsNumber; ++i) {
      auto reads = std::make_unique<attend::detail::TensorReads>();
      Score score = bind_by_(i % tensors_, reads.get());
      differentiated_.push_back({std::move(reads), score});
    }
  }

  void add_gradients(const Tile<T>& tile, const T* gradients, int k, int thread, const Sums::Row& sums) override {
    if constexpr (!kAddsNumber)
      add_by_derivatives(tile, gradients, k, thread, sums);
    else if (tiles_)
      functions_.add_gradients_to_tile(gradients, tile.keys, columns_for(tile.queries),
                                       tiles_->gradients(thread, tile.first.head) + tile.first.key * kTileQueries);
    else
      functions_.add_gradients(mod_.score, tile, gradients, sums);
  }

  void clear_gradients() override {
    if (tiles_) tiles_->clear_gradients();
  }

  void finish_gradients(int thread, const Sums::Row& sums) override {
    if constexpr (kAddsNumber)
      for (std::int32_t head = 0; tiles_ && head < tiles_->heads(); ++head)
        functions_.add_gradients_of_tile(mod_.score, tiles_->whole(head, nullptr), tiles_->gradients(thread, head),
                                         sums);
  }

 private:
  using Mod = ScoreAndMask<Score, Mask>;
  static constexpr bool kAddsNumber = attend::detail::AddsNumber<Score>;
  static constexpr bool kIsSameForBatch = kAddsNumber && requires(const Score& score) { score.is_same_for_batch(); };

  template <class S, class M>
  using Apply = void (*)(const ScoreAndMask<S, M>&, const Tile<T>&, T*);
  template <class Sum>
  using AddTo = void (*)(const T*, int, int, Sum*);
  template <class Gradient>
  using AddGradients = void (*)(const Score&, const Tile<T>&, const Gradient*, const Sums::Row&);

  /// The functions for an instruction set. Those that a score_mod does not need are null.
  struct Functions {
    Apply<Score, Mask> apply;
    AddGradients<T> add_gradients = nullptr;   // of a score_mod that adds numbers
    Apply<Score, EveryKey> add_all = nullptr;  // the rest is for HeadTiles
    Apply<Unchanged, Mask> mask = nullptr;
    AddTo<T> add_tile = nullptr;
    AddTo<double> add_gradients_to_tile = nullptr;
    AddGradients<double> add_gradients_of_tile = nullptr;

    explicit Functions(InstructionSet set) : apply(function<Apply<Score, Mask>, ApplyVariant<T, Score, Mask>>(set)) {
      if constexpr (kAddsNumber) {
        add_gradients = function<AddGradients<T>, AddGradientsOfNumbers<T, Score, T>>(set);
        add_gradients_of_tile = function<AddGradients<double>, AddGradientsOfNumbers<T, Score, double>>(set);
      }
      if constexpr (kIsSameForBatch) {
        add_all = function<Apply<Score, EveryKey>, ApplyVariant<T, Score, EveryKey>>(set);
        mask = function<Apply<Unchanged, Mask>, ApplyVariant<T, Unchanged, Mask>>(set);
        add_tile = function<AddTo<T>, AddTile<T, T>>(set);
        add_gradients_to_tile = function<AddTo<double>, AddTile<T, double>>(set);
      }
    }

   private:
    template <class Pointer, class Function>
    static Pointer function(InstructionSet set) {
      return for_isa(set, [](auto isa) -> Pointer { return &CompiledFor<decltype(isa), Function>::call; });
    }
  };

  /// Calls the score_mod once for each value that it reads.
  void add_by_derivatives(const Tile<T>& tile, const T* gradients, int k, int thread, const Sums::Row& sums) {
    const Differentiated& own = differentiated_[static_cast<std::size_t>(thread * tensors_ + k)];
    attend::detail::TensorReads& reads = *own.reads;
    using Number = Dual<T, /*kByTensor=*/true>;
    for (int j = 0; j < tile.keys; ++j)
      for (int i = 0; i < tile.queries; ++i) {
        const T gradient = gradients[j * kTileQueries + i];
        if (gradient == T(0)) continue;  // masked: the derivative may be infinite
        Coordinate at = tile.first;
        at.key += j;
        at.query += i;
        const Number score(tile.scores[j * kTileQueries + i]);
        for (int turn = 0, turns = 1; turn < turns; ++turn) {  // once for each value that the score_mod reads
          reads.begin(turn);
          const Number changed = own.score(score, at);
          turns = reads.turn;
          if (turn < turns) sums.add(reads.place, gradient * changed.derivative.value);
        }
      }
  }

  struct Differentiated {
    std::unique_ptr<attend::detail::TensorReads> reads;
    Score score;
  };

  Mod mod_;
  int tensors_;
  BindBy bind_by_;
  std::vector<Differentiated> differentiated_;  // of thread 0: for tensor 0, 1, …; of thread 1; …
  Functions functions_;
  mutable std::optional<HeadTiles<T>> tiles_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
