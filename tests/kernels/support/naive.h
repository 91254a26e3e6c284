// SPDX-License-Identifier: MIT
#pragma once

// Attention as a few loops, forward and backward, by the formulas of AttentionParams. It shares no code with the
// kernels but Philox.

#include "configuration.h"
#include "results.h"
#include "user_structs.h"

#include <attend/detail/philox.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace attend::test {

/// How the dense formula rounds: what it writes to memory, or with kTf32 the factors of matrix products, as the tensor
/// cores of a GPU do.
enum class Rounding { kNone, kBFloat16, kFloat16, kTf32 };

/// V: the type that is computed in.
template <class V, Rounding kRounding = Rounding::kNone>
class Naive {
 public:
  /// rounds_rotated: rotated queries and keys are rounded to the dtype of the call, as kernels do.
  template <class Structs>  // as UserStructs
  Naive(const CallMemory& c, const Structs& structs, bool rounds_rotated = false) {
    const AttentionParams& p = c.params;
    const std::int64_t N = p.batch_size, H = p.num_heads, L = p.query_length, D = p.head_dim, Dv = p.value_dim;
    output = zeros(N * H * L * Dv);
    log_sum_exp = zeros(N * H * L);
    query = zeros(N * H * L * D);
    key = zeros(N * p.num_kv_heads * p.key_length * D);
    value = zeros(N * p.num_kv_heads * p.key_length * Dv);
    mask =
        zeros(p.mask_type == MaskType::kAdded || p.mask_type == MaskType::kAddedBFloat16 ? c.mask_gradient_size() : 0);
    slopes = zeros(p.alibi_slopes == nullptr ? 0 : p.alibi_strides[0] == 0 ? H : N * H);
    for (const std::int64_t size : structs.tensor_sizes()) tensors.push_back(zeros(size));
    queries = numbers_of(c.query);
    keys = numbers_of(c.key);
    if (p.rotary_dim > 0) {
      rotate(queries, c.query.sizes(), p, c.query_cos, c.query_sin, 1);
      rotate(keys, c.key.sizes(), p, c.key_cos, c.key_sin, 1);
    }
    if (rounds_rotated)
      for (std::vector<V>* const numbers : {&queries, &keys})
        for (V& number : *numbers) number = static_cast<V>(rounded(static_cast<double>(number), p.dtype));
    for (std::int64_t n = 0; n < N; ++n)
      for (std::int64_t h = 0; h < H; ++h)
        for (std::int64_t i = 0; i < L; ++i) row(c, structs, n, h, i);
    if (p.rotary_dim > 0) {
      rotate(query, c.query.sizes(), p, c.query_cos, c.query_sin, -1);
      rotate(key, c.key.sizes(), p, c.key_cos, c.key_sin, -1);
    }
  }

  Results results() const {
    Results results{{"log_sum_exp", doubles(log_sum_exp)}};
    results["output"] = doubles(output, stored);
    results["query"] = doubles(query, stored);
    results["key"] = doubles(key, stored);
    results["value"] = doubles(value, stored);
    if (!mask.empty()) results["mask"] = doubles(mask);
    if (!slopes.empty()) results["slopes"] = doubles(slopes);
    for (std::size_t k = 0; k < tensors.size(); ++k) results["tensor" + std::to_string(k)] = doubles(tensors[k]);
    return results;
  }

 private:
  static std::vector<V> zeros(std::int64_t size) { return std::vector<V>(static_cast<std::size_t>(size)); }
  static std::vector<V> numbers_of(const Tensor& tensor) {
    std::vector<V> numbers;
    for (const double number : tensor.values()) numbers.push_back(static_cast<V>(number));
    return numbers;
  }
  /// Rotates pairs of (N, H, rows, D) by the angles of their rows, or by the negative angles if `sign` is −1.
  static void rotate(std::vector<V>& numbers, const Sizes& sizes, const AttentionParams& p, const Tensor& cos,
                     const Tensor& sin, int sign) {
    const std::int64_t pairs = p.rotary_dim / 2;
    const bool is_split = p.rotary_layout == RotaryLayout::kHalfSplit;
    Tensor::for_each({sizes[0], sizes[1], sizes[2], pairs}, [&](auto n, auto h, auto i, auto k) {
      const std::int64_t first = ((n * sizes[1] + h) * sizes[2] + i) * sizes[3];
      V& a = numbers[static_cast<std::size_t>(first + (is_split ? k : 2 * k))];
      V& b = numbers[static_cast<std::size_t>(first + (is_split ? k + pairs : 2 * k + 1))];
      const V c = static_cast<V>(cos.get(n, 0, i, k)), s = static_cast<V>(sign * sin.get(n, 0, i, k));
      const V old_a = stored(a), old_b = stored(b);
      a = stored(old_a * c - old_b * s);
      b = stored(old_b * c + old_a * s);
    });
  }
  static double rounded(double number, NumberType dtype) {
    if (dtype == NumberType::kFloat64) return number;
    const auto single = static_cast<float>(number);
    return static_cast<double>(dtype == NumberType::kBFloat16  ? rounded_to_bfloat16(single)
                               : dtype == NumberType::kFloat16 ? rounded_to_float16(single)
                                                               : single);
  }
  static V as_it_is(V number) { return number; }
  static std::vector<double> doubles(const std::vector<V>& given, V (*stored)(V) = as_it_is) {
    std::vector<double> result;
    for (const V number : given) result.push_back(static_cast<double>(stored(number)));
    return result;
  }
  static V stored(V number) {
    if constexpr (kRounding == Rounding::kBFloat16)
      return rounded_to_bfloat16(number);
    else if constexpr (kRounding == Rounding::kFloat16)
      return rounded_to_float16(number);
    else
      return number;
  }

  /// A factor of a matrix product.
  static V factor(V number) {
    if constexpr (kRounding == Rounding::kTf32)
      return rounded_to_tf32(number);
    else
      return number;
  }

  /// A score, and how the steps after scale · q·k depend on each other.
  struct Score {
    std::int64_t key;
    V value;  // as the softmax takes it
    V softcap_slope = 1;
    std::int64_t distance = 0;
    Changed<V> changed;
    V weight = 0, kept = 1;  // before dropout, and what dropout multiplies with
  };

  template <class Structs>
  void row(const CallMemory& c, const Structs& structs, std::int64_t n, std::int64_t h, std::int64_t i) {
    const AttentionParams& p = c.params;
    const std::int64_t H = p.num_heads, G = p.num_kv_heads, L = p.query_length, D = p.head_dim, Dv = p.value_dim,
                       g = h * G / H, S = p.key_lengths == nullptr ? p.key_length : p.key_lengths[n];
    const V scale = static_cast<V>(p.scale ? *p.scale : 1 / std::sqrt(static_cast<double>(D)));
    const auto at = [](std::vector<V>& all, std::int64_t place) -> V& { return all[static_cast<std::size_t>(place)]; };

    std::int64_t key_begin = 0, key_end = S, position = i + S - L;
    for (std::int64_t b = 0; b < p.num_sequences; ++b)
      if (p.query_offsets[b] <= i && i < p.query_offsets[b + 1]) {
        key_begin = p.key_offsets[b];
        key_end = p.key_offsets[b + 1];
        position = i + key_end - p.query_offsets[b + 1];
      }

    std::vector<Score> scores;
    for (std::int64_t j = key_begin; j < key_end; ++j) {
      const Coordinate place{static_cast<std::int32_t>(n), static_cast<std::int32_t>(h), static_cast<std::int32_t>(i),
                             static_cast<std::int32_t>(j), static_cast<std::int32_t>(L), static_cast<std::int32_t>(S)};
      if (p.window_left >= 0 && j < position - p.window_left) continue;
      if (p.window_right >= 0 && j > position + p.window_right) continue;
      if (p.mask_type == MaskType::kBool && c.mask.get(n, h, i, j) == 0) continue;
      if (!structs.allows(place)) continue;
      V sum = 0;
      for (std::int64_t d = 0; d < D; ++d)
        sum += factor(at(queries, ((n * H + h) * L + i) * D + d)) *
               factor(at(keys, ((n * G + g) * p.key_length + j) * D + d));
      Score score{j, stored(scale * stored(sum)), 1, 0, {}};
      if (p.softcap > 0) {
        const V cap = static_cast<V>(p.softcap), tangent = stored(std::tanh(stored(score.value / cap)));
        score.value = stored(cap * tangent);
        score.softcap_slope = stored(1 - tangent * tangent);
      }
      score.distance = std::abs(position - j);
      if (p.alibi_slopes != nullptr)
        score.value =
            stored(score.value - stored(static_cast<V>(c.slopes.get(n, h, 0, 0)) * static_cast<V>(score.distance)));
      if (p.mask_type == MaskType::kAdded || p.mask_type == MaskType::kAddedBFloat16)
        score.value = stored(score.value + static_cast<V>(c.mask.get(n, h, i, j)));
      score.changed = structs.by_hand(score.value, place);
      score.value = stored(score.changed.value);
      if (p.dropout > 0) {
        const std::uint64_t threshold = static_cast<std::uint64_t>(std::llround(p.dropout * 4294967296.0));
        const std::uint32_t word =
            attend::detail::philox(p.dropout_seed,
                                   static_cast<std::uint64_t>(i) << 32 | static_cast<std::uint64_t>(j / 4),
                                   static_cast<std::uint64_t>(n) << 32 | static_cast<std::uint64_t>(h))
                .words[j % 4];
        score.kept = word < threshold ? V(0) : static_cast<V>(1 / (1 - p.dropout));
      }
      scores.push_back(score);
    }

    constexpr V kInfinity = std::numeric_limits<V>::infinity();
    V largest = -kInfinity, total = 0;
    for (const Score& score : scores) largest = std::max(largest, score.value);
    V& row_log_sum_exp = at(log_sum_exp, (n * H + h) * L + i);
    if (largest == -kInfinity) {
      row_log_sum_exp = -kInfinity;
      return;
    }
    for (Score& score : scores) total += score.weight = std::exp(score.value - largest);
    row_log_sum_exp = largest + std::log(total);
    for (Score& score : scores) score.weight = stored(score.weight / total);

    const std::int64_t output_row = ((n * H + h) * L + i) * Dv, query_row = ((n * H + h) * L + i) * D;
    const V log_sum_exp_gradient = static_cast<V>(c.log_sum_exp_gradient.get(n, h, i, 0));
    std::vector<V> weight_gradients;
    V delta = 0;
    for (const Score& score : scores) {
      V sum = 0;
      for (std::int64_t d = 0; d < Dv; ++d) {
        const V number = factor(static_cast<V>(c.value.get(n, g, score.key, d)));
        const V gradient = factor(static_cast<V>(c.output_gradient.get(n, h, i, d)));
        const V weight = factor(stored(score.weight * score.kept));
        at(output, output_row + d) += weight * number;
        at(value, ((n * G + g) * p.key_length + score.key) * Dv + d) += weight * gradient;
        sum += number * gradient;
      }
      weight_gradients.push_back(stored(stored(sum) * score.kept));
      delta += score.weight * weight_gradients.back();
    }
    for (std::size_t k = 0; k < scores.size(); ++k) {
      const Score& score = scores[k];
      if (score.weight == 0) continue;
      V gradient = stored(score.weight * (weight_gradients[k] - delta + log_sum_exp_gradient));
      for (int r = 0; r < score.changed.reads; ++r) {
        const auto& by = score.changed.by[r];
        at(tensors[static_cast<std::size_t>(by.tensor)], by.place) += gradient * by.derivative;
      }
      gradient = stored(gradient * score.changed.slope);
      if (!mask.empty()) at(mask, c.mask_place(n, h, i, score.key)) += gradient;
      if (!slopes.empty())
        at(slopes, (p.alibi_strides[0] == 0 ? 0 : n * H) + h) -= static_cast<V>(score.distance) * gradient;
      gradient = factor(stored(stored(gradient * score.softcap_slope) * scale));
      const std::int64_t key_row = ((n * G + g) * p.key_length + score.key) * D;
      for (std::int64_t d = 0; d < D; ++d) {
        at(query, query_row + d) += gradient * factor(at(keys, key_row + d));
        at(key, key_row + d) += gradient * factor(at(queries, query_row + d));
      }
    }
  }

  std::vector<V> queries, keys;  // rotated
  std::vector<V> output, log_sum_exp, query, key, value, mask, slopes;
  std::vector<std::vector<V>> tensors;
};

}  // namespace attend::test
