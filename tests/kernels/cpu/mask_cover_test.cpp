// SPDX-License-Identifier: MIT

// Masks with holes in the CPU kernels, held against loops over every score.

#include "kernels/support/instruction_sets.h"
#include "kernels/support/naive.h"
#include "kernels/support/results.h"

#include <attend/kernels/cpu/attention_pass.h>
#include <attend/kernels/cpu/typed_variant.h>
#include <attend/score/block_mask.h>
#include <attend/score/mask_mod.h>
#include <attend/score/mask_operators.h>
#include <attend/simd/dispatch.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

using namespace attend;
using attend::test::Results;
using simd::InstructionSet;

namespace {

constexpr int kTile = cpu::kTileKeys;

/// Blocks of kTile queries and keys that are empty, full, or partial: every other key.
struct Blocks : attend::detail::MaskOperators {
  std::int32_t step;                  // larger: fewer blocks that are not empty
  std::atomic<std::int64_t>* wrong;   // counts calls for scores of empty and full blocks; may be null
  std::atomic<std::int64_t>* called;  // counts calls

  Blocks(std::int32_t steps, std::atomic<std::int64_t>* wrong_calls = nullptr,
         std::atomic<std::int64_t>* all_calls = nullptr)
      : step(steps), wrong(wrong_calls), called(all_calls) {}

  MaskCover kind(std::int32_t query, std::int32_t key) const {
    const std::int32_t i = query / kTile, j = key / kTile;
    return (i + j) % step == 0 ? MaskCover::kFull : (i + 2 * j) % step == 1 ? MaskCover::kPartial : MaskCover::kEmpty;
  }
  bool operator()(Coordinate at) const {
    const MaskCover here = kind(at.query, at.key);
    if (wrong != nullptr && here != MaskCover::kPartial) ++*wrong;
    if (called != nullptr) ++*called;
    return here == MaskCover::kFull || (here == MaskCover::kPartial && (at.key + at.query) % 2 == 0);
  }
  MaskCover cover(QueryBlock queries, KeyRange keys) const {
    const MaskCover first = kind(queries.query_begin, keys.begin);
    for (std::int32_t i = queries.query_begin / kTile; i <= (queries.query_end - 1) / kTile; ++i)
      for (std::int32_t j = keys.begin / kTile; j <= (keys.end - 1) / kTile; ++j)
        if (kind(i * kTile, j * kTile) != first) return MaskCover::kPartial;
    return first;
  }
};

/// Documents of 70 positions, and 5 keys that every query sees.
struct GlobalDocuments : attend::detail::MaskOperators {
  bool operator()(Coordinate at) const { return at.key < 5 || at.query / 70 == at.key / 70; }
  MaskCover cover(QueryBlock queries, KeyRange keys) const {
    if (keys.end <= 5) return MaskCover::kFull;
    const std::int32_t a = queries.query_begin / 70, b = (queries.query_end - 1) / 70;
    const std::int32_t c = keys.begin / 70, d = (keys.end - 1) / 70;
    if (a == b && a == c && a == d) return MaskCover::kFull;
    return keys.begin >= 5 && (b < c || d < a) ? MaskCover::kEmpty : MaskCover::kPartial;
  }
};

/// Queries 60 to 139 may attend to nothing.
struct IdleQueries : attend::detail::MaskOperators {
  bool operator()(Coordinate at) const { return at.query < 60 || at.query >= 140; }
  MaskCover cover(QueryBlock queries, KeyRange) const {
    if (queries.query_begin >= 60 && queries.query_end <= 140) return MaskCover::kEmpty;
    return queries.query_end <= 60 || queries.query_begin >= 140 ? MaskCover::kFull : MaskCover::kPartial;
  }
};

/// Every other key.
struct OtherKeys {
  bool operator()(Coordinate at) const { return (at.key + at.query) % 2 == 0; }
};

struct Tilted {
  template <class T>
  T operator()(T score, Coordinate at) const {
    return score * T(0.5f) - T(0.01f) * abs(T(at.query - at.key));
  }
};

struct Sizes {
  std::int32_t batch, heads, kv_heads, queries, keys, head_dim, value_dim;
};

struct Options {
  std::int64_t window_left = -1, window_right = -1;
  double dropout = 0;
};

/// A call with contiguous tensors of standard normal numbers. They are the same in float32 and float64.
struct Call : test::CallMemory {
  Call(NumberType dtype, const Sizes& s, const Options& options) {
    params.dtype = dtype;
    params.batch_size = s.batch;
    params.num_heads = s.heads;
    params.num_kv_heads = s.kv_heads;
    params.query_length = s.queries;
    params.key_length = s.keys;
    params.head_dim = s.head_dim;
    params.value_dim = s.value_dim;
    params.window_left = options.window_left;
    params.window_right = options.window_right;
    params.dropout = options.dropout;
    params.dropout_seed = 3;
    query = tensor({s.batch, s.heads, s.queries, s.head_dim});
    key = tensor({s.batch, s.kv_heads, s.keys, s.head_dim});
    value = tensor({s.batch, s.kv_heads, s.keys, s.value_dim});
    output_gradient = tensor({s.batch, s.heads, s.queries, s.value_dim});
    log_sum_exp_gradient = test::Tensor(computed(), {s.batch, s.heads, s.queries, 1});
    test::Random random(7);
    for (test::Tensor* each : {&query, &key, &value, &output_gradient, &log_sum_exp_gradient})
      each->fill([&] { return static_cast<double>(static_cast<float>(random.normal())); });
    params.query = query.view();
    params.key = key.view();
    params.value = value.view();
  }

  test::Tensor tensor(const test::Sizes& sizes) const { return {number(), sizes}; }
};

/// The structs of a call for the naive loop.
template <class V>
struct Structs {
  std::function<test::Changed<V>(V score, Coordinate at)> by_hand;
  std::function<bool(Coordinate at)> allows;

  static std::vector<std::int64_t> tensor_sizes() { return {}; }
};

template <class V, class Score, class Mask>
Results by_every_score(const Call& call, const Score& score_mod, const Mask& mask) {
  const auto by_hand = [&](V score, Coordinate at) -> test::Changed<V> {
    const Dual<V> changed = score_mod(Dual<V>(score, V(1)), at);
    return {changed.value.value, changed.derivative.value};
  };
  return test::Naive<V>(call, Structs<V>{by_hand, mask}).results();
}

/// Forward and backward by the kernels, in T.
template <class T, class Score, class Mask>
Results by_kernels(Call& call, const Score& score_mod, const Mask& mask, InstructionSet set) {
  cpu::TypedCpuVariant<T, Score, Mask> variant(score_mod, mask, /*tensors=*/0, {}, set);
  const cpu::AttentionPass<T> pass(call.params, set, &variant);
  ThreadPoolExecutor executor(2);
  return test::results_of<T>(
      call, [&](const test::Sizes& sizes) { return call.tensor(sizes); }, {}, pass.saved_bytes(),
      /*also_without_saved=*/false, [&](const auto& outputs) { pass.forward(outputs, executor); },
      [&](const auto& outputs, const auto& gradients) { pass.backward(outputs, gradients, executor); });
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (a[i] != b[i]) largest = std::max(largest, std::isfinite(a[i] - b[i]) ? std::abs(a[i] - b[i]) : 1e30);
  return largest;
}

/// Every result may have twice the error of the same loops in the kernel's type, and `extra`.
void check_close(const Results& found, const Results& exact, const Results& same_type, double extra) {
  for (const auto& [name, numbers] : exact) {
    CAPTURE(name);
    CHECK(largest_difference(found.at(name), numbers) <= 2 * largest_difference(same_type.at(name), numbers) + extra);
  }
}

template <class Score, class Mask>
void check(const std::string& name, const Sizes& sizes, const Score& score_mod, const Mask& mask,
           const Options& options = {}) {
  CAPTURE(name);
  CAPTURE(sizes.queries);
  CAPTURE(sizes.keys);
  Call in_float64(NumberType::kFloat64, sizes, options), in_float32(NumberType::kFloat32, sizes, options),
      in_bfloat16(NumberType::kBFloat16, sizes, options);
  const Results exact = by_every_score<double>(in_float64, score_mod, mask),
                of_float32 = by_every_score<float>(in_float32, score_mod, mask),
                of_bfloat16 = by_every_score<double>(in_bfloat16, score_mod, mask);
  std::vector<std::pair<const char*, InstructionSet>> sets{{"portable16", InstructionSet::kPortable}};
  sets.insert(sets.end(), std::begin(test::kNamedSets), std::end(test::kNamedSets));
  for (const auto& [isa, set] : sets) {
    if (!simd::is_supported(set) || !test::is_wanted_isa(isa)) continue;
    CAPTURE(isa);
    check_close(by_kernels<double>(in_float64, score_mod, mask, set), exact, exact, 1e-11);
    check_close(by_kernels<float>(in_float32, score_mod, mask, set), exact, of_float32, 1e-6);
    check_close(by_kernels<float>(in_bfloat16, score_mod, mask, set), of_bfloat16, of_bfloat16, 0.06);
  }
}

const Sizes kAll[] = {
    {1, 2, 1, 128, 128, 16, 16},                               // one pass over all keys, if only masked
    {2, 2, 2, 100, 127, 17, 12}, {1, 2, 1, 200, 330, 16, 16},  // few tiles of keys
    {1, 1, 1, 70, 700, 16, 24},                                // many
    {1, 1, 1, 300, 40, 8, 8},
};

}  // namespace

TEST_CASE("kernels: masks with cover(), forward and backward, equal loops over every score") {
  for (const Sizes& sizes : kAll) {
    for (const std::int32_t step : {2, 3, 5}) {
      check("Blocks", sizes, Unchanged{}, Blocks(step));
      check("Blocks, Tilted", sizes, Tilted{}, Blocks(step));
    }
    check("GlobalDocuments", sizes, Unchanged{}, GlobalDocuments{});
    check("GlobalDocuments & Causal, Tilted", sizes, Tilted{}, GlobalDocuments{} & Causal{});
    check("!Blocks | SlidingWindow", sizes, Unchanged{}, (!Blocks(3)) | SlidingWindow(3, 0));
    check("!SlidingWindow", sizes, Tilted{}, !SlidingWindow(80, 20));
    check("IdleQueries & !GlobalDocuments", sizes, Unchanged{}, IdleQueries{} & !GlobalDocuments{});
    check("EveryKey", sizes, Tilted{}, EveryKey{});
    check("!EveryKey", sizes, Unchanged{}, !EveryKey{});
  }
}

TEST_CASE("kernels: a table of blocks equals loops over every score") {
  const int blocks = 12;  // of 64
  std::vector<std::int32_t> table(blocks * blocks);
  std::mt19937 random(5);
  for (std::int32_t& cover : table) cover = static_cast<std::int32_t>(random() % 3);
  const IntegerView view(table.data(), {{1, 1, blocks, blocks}, {0, 0, blocks, 1}});
  for (const Sizes& sizes : kAll) {
    check("BlockMaskView", sizes, Unchanged{}, BlockMaskView(view));
    check("BlockMaskView of OtherKeys", sizes, Tilted{}, BlockMaskView(view, OtherKeys{}));
    check("window", sizes, Unchanged{}, BlockMaskView(view, OtherKeys{}), {.window_left = 150, .window_right = 30});
  }
}

TEST_CASE("kernels: masks with cover() together with window, is_causal and dropout") {
  for (const Sizes& sizes : kAll) {
    check("window", sizes, Unchanged{}, Blocks(3), {.window_left = 150, .window_right = 30});
    check("causal", sizes, Tilted{}, GlobalDocuments{}, {.window_right = 0});
    check("dropout", sizes, Unchanged{}, Blocks(3), {.dropout = 0.3});
    check("all", sizes, Tilted{}, Blocks(2), {.window_left = 90, .window_right = 0, .dropout = 0.3});
  }
}

TEST_CASE("kernels: the mask is called neither for a score of an empty block nor for one of a full block") {
  const Sizes sizes{1, 2, 2, 256, 640, 8, 8};
  const auto count = [&](const auto& score_mod, const Sizes& s, std::int32_t step) {
    std::atomic<std::int64_t> wrong{0}, called{0};
    Call call(NumberType::kFloat32, s, {});
    by_kernels<float>(call, score_mod, Blocks(step, &wrong, &called), simd::best_instruction_set());
    CHECK(wrong == 0);
    return called.load();
  };
  // Each of 2 heads has 7 partial blocks. They are asked about once in the forward pass, and once in the backward pass.
  CHECK(count(Unchanged{}, sizes, 4) == 2 * 2 * 7 * 64 * 64);
  CHECK(count(Tilted{}, sizes, 4) == 2 * 2 * 7 * 64 * 64);
  // In one pass over all keys, the backward pass reads the weights.
  CHECK(count(Unchanged{}, {1, 2, 2, 128, 128, 8, 8}, 2) == 2 * 64 * 64);
}

TEST_CASE("kernels: NaN and infinity at masked keys have no effect, in empty blocks and in partial blocks") {
  for (const Sizes& sizes : kAll) {
    CAPTURE(sizes.keys);
    const GlobalDocuments mask;
    const std::int32_t first = 35;  // the keys from here on are masked for all queries
    struct Cut : attend::detail::MaskOperators {
      bool operator()(Coordinate at) const { return at.key < 35; }
      MaskCover cover(QueryBlock, KeyRange keys) const {
        return keys.end <= 35 ? MaskCover::kFull : keys.begin >= 35 ? MaskCover::kEmpty : MaskCover::kPartial;
      }
    };
    const auto both = mask & Cut{};
    for (const double dropout : {0.0, 0.2}) {
      Call call(NumberType::kFloat64, sizes, {.dropout = dropout}),
          changed(NumberType::kFloat64, sizes, {.dropout = dropout});
      for (std::int32_t n = 0; n < sizes.batch; ++n)
        for (std::int32_t g = 0; g < sizes.kv_heads; ++g)
          for (std::int32_t j = first; j < sizes.keys; ++j) {
            changed.key.set(n, g, j, 0, j % 2 == 0 ? std::nan("") : std::numeric_limits<double>::infinity());
            changed.value.set(n, g, j, 0, std::nan(""));
          }
      const auto check_unchanged = [&](const auto& score_mod) {
        const Results exact = by_every_score<double>(call, score_mod, both);
        check_close(by_kernels<double>(changed, score_mod, both, simd::best_instruction_set()), exact, exact, 1e-11);
      };
      check_unchanged(Tilted{});
      check_unchanged(Unchanged{});
    }
  }
}

TEST_CASE("kernels: a query with no key has output 0, log-sum-exp −∞ and no gradient") {
  const Sizes sizes{1, 1, 1, 200, 330, 16, 16};
  Call call(NumberType::kFloat32, sizes, {});
  const Results found = by_kernels<float>(call, Unchanged{}, IdleQueries{}, simd::best_instruction_set());
  for (std::int32_t i = 60; i < 140; ++i) {
    CHECK(found.at("log_sum_exp")[i] == -std::numeric_limits<double>::infinity());
    for (int d = 0; d < 16; ++d) {
      CHECK(found.at("output")[i * 16 + d] == 0);
      CHECK(found.at("query")[i * 16 + d] == 0);
    }
  }
}

namespace {

/// Answers at random, and differently each time.
struct Liar : attend::detail::MaskOperators {
  std::atomic<std::uint32_t>* state;

  explicit Liar(std::atomic<std::uint32_t>* memory) : state(memory) {}

  bool operator()(Coordinate) const { return next() % 2 == 0; }
  KeyRange keys(QueryBlock) const {
    return {static_cast<std::int32_t>(next()) % 2000, static_cast<std::int32_t>(next()) % 2000};
  }
  MaskCover cover(QueryBlock, KeyRange) const { return static_cast<MaskCover>(next() % 3); }

 private:
  std::uint32_t next() const {
    std::uint32_t x = state->load();
    x = x * 1664525u + 1013904223u;
    state->store(x);
    return x >> 8;
  }
};

}  // namespace

TEST_CASE("kernels: a mask whose keys() and cover() are wrong reads and writes nothing outside of the tensors") {
  std::atomic<std::uint32_t> state{1};
  for (const Sizes& sizes : kAll)
    for (int repeat = 0; repeat < 20; ++repeat) {
      Call call(NumberType::kFloat32, sizes, {});
      by_kernels<float>(call, Unchanged{}, Liar(&state), simd::best_instruction_set());
      by_kernels<float>(call, Tilted{}, Liar(&state), simd::best_instruction_set());
    }
}
