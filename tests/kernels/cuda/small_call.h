// SPDX-License-Identifier: MIT
#pragma once

// A small call of attention and its results by a loop in float64, for the programs that run kernels with a planted
// fault. It includes little, because each fault compiles it again.

#include "support/cuda_block.h"

#include <attend/detail/philox.h>
#include <attend/kernels/attention_params.h>
#include <attend/score/mask_mod.h>
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

/// Two heads of queries with one head of keys and values, and all results in float64.
template <NumberType kType>
struct SmallCallOf {
  using Rows = SmallRows<kType>;
  static constexpr int kHeads = 2, kColumns = Rows::kColumns;

  int L, S;
  AttentionParams params;
  std::mt19937 generator{1};
  Rows query, key, value, output_gradient;
  std::vector<double> output, log_sum_exp, query_gradient, key_gradient, value_gradient;

  SmallCallOf(int L, int S, bool is_causal, double dropout)
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
    compute();
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

  void compute() {
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
          for (int d = 0; d < kColumns; ++d) product += query(head, i, d) * key(0, j, d);
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
            query_gradient[row * kColumns + static_cast<std::size_t>(d)] += gradient * key(0, j, d);
            key_gradient[at * kColumns + static_cast<std::size_t>(d)] += gradient * query(head, i, d);
          }
        }
      }
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
