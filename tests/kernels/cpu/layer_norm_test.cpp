// SPDX-License-Identifier: MIT

// Layer norm after a residual connection against loops in double.

#include <attend/kernels/cpu/layer_norm.h>

#include "kernels/support/rows.h"

#include <doctest/doctest.h>

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

namespace layer_norm_test {
namespace {

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

}  // namespace

TEST_CASE("layer norm kernel: results and gradients are those of the formula, on every instruction set") {
  const auto check = [](const char* name, const cpu::LayerNormOperations& operations) {
    CAPTURE(name);
    for (const double dropout : {0.0, 0.3})
      for (const bool has_branch : {false, true})
        for (const bool is_affine : {false, true})
          for (const std::int64_t width : {5, 16, 77, 256})
            check_layer_norm(operations, 7, width, dropout, has_branch, is_affine);
  };
  attend::test::for_instruction_sets(
      [&](const char* name, cpu::InstructionSet set) { check(name, cpu::layer_norm_operations(set)); });
  attend::test::for_emulated_widths(
      [&](const char* name, auto isa) { check(name, cpu::kLayerNormOperations<decltype(isa)>); });
}

}  // namespace layer_norm_test
