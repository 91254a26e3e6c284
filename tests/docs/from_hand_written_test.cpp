// SPDX-License-Identifier: MIT

// The modules of docs/from_hand_written.md: those in plain LibTorch and those with attend's parts compute the same.

#include "../../examples/from_hand_written/by_hand.h"
#include "../../examples/from_hand_written/with_attend.h"

#include "support/accuracy.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <string>
#include <vector>

using attend::test::max_difference;

namespace from_hand_written_test {
namespace {

std::string name_of(const std::string& name) { return name == "bias.relative_position_bias_table" ? "table" : name; }

/// Gives both modules the same weights, runs forward(module) on both, and compares outputs and gradients of weights.
template <class ByHand, class WithAttend, class Run>
void check(ByHand by_hand, WithAttend with_attend, const Run& run) {
  by_hand->to(torch::kDouble);
  with_attend->to(torch::kDouble);
  const auto given = by_hand->named_parameters();
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : with_attend->named_parameters()) parameter.value().copy_(given[name_of(parameter.key())]);
  }
  REQUIRE(with_attend->named_parameters().size() == given.size());
  const torch::Tensor theirs = run(by_hand), ours = run(with_attend);
  CHECK(max_difference(theirs, ours) < 1e-6);  // the tables of the hand-written rotary embedding are float32
  theirs.square().sum().backward();
  ours.square().sum().backward();
  for (const auto& parameter : with_attend->named_parameters()) {
    CAPTURE(parameter.key());
    const torch::Tensor expected = given[name_of(parameter.key())].grad();
    CHECK(max_difference(parameter.value().grad(), expected) < 1e-6 * attend::test::size_of(expected));
  }
}

}  // namespace

TEST_CASE("docs/from_hand_written.md: three modules in plain LibTorch and with attend's parts agree, with gradients") {
  torch::manual_seed(1);
  const auto real = torch::kDouble;
  const torch::Tensor signal = torch::randn({2, 70, 32}, real), image = torch::randn({2, 12, 12, 24}, real);
  check(by_hand::WindowedAttention(32, 4, 7, 5), with_attend::WindowedAttention(32, 4, 7, 5),
        [&](auto module) { return module->forward(signal); });
  check(by_hand::ShiftedWindows(24, 3, 12, 4, 2), with_attend::ShiftedWindows(24, 3, 12, 4, 2),
        [&](auto module) { return module->forward(image); });
  const torch::Tensor x1 = torch::randn({3, 9, 16}, real), x2 = torch::randn({3, 7, 16}, real);
  const torch::Tensor is_point1 = torch::arange(9).unsqueeze(0) < torch::tensor({9, 4, 0}).unsqueeze(1);
  const torch::Tensor is_point2 = torch::arange(7).unsqueeze(0) < torch::tensor({5, 7, 3}).unsqueeze(1);
  check(by_hand::CrossAttention(16, 2), with_attend::CrossAttention(16, 2), [&](auto module) {
    const auto [y1, y2] = module->forward(x1, x2, is_point1, is_point2);
    return torch::cat({y1, y2}, 1);
  });
}

}  // namespace from_hand_written_test
