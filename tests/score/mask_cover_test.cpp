// SPDX-License-Identifier: MIT
#include <attend/score/block_mask.h>
#include <attend/score/flash_mask.h>
#include <attend/score/mask_cover.h>
#include <attend/score/mask_mod.h>
#include <attend/score/mask_operators.h>

#include "support/structs.h"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

using namespace attend;
using attend::test::SameParity;

namespace {

/// Has a key range, and no cover().
struct FirstKeys {
  std::int32_t count;
  bool operator()(Coordinate at) const { return at.key < count; }
  KeyRange keys(QueryBlock) const { return {0, count}; }
};

/// Depends on batch and head.
struct OfOneHead : attend::detail::MaskOperators {
  bool operator()(Coordinate at) const { return at.head == 1 && at.batch == 0; }
  MaskCover cover(QueryBlock queries, KeyRange) const {
    return queries.head == 1 && queries.batch == 0 ? MaskCover::kFull : MaskCover::kEmpty;
  }
};

/// The example of MaskMod's comment.
struct SameHalf {  // of an even number of positions
  ATTEND_HOST_DEVICE bool operator()(attend::Coordinate at) const {
    return (at.query < at.query_length / 2) == (at.key < at.key_length / 2);
  }
  ATTEND_HOST_DEVICE attend::MaskCover cover(attend::QueryBlock queries, attend::KeyRange keys) const {
    const std::int32_t query_half = queries.query_length / 2, key_half = queries.key_length / 2;
    const bool are_cut = queries.query_begin < query_half && query_half < queries.query_end;
    if (are_cut || (keys.begin < key_half && key_half < keys.end)) return attend::MaskCover::kPartial;
    const bool is_same = (queries.query_begin < query_half) == (keys.begin < key_half);
    return is_same ? attend::MaskCover::kFull : attend::MaskCover::kEmpty;
  }
};

template <class Mask>
MaskCover cover_by_every_score(const Mask& mask, const QueryBlock& queries, const KeyRange& keys) {
  bool has_allowed = false, has_masked = false;
  for (std::int32_t i = queries.query_begin; i < queries.query_end; ++i)
    for (std::int32_t j = keys.begin; j < keys.end; ++j) {
      const bool is_allowed =
          mask(Coordinate{queries.batch, queries.head, i, j, queries.query_length, queries.key_length});
      (is_allowed ? has_allowed : has_masked) = true;
    }
  return !has_allowed ? MaskCover::kEmpty : !has_masked ? MaskCover::kFull : MaskCover::kPartial;
}

/// Compares cover() with the mask, for every block of small tensors and for random blocks of larger ones.
template <class Mask>
void check_cover(const std::string& name, const Mask& mask, bool is_exact) {
  CAPTURE(name);
  int wrong = 0, known = 0;
  const auto check = [&](const QueryBlock& queries, const KeyRange& keys) {
    const MaskCover found = attend::detail::mask_cover(mask, queries, keys),
                    expected = cover_by_every_score(mask, queries, keys);
    if (found == expected || (!is_exact && found == MaskCover::kPartial)) {
      known += found != MaskCover::kPartial;
      return;
    }
    ++wrong;
    CAPTURE(queries.query_begin);
    CAPTURE(queries.query_end);
    CAPTURE(queries.query_length);
    CAPTURE(queries.key_length);
    CAPTURE(keys.begin);
    CAPTURE(keys.end);
    CHECK(static_cast<int>(found) == static_cast<int>(expected));
  };
  for (const std::int32_t L : {1, 4, 7})
    for (const std::int32_t S : {1, 5, 8, 13})
      for (std::int32_t i = 0; i < L; ++i)
        for (std::int32_t i_end = i + 1; i_end <= L; ++i_end)
          for (std::int32_t j = 0; j < S; ++j)
            for (std::int32_t j_end = j + 1; j_end <= S; ++j_end)
              if (wrong == 0) check({(i + j) % 2, j_end % 2, i, i_end, L, S}, {j, j_end});
  std::mt19937 random(1);
  const auto below = [&](std::int32_t n) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(n));
  };
  for (int repeat = 0; repeat < 300 && wrong == 0; ++repeat) {
    const std::int32_t L = 1 + below(200), S = 1 + below(200), i = below(L), j = below(S);
    check({below(2), below(2), i, i + 1 + below(L - i), L, S}, {j, j + 1 + below(S - j)});
  }
  CHECK(known > 0);
}

constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();

}  // namespace

TEST_CASE("mask_cover: cover() of attend's masks is exact for every block") {
  check_cover("EveryKey", EveryKey{}, true);
  check_cover("Causal", Causal{}, true);
  for (const std::int32_t left : {-1, 0, 1, 3, 40, kMost})
    for (const std::int32_t right : {-1, 0, 1, 3, 40, kMost})
      check_cover("SlidingWindow(" + std::to_string(left) + ", " + std::to_string(right) + ")",
                  SlidingWindow(left, right), true);
  for (const std::int32_t length : {0, 1, 6, 100}) check_cover("PrefixLM", PrefixLM(length), true);
}

TEST_CASE("mask_cover: masks with & | ! are never wrong, for operands with cover(), with keys() and with neither") {
  check_cover("Causal & SlidingWindow", Causal{} & SlidingWindow(3, 2), false);
  check_cover("Causal | SlidingWindow", Causal{} | SlidingWindow(3, 2), false);
  check_cover("!Causal", !Causal{}, true);
  check_cover("!SlidingWindow", !SlidingWindow(3, 5), true);
  check_cover("!PrefixLM", !PrefixLM(3), true);
  check_cover("!EveryKey", !EveryKey{}, true);
  check_cover("FirstKeys", FirstKeys{4}, false);
  check_cover("!FirstKeys", attend::not_(FirstKeys{4}), false);
  check_cover("FirstKeys | SlidingWindow", FirstKeys{4} | SlidingWindow(2, 0), false);
  check_cover("(FirstKeys | SlidingWindow) & Causal", (FirstKeys{4} | SlidingWindow(2, 0)) & Causal{}, false);
  check_cover("SameParity & Causal", SameParity{} & Causal{}, false);
  check_cover("SameParity | Causal", SameParity{} | Causal{}, false);
  check_cover("!(SameParity & Causal)", !(SameParity{} & Causal{}), false);
  check_cover("OfOneHead & !Causal", OfOneHead{} & !Causal{}, false);
  check_cover("!(OfOneHead | SlidingWindow)", !(OfOneHead{} | SlidingWindow(2, 2)), false);
  check_cover("SameHalf & Causal", SameHalf{} & Causal{}, false);
  check_cover("SameHalf | SlidingWindow", SameHalf{} | SlidingWindow(1, 1), false);
}

TEST_CASE("MaskMod: the example of its comment, SameHalf, has the right cover()") {
  check_cover("SameHalf", SameHalf{}, true);
}

TEST_CASE("mask_cover: a mask with neither cover() nor keys() is partial everywhere") {
  const QueryBlock queries{0, 0, 0, 4, 8, 8};
  CHECK(attend::detail::mask_cover(SameParity{}, queries, {0, 1}) == MaskCover::kPartial);
  CHECK(attend::all_of(SameParity{}, SameParity{}).cover(queries, {0, 8}) == MaskCover::kPartial);
}

TEST_CASE("BlockMaskView: cover() is never wrong, also with & | !, and the mask decides in partial blocks alone") {
  const int blocks = 4;  // of 64: enough for 200 positions
  std::vector<std::int32_t> table(2 * blocks * blocks);
  std::mt19937 random(3);
  for (std::int32_t& cover : table) cover = static_cast<std::int32_t>(random() % 3);
  attend::detail::ViewShape shape{{2, 2, blocks, blocks}, {0, blocks * blocks, blocks, 1}};
  const IntegerView view(table.data(), shape);
  check_cover("BlockMaskView", BlockMaskView(view), false);
  check_cover("BlockMaskView of SameParity", BlockMaskView(view, SameParity{}), false);
  check_cover("BlockMaskView of Causal", BlockMaskView(view, Causal{}), false);
  check_cover("!BlockMaskView & Causal", (!BlockMaskView(view, SameParity{})) & Causal{}, false);

  const BlockMaskView mask(view, SameParity{});
  for (std::int32_t i = 0; i < blocks; ++i)
    for (std::int32_t j = 0; j < blocks; ++j) {
      const bool is_partial = table[static_cast<std::size_t>(i * blocks + j)] == 1;
      CHECK((mask.only_mask({0, 0, i * 64, i * 64 + 64, 256, 256}, {j * 64, j * 64 + 64}) != nullptr) == is_partial);
    }
}

TEST_CASE("mark_blocks: enters every listed block, and refuses lengths and blocks that do not exist") {
  const std::int32_t num_blocks[] = {2, 0}, indices[] = {2, 0, -9, 7, 7, 7};
  std::vector<std::int32_t> table(2 * 2 * 3);
  CHECK(mark_blocks({num_blocks, indices, 2, 3}, 128, 64, MaskCover::kFull, table.data()));
  CHECK(table == std::vector<std::int32_t>{2, 0, 2, 2, 0, 2, 0, 0, 0, 0, 0, 0});
  for (const std::int32_t wrong : {-1, 4}) {
    const std::int32_t lengths[] = {0, wrong};
    CHECK(!mark_blocks({lengths, indices, 2, 3}, 128, 64, MaskCover::kFull, table.data()));
  }
  const std::int32_t all[] = {3, 3};
  CHECK(!mark_blocks({all, indices, 2, 3}, 128, 64, MaskCover::kFull, table.data()));
}

TEST_CASE("exact_cover: equals the mask, and asks it only where it does not know") {
  for (const std::int32_t i : {0, 64, 128})
    for (const std::int32_t j : {0, 64, 128}) {
      const QueryBlock queries{0, 0, i, i + 64, 192, 192};
      const KeyRange keys{j, j + 64};
      CHECK(exact_cover(SameParity{}, queries, keys) == MaskCover::kPartial);
      CHECK(exact_cover(attend::not_(attend::any_of(SameParity{}, SameParity{})), queries, keys) ==
            MaskCover::kPartial);
      CHECK(exact_cover(attend::any_of(SameParity{}, attend::not_(SameParity{})), queries, keys) == MaskCover::kFull);
      CHECK(exact_cover(attend::all_of(SameParity{}, attend::not_(SameParity{})), queries, keys) == MaskCover::kEmpty);
      CHECK(exact_cover(OfOneHead{}, queries, keys) == MaskCover::kEmpty);
    }
}

TEST_CASE("FlashMaskView: cover() is never wrong, for ranges that are random, shared by many keys, or empty") {
  std::mt19937 random(4);
  const std::int32_t keys = 200, blocks = 4;
  for (const bool is_causal : {false, true})
    for (const std::int32_t shared : {1, 30, 64, 100}) {
      std::vector<std::int32_t> rows(4 * keys), bounds(8 * blocks);
      for (std::int32_t j = 0; j < keys; ++j)
        for (std::int32_t k = 0; k < 4; ++k)
          rows[static_cast<std::size_t>(4 * j + k)] = j % shared == 0 ? static_cast<std::int32_t>(random() % 220)
                                                                      : rows[static_cast<std::size_t>(4 * j + k - 4)];
      flash_mask_bounds(rows.data(), keys, bounds.data());
      const FlashMaskView mask(IntegerView(rows.data(), {{2, 2, keys, 4}, {0, 0, 4, 1}}),
                               IntegerView(bounds.data(), {{2, 2, blocks, 8}, {0, 0, 8, 1}}), is_causal);
      check_cover("FlashMaskView", mask, false);
      check_cover("!FlashMaskView | SlidingWindow", (!mask) | SlidingWindow(3, 0), false);
    }
}

TEST_CASE("mask_cover: cover() of attend's masks is constexpr") {
  constexpr auto mask = Causal{} & !SlidingWindow(1, -1);
  static_assert(mask.cover(QueryBlock{0, 0, 4, 8, 9, 9}, KeyRange{0, 3}) == MaskCover::kFull);
  static_assert(mask.cover(QueryBlock{0, 0, 4, 8, 9, 9}, KeyRange{8, 9}) == MaskCover::kEmpty);
  CHECK(mask.cover(QueryBlock{0, 0, 4, 8, 9, 9}, KeyRange{0, 4}) == MaskCover::kPartial);
}
