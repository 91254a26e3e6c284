// SPDX-License-Identifier: MIT
#include <attend/attention/flash_mask.h>
#include <attend/attention/materialize.h>
#include <attend/flex_attention.h>

#include "support/accuracy.h"
#include "support/dense.h"
#include "support/errors.h"
#include "support/key_ranges.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

using attend::Causal;
using attend::Document;
using attend::FlashMask;
using attend::materialize;
using attend::Unchanged;
using attend::test::allowed_by;
using attend::test::check_key_ranges;
using attend::test::max_difference;
using attend::test::message_of;
using attend::test::same;

namespace flash_mask_test {
namespace {

/// bool (N, H, L, S) by torch's operators, from numbers (N, H, S, 1, 2 or 4).
torch::Tensor dense(const torch::Tensor& numbers, bool is_causal, std::int64_t L) {
  const std::int64_t S = numbers.size(2);
  const torch::Tensor i = torch::arange(L).view({1, 1, L, 1}), j = torch::arange(S);
  const auto number = [&](std::int64_t k) { return numbers.select(3, k).unsqueeze(2); };  // (N, H, 1, S)
  const bool is_short = numbers.size(3) == (is_causal ? 1 : 2);
  torch::Tensor masked = is_short ? i >= number(0) : (i >= number(0)) & (i < number(1));
  if (!is_causal) masked = masked | (is_short ? i < number(1) : (i >= number(2)) & (i < number(3)));
  if (is_causal) masked = masked | (j > i + S - L);
  return masked.logical_not();
}

/// Numbers of rows, some of them for ranges of many keys, as documents have them.
torch::Tensor random_rows(std::vector<std::int64_t> sizes, std::int64_t L) {
  const std::int64_t S = sizes[2];
  sizes[2] = (S + 99) / 100;
  return torch::randint(0, L + 40, sizes).repeat_interleave(100, 2).slice(2, 0, S) -
         torch::randint(0, 2, {S, 1}) * torch::randint(0, 9, {S, 1});
}

}  // namespace

TEST_CASE("FlashMask: every form equals its formula, per batch entry and head, per key head, and shared") {
  torch::manual_seed(1);
  std::mt19937 random(1);
  const std::int64_t N = 2, H = 4;
  for (const auto& [L, S] : std::vector<std::pair<std::int64_t, std::int64_t>>{{200, 200}, {70, 330}, {130, 64}})
    for (const bool is_causal : {false, true})
      for (const std::int64_t count : is_causal ? std::vector<std::int64_t>{1, 2} : std::vector<std::int64_t>{2, 4})
        for (const std::int64_t batch : {1, 2})
          for (const std::int64_t heads : {1, 2, 4}) {
            const torch::Tensor numbers = random_rows({batch, heads, S, count}, L);
            const torch::Tensor expected =
                dense(numbers.repeat_interleave(H / heads, 1), is_causal, L).expand({N, H, L, S});
            const FlashMask mask(numbers, is_causal);
            CHECK(materialize(mask, {N, H, L, S}).equal(expected));
            check_key_ranges(mask, {N, H, L, S}, /*is_tight=*/false, random);
          }
}

TEST_CASE("FlashMask: the example of its comment is two causal documents") {
  torch::Tensor ends = torch::tensor({2, 2, 5, 5, 5}).view({1, 1, 5, 1});  // two causal documents, 2 and 3 long
  const auto documents = Document(torch::tensor({0, 0, 1, 1, 1})) & Causal{};
  CHECK(materialize(attend::FlashMask(ends, /*is_causal=*/true), {1, 1, 5, 5})
            .equal(materialize(documents, {1, 1, 5, 5})));
}

TEST_CASE("FlashMask: outputs and gradients of flex_attention equal the dense formula") {
  torch::manual_seed(2);
  const std::int64_t L = 300;
  const torch::Tensor document = torch::arange(L).div(90, "floor");  // 0 to 3, each document is 90 long
  const torch::Tensor begins = document * 90, ends = begins + 90;
  const torch::Tensor numbers = torch::stack({ends, begins}, -1).view({1, 1, L, 2});
  const torch::Tensor allowed = document.unsqueeze(1) == document;
  std::vector<torch::Tensor> inputs;
  for (int k = 0; k < 3; ++k) inputs.push_back(torch::randn({2, 2, L, 16}, torch::kDouble).requires_grad_());
  const torch::Tensor expected = attend::test::dense(inputs, same, allowed_by(allowed)).output;
  const torch::Tensor found = attend::flex_attention(inputs[0], inputs[1], inputs[2], Unchanged{}, FlashMask(numbers));
  CHECK(max_difference(found, expected) < 1e-12);
  const torch::Tensor gradient = torch::randn_like(expected);
  const auto ours = torch::autograd::grad({found}, inputs, {gradient}),
             theirs = torch::autograd::grad({expected}, inputs, {gradient});
  for (std::size_t k = 0; k < 3; ++k) CHECK(max_difference(ours[k], theirs[k]) < 1e-12);
}

TEST_CASE("FlashMask: numbers beyond the queries and below 0 are limited") {
  const torch::Tensor most = torch::full({1, 1, 70, 2}, std::int64_t{1} << 40);
  CHECK(!materialize(FlashMask(most), {1, 1, 70, 70}).any().item<bool>());  // row < 2^40
  CHECK(materialize(FlashMask(torch::stack({most.select(3, 0), -most.select(3, 0)}, 3)), {1, 1, 70, 70})
            .all()
            .item<bool>());
}

TEST_CASE("FlashMask: type and text of errors") {
  const auto value_error = [](const std::function<void()>& call) { return message_of<c10::ValueError>(call); };
  const torch::Tensor two = torch::zeros({1, 1, 8, 2}, torch::kInt);
  CHECK(value_error([&] {
          FlashMask(two.select(3, 0));
        }).find("attend::FlashMask: startend_row_indices must be (N, H, S, 2 or 4), got [1, 1, 8]") == 0);
  CHECK(value_error([&] { FlashMask(two.narrow(3, 0, 1)); }).find("got [1, 1, 8, 1]") != std::string::npos);
  CHECK(value_error([&] {
          FlashMask(torch::zeros({1, 1, 8, 4}, torch::kInt), true);
        }).find("must be (N, H, S, 1 or 2), got [1, 1, 8, 4]") != std::string::npos);
  CHECK(value_error([&] { FlashMask(torch::Tensor()); }).find("got an undefined tensor") != std::string::npos);
  CHECK(message_of<c10::TypeError>([&] { FlashMask(two.to(torch::kFloat)); }).find("must be integers, got Float") !=
        std::string::npos);
  CHECK(value_error([&] {
          materialize(FlashMask(two), {1, 1, 8, 9});
        }).find("for N 1, H 1, S 8 do not fit N 1, H 1, S 9") != std::string::npos);
  CHECK(value_error([&] {
          materialize(FlashMask(two.expand({1, 2, 8, 2})), {1, 3, 8, 8});
        }).find("H 2, S 8 do not fit N 1, H 3") != std::string::npos);
}

}  // namespace flash_mask_test
