// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cpu/sums.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// A caller's score_mod and mask_mod, as the kernels see them.
template <class T>
class CpuVariant {
 public:
  virtual ~CpuVariant() = default;

  /// Call it first, with the sizes of the call, if it has neither key_lengths nor packed sequences.
  virtual void prepare(std::int32_t batch_size, std::int32_t heads, std::int32_t queries, std::int32_t keys) = 0;

  virtual KeyRange keys(const QueryBlock& block) const = 0;

  /// How much of the block the mask allows.
  virtual MaskCover cover(const QueryBlock& queries, const KeyRange& keys) const = 0;

  /// Changes the scores of the tile, and masks them unless its cover is kFull. If `derivatives` is not null and the
  /// result is true, it was filled; otherwise the derivatives are 1.
  virtual bool apply(const Tile<T>& tile, T* derivatives) const = 0;

  /// False if the derivative of every score is 1. The variant then only masks, or adds numbers that do not depend on
  /// the score.
  virtual bool has_derivatives() const = 0;

  /// The number of tensors that gradients may go back to.
  virtual int tensors() const = 0;

  /// Call it before add_gradients(), with the number of threads.
  virtual void prepare_gradients(int threads) = 0;

  /// `gradients` are those of the scores after apply(). The tile has the scores before it, unless has_derivatives() is
  /// false. Adds the gradients of the values of tensor k.
  virtual void add_gradients(const Tile<T>& tile, const T* gradients, int k, int thread, const Sums::Row& sums) = 0;

  /// Sets all gradients to zero that add_gradients() has kept to itself.
  virtual void clear_gradients() = 0;

  /// Call it for each thread after the last add_gradients(): adds the gradients that it has kept to itself.
  virtual void finish_gradients(int thread, const Sums::Row& sums) = 0;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
