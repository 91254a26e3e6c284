// SPDX-License-Identifier: MIT

// Masks with holes in the CPU kernels, held against loops over every score.

#include <attend/detail/philox.h>
#include <attend/kernels/cpu/attention_pass.h>
#include <attend/kernels/cpu/typed_variant.h>
#include <attend/score/block_mask.h>
#include <attend/score/mask_mod.h>
#include <attend/score/mask_operators.h>
#include <attend/simd/bfloat16.h>
#include <attend/simd/dispatch.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

using namespace attend;
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

/// The results of one call, each as numbers in the order of its tensor.
struct Results {
  std::vector<double> output, log_sum_exp, query, key, value;
};

struct Inputs {
  std::vector<double> query, key, value, output_gradient, log_sum_exp_gradient;
};

/// Standard normal numbers that are the same in float32, or in bfloat16.
std::vector<double> numbers(std::int64_t size, bool is_bfloat16, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<double> result(static_cast<std::size_t>(size));
  for (double& number : result) {
    const float drawn = normal(random);
    number = is_bfloat16 ? static_cast<float>(simd::BFloat16(drawn)) : drawn;
  }
  return result;
}

Inputs inputs_for(const Sizes& s, bool is_bfloat16) {
  std::mt19937 random(7);
  const std::int64_t rows = std::int64_t{s.batch} * s.heads * s.queries,
                     key_rows = std::int64_t{s.batch} * s.kv_heads * s.keys;
  const auto draw = [&](std::int64_t size) { return numbers(size, is_bfloat16, random); };
  return {draw(rows * s.head_dim), draw(key_rows * s.head_dim), draw(key_rows * s.value_dim), draw(rows * s.value_dim),
          draw(rows)};
}

/// The formula of attention and its gradients, one score after the other, in V.
template <class V, class Score, class Mask>
Results by_every_score(const Sizes& s, const Inputs& in, const Score& score_mod, const Mask& mask,
                       const Options& options) {
  const auto rows = static_cast<std::size_t>(s.batch * s.heads * s.queries);
  Results out{std::vector<double>(rows * s.value_dim), std::vector<double>(rows), std::vector<double>(in.query.size()),
              std::vector<double>(in.key.size()), std::vector<double>(in.value.size())};
  const V scale = static_cast<V>(1 / std::sqrt(static_cast<double>(s.head_dim)));
  const auto threshold = attend::detail::dropout_threshold(options.dropout);
  std::vector<V> weights(s.keys), slopes(s.keys), kept(s.keys), gradients(s.keys), key_sums(in.key.size()),
      value_sums(in.value.size());
  for (std::int32_t n = 0; n < s.batch; ++n)
    for (std::int32_t h = 0; h < s.heads; ++h)
      for (std::int32_t i = 0; i < s.queries; ++i) {
        const std::size_t row = (static_cast<std::size_t>(n) * s.heads + h) * s.queries + i;
        const std::size_t group = static_cast<std::size_t>(n) * s.kv_heads + h / (s.heads / s.kv_heads);
        const double* const q = &in.query[row * s.head_dim];
        const double* const dO = &in.output_gradient[row * s.value_dim];
        V largest = -std::numeric_limits<V>::infinity(), sum = 0, delta = 0;
        const auto is_allowed = [&](std::int32_t j) {
          const std::int32_t distance = j - (i + s.keys - s.queries);
          return (options.window_left < 0 || distance >= -options.window_left) &&
                 (options.window_right < 0 || distance <= options.window_right) &&
                 mask(Coordinate{n, h, i, j, s.queries, s.keys});
        };
        for (std::int32_t j = 0; j < s.keys; ++j) {
          weights[j] = -std::numeric_limits<V>::infinity();
          if (!is_allowed(j)) continue;
          const double* const k = &in.key[(group * s.keys + j) * s.head_dim];
          V product = 0;
          for (std::int32_t d = 0; d < s.head_dim; ++d) product += static_cast<V>(q[d]) * static_cast<V>(k[d]);
          const Dual<V> changed = score_mod(Dual<V>(product * scale, V(1)), Coordinate{n, h, i, j, s.queries, s.keys});
          weights[j] = changed.value.value;
          slopes[j] = changed.derivative.value;
          largest = std::max(largest, weights[j]);
        }
        for (std::int32_t j = 0; j < s.keys; ++j) {
          weights[j] = is_allowed(j) ? std::exp(weights[j] - largest) : V(0);
          sum += weights[j];
        }
        out.log_sum_exp[row] = static_cast<double>(largest + std::log(sum));
        if (sum == V(0)) {
          out.log_sum_exp[row] = -std::numeric_limits<double>::infinity();
          continue;
        }
        for (std::int32_t j = 0; j < s.keys; ++j) {
          if (!is_allowed(j)) continue;
          weights[j] /= sum;
          const std::uint64_t query = static_cast<std::uint32_t>(i);
          const auto words =
              attend::detail::philox(3, query << 32 | static_cast<std::uint32_t>(j / 4),
                                     static_cast<std::uint64_t>(n) << 32 | static_cast<std::uint32_t>(h));
          kept[j] = options.dropout == 0              ? V(1)
                    : words.words[j % 4] >= threshold ? static_cast<V>(1 / (1 - options.dropout))
                                                      : V(0);
          const double* const v = &in.value[(group * s.keys + j) * s.value_dim];
          V product = 0;
          for (std::int32_t d = 0; d < s.value_dim; ++d) {
            out.output[row * s.value_dim + d] += static_cast<double>(weights[j] * kept[j] * static_cast<V>(v[d]));
            product += static_cast<V>(dO[d]) * static_cast<V>(v[d]);
            value_sums[(group * s.keys + j) * s.value_dim + d] += weights[j] * kept[j] * static_cast<V>(dO[d]);
          }
          gradients[j] = product * kept[j];
          delta += weights[j] * gradients[j];
        }
        delta -= static_cast<V>(in.log_sum_exp_gradient[row]);
        for (std::int32_t j = 0; j < s.keys; ++j) {
          if (!is_allowed(j)) continue;
          const V gradient = weights[j] * (gradients[j] - delta) * slopes[j] * scale;
          for (std::int32_t d = 0; d < s.head_dim; ++d) {
            out.query[row * s.head_dim + d] +=
                static_cast<double>(gradient * static_cast<V>(in.key[(group * s.keys + j) * s.head_dim + d]));
            key_sums[(group * s.keys + j) * s.head_dim + d] += gradient * static_cast<V>(q[d]);
          }
        }
      }
  out.key.assign(key_sums.begin(), key_sums.end());
  out.value.assign(value_sums.begin(), value_sums.end());
  return out;
}

/// Numbers in the dtype of a call.
template <class Element>
struct Memory {
  using T = std::conditional_t<std::is_same_v<Element, double>, double, float>;
  std::vector<Element> memory;

  explicit Memory(const std::vector<double>& given) {
    for (const double number : given) memory.push_back(Element(static_cast<T>(number)));
  }
  std::vector<double> read() const {
    std::vector<double> result;
    for (const Element& number : memory) result.push_back(static_cast<T>(number));
    return result;
  }
};

template <class Element, class View>
View view_of(std::vector<Element>& memory, std::int64_t heads, std::int64_t rows, std::int64_t width) {
  return {memory.data(), {heads * rows * width, rows * width, width, 1}};
}

/// Forward and backward by the kernels. Element: float, double or BFloat16.
template <class Element, class Score, class Mask>
Results by_kernels(const Sizes& s, const Inputs& in, const Score& score_mod, const Mask& mask, const Options& options,
                   InstructionSet set, int threads = 2) {
  using T = std::conditional_t<std::is_same_v<Element, double>, double, float>;
  const std::int64_t rows = std::int64_t{s.batch} * s.heads * s.queries;
  const std::vector<double> zeros(static_cast<std::size_t>(rows * s.value_dim));
  Memory<Element> q(in.query), k(in.key), v(in.value), dO(in.output_gradient), output(zeros), dq(in.query), dk(in.key),
      dv(in.value);
  std::vector<T> log_sum_exp(static_cast<std::size_t>(rows));
  std::vector<T> log_sum_exp_gradient(in.log_sum_exp_gradient.begin(), in.log_sum_exp_gradient.end());
  AttentionParams params;
  params.dtype = std::is_same_v<Element, double>  ? NumberType::kFloat64
                 : std::is_same_v<Element, float> ? NumberType::kFloat32
                                                  : NumberType::kBFloat16;
  params.batch_size = s.batch;
  params.num_heads = s.heads;
  params.num_kv_heads = s.kv_heads;
  params.query_length = s.queries;
  params.key_length = s.keys;
  params.head_dim = s.head_dim;
  params.value_dim = s.value_dim;
  using Read = ConstTensorView4d;
  using Write = TensorView4d;
  params.query = view_of<Element, Read>(q.memory, s.heads, s.queries, s.head_dim);
  params.key = view_of<Element, Read>(k.memory, s.kv_heads, s.keys, s.head_dim);
  params.value = view_of<Element, Read>(v.memory, s.kv_heads, s.keys, s.value_dim);
  params.window_left = options.window_left;
  params.window_right = options.window_right;
  params.dropout = options.dropout;
  params.dropout_seed = 3;

  cpu::TypedCpuVariant<T, Score, Mask> variant(score_mod, mask, /*tensors=*/0, {}, set);
  const cpu::AttentionPass<T> pass(params, set, &variant);
  std::vector<T> saved(static_cast<std::size_t>(pass.saved_bytes()) / sizeof(T), std::numeric_limits<T>::quiet_NaN());
  AttentionOutputs outputs;
  outputs.output = view_of<Element, Write>(output.memory, s.heads, s.queries, s.value_dim);
  outputs.log_sum_exp = log_sum_exp.data();
  outputs.saved = saved.data();
  outputs.saved_bytes = pass.saved_bytes();
  ThreadPoolExecutor executor(threads);
  pass.forward(outputs, executor);
  AttentionGradients gradients;
  gradients.output = view_of<Element, Read>(dO.memory, s.heads, s.queries, s.value_dim);
  gradients.log_sum_exp = log_sum_exp_gradient.data();
  gradients.query = view_of<Element, Write>(dq.memory, s.heads, s.queries, s.head_dim);
  gradients.key = view_of<Element, Write>(dk.memory, s.kv_heads, s.keys, s.head_dim);
  gradients.value = view_of<Element, Write>(dv.memory, s.kv_heads, s.keys, s.value_dim);
  pass.backward(outputs, gradients, executor);
  return {output.read(), {log_sum_exp.begin(), log_sum_exp.end()}, dq.read(), dk.read(), dv.read()};
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
  const std::vector<double> Results::*const members[] = {&Results::output, &Results::log_sum_exp, &Results::query,
                                                         &Results::key, &Results::value};
  for (int k = 0; k < 5; ++k) {
    CAPTURE(k);
    CHECK(largest_difference(found.*members[k], exact.*members[k]) <=
          2 * largest_difference(same_type.*members[k], exact.*members[k]) + extra);
  }
}

template <class Score, class Mask>
void check(const std::string& name, const Sizes& sizes, const Score& score_mod, const Mask& mask,
           const Options& options = {}) {
  CAPTURE(name);
  CAPTURE(sizes.queries);
  CAPTURE(sizes.keys);
  const Inputs inputs = inputs_for(sizes, /*is_bfloat16=*/false), rounded = inputs_for(sizes, /*is_bfloat16=*/true);
  const Results exact = by_every_score<double>(sizes, inputs, score_mod, mask, options),
                in_float = by_every_score<float>(sizes, inputs, score_mod, mask, options),
                of_rounded = by_every_score<double>(sizes, rounded, score_mod, mask, options);
  for (const InstructionSet set : {InstructionSet::kAvx512Bf16, InstructionSet::kAvx512, InstructionSet::kAvx2,
                                   InstructionSet::kNeonBf16, InstructionSet::kNeon, InstructionSet::kPortable}) {
    if (!simd::is_supported(set)) continue;
    CAPTURE(static_cast<int>(set));
    check_close(by_kernels<double>(sizes, inputs, score_mod, mask, options, set), exact, exact, 1e-11);
    check_close(by_kernels<float>(sizes, inputs, score_mod, mask, options, set), exact, in_float, 1e-6);
    check_close(by_kernels<simd::BFloat16>(sizes, rounded, score_mod, mask, options, set), of_rounded, of_rounded,
                0.06);
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
  const Inputs inputs = inputs_for(sizes, false);
  const auto count = [&](const auto& score_mod, const Sizes& s, std::int32_t step) {
    std::atomic<std::int64_t> wrong{0}, called{0};
    by_kernels<float>(s, inputs_for(s, false), score_mod, Blocks(step, &wrong, &called), {},
                      simd::best_instruction_set());
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
    Inputs inputs = inputs_for(sizes, false), changed = inputs;
    const std::int32_t first = 35;  // the keys from here on are masked for all queries
    struct Cut : attend::detail::MaskOperators {
      bool operator()(Coordinate at) const { return at.key < 35; }
      MaskCover cover(QueryBlock, KeyRange keys) const {
        return keys.end <= 35 ? MaskCover::kFull : keys.begin >= 35 ? MaskCover::kEmpty : MaskCover::kPartial;
      }
    };
    for (std::int32_t g = 0; g < sizes.batch * sizes.kv_heads; ++g)
      for (std::int32_t j = first; j < sizes.keys; ++j) {
        changed.key[(static_cast<std::size_t>(g) * sizes.keys + j) * sizes.head_dim] =
            j % 2 == 0 ? std::nan("") : std::numeric_limits<double>::infinity();
        changed.value[(static_cast<std::size_t>(g) * sizes.keys + j) * sizes.value_dim] = std::nan("");
      }
    const auto both = mask & Cut{};
    for (const double dropout : {0.0, 0.2}) {
      const Options options{.dropout = dropout};
      const Results exact = by_every_score<double>(sizes, inputs, Tilted{}, both, options);
      const InstructionSet set = simd::best_instruction_set();
      check_close(by_kernels<double>(sizes, changed, Tilted{}, both, options, set), exact, exact, 1e-11);
      const Results plain = by_every_score<double>(sizes, inputs, Unchanged{}, both, options);
      check_close(by_kernels<double>(sizes, changed, Unchanged{}, both, options, set), plain, plain, 1e-11);
    }
  }
}

TEST_CASE("kernels: a query with no key has output 0, log-sum-exp −∞ and no gradient") {
  const Sizes sizes{1, 1, 1, 200, 330, 16, 16};
  const Results found =
      by_kernels<float>(sizes, inputs_for(sizes, false), Unchanged{}, IdleQueries{}, {}, simd::best_instruction_set());
  for (std::int32_t i = 60; i < 140; ++i) {
    CHECK(found.log_sum_exp[i] == -std::numeric_limits<double>::infinity());
    for (int d = 0; d < 16; ++d) {
      CHECK(found.output[i * 16 + d] == 0);
      CHECK(found.query[i * 16 + d] == 0);
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
      by_kernels<float>(sizes, inputs_for(sizes, false), Unchanged{}, Liar(&state), {}, simd::best_instruction_set());
      by_kernels<float>(sizes, inputs_for(sizes, false), Tilted{}, Liar(&state), {}, simd::best_instruction_set());
    }
}
