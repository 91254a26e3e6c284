// SPDX-License-Identifier: MIT
#pragma once

// A small call of attention and its results by a loop in float64, for the programs that run kernels with a planted
// fault. It includes little, because each fault compiles it again.

#include "support/cuda_block.h"

#include <attend/detail/philox.h>
#include <attend/kernels/attention_params.h>
#include <attend/score/mask_mod.h>
#include <attend/score/rotary_layout.h>
#include <attend/score/score_mod.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/number.cuh>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace attend::test {

/// A matrix (rows, 64) per head.
template <NumberType kType>
struct SmallRows {
  static constexpr int kColumns = 64;
  using Number = cuda::detail::Stored<kType>;

  int rows;
  std::vector<Number> numbers;

  /// All NaN, so that a number that nobody writes is found.
  SmallRows(int heads, int rows) : rows(rows) {
    numbers.reserve(
        static_cast<std::size_t>((heads * rows + 64) * kColumns));  // so that a row past the end is nobody's
    numbers.resize(static_cast<std::size_t>(heads * rows * kColumns));
    clear();
  }
  SmallRows(int heads, int rows, std::mt19937& generator) : SmallRows(heads, rows) {
    std::normal_distribution<float> normal;
    for (Number& number : numbers) number = cuda::detail::stored_of<kType>(normal(generator));
  }

  /// Makes all numbers NaN.
  void clear() {
    std::fill(numbers.begin(), numbers.end(), cuda::detail::stored_of<kType>(std::numeric_limits<float>::quiet_NaN()));
  }

  double operator()(std::size_t i) const { return static_cast<double>(cuda::detail::value_of<kType>(numbers[i])); }
  double operator()(int head, int row, int column) const {
    return (*this)(static_cast<std::size_t>((head * rows + row) * kColumns + column));
  }
  void add_to(GlobalMemory& memory, const char* name, bool is_output) {
    for (std::size_t first = 0; first < numbers.size(); first += kColumns)
      is_output ? memory.add_output(&numbers[first], sizeof(Number) * kColumns, name)
                : memory.add_input(&numbers[first], sizeof(Number) * kColumns, name);
  }
};

using Bfloat16Rows = SmallRows<NumberType::kBFloat16>;

/// A rotary embedding. R = 0: none.
struct SmallRotary {
  int R = 0;
  RotaryLayout layout = RotaryLayout::kHalfSplit;
};

/// Two heads of queries with one head of keys and values, and all results in float64.
template <NumberType kType>
struct SmallCallOf {
  using Rows = SmallRows<kType>;
  static constexpr int kHeads = 2, kColumns = Rows::kColumns;

  int L, S;
  AttentionParams params;
  std::mt19937 generator{1};
  Rows query, key, value, output_gradient;
  std::vector<float> query_cos, query_sin, key_cos, key_sin;  // (L, R/2) and (S, R/2)
  std::vector<double> output, log_sum_exp, query_gradient, key_gradient, value_gradient;

  SmallCallOf(int L, int S, bool is_causal, double dropout, SmallRotary rotary)
      : L(L),
        S(S),
        query(kHeads, L, generator),
        key(1, S, generator),
        value(1, S, generator),
        output_gradient(kHeads, L, generator) {
    params.dtype = kType;
    params.num_heads = kHeads;
    params.query_length = L;
    params.key_length = S;
    params.head_dim = params.value_dim = kColumns;
    params.query = contiguous(query.numbers.data(), kHeads, L, kColumns);
    params.key = contiguous(key.numbers.data(), 1, S, kColumns);
    params.value = contiguous(value.numbers.data(), 1, S, kColumns);
    params.window_right = is_causal ? 0 : -1;
    params.dropout = dropout;
    params.dropout_seed = 5;
    if (rotary.R > 0) set_rotary(rotary);
    compute();
  }

  void add_rotary_to(GlobalMemory& memory) const {
    for (const std::vector<float>* table : {&query_cos, &query_sin, &key_cos, &key_sin})
      if (!table->empty())
        memory.add_input(table->data(), static_cast<std::int64_t>(4 * table->size()), "rotary table");
  }

 private:
  static constexpr double kScale = 0.125;

  // What dropout multiplies a weight with.
  double kept(int head, int i, int j) const {
    if (params.dropout == 0) return 1;
    const auto block = attend::detail::philox(params.dropout_seed,
                                              static_cast<std::uint64_t>(i) << 32 | static_cast<std::uint64_t>(j / 4),
                                              static_cast<std::uint64_t>(head));
    return block.words[j % 4] < std::llround(params.dropout * 4294967296.0) ? 0 : 1 / (1 - params.dropout);
  }

  void set_rotary(SmallRotary rotary) {
    params.rotary_dim = rotary.R;
    params.rotary_layout = rotary.layout;
    const auto fill = [&](int rows, std::vector<float>& cos, std::vector<float>& sin) -> RotaryView {
      for (int i = 0; i < rows * rotary.R / 2; ++i) {
        const float angle = std::normal_distribution<float>(0, 3)(generator);
        cos.push_back(std::cos(angle));
        sin.push_back(std::sin(angle));
      }
      return {cos.data(), sin.data(), {0, rotary.R / 2}};
    };
    params.query_rotary = fill(L, query_cos, query_sin);
    params.key_rotary = fill(S, key_cos, key_sin);
  }

  /// Calls action(first, second, table): the places of each pair in (heads, rows, 64), and that of its angle.
  template <class Action>
  void for_each_pair(int heads, int rows, const Action& action) const {
    const int pairs = static_cast<int>(params.rotary_dim / 2);
    const bool is_split = params.rotary_layout == RotaryLayout::kHalfSplit;
    for (int row = 0; row < heads * rows; ++row)
      for (int k = 0; k < pairs; ++k)
        action(static_cast<std::size_t>(row * kColumns + (is_split ? k : 2 * k)),
               static_cast<std::size_t>(row * kColumns + (is_split ? k + pairs : 2 * k + 1)),
               static_cast<std::size_t>(row % rows * pairs + k));
  }

  /// The numbers as the kernels multiply them: rotated in float32 and rounded.
  std::vector<double> rotated(const Rows& given, int heads, int rows, const std::vector<float>& cos,
                              const std::vector<float>& sin) const {
    std::vector<double> numbers;
    for (std::size_t i = 0; i < given.numbers.size(); ++i) numbers.push_back(given(i));
    const auto round = [](float number) {
      return static_cast<double>(cuda::detail::value_of<kType>(cuda::detail::stored_of<kType>(number)));
    };
    for_each_pair(heads, rows, [&](std::size_t first, std::size_t second, std::size_t table) {
      const float a = static_cast<float>(numbers[first]), b = static_cast<float>(numbers[second]);
      numbers[first] = round(a * cos[table] - b * sin[table]);
      numbers[second] = round(b * cos[table] + a * sin[table]);
    });
    return numbers;
  }
  void rotate_back(std::vector<double>& gradient, int heads, int rows, const std::vector<float>& cos,
                   const std::vector<float>& sin) const {
    for_each_pair(heads, rows, [&](std::size_t first, std::size_t second, std::size_t table) {
      const double a = gradient[first], b = gradient[second], c = static_cast<double>(cos[table]),
                   s = static_cast<double>(sin[table]);
      gradient[first] = a * c + b * s;
      gradient[second] = b * c - a * s;
    });
  }

  void compute() {
    const std::vector<double> queries = rotated(query, kHeads, L, query_cos, query_sin),
                              keys = rotated(key, 1, S, key_cos, key_sin);
    const auto q = [&](int head, int i, int d) {
      return queries[static_cast<std::size_t>((head * L + i) * kColumns + d)];
    };
    const auto k = [&](int j, int d) { return keys[static_cast<std::size_t>(j * kColumns + d)]; };
    output.resize(static_cast<std::size_t>(kHeads * L * kColumns));
    log_sum_exp.resize(static_cast<std::size_t>(kHeads * L));
    query_gradient.resize(output.size());
    key_gradient.resize(static_cast<std::size_t>(S * kColumns));
    value_gradient.resize(key_gradient.size());
    std::vector<double> weights(static_cast<std::size_t>(S)), gradients(weights.size());
    for (int head = 0; head < kHeads; ++head)
      for (int i = 0; i < L; ++i) {
        const auto row = static_cast<std::size_t>(head * L + i);
        const int end = params.window_right == 0 ? std::min(S, i + S - L + 1) : S;
        double sum = 0;
        for (int j = 0; j < end; ++j) {
          double product = 0;
          for (int d = 0; d < kColumns; ++d) product += q(head, i, d) * k(j, d);
          sum += weights[static_cast<std::size_t>(j)] = std::exp(product * kScale);
        }
        log_sum_exp[row] = std::log(sum);
        double delta = 0;
        for (int j = 0; j < end; ++j) {
          double& weight = weights[static_cast<std::size_t>(j)];
          weight /= sum;
          const double factor = kept(head, i, j);
          double product = 0;
          for (int d = 0; d < kColumns; ++d) {
            output[row * kColumns + static_cast<std::size_t>(d)] += weight * factor * value(0, j, d);
            value_gradient[static_cast<std::size_t>(j * kColumns + d)] += weight * factor * output_gradient(head, i, d);
            product += output_gradient(head, i, d) * value(0, j, d);
          }
          gradients[static_cast<std::size_t>(j)] = factor * product;
          delta += weight * factor * product;
        }
        for (int j = 0; j < end; ++j) {
          const auto at = static_cast<std::size_t>(j);
          const double gradient = kScale * weights[at] * (gradients[at] - delta);
          for (int d = 0; d < kColumns; ++d) {
            query_gradient[row * kColumns + static_cast<std::size_t>(d)] += gradient * k(j, d);
            key_gradient[at * kColumns + static_cast<std::size_t>(d)] += gradient * q(head, i, d);
          }
        }
      }
    rotate_back(query_gradient, kHeads, L, query_cos, query_sin);
    rotate_back(key_gradient, 1, S, key_cos, key_sin);
  }
};

/// Runs the kernels of a pass on the host, until one has a fault, and prints what the harness reports.
///
/// @return Whether it reported nothing.
template <class Pass>
bool run_and_print(Pass& pass) {
  CudaReport report;
  pass.launch_all([&](auto kernel, const auto& call) {
    using Kernel = decltype(kernel);
    if (!report.faults.empty()) return;
    report = run_on_host({.grid = {static_cast<int>(Kernel::blocks(call)), 1, 1},
                          .threads = Kernel::kThreads,
                          .shared_bytes = Kernel::kSharedBytes},
                         pass.memory, [&] { Kernel::run(call, Unchanged{}, EveryKey{}); });
  });
  std::fputs(report.text().c_str(), stdout);
  return report.faults.empty();
}

/// Prints the largest error of numbers, divided by the largest exact number, if it is above the limit.
///
/// @return Whether it is not.
template <class Numbers>
bool check_and_print(const char* name, const std::vector<double>& exact, const Numbers& numbers, double limit) {
  double largest = 0, largest_error = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double error = std::fabs(numbers(i) - exact[i]);
    largest = std::max(largest, std::fabs(exact[i]));
    largest_error = error <= largest_error ? largest_error : error;  // also if it is NaN
    if (std::isnan(error)) break;
  }
  if (largest_error <= limit * largest) return true;
  std::printf("wrong %s: error %.3g, limit %.3g\n", name, largest_error, limit * largest);
  return false;
}

}  // namespace attend::test
