// SPDX-License-Identifier: MIT

// The kernels of the feed-forward network and of layer norm against loops in double.

#include <attend/kernels/cpu/feed_forward.h>
#include <attend/kernels/cpu/layer_norm.h>

#include "support/environment.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace cpu = attend::cpu;

namespace feed_forward_test {
namespace {

using Numbers = std::vector<float>;

Numbers normal(std::int64_t size, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution;
  Numbers numbers(static_cast<std::size_t>(size));
  for (float& number : numbers) number = distribution(generator);
  return numbers;
}

std::vector<double> zeros(std::int64_t size) { return std::vector<double>(static_cast<std::size_t>(size)); }

/// The largest difference, relative to the largest number.
double difference(const Numbers& result, const std::vector<double>& exact) {
  REQUIRE(result.size() == exact.size());
  double largest = 0.0, size = 1.0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(result[i]) - exact[i]));
    size = std::max(size, std::abs(exact[i]));
  }
  return largest / size;
}

/// The factor of entry (i, j), as flat_dropout.h defines it.
double factor(const cpu::FlatDropout& dropout, std::int64_t i, std::int64_t j) {
  const auto block = attend::detail::philox(dropout.seed, static_cast<std::uint64_t>(16 * (j / 64) + j % 16),
                                            static_cast<std::uint64_t>(i));
  return block.words[j / 16 % 4] >= dropout.threshold ? static_cast<double>(dropout.kept) : 0.0;
}

/// c (rows, columns) = a (rows, depth) · bᵀ, with b (columns, depth).
template <class A, class B>
std::vector<double> times_transposed(const A& a, const B& b, std::int64_t rows, std::int64_t columns,
                                     std::int64_t depth) {
  std::vector<double> c = zeros(rows * columns);
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < columns; ++j) {
      double sum = 0.0;
      for (std::int64_t k = 0; k < depth; ++k)
        sum += static_cast<double>(a[static_cast<std::size_t>(i * depth + k)]) *
               static_cast<double>(b[static_cast<std::size_t>(j * depth + k)]);
      c[static_cast<std::size_t>(i * columns + j)] = sum;
    }
  return c;
}

template <class Matrix>
Matrix transposed(const Matrix& a, std::int64_t rows, std::int64_t columns) {
  Matrix result(a.size());
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < columns; ++j)
      result[static_cast<std::size_t>(j * rows + i)] = a[static_cast<std::size_t>(i * columns + j)];
  return result;
}

float* data(Numbers& numbers) { return numbers.empty() ? nullptr : numbers.data(); }

/// The memory that the tests pass is exactly what the kernels ask for, so that the address sanitizer sees an overrun.
void check_feed_forward(const cpu::FeedForwardTables& tables, const cpu::FeedForwardSizes& sizes, double dropout,
                        bool has_bias, cpu::HiddenActivation activation) {
  const bool is_relu = activation == cpu::HiddenActivation::kReLU;
  const std::int64_t rows = sizes.rows, width = sizes.width, hidden = sizes.hidden, out = sizes.out;
  CAPTURE(rows);
  CAPTURE(width);
  CAPTURE(hidden);
  CAPTURE(out);
  CAPTURE(dropout);
  CAPTURE(has_bias);
  CAPTURE(is_relu);
  const cpu::FlatDropout drop = cpu::flat_dropout(dropout, 77);
  Numbers x = normal(rows * width, 1), weight1 = normal(hidden * width, 2), weight2 = normal(out * hidden, 3);
  Numbers bias1 = normal(has_bias ? hidden : 0, 4), bias2 = normal(has_bias ? out : 0, 5);

  std::vector<double> exact_hidden = times_transposed(x, weight1, rows, hidden, width), factors = zeros(rows * hidden);
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < hidden; ++j) {
      const auto at = static_cast<std::size_t>(i * hidden + j);
      if (has_bias) exact_hidden[at] += static_cast<double>(bias1[static_cast<std::size_t>(j)]);
      const double kept = dropout > 0.0 ? factor(drop, i, j) : 1.0, before = exact_hidden[at];
      const double cdf = 0.5 * std::erfc(-before / std::sqrt(2.0)),
                   density = std::exp(-0.5 * before * before) / std::sqrt(2.0 * std::acos(-1.0));
      exact_hidden[at] = kept * (is_relu ? std::max(before, 0.0) : before * cdf);
      factors[at] = kept * (is_relu ? (before > 0.0 ? 1.0 : 0.0) : cdf + before * density);
    }
  std::vector<double> exact = times_transposed(exact_hidden, weight2, rows, out, hidden);
  for (std::int64_t i = 0; i < rows * out && has_bias; ++i)
    exact[static_cast<std::size_t>(i)] += static_cast<double>(bias2[static_cast<std::size_t>(i % out)]);

  Numbers kept(static_cast<std::size_t>(sizes.hidden_numbers()));
  for (const bool with_backward : {false, true}) {
    Numbers output(static_cast<std::size_t>(rows * out), NAN),
        packed1(static_cast<std::size_t>(sizes.packed(width, hidden))),
        packed2(static_cast<std::size_t>(sizes.packed(hidden, out))), memory(cpu::FeedForwardForward::kMemory);
    const cpu::FeedForwardForward pass{
        sizes,         data(x),       data(weight1), data(bias1),
        data(weight2), data(bias2),   data(output),  with_backward ? data(kept) : nullptr,
        data(packed1), data(packed2), activation,    drop,
        tables};
    for (std::int64_t i = 0; i < pass.packs(); ++i) pass.pack(i);
    for (std::int64_t block = 0; block < sizes.blocks(); ++block) pass.compute(block, data(memory));
    CHECK(difference(output, exact) < 2e-6);
  }

  Numbers gradient = normal(rows * out, 6);
  std::vector<double> hidden_gradient = times_transposed(gradient, transposed(weight2, out, hidden), rows, hidden, out);
  for (std::size_t i = 0; i < hidden_gradient.size(); ++i) hidden_gradient[i] *= factors[i];
  const std::vector<double> exact_x =
      times_transposed(hidden_gradient, transposed(weight1, hidden, width), rows, width, hidden);
  const std::vector<double> exact_weight1 =
      times_transposed(transposed(hidden_gradient, rows, hidden), transposed(x, rows, width), hidden, width, rows);
  const std::vector<double> exact_weight2 =
      times_transposed(transposed(gradient, rows, out), transposed(exact_hidden, rows, hidden), out, hidden, rows);
  std::vector<double> exact_bias1 = zeros(hidden), exact_bias2 = zeros(out);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < hidden; ++j)
      exact_bias1[static_cast<std::size_t>(j)] += hidden_gradient[static_cast<std::size_t>(i * hidden + j)];
    for (std::int64_t j = 0; j < out; ++j)
      exact_bias2[static_cast<std::size_t>(j)] += static_cast<double>(gradient[static_cast<std::size_t>(i * out + j)]);
  }

  Numbers x_gradient(static_cast<std::size_t>(rows * width), NAN),
      packed1(static_cast<std::size_t>(sizes.packed(hidden, width))),
      packed2(static_cast<std::size_t>(sizes.packed(out, hidden))),
      sums_memory(static_cast<std::size_t>(cpu::FeedForwardBackward::Sums::numbers(sizes)), NAN);
  const cpu::FeedForwardBackward pass{
      sizes,         data(x),       data(weight1), data(weight2), data(gradient), data(kept), data(x_gradient),
      data(packed1), data(packed2), activation,    drop,          tables};
  Numbers memory(static_cast<std::size_t>(pass.memory()));
  const cpu::FeedForwardBackward::Sums sums(sizes, data(sums_memory));
  for (std::int64_t i = 0; i < pass.packs(); ++i) pass.pack(i);
  for (std::int64_t block = 0; block < sizes.blocks(); ++block) pass.compute(block, block == 0, data(memory), sums);
  CHECK(difference(x_gradient, exact_x) < 2e-6);
  CHECK(difference(Numbers(sums.weight1, sums.weight1 + hidden * width), exact_weight1) < 2e-6);
  CHECK(difference(Numbers(sums.bias1, sums.bias1 + hidden), exact_bias1) < 2e-6);
  CHECK(difference(Numbers(sums.bias2, sums.bias2 + out), exact_bias2) < 2e-6);
  Numbers weight2_gradient(static_cast<std::size_t>(out * hidden));
  for (std::int64_t i = 0; i < out; ++i)
    for (std::int64_t j = 0; j < hidden; ++j)
      weight2_gradient[static_cast<std::size_t>(i * hidden + j)] = sums.weight2[(j / 64 * out + i) * 64 + j % 64];
  CHECK(difference(weight2_gradient, exact_weight2) < 2e-6);
}

void check_layer_norm(const cpu::LayerNormOperations& operations, std::int64_t rows, std::int64_t width, double dropout,
                      bool has_branch, bool is_affine) {
  CAPTURE(rows);
  CAPTURE(width);
  CAPTURE(dropout);
  CAPTURE(has_branch);
  CAPTURE(is_affine);
  constexpr double kEps = 1e-5;
  const auto at = [width](std::int64_t i, std::int64_t j) { return static_cast<std::size_t>(i * width + j); };
  const cpu::FlatDropout drop = cpu::flat_dropout(dropout, 78);
  Numbers x = normal(rows * width, 1), branch = normal(has_branch ? rows * width : 0, 2),
          weight = normal(is_affine ? width : 0, 3), bias = normal(is_affine ? width : 0, 4);
  Numbers sum(branch.size(), NAN), output(x.size(), NAN), mean(static_cast<std::size_t>(rows)), rstd(mean.size());
  const cpu::LayerNormParams params{data(x),      data(branch), data(weight), data(bias), data(sum),
                                    data(output), data(mean),   data(rstd),   width,      static_cast<float>(kEps),
                                    drop};
  operations.forward(&params, 0, rows / 2);
  operations.forward(&params, rows / 2, rows);

  Numbers output_gradient = normal(rows * width, 5), sum_gradient = normal(rows * width, 6);
  std::vector<double> exact_sum = zeros(rows * width), exact = exact_sum, exact_x = exact_sum, exact_branch = exact_sum,
                      exact_weight = zeros(is_affine ? width : 0), exact_bias = exact_weight;
  for (std::int64_t i = 0; i < rows; ++i) {
    double m = 0.0, variance = 0.0, mean_of_g = 0.0, mean_of_gx = 0.0;
    for (std::int64_t j = 0; j < width; ++j) {
      exact_sum[at(i, j)] = static_cast<double>(x[at(i, j)]);
      if (has_branch)
        exact_sum[at(i, j)] += static_cast<double>(branch[at(i, j)]) * (dropout > 0.0 ? factor(drop, i, j) : 1.0);
      m += exact_sum[at(i, j)] / static_cast<double>(width);
    }
    for (std::int64_t j = 0; j < width; ++j)
      variance += (exact_sum[at(i, j)] - m) * (exact_sum[at(i, j)] - m) / static_cast<double>(width);
    const double r = 1.0 / std::sqrt(variance + kEps);
    const auto normed = [&](std::int64_t j) { return (exact_sum[at(i, j)] - m) * r; };
    const auto w = [&](std::int64_t j) { return is_affine ? static_cast<double>(weight[at(0, j)]) : 1.0; };
    for (std::int64_t j = 0; j < width; ++j) {
      const double given = static_cast<double>(output_gradient[at(i, j)]), g = given * w(j);
      exact[at(i, j)] = normed(j) * w(j) + (is_affine ? static_cast<double>(bias[at(0, j)]) : 0.0);
      mean_of_g += g / static_cast<double>(width);
      mean_of_gx += g * normed(j) / static_cast<double>(width);
      if (is_affine) {
        exact_weight[at(0, j)] += given * normed(j);
        exact_bias[at(0, j)] += given;
      }
    }
    for (std::int64_t j = 0; j < width; ++j) {
      const double g = static_cast<double>(output_gradient[at(i, j)]) * w(j);
      exact_x[at(i, j)] = r * (g - mean_of_g - normed(j) * mean_of_gx) + static_cast<double>(sum_gradient[at(i, j)]);
      exact_branch[at(i, j)] = exact_x[at(i, j)] * (dropout > 0.0 ? factor(drop, i, j) : 1.0);
    }
  }
  CHECK(difference(output, exact) < 3e-6);
  if (has_branch) CHECK(difference(sum, exact_sum) < 1e-6);

  Numbers x_gradient(x.size(), NAN), branch_gradient(x.size(), NAN), weight_gradient(weight.size()),
      bias_gradient(weight.size());
  cpu::LayerNormGradients gradients{data(output_gradient),
                                    data(sum_gradient),
                                    has_branch ? data(sum) : data(x),
                                    data(weight),
                                    data(mean),
                                    data(rstd),
                                    data(x_gradient),
                                    data(branch_gradient),
                                    data(weight_gradient),
                                    data(bias_gradient),
                                    width,
                                    drop};
  operations.backward(&gradients, 0, rows / 2);
  operations.backward(&gradients, rows / 2, rows);
  CHECK(difference(x_gradient, exact_x) < 1e-5);
  CHECK(difference(branch_gradient, exact_branch) < 1e-5);
  CHECK(difference(weight_gradient, exact_weight) < 1e-5);
  CHECK(difference(bias_gradient, exact_bias) < 1e-5);

  gradients.output_gradient = nullptr;  // zeros
  gradients.branch_gradient = nullptr;
  operations.backward(&gradients, 0, rows);
  CHECK(x_gradient == sum_gradient);
}

/// The functions of an instruction set of this processor, or those for vectors of some width, which the compiler
/// emulates.
struct Tables {
  std::string name;
  cpu::FeedForwardTables feed_forward;
  const cpu::LayerNormOperations& layer_norm;
};

template <class Isa>
Tables tables_of(const char* name) {
  return {name, {cpu::kTileOperations<float, Isa>, cpu::kFeedForwardOperations<Isa>}, cpu::kLayerNormOperations<Isa>};
}

std::vector<Tables> all_tables() {
  using attend::simd::InstructionSet;
  using attend::simd::PortableOf;
  std::vector<Tables> all{tables_of<PortableOf<16>>("portable16"), tables_of<PortableOf<32>>("portable32"),
                          tables_of<PortableOf<64, 4>>("portable64")};
  for (const auto& [name, set] :
       {std::pair("avx2", InstructionSet::kAvx2), std::pair("avx512", InstructionSet::kAvx512),
        std::pair("neon", InstructionSet::kNeon)})
    if (attend::simd::is_supported(set))
      all.push_back({name, cpu::feed_forward_tables(set), cpu::layer_norm_operations(set)});
  return all;
}

}  // namespace

TEST_CASE("feed-forward kernel: results and gradients are those of the formula, on every instruction set") {
  for (const Tables& tables : all_tables()) {
    if (!attend::test::is_wanted_isa(tables.name)) continue;
    CAPTURE(tables.name);
    for (const auto activation : {cpu::HiddenActivation::kReLU, cpu::HiddenActivation::kGELU}) {
      for (const double dropout : {0.0, 0.3})
        for (const bool has_bias : {false, true}) {
          check_feed_forward(tables.feed_forward, {1, 16, 16, 16}, dropout, has_bias, activation);
          check_feed_forward(tables.feed_forward, {131, 48, 80, 32}, dropout, has_bias, activation);
          check_feed_forward(tables.feed_forward, {300, 144, 208, 144}, dropout, has_bias, activation);
        }
      check_feed_forward(tables.feed_forward, {3, 16, 32, 16}, 1.0, true, activation);
    }
  }
}

TEST_CASE("layer norm kernel: results and gradients are those of the formula, on every instruction set") {
  for (const Tables& tables : all_tables()) {
    if (!attend::test::is_wanted_isa(tables.name)) continue;
    CAPTURE(tables.name);
    for (const double dropout : {0.0, 0.3})
      for (const bool has_branch : {false, true})
        for (const bool is_affine : {false, true})
          for (const std::int64_t width : {5, 16, 77, 256})
            check_layer_norm(tables.layer_norm, 7, width, dropout, has_branch, is_affine);
  }
}

}  // namespace feed_forward_test
