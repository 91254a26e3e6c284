// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/version.h>

#include <concepts>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// How much of a block of scores a mask allows. A block has the scores of consecutive queries with consecutive keys.
///
/// The optional function `cover` of a mask_mod returns it, see MaskMod. PyTorch's flex_attention has the same three
/// kinds of blocks: skipped, partial and full.
enum class MaskCover : std::uint8_t {
  kEmpty,    ///< No query may attend to any of the keys. The block is not computed.
  kPartial,  ///< Anything else, or unknown. The mask is called for every score.
  kFull,     ///< Every query may attend to every key. The mask is not called.
};

namespace detail {

template <class Mod>
concept HasKeyRange = requires(const Mod& mod, QueryBlock block) {
  { mod.keys(block) } -> std::same_as<KeyRange>;
};

template <class Mod>
concept HasCover = requires(const Mod& mod, QueryBlock queries, KeyRange keys) {
  { mod.cover(queries, keys) } -> std::same_as<MaskCover>;
};

/// A mask that contains another mask. only_mask() returns the inner mask for blocks in which it alone decides.
template <class Mod>
concept HasOnlyMask = requires(const Mod& mod, QueryBlock queries, KeyRange keys) {
  *mod.only_mask(queries, keys);
};

/// The range that keys() of the mask returns, or all keys if the mask has no keys().
template <class Mod>
ATTEND_HOST_DEVICE constexpr KeyRange key_range(const Mod& mod, const QueryBlock& block) {
  static_assert(
      HasKeyRange<Mod> || !requires { &Mod::keys; },
      "attend: `keys` of a mask_mod must be `attend::KeyRange keys(attend::QueryBlock block) const`");
  if constexpr (HasKeyRange<Mod>)
    return mod.keys(block);
  else
    return {0, block.key_length};
}

/// How much of the block the mask allows. The answer is that of cover(). For a mask without cover() it is kEmpty for
/// keys outside of keys(), and kPartial otherwise.
template <class Mod>
ATTEND_HOST_DEVICE constexpr MaskCover mask_cover(const Mod& mod, const QueryBlock& queries, const KeyRange& keys) {
  static_assert(
      HasCover<Mod> || !requires { &Mod::cover; },
      "attend: `cover` of a mask_mod must be "
      "`attend::MaskCover cover(attend::QueryBlock queries, attend::KeyRange keys) const`");
  if constexpr (HasCover<Mod>) {
    return mod.cover(queries, keys);
  } else {
    const KeyRange range = key_range(mod, queries);
    return keys.end <= range.begin || range.end <= keys.begin ? MaskCover::kEmpty : MaskCover::kPartial;
  }
}

/// kEmpty or kFull if the block is known to be so, otherwise kPartial.
ATTEND_HOST_DEVICE constexpr MaskCover cover_of(bool is_empty, bool is_full) {
  return is_empty ? MaskCover::kEmpty : is_full ? MaskCover::kFull : MaskCover::kPartial;
}

// The cover of a & b, a | b and !a. It is kPartial if the covers of a and b do not determine it.
ATTEND_HOST_DEVICE constexpr MaskCover cover_of_and(MaskCover a, MaskCover b) { return a < b ? a : b; }
ATTEND_HOST_DEVICE constexpr MaskCover cover_of_or(MaskCover a, MaskCover b) { return a < b ? b : a; }
ATTEND_HOST_DEVICE constexpr MaskCover cover_of_not(MaskCover a) {
  return cover_of(/*is_empty=*/a == MaskCover::kFull, /*is_full=*/a == MaskCover::kEmpty);
}

}  // namespace detail

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
