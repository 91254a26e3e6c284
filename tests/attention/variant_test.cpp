// SPDX-License-Identifier: MIT
#include <attend/attention/bias.h>
#include <attend/attention/sequence_masks.h>
#include <attend/attention/variant.h>

#include <doctest/doctest.h>
#include <torch/types.h>

#include <memory>
#include <vector>

using attend::AttentionSizes;
using attend::detail::TypedVariant;

TEST_CASE("Variant: tensors of a score_mod come before those of a mask_mod, and each gets its own") {
  const AttentionSizes sizes{2, 3, 4, 5};
  const torch::Tensor slopes = torch::rand({3}), table = torch::rand({3, 3}), lengths = torch::tensor({2, 4});
  const auto score_mod = attend::then(attend::Alibi(slopes), attend::RelativeBias(table));
  TypedVariant<decltype(score_mod), attend::KeyPadding> variant(score_mod, attend::KeyPadding(lengths));
  const std::vector<torch::Tensor> tensors = variant.tensors(sizes, torch::kCPU);
  REQUIRE(tensors.size() == 3);
  CHECK(tensors[0].equal(slopes.unsqueeze(0)));
  CHECK(tensors[1].is_same(table));
  CHECK(tensors[2].equal(lengths));

  // Through the base class and with other tensors than those of the structs, as a backend calls it.
  const attend::detail::Variant& face = variant;
  const std::vector<torch::Tensor> doubled{tensors[0] * 2, tensors[1] * 2, tensors[2] - 1};
  const torch::Tensor scores = torch::zeros({2, 3, 4, 5}, torch::kDouble);
  CHECK((face.change(scores, doubled, {}) - 2 * face.change(scores, tensors, {})).abs().max().item<double>() < 1e-15);
  const torch::Tensor expected = torch::arange(5) < torch::tensor({1, 3}).view({2, 1, 1, 1});
  CHECK(face.mask(sizes, doubled, {}).equal(expected.expand({2, 3, 4, 5})));
}

TEST_CASE("Binder: structs without tensors bind none") {
  TypedVariant<attend::Softcap, attend::Causal> variant({1}, {});
  CHECK(variant.tensors({1, 1, 2, 2}, torch::kCPU).empty());
  CHECK(variant.mask({1, 1, 2, 2}, {}, {}).sum().item<int>() == 3);
}
