// SPDX-License-Identifier: MIT
#include <attend/attention/block_mask.h>
#include <attend/attention/materialize.h>
#include <attend/flex_attention.h>

#include "support/accuracy.h"
#include "support/dense.h"
#include "support/errors.h"
#include "support/key_ranges.h"
#include "support/structs.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

using attend::AttentionSizes;
using attend::block_mask_of;
using attend::BlockMask;
using attend::Causal;
using attend::materialize;
using attend::SlidingWindow;
using attend::Unchanged;
using attend::test::allowed_by;
using attend::test::check_key_ranges;
using attend::test::dense;
using attend::test::max_difference;
using attend::test::message_of;
using attend::test::same;
using attend::test::SameParity;

namespace block_mask_test {
namespace {

struct OfHeads {
  bool operator()(attend::Coordinate at) const {
    return at.query / 130 == at.key / 130 + at.head && at.key % 3 != at.batch;
  }
};

struct WindowAndPrefix {
  bool operator()(attend::Coordinate at) const {
    return (at.query >= at.key && at.query - at.key <= 150) || at.key < 40 + at.head * 100;
  }
};

/// bool (L, S), true where the block is in the list.
torch::Tensor listed(const torch::Tensor& num_blocks, const torch::Tensor& indices, std::int64_t query_block,
                     std::int64_t key_block, std::int64_t L, std::int64_t S) {
  torch::Tensor blocks = torch::zeros({indices.size(0), indices.size(1)}, torch::kBool);
  for (std::int64_t i = 0; i < indices.size(0); ++i)
    for (std::int64_t k = 0; k < num_blocks[i].item<std::int64_t>(); ++k)
      blocks[i][indices[i][k].item<std::int64_t>()] = true;
  return blocks.repeat_interleave(query_block, 0).repeat_interleave(key_block, 1).slice(0, 0, L).slice(1, 0, S);
}

/// Random lists without repetition: counts (N, H, rows) and indices (N, H, rows, columns). `skipped` are not listed.
struct Lists {
  torch::Tensor num_blocks, indices;

  Lists(std::int64_t N, std::int64_t H, std::int64_t rows, std::int64_t columns, std::int64_t most)
      : num_blocks(torch::randint(0, most + 1, {N, H, rows})),
        indices(torch::rand({N, H, rows, columns}).argsort(/*dim=*/-1, /*descending=*/false)) {}
};

}  // namespace

TEST_CASE("BlockMask: partial and full blocks equal the lists, for block sizes, lengths, and shared batch and heads") {
  torch::manual_seed(1);
  std::mt19937 random(1);
  for (const std::int64_t query_block : {64, 128, 192})
    for (const std::int64_t key_block : {64, 128})
      for (const std::int64_t heads : {1, 2}) {
        const std::int64_t L = 300, S = 257, N = 2, H = 2, batch = heads;
        const std::int64_t rows = (L + query_block - 1) / query_block, columns = (S + key_block - 1) / key_block;
        const Lists partial(batch, heads, rows, columns, columns), full(batch, heads, rows, columns, columns / 2);
        const BlockMask mask(partial.num_blocks, partial.indices, full.num_blocks, full.indices,
                             {query_block, key_block}, SameParity{});
        const torch::Tensor found = materialize(mask, {N, H, L, S}), parity = materialize(SameParity{}, {1, 1, L, S});
        for (std::int64_t n = 0; n < N; ++n)
          for (std::int64_t h = 0; h < H; ++h) {
            const std::int64_t i = n % batch, j = h % heads;
            const auto of = [&](const Lists& lists) {
              return listed(lists.num_blocks[i][j], lists.indices[i][j], query_block, key_block, L, S);
            };
            CHECK(found[n][h].equal((of(partial) & parity[0][0]) | of(full)));
          }
        check_key_ranges(mask, {N, H, L, S}, /*is_tight=*/false, random);
        check_key_ranges(attend::not_(mask) & Causal{}, {N, H, L, S}, /*is_tight=*/false, random);
      }
}

TEST_CASE("BlockMask: the example of its comment is block-causal") {
  torch::Tensor num_blocks = torch::tensor({1, 2}).view({1, 1, 2});            // of 2 blocks of queries
  torch::Tensor indices = torch::tensor({{0, 0}, {0, 1}}).view({1, 1, 2, 2});  // block-causal
  attend::BlockMask mask(num_blocks, indices, {}, {}, {64, 64});
  const torch::Tensor block = torch::arange(128).div(64, "floor");
  CHECK(materialize(mask, {1, 1, 128, 128})[0][0].equal(block.unsqueeze(1) >= block));
}

TEST_CASE("block_mask_of: equals the mask, and its table says which blocks are empty, partial and full") {
  std::mt19937 random(2);
  const auto check = [&](const auto& mask, std::array<std::int64_t, 2> block) {
    const AttentionSizes sizes{2, 3, 300, 450};
    const auto as_blocks = block_mask_of(mask, sizes, block);
    const torch::Tensor allowed = materialize(mask, sizes);
    CHECK(materialize(as_blocks, sizes).equal(allowed));
    const torch::Tensor table = as_blocks.table();
    for (std::int64_t i = 0; i < (300 + 63) / 64; ++i)
      for (std::int64_t j = 0; j < (450 + 63) / 64; ++j) {
        const std::int64_t row = i * 64 / block[0] * block[0], column = j * 64 / block[1] * block[1];
        const torch::Tensor here = allowed.slice(2, row, row + block[0]).slice(3, column, column + block[1]);
        const torch::Tensor expected =
            here.flatten(2).any(-1).to(torch::kInt) + here.flatten(2).all(-1).to(torch::kInt);
        CHECK(table.select(3, j).select(2, i).equal(expected));
      }
    check_key_ranges(as_blocks, sizes, /*is_tight=*/false, random);
  };
  for (const std::array<std::int64_t, 2> block : {std::array<std::int64_t, 2>{64, 64}, {128, 128}, {64, 192}}) {
    check(Causal{}, block);
    check(SlidingWindow(100, 20), block);
    check(SameParity{}, block);
    check(OfHeads{}, block);
    check(attend::Document(torch::arange(300).div(80, "floor"), torch::arange(450).div(80, "floor")), block);
  }
}

TEST_CASE("block_mask_of: N = 1 and H = 1 serve for all batch entries and heads") {
  const auto mask = block_mask_of(SlidingWindow(40, 0), {1, 1, 200, 200});
  CHECK(mask.table().sizes() == torch::IntArrayRef({1, 1, 4, 4}));
  CHECK(materialize(mask, {2, 3, 200, 200}).equal(materialize(SlidingWindow(40, 0), {2, 3, 200, 200})));
}

TEST_CASE("BlockMask: the lists of PyTorch's create_block_mask give the mask, and the table of block_mask_of()") {
  // torch 2.15.0: create_block_mask(lambda b, h, q, k: ((q >= k) & (q - k <= 150)) | (k < 40 + h * 100), 1, 2, 400,
  // 500, device="cpu", BLOCK_SIZE=(64, 128)); numbers after the ends of the lists are left out.
  const torch::Tensor num_blocks = torch::tensor({1, 1, 2, 2, 3, 3, 4, 1, 1, 1, 1, 2, 2, 4}).view({1, 2, 7});
  const torch::Tensor
      first = torch::arange(4).expand({7, 4}),
      indices =
          torch::stack(
              {first,
               torch::tensor(
                   {{1, 0, 0, 0}, {1, 0, 0, 0}, {1, 0, 0, 0}, {1, 0, 0, 0}, {1, 2, 0, 0}, {1, 2, 0, 0}, {0, 1, 2, 3}})})
              .unsqueeze(0);
  const torch::Tensor full_num_blocks = torch::tensor({0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0}).view({1, 2, 7});
  const torch::Tensor full_indices = first.expand({1, 2, 7, 4});
  const BlockMask mask(num_blocks, indices, full_num_blocks, full_indices, {64, 128}, WindowAndPrefix{});
  const AttentionSizes sizes{1, 2, 400, 500};
  CHECK(materialize(mask, sizes).equal(materialize(WindowAndPrefix{}, sizes)));
  // PyTorch calls a block partial if it reaches beyond L or S.
  const auto inner = [](const auto& of) { return of.table().slice(2, 0, 6).slice(3, 0, 6); };
  CHECK(inner(mask).equal(inner(block_mask_of(WindowAndPrefix{}, sizes, {64, 128}))));
}

TEST_CASE("BlockMask: outputs and gradients of flex_attention equal the dense formula") {
  torch::manual_seed(3);
  const std::int64_t L = 300, S = 457;
  const Lists partial(1, 2, 5, 8, 3), full(1, 2, 5, 8, 1);
  const BlockMask mask(partial.num_blocks, partial.indices, full.num_blocks, full.indices, {64, 64}, SameParity{});
  const torch::Tensor allowed = materialize(mask, {2, 2, L, S});
  std::vector<torch::Tensor> inputs;
  for (const std::int64_t length : {L, S, S})
    inputs.push_back(torch::randn({2, 2, length, 16}, torch::kDouble).requires_grad_());
  const torch::Tensor expected = dense(inputs, same, allowed_by(allowed)).output;
  const torch::Tensor found = attend::flex_attention(inputs[0], inputs[1], inputs[2], Unchanged{}, mask);
  CHECK(allowed.any(-1).logical_not().any().item<bool>());  // some queries may attend to nothing
  CHECK(max_difference(found, expected) < 1e-12);
  const torch::Tensor gradient = torch::randn_like(expected);
  const auto ours = torch::autograd::grad({found}, inputs, {gradient}),
             theirs = torch::autograd::grad({expected}, inputs, {gradient});
  for (std::size_t k = 0; k < 3; ++k) CHECK(max_difference(ours[k], theirs[k]) < 1e-12);
}

TEST_CASE("BlockMask, block_mask_of: type and text of errors") {
  const torch::Tensor counts = torch::ones({1, 1, 2}, torch::kInt), indices = torch::zeros({1, 1, 2, 3}, torch::kInt);
  const auto value_error = [](const std::function<void()>& call) { return message_of<c10::ValueError>(call); };
  CHECK(value_error([&] { BlockMask(torch::Tensor(), indices); })
            .find("attend::BlockMask: kv_num_blocks must be (N, H, rows) and kv_indices (N, H, rows, columns), got an "
                  "undefined tensor and [1, 1, 2, 3]") == 0);
  CHECK(value_error([&] { BlockMask(counts.squeeze(0), indices); }).find("got [1, 2] and [1, 1, 2, 3]") !=
        std::string::npos);
  CHECK(message_of<c10::TypeError>([&] { BlockMask(counts, indices.to(torch::kFloat)); }).find("got Int and Float") !=
        std::string::npos);
  CHECK(value_error([&] { BlockMask(counts, indices, counts); }).find("full_kv_num_blocks must be") !=
        std::string::npos);
  CHECK(value_error([&] {
          BlockMask(counts, indices, counts, indices.slice(3, 0, 2));
        }).find("full_kv_indices must have the sizes of kv_indices, [1, 1, 2, 3], got [1, 1, 2, 2]") !=
        std::string::npos);
  CHECK(value_error([&] {
          BlockMask(counts, indices, {}, {}, {64, 100});
        }).find("both sizes of a block must be multiples of 64, got 64 × 100") != std::string::npos);
  CHECK(value_error([&] { BlockMask(counts, indices, {}, {}, {0, 64}); }).find("got 0 × 64") != std::string::npos);
  const std::string outside = "kv_num_blocks must be from 0 to 3, and the listed kv_indices from 0 to 2";
  for (const torch::Tensor& wrong : {counts * 4, counts * -1})
    CHECK(value_error([&] { BlockMask(wrong, indices); }).find(outside) != std::string::npos);
  for (const std::int64_t wrong : {std::int64_t{3}, std::int64_t{-1}, std::int64_t{1} << 32})
    CHECK(value_error([&] {
            BlockMask(counts, torch::full({1, 1, 2, 3}, wrong, torch::kLong));
          }).find(outside) != std::string::npos);
  CHECK(value_error([&] {
          materialize(BlockMask(counts, indices), {1, 1, 128, 300});
        })
            .find("attend::BlockMask: 2 × 3 blocks of 128 × 128 scores, for N 1 and H 1, do not fit N 1, H 1, L 128, S "
                  "300") == 0);
  CHECK(value_error([&] {
          materialize(BlockMask(counts.expand({2, 1, 2}), indices.expand({2, 1, 2, 3})), {3, 1, 200, 300});
        }).find("do not fit N 3") != std::string::npos);
  CHECK(value_error([&] { block_mask_of(Causal{}, {1, 1, 8, 8}, {32, 64}); }).find("got 32 × 64") != std::string::npos);
  CHECK(value_error([&] {
          block_mask_of(Causal{}, {1, 1, -1, 8});
        }).find("sizes must not be negative") != std::string::npos);
}

}  // namespace block_mask_test
