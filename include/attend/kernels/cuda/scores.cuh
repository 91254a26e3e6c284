// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/philox.h>
#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/dual.h>
#include <attend/score/mask_cover.h>
#include <attend/score/mask_mod.h>
#include <attend/score/real.h>
#include <attend/score/score_mod.h>
#include <attend/simd/math.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/sequence.cuh>

#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

using attend::detail::larger;
using attend::detail::smaller;

/// A query and a key.
struct ScorePlace {
  std::int32_t query, key;
};

/// A score with what a backward pass needs of it.
template <class T>
struct DerivedScore {
  T value;         // as the softmax takes it; −∞ if it is masked
  T before;        // the score that the score_mod is called with
  T mod_slope;     // ∂value / ∂before; 0 if the score is masked
  T option_slope;  // ∂before / ∂(scale · q·k): the derivative of softcap
};

/// The steps between q·k and the softmax for one head of one batch entry: scale, softcap, ALiBi, added mask, score_mod,
/// and all masks. T, float or double, is the type that is computed in.
///
/// A call without options has no softcap, ALiBi, attn_mask and dropout. kHasOptions = false leaves out their code,
/// which takes registers in a kernel on tensor cores.
///
/// `ScorePlace`s outside of the sequence are allowed. They are masked, and the structs never see them: they are called
/// with the nearest query and key of the sequence.
template <class T, class Score, class Mask, bool kHasOptions = true>
class HeadScores {
 public:
  static constexpr T kMasked = -simd::FloatFormat<T>::kInfinity;

  /// @param head The query head.
  ATTEND_HOST_DEVICE HeadScores(const Call& call, const Score& score, const Mask& mask, const Sequence& sequence,
                                std::int32_t head)
      : call_(call), score_(score), mask_(mask), sequence_(sequence), head_(head), scale_(static_cast<T>(call.scale)) {
    if constexpr (!kHasOptions) return;
    const std::int64_t batch = sequence.batch;
    softcap_ = static_cast<T>(call.softcap);
    inverse_softcap_ = static_cast<T>(1 / call.softcap);
    if (has_alibi())
      slope_ = load_global(static_cast<const T*>(call.alibi_slopes) + batch * call.alibi_strides[0] +
                           head * call.alibi_strides[1]);
    if (has_dropout())
      seed_ = call.dropout_seed_data == nullptr ? call.dropout_seed
                                                : static_cast<std::uint64_t>(load_global(call.dropout_seed_data));
    mask_offset_ = batch * call.attn_mask.strides[0] + head * call.attn_mask.strides[1];
  }

  ATTEND_HOST_DEVICE const Sequence& sequence() const { return sequence_; }
  ATTEND_HOST_DEVICE std::int32_t head() const { return head_; }

  /// Whether each score is scale · q·k, if it is not masked.
  ATTEND_HOST_DEVICE bool only_scales() const {
    return std::is_same_v<Score, Unchanged> && !has_softcap() && !has_alibi() && !has_added_mask();
  }

  /// The keys that any of these queries may attend to: begin ≥ end if there is none. `queries` is not empty.
  ATTEND_HOST_DEVICE KeyRange keys(const KeyRange& queries) const {
    KeyRange range{band(queries.begin).begin, band(queries.end - 1).end};
    if constexpr (attend::detail::HasKeyRange<Mask>) {
      if (range.begin >= range.end) return {0, 0};
      const KeyRange own = mask_.keys(block(queries));
      range = {larger(range.begin, own.begin), smaller(range.end, own.end)};
    }
    return range;
  }

  /// The queries of the sequence whose window reaches any of these keys. `keys` is not empty.
  ATTEND_HOST_DEVICE KeyRange queries(const KeyRange& keys) const {
    KeyRange range = sequence_.queries;
    const std::int32_t shift = sequence_.position(0);
    if (call_.window_right >= 0) range.begin = larger(range.begin, keys.begin - call_.window_right - shift);
    if (call_.window_left >= 0) range.end = smaller(range.end, keys.end + call_.window_left - shift);
    return range;
  }

  /// How much of a tile all masks together allow. kFull: no score of the tile is masked. Rows outside of the sequence
  /// may be in the tile; then it is not kFull.
  ATTEND_HOST_DEVICE MaskCover cover(const KeyRange& tile_queries, const KeyRange& tile_keys) const {
    const KeyRange queries = within(tile_queries, sequence_.queries), keys = within(tile_keys, sequence_.keys);
    if (queries.begin >= queries.end || keys.begin >= keys.end) return MaskCover::kEmpty;
    // key − position: from `lowest` to `highest`
    const std::int32_t lowest = keys.begin - sequence_.position(queries.end - 1);
    const std::int32_t highest = keys.end - 1 - sequence_.position(queries.begin);
    const std::int32_t left = call_.window_left, right = call_.window_right;
    if ((left >= 0 && highest < -left) || (right >= 0 && lowest > right)) return MaskCover::kEmpty;
    const bool is_cut = (left >= 0 && lowest < -left) || (right >= 0 && highest > right);
    const bool is_whole = queries.begin == tile_queries.begin && queries.end == tile_queries.end &&
                          keys.begin == tile_keys.begin && keys.end == tile_keys.end;
    const MaskCover own = attend::detail::mask_cover(mask_, block(queries), keys);
    const bool may_be_full = is_whole && !is_cut && !has_bool_mask();
    return own == MaskCover::kFull && !may_be_full ? MaskCover::kPartial : own;
  }

  /// Turns q·k into scores for the softmax. `place(k)` is the ScorePlace of scores[k]; is_full: cover() is kFull.
  ///
  /// Each step has a loop of its own, so that an option that is not used costs one branch.
  template <int kCount, class Places>
  ATTEND_HOST_DEVICE void apply(T (&scores)[kCount], const Places& place, bool is_full) const {
    ATTEND_UNROLL
    for (int k = 0; k < kCount; ++k) scores[k] *= scale_;
    change(scores, place);
    if (!is_full) apply_masks(scores, place);
  }

  /// The steps after `scale` and before the masks.
  template <int kCount, class Places>
  ATTEND_HOST_DEVICE void change(T (&scores)[kCount], const Places& place) const {
    if (has_softcap()) {
      ATTEND_UNROLL
      for (int k = 0; k < kCount; ++k) scores[k] = softcap_ * tangent(scores[k]);
    }
    if (has_alibi()) {
      ATTEND_UNROLL
      for (int k = 0; k < kCount; ++k) scores[k] += alibi(place(k));
    }
    if (has_added_mask()) {
      ATTEND_UNROLL
      for (int k = 0; k < kCount; ++k) scores[k] = plus(scores[k], added(place(k)));
    }
    if constexpr (!std::is_same_v<Score, Unchanged>) {
      ATTEND_UNROLL
      for (int k = 0; k < kCount; ++k) scores[k] = Real<T>(score_(Real<T>(scores[k]), coordinate(place(k)))).value;
    }
  }

  /// −∞ for the scores that are masked.
  template <int kCount, class Places>
  ATTEND_HOST_DEVICE void apply_masks(T (&scores)[kCount], const Places& place) const {
    ATTEND_UNROLL
    for (int k = 0; k < kCount; ++k)
      if (const KeyRange range = band(place(k).query); place(k).key < range.begin || place(k).key >= range.end)
        scores[k] = kMasked;
    if (has_bool_mask()) {
      ATTEND_UNROLL
      for (int k = 0; k < kCount; ++k)
        if (!is_true(place(k))) scores[k] = kMasked;
    }
    if constexpr (!std::is_same_v<Mask, EveryKey>) {
      ATTEND_UNROLL
      for (int k = 0; k < kCount; ++k)
        if (!mask_(coordinate(place(k)))) scores[k] = kMasked;
    }
  }

  /// One score, with its derivatives. `product` is q·k.
  ATTEND_HOST_DEVICE DerivedScore<T> derived(T product, const ScorePlace& place, bool is_full) const {
    DerivedScore<T> score{product * scale_, T(0), T(1), T(1)};
    if (has_softcap()) {
      const T bent = tangent(score.value);
      score.value = softcap_ * bent;
      score.option_slope = T(1) - bent * bent;
    }
    if (has_alibi()) score.value += alibi(place);
    if (has_added_mask()) score.value = plus(score.value, added(place));
    score.before = score.value;
    if constexpr (!std::is_same_v<Score, Unchanged>) {
      const Dual<T> changed = score_(Dual<T>(Real<T>(score.value), Real<T>(T(1))), coordinate(place));
      score.value = changed.value.value;
      score.mod_slope = changed.derivative.value;
    }
    T masked[1] = {score.value};
    if (!is_full) apply_masks(masked, [&](int) { return place; });
    if (masked[0] == kMasked) return {kMasked, score.before, T(0), T(0)};
    return score;
  }

  ATTEND_HOST_DEVICE bool has_dropout() const { return kHasOptions && call_.has_dropout(); }
  /// The factor of a weight: 0 if dropout drops it, 1 without dropout.
  ATTEND_HOST_DEVICE T dropout_factor(const ScorePlace& place) const {
    if (!has_dropout()) return T(1);
    const attend::detail::PhiloxBlock block = dropout_words(place);  // an index that varies would put it into memory
    const std::uint32_t first = place.key & 1 ? block.words[1] : block.words[0];
    const std::uint32_t second = place.key & 1 ? block.words[3] : block.words[2];
    return dropout_factor(place.key & 2 ? second : first);
  }
  /// The factor for a random word.
  ATTEND_HOST_DEVICE T dropout_factor(std::uint32_t word) const {
    return word >= call_.dropout_threshold ? static_cast<T>(call_.dropout_scale) : T(0);
  }
  /// The random words of a query and the four keys from place.key & ~3 on.
  ATTEND_HOST_DEVICE attend::detail::PhiloxBlock dropout_words(const ScorePlace& place) const {
    const auto pair = [](std::int32_t high, std::int32_t low) {
      return static_cast<std::uint64_t>(static_cast<std::uint32_t>(high)) << 32 | static_cast<std::uint32_t>(low);
    };
    return attend::detail::philox(seed_, pair(place.query, place.key >> 2), pair(sequence_.batch, head_));
  }

  /// The distance that ALiBi multiplies by the slope.
  ATTEND_HOST_DEVICE std::int32_t distance(const ScorePlace& place) const {
    const std::int32_t signed_distance = sequence_.position(place.query) - place.key;
    return signed_distance < 0 ? -signed_distance : signed_distance;
  }

  /// Where the structs are called for a place: for the place, or for the nearest one of the sequence.
  ATTEND_HOST_DEVICE Coordinate coordinate(const ScorePlace& place) const {
    return {sequence_.batch,
            head_,
            nearest(place.query, sequence_.queries),
            nearest(place.key, sequence_.keys),
            call_.queries,
            sequence_.key_length};
  }

 private:
  ATTEND_HOST_DEVICE static KeyRange within(const KeyRange& a, const KeyRange& b) {
    return {larger(a.begin, b.begin), smaller(a.end, b.end)};
  }
  ATTEND_HOST_DEVICE static std::int32_t nearest(std::int32_t i, const KeyRange& range) {
    return larger(range.begin, smaller(i, range.end - 1));
  }

  ATTEND_HOST_DEVICE QueryBlock block(const KeyRange& queries) const {
    return {sequence_.batch, head_, queries.begin, queries.end, call_.queries, sequence_.key_length};
  }

  ATTEND_HOST_DEVICE bool has_softcap() const { return kHasOptions && softcap_ > T(0); }
  ATTEND_HOST_DEVICE bool has_alibi() const { return kHasOptions && call_.alibi_slopes != nullptr; }
  ATTEND_HOST_DEVICE bool has_bool_mask() const { return kHasOptions && call_.mask_type == MaskType::kBool; }
  ATTEND_HOST_DEVICE bool has_added_mask() const {
    return kHasOptions && (call_.mask_type == MaskType::kAdded || call_.mask_type == MaskType::kAddedBFloat16);
  }
  ATTEND_HOST_DEVICE std::int64_t mask_place(const ScorePlace& place) const {
    return mask_offset_ + nearest(place.query, sequence_.queries) * call_.attn_mask.strides[2] +
           nearest(place.key, sequence_.keys) * call_.attn_mask.strides[3];
  }

  /// The keys of the sequence and the window of a query.
  ATTEND_HOST_DEVICE KeyRange band(std::int32_t query) const {
    KeyRange range = sequence_.keys;
    if (query < sequence_.queries.begin || query >= sequence_.queries.end) range.end = range.begin;
    if (call_.window_left >= 0) range.begin = larger(range.begin, sequence_.position(query) - call_.window_left);
    if (call_.window_right >= 0) range.end = smaller(range.end, sequence_.position(query) + call_.window_right + 1);
    return range;
  }
  /// Whether the bool mask allows the place.
  ATTEND_HOST_DEVICE bool is_true(const ScorePlace& place) const {
    return load_global(static_cast<const unsigned char*>(call_.attn_mask.data) + mask_place(place)) != 0;
  }
  /// The sum; −∞ if −∞ is added, even to NaN. float: numbers below −2¹²⁷ are added as −2¹²⁷, so that a score times
  /// log₂ e is finite. Many programs mask with the lowest number of a type.
  ATTEND_HOST_DEVICE static T plus(T score, T added) {
    constexpr T kLeast = std::is_same_v<T, float> ? T(-0x1p127) : -simd::FloatFormat<T>::kInfinity;
    return added == kMasked ? kMasked : score + (added < kLeast ? kLeast : added);
  }

  ATTEND_HOST_DEVICE T tangent(T score) const { return tanh(Real<T>(score * inverse_softcap_)).value; }
  ATTEND_HOST_DEVICE T alibi(const ScorePlace& place) const { return -slope_ * static_cast<T>(distance(place)); }
  ATTEND_HOST_DEVICE T added(const ScorePlace& place) const {
    const std::int64_t at = mask_place(place);
    if (call_.mask_type == MaskType::kAdded) return load_global(static_cast<const T*>(call_.attn_mask.data) + at);
    const std::uint16_t bits = load_global(static_cast<const std::uint16_t*>(call_.attn_mask.data) + at);
    return static_cast<T>(__builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16));
  }

  const Call& call_;
  const Score& score_;
  const Mask& mask_;
  Sequence sequence_;
  std::int32_t head_;
  T scale_, softcap_ = T(0), inverse_softcap_ = T(0), slope_ = T(0);
  std::uint64_t seed_ = 0;
  std::int64_t mask_offset_ = 0;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
