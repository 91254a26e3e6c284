// SPDX-License-Identifier: MIT

// NeighborhoodMask and ShiftedWindowMask against their definitions, told with loops over the positions.

#include <attend/score/mask_cover.h>
#include <attend/score/mask_operators.h>
#include <attend/score/neighborhood_mask.h>
#include <attend/score/position_grid.h>
#include <attend/score/shifted_window_mask.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

using namespace attend;

namespace grid_masks_test {
namespace {

using Sizes = std::vector<std::int64_t>;
using Allows = std::function<bool(const Sizes& query, const Sizes& key)>;

std::int64_t count_of(const Sizes& sizes) {
  std::int64_t count = 1;
  for (const std::int64_t size : sizes) count *= size;
  return count;
}

Sizes point(std::int64_t position, const Sizes& sizes) {
  Sizes at(sizes.size());
  for (std::size_t d = sizes.size(); d-- > 0; position /= sizes[d]) at[d] = position % sizes[d];
  return at;
}

/// The neighbours of a position in one dimension: of the positions with its remainder, the kernel_size nearest, which
/// are counted from the left if they are equally near (an even kernel_size).
bool is_neighbour(std::int64_t query, std::int64_t key, std::int64_t size, std::int64_t kernel_size,
                  std::int64_t dilation) {
  std::vector<std::int64_t> same;
  for (std::int64_t i = query % dilation; i < size; i += dilation) same.push_back(i);
  std::int64_t first = query / dilation - kernel_size / 2;
  while (first < 0) ++first;
  while (first + kernel_size > static_cast<std::int64_t>(same.size())) --first;
  for (std::int64_t i = first; i < first + kernel_size; ++i)
    if (same[static_cast<std::size_t>(i)] == key) return true;
  return false;
}

/// Compares the mask with `expected`, and keys() and cover() with the mask, for random blocks. Returns how many of the
/// blocks are known to be empty or full.
template <class Mask>
int check(const Mask& mask, const Sizes& sizes, std::int32_t batch, bool has_exact_cover, const Allows& expected) {
  const auto count = static_cast<std::int32_t>(count_of(sizes));
  std::vector<char> allowed(static_cast<std::size_t>(count * count));
  int wrong = 0;
  for (std::int32_t i = 0; i < count; ++i)
    for (std::int32_t j = 0; j < count; ++j) {
      const bool is_allowed = mask(Coordinate{batch, 0, i, j, count, count});
      allowed[static_cast<std::size_t>(i * count + j)] = is_allowed;
      wrong += is_allowed != expected(point(i, sizes), point(j, sizes));
    }
  CHECK(wrong == 0);
  std::mt19937 random(1);
  const auto below = [&](std::int32_t n) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(n));
  };
  int wrong_ranges = 0, wrong_covers = 0, known = 0;
  for (int repeat = 0; repeat < 400; ++repeat) {
    QueryBlock block{batch, 0, below(count), 0, count, count};
    block.query_end = std::min(count, block.query_begin + 1 + below(repeat % 2 == 0 ? 4 : 64));
    KeyRange keys{below(count), 0};
    keys.end = std::min(count, keys.begin + 1 + below(repeat % 3 == 0 ? 3 : 64));
    const KeyRange range = attend::detail::key_range(mask, block);
    bool has_allowed = false, has_masked = false;
    for (std::int32_t i = block.query_begin; i < block.query_end; ++i)
      for (std::int32_t j = 0; j < count; ++j) {
        const bool is_allowed = allowed[static_cast<std::size_t>(i * count + j)] != 0;
        wrong_ranges += is_allowed && (j < range.begin || j >= range.end);
        if (j >= keys.begin && j < keys.end) (is_allowed ? has_allowed : has_masked) = true;
      }
    const MaskCover cover = attend::detail::mask_cover(mask, block, keys);
    const MaskCover exact = !has_allowed ? MaskCover::kEmpty : has_masked ? MaskCover::kPartial : MaskCover::kFull;
    wrong_covers += cover != exact && (has_exact_cover || cover != MaskCover::kPartial);
    known += cover != MaskCover::kPartial;
  }
  CHECK(wrong_ranges == 0);
  CHECK(wrong_covers == 0);
  return known;
}

}  // namespace

TEST_CASE("PositionGrid: the quotients are exact up to the largest number of positions") {
  for (const std::int32_t divisor : {1, 2, 3, 7, 10, 49, 56, 97, 1000, 65537, 2097152})
    for (std::int32_t near = 0; near < 2 * attend::detail::kMostGridPositions; near += std::max(divisor, 1009)) {
      const std::int32_t multiple = near / divisor * divisor;
      for (const std::int32_t i : {multiple, multiple + divisor - 1})
        if (i < 2 * attend::detail::kMostGridPositions)
          REQUIRE(attend::detail::Divisor(divisor).quotient(i) == i / divisor);
    }
}

TEST_CASE("NeighborhoodMask: a query attends to its nearest keys, and the window is moved inside at a border") {
  struct Case {
    Sizes sizes, kernel_size, dilation;
    bool has_exact_cover;
  };
  const Case cases[] = {{{20}, {5}, {1}, true},
                        {{20}, {4}, {1}, true},
                        {{20}, {20}, {1}, true},
                        {{23}, {3}, {3}, false},
                        {{12}, {1}, {1}, true},
                        {{9, 8}, {3, 5}, {1, 1}, false},
                        {{8, 9}, {8, 2}, {1, 1}, false},
                        {{9, 12}, {3, 3}, {2, 4}, false},
                        {{1, 16}, {1, 7}, {1, 1}, false},
                        {{16, 1}, {3, 1}, {2, 1}, false},
                        {{4, 5, 6}, {3, 1, 4}, {1, 1, 1}, false},
                        {{5, 6, 4}, {2, 3, 1}, {2, 2, 3}, false}};
  for (const Case& c : cases) {
    CAPTURE(c.sizes[0]);
    CAPTURE(c.kernel_size[0]);
    CAPTURE(c.sizes.size());
    const int known = check(NeighborhoodMask(c.sizes, c.kernel_size, c.dilation), c.sizes, 0, c.has_exact_cover,
                            [&](const Sizes& query, const Sizes& key) {
                              bool is_allowed = true;
                              for (std::size_t d = 0; d < c.sizes.size(); ++d)
                                is_allowed = is_allowed && is_neighbour(query[d], key[d], c.sizes[d], c.kernel_size[d],
                                                                        c.dilation[d]);
                              return is_allowed;
                            });
    CHECK(known > 40);
  }
}

TEST_CASE("ShiftedWindowMask: a query attends to the keys that were its neighbours before the roll") {
  struct Case {
    Sizes sizes, window, shift;
  };
  const Case cases[] = {{{12}, {4}, {1}},         {{4}, {4}, {2}},          {{8, 6}, {4, 3}, {2, 1}},
                        {{6, 6}, {3, 3}, {1, 0}}, {{6, 4}, {3, 4}, {0, 0}}, {{4, 6, 2}, {2, 3, 2}, {1, 2, 0}}};
  for (const Case& c : cases) {
    Sizes counts;
    for (std::size_t d = 0; d < c.sizes.size(); ++d) counts.push_back(c.sizes[d] / c.window[d]);
    const std::int64_t windows = count_of(counts);
    for (std::int64_t entry = 0; entry < 2 * windows; ++entry) {
      const Sizes window = point(entry % windows, counts);
      // Before the roll, neighbours that a window holds are closer than the size of a window.
      const auto before = [&](const Sizes& at, std::size_t d) {
        return (window[d] * c.window[d] + at[d] + c.shift[d]) % c.sizes[d];
      };
      check(ShiftedWindowMask(c.sizes, c.window, c.shift), c.window, static_cast<std::int32_t>(entry), false,
            [&](const Sizes& query, const Sizes& key) {
              bool is_allowed = true;
              for (std::size_t d = 0; d < c.sizes.size(); ++d) {
                const bool wraps_query = before(query, d) < c.shift[d], wraps_key = before(key, d) < c.shift[d];
                is_allowed = is_allowed && wraps_query == wraps_key;
              }
              return is_allowed;
            });
    }
  }
}

TEST_CASE(
    "ShiftedWindowMask: cover() is kFull for windows that no border cuts, so that they are computed without a mask") {
  const ShiftedWindowMask mask({56, 56}, {7, 7}, {3, 3});
  int full = 0;
  for (std::int32_t window = 0; window < 64; ++window)
    full += mask.cover({window, 0, 0, 49, 49, 49}, {0, 49}) == MaskCover::kFull;
  CHECK(full == 49);
}

TEST_CASE("NeighborhoodMask, ShiftedWindowMask: sizes out of range are refused") {
  struct Case {
    std::string expected;
    std::function<void()> call;
  };
  const Case cases[] = {
      {"attend::NeighborhoodMask: sizes must have 1 to 3 numbers, got 0", [] { NeighborhoodMask({}, {}); }},
      {"attend::NeighborhoodMask: sizes must have 1 to 3 numbers, got 4",
       [] {
         NeighborhoodMask({2, 2, 2, 2}, {1, 1, 1, 1});
       }},
      {"attend::NeighborhoodMask: sizes must be at least 1, got 0",
       [] {
         NeighborhoodMask({4, 0}, {1, 1});
       }},
      {"attend::NeighborhoodMask: sizes must have at most 2^21 positions",
       [] {
         NeighborhoodMask({4096, 4096}, {1, 1});
       }},
      {"attend::NeighborhoodMask: kernel_size (1 numbers) must have as many numbers as sizes (2)",
       [] {
         NeighborhoodMask({4, 4}, {3});
       }},
      {"attend::NeighborhoodMask: kernel_size must be at least 1, got 0",
       [] {
         NeighborhoodMask({4, 4}, {3, 0});
       }},
      {"attend::NeighborhoodMask: dilation must be at least 1, got -1", [] { NeighborhoodMask({4}, {3}, {-1}); }},
      {"attend::NeighborhoodMask: kernel_size (3) times dilation (2) must not exceed the size of the dimension (5)",
       [] { NeighborhoodMask({5}, {3}, {2}); }},
      {"attend::ShiftedWindowMask: window_size must be at least 1, got 0", [] { ShiftedWindowMask({4}, {0}, {0}); }},
      {"attend::ShiftedWindowMask: sizes, window_size and shift must have as many numbers, got 1, 2 and 2",
       [] {
         ShiftedWindowMask({4}, {2, 2}, {0, 0});
       }},
      {"attend::ShiftedWindowMask: sizes (5) must be positive and divisible by window_size (2)",
       [] { ShiftedWindowMask({5}, {2}, {1}); }},
      {"attend::ShiftedWindowMask: shift (2) must be at least 0 and below window_size (2)",
       [] { ShiftedWindowMask({4}, {2}, {2}); }},
  };
  for (const Case& c : cases) {
    CAPTURE(c.expected);
    std::string message;
    try {
      c.call();
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    CHECK(message == c.expected);
  }
}

}  // namespace grid_masks_test
