// SPDX-License-Identifier: MIT

// The feed-forward network against loops in double.

#include <attend/kernels/cpu/feed_forward.h>

#include "kernels/support/rows.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace cpu = attend::cpu;
using attend::test::data;
using attend::test::difference;
using attend::test::factor;
using attend::test::normal;
using attend::test::Numbers;
using attend::test::zeros;

namespace feed_forward_test {
namespace {

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

}  // namespace

TEST_CASE("feed-forward kernel: results and gradients are those of the formula, on every instruction set") {
  const auto check = [](const char* name, const cpu::FeedForwardTables& tables) {
    CAPTURE(name);
    for (const auto activation : {cpu::HiddenActivation::kReLU, cpu::HiddenActivation::kGELU}) {
      for (const double dropout : {0.0, 0.3})
        for (const bool has_bias : {false, true}) {
          check_feed_forward(tables, {1, 16, 16, 16}, dropout, has_bias, activation);
          check_feed_forward(tables, {131, 48, 80, 32}, dropout, has_bias, activation);
          check_feed_forward(tables, {300, 144, 208, 144}, dropout, has_bias, activation);
        }
      check_feed_forward(tables, {3, 16, 32, 16}, 1.0, true, activation);
    }
  };
  attend::test::for_instruction_sets(
      [&](const char* name, cpu::InstructionSet set) { check(name, cpu::feed_forward_tables(set)); });
  attend::test::for_emulated_widths([&](const char* name, auto isa) {
    using Isa = decltype(isa);
    check(name, {cpu::kTileOperations<float, Isa>, cpu::kFeedForwardOperations<Isa>});
  });
}

}  // namespace feed_forward_test
