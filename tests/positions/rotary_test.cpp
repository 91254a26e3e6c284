// SPDX-License-Identifier: MIT
#include <attend/positions/rotary.h>
#include <attend/positions/token_positions.h>

#include "support/accuracy.h"
#include "support/derivatives.h"
#include "support/errors.h"
#include "support/gradcheck.h"
#include "support/reference_data.h"

#include <ATen/ops/_make_dual.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/serialize.h>

#include <cstdint>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using attend::DynamicRotaryScaling;
using attend::LinearRotaryScaling;
using attend::Llama3RotaryScaling;
using attend::RotaryEmbedding;
using attend::RotaryEmbeddingOptions;
using attend::RotaryLayout;
using attend::RotaryTables;
using attend::rotate;
using attend::YarnRotaryScaling;
using attend::test::check_equal_in_float64;
using attend::test::check_same_derivatives;
using attend::test::max_difference;
using attend::test::message_of;
using attend::test::reference_data;
using attend::test::Refused;

namespace rotary_test {
namespace {

/// The cases of tests/python/rotary_reference.py.
const std::map<std::string, RotaryEmbeddingOptions>& cases() {
  using Options = RotaryEmbeddingOptions;
  static const std::map<std::string, RotaryEmbeddingOptions> cases{
      {"default", Options(16)},
      {"theta", Options(16).theta(500000)},
      {"interleaved", Options(16).layout(RotaryLayout::kInterleaved)},
      {"partial", Options(20).rotary_dim(8)},
      {"partial_interleaved", Options(20).rotary_dim(8).layout(RotaryLayout::kInterleaved)},
      {"linear", Options(16).scaling(LinearRotaryScaling(4))},
      {"dynamic", Options(16).scaling(DynamicRotaryScaling(2, 8))},
      {"dynamic_short", Options(16).scaling(DynamicRotaryScaling(2, 16))},
      {"yarn", Options(64).scaling(YarnRotaryScaling(4, 2048))},
      {"yarn_options",
       Options(64).scaling(
           YarnRotaryScaling(8, 4096).beta_fast(16).beta_slow(2).mscale(0.7).mscale_all_dim(0.4).truncate(false))},
      {"yarn_factor", Options(64).scaling(YarnRotaryScaling(8, 4096).attention_factor(1.25))},
      {"llama3", Options(128).theta(500000).scaling(Llama3RotaryScaling(8))},
      {"llama3_options",
       Options(64).scaling(Llama3RotaryScaling(4).low_freq_factor(2).high_freq_factor(16).original_max_length(1024))},
  };
  return cases;
}

}  // namespace

TEST_CASE("RotaryEmbedding: outputs and gradients equal Hugging Face's formulas for every scaling and layout") {
  const std::map<std::string, torch::Tensor> data = reference_data("rotary");
  for (const auto& [name, options] : cases()) {
    CAPTURE(name);
    RotaryEmbedding rotary(options);
    const torch::Tensor x = data.at(name + "/x");
    check_equal_in_float64(rotary(x), data.at(name + "/output"));
    // Explicit positions give the same. The default ones are kept in a table, these are not.
    check_equal_in_float64(rotary(x, torch::arange(13)), data.at(name + "/output"));
    check_equal_in_float64(rotary(x, torch::arange(13, torch::kDouble).unsqueeze(0)), data.at(name + "/output"));
    if (data.count(name + "/positions") == 0) continue;
    const torch::Tensor leaf = x.clone().requires_grad_();
    const torch::Tensor y = rotary(leaf, data.at(name + "/positions"));
    check_equal_in_float64(y, data.at(name + "/output_at_positions"));
    y.backward(data.at(name + "/weight"));
    check_equal_in_float64(leaf.grad(), data.at(name + "/gradient"));
  }
}

TEST_CASE("RotaryEmbedding: with two axes each has half of the pairs, as in Qwen2-VL") {
  const std::map<std::string, torch::Tensor> data = reference_data("rotary");
  const torch::Tensor grid = attend::grid_positions({3, 4});
  for (const auto& [name, layout] :
       {std::pair("axes", RotaryLayout::kHalfSplit), std::pair("axes_interleaved", RotaryLayout::kInterleaved)}) {
    RotaryEmbedding rotary(RotaryEmbeddingOptions(16).axes(2).layout(layout));
    const torch::Tensor x = data.at(std::string(name) + "/x");
    check_equal_in_float64(rotary(x, grid), data.at(std::string(name) + "/output"));
    check_equal_in_float64(rotary(x, grid.expand({2, 12, 2})), data.at(std::string(name) + "/output"));
  }
}

TEST_CASE("rotate: first and second derivatives of x and of learned tables equal those of torch's operations") {
  const auto by_torch = [](RotaryLayout layout) {
    return [layout](const std::vector<torch::Tensor>& inputs) {
      const torch::Tensor &x = inputs[0], &cos = inputs[1], &sin = inputs[2];
      const std::int64_t pairs = cos.size(-1);
      const bool is_split = layout == RotaryLayout::kHalfSplit;
      const torch::Tensor a = is_split ? x.slice(3, 0, pairs) : x.slice(3, 0, 2 * pairs, 2),
                          b = is_split ? x.slice(3, pairs, 2 * pairs) : x.slice(3, 1, 2 * pairs, 2);
      torch::Tensor y = x.clone();
      (is_split ? y.slice(3, 0, pairs) : y.slice(3, 0, 2 * pairs, 2)).copy_(a * cos - b * sin);
      (is_split ? y.slice(3, pairs, 2 * pairs) : y.slice(3, 1, 2 * pairs, 2)).copy_(b * cos + a * sin);
      return std::vector<torch::Tensor>{y};
    };
  };
  for (const RotaryLayout layout : {RotaryLayout::kHalfSplit, RotaryLayout::kInterleaved}) {
    for (const std::vector<std::int64_t>& table : {std::vector<std::int64_t>{5, 3}, {2, 1, 5, 3}, {1, 3, 5, 3}}) {
      CAPTURE(torch::IntArrayRef(table));
      const torch::Tensor x = torch::randn({2, 3, 5, 8}, torch::kDouble);
      const torch::Tensor cos = torch::randn(table, torch::kDouble), sin = torch::randn(table, torch::kDouble);
      const auto learned = [&](const std::vector<torch::Tensor>& inputs) {
        return std::vector<torch::Tensor>{rotate(inputs[0], inputs[1], inputs[2], layout)};
      };
      const auto fixed = [&](const std::vector<torch::Tensor>& inputs) {
        return std::vector<torch::Tensor>{rotate(inputs[0], cos, sin, layout)};
      };
      const auto fixed_by_torch = [&](const std::vector<torch::Tensor>& inputs) {
        return by_torch(layout)({inputs[0], cos, sin});
      };
      check_same_derivatives(learned, by_torch(layout), {x, cos, sin});
      check_same_derivatives(fixed, fixed_by_torch, {x});
    }
  }
}

TEST_CASE("rotate: the second derivative with fixed tables reaches the tensors before it") {
  const torch::Tensor cos = torch::randn({5, 4}, torch::kDouble), sin = torch::randn({5, 4}, torch::kDouble);
  attend::test::gradgradcheck(
      [&](const std::vector<torch::Tensor>& inputs) {
        return std::vector<torch::Tensor>{rotate(inputs[0].pow(3), cos, sin).pow(2)};
      },
      {torch::randn({1, 2, 5, 8}, torch::kDouble)});
}

TEST_CASE("rotate: every order of x in memory gives the same, and lower precision is as accurate as torch's") {
  const std::int64_t sizes[] = {2, 3, 50, 20};
  for (const RotaryLayout layout : {RotaryLayout::kHalfSplit, RotaryLayout::kInterleaved}) {
    for (const std::int64_t pairs : {1, 5, 8, 10}) {
      const torch::Tensor x = torch::randn(sizes), given = torch::randn(sizes);
      const torch::Tensor angles = torch::randn({2, 1, 50, pairs}, torch::kDouble) * 10;
      const torch::Tensor cos = angles.cos(), sin = angles.sin();
      for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
        CAPTURE(dtype);
        const auto results_of = [&](const torch::Tensor& at, const torch::Tensor& g, bool needs_tables) {
          const torch::Tensor leaf = at.detach().requires_grad_();
          // Torch computes tables that need a gradient.
          const auto table_dtype = at.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
          const torch::Tensor c = cos.to(table_dtype, /*non_blocking=*/false, /*copy=*/true);
          const torch::Tensor y = rotate(leaf, c.requires_grad_(needs_tables), sin.to(table_dtype), layout);
          return std::pair(y.detach(), torch::autograd::grad({y}, {leaf}, {g})[0]);
        };
        const torch::Tensor in_dtype = x.to(dtype), given_in_dtype = given.to(dtype);
        const auto exact = results_of(in_dtype.to(torch::kDouble), given_in_dtype.to(torch::kDouble), true);
        const auto dense = results_of(in_dtype, given_in_dtype, true);
        const auto check = [&](const std::pair<torch::Tensor, torch::Tensor>& results) {
          if (dtype == torch::kDouble) {
            check_equal_in_float64(results.first, exact.first);
            check_equal_in_float64(results.second, exact.second);
          } else {
            attend::test::check_as_accurate_as(dense.first, results.first, exact.first);
            attend::test::check_as_accurate_as(dense.second, results.second, exact.second);
          }
        };
        check(results_of(in_dtype, given_in_dtype, false));
        // (N, L, H, D) in memory; D outermost; a slice of a larger tensor; gradients in another order.
        const torch::Tensor by_position = in_dtype.transpose(1, 2).contiguous().transpose(1, 2);
        const torch::Tensor strided = in_dtype.transpose(1, 3).contiguous().transpose(1, 3);
        const torch::Tensor slice = torch::cat({in_dtype, in_dtype}, 3).narrow(3, 20, 20);
        const torch::Tensor strided_gradient = given_in_dtype.transpose(1, 3).contiguous().transpose(1, 3);
        for (const torch::Tensor& same : {by_position, strided, slice})
          check(results_of(same, strided_gradient, false));
      }
    }
  }
}

TEST_CASE("rotate: the tangent of forward-mode differentiation is rotated too, and so is that of a gradient") {
  const torch::Tensor angles = torch::randn({7, 2}, torch::kDouble), cos = angles.cos(), sin = angles.sin();
  const torch::Tensor x = torch::randn({1, 1, 7, 4}, torch::kDouble), tangent = torch::randn_like(x);
  const auto level = torch::autograd::ForwardADLevel::get_by_idx(torch::autograd::ForwardADLevel::get_next_idx());
  const torch::Tensor dual = at::_make_dual(x, tangent, 0), y = rotate(dual, cos, sin);
  check_equal_in_float64(y, rotate(x, cos, sin));
  check_equal_in_float64(y._fw_grad(0), rotate(tangent, cos, sin));
  const torch::Tensor leaf = x.clone().requires_grad_();
  const torch::Tensor gradient = torch::autograd::grad({rotate(leaf, cos, sin)}, {leaf}, {dual})[0];
  check_equal_in_float64(gradient._fw_grad(0), rotate(tangent, cos, -sin));
  torch::autograd::ForwardADLevel::release_idx(0);
}

TEST_CASE("rotate: a gradient that others know is not changed") {
  const torch::Tensor angles = torch::randn({7, 2}), x = torch::randn({1, 1, 7, 4}).requires_grad_();
  const torch::Tensor given = torch::randn({1, 1, 7, 4}), before = given.clone();
  const torch::Tensor y = rotate(x, angles.cos(), angles.sin());
  y.backward(given, /*retain_graph=*/true);
  CHECK(given.equal(before));
  const torch::Tensor first = x.grad().clone();
  x.mutable_grad() = torch::Tensor();
  torch::Tensor seen;
  const torch::Tensor product = y * 1;
  product.register_hook([&](const torch::Tensor& gradient) { seen = gradient; });
  product.retain_grad();
  product.backward(given);
  CHECK(x.grad().equal(first));
  CHECK(seen.equal(before));
  CHECK(product.grad().equal(before));
}

TEST_CASE("rotate: an expanded gradient and an expanded x") {
  const torch::Tensor angles = torch::randn({7, 2}, torch::kDouble);
  const torch::Tensor x = torch::randn({1, 1, 7, 4}, torch::kDouble).requires_grad_();
  rotate(x.expand({2, 3, 7, 4}), angles.cos(), angles.sin()).sum().backward();
  const torch::Tensor c = angles.cos(), s = angles.sin();
  check_equal_in_float64(x.grad()[0][0], 6 * torch::cat({c + s, c - s}, 1));
}

TEST_CASE("RotaryEmbedding: the score of a query and a key depends on their distance only") {
  for (const RotaryLayout layout : {RotaryLayout::kHalfSplit, RotaryLayout::kInterleaved}) {
    RotaryEmbedding rotary(RotaryEmbeddingOptions(32).layout(layout));
    const torch::Tensor q = torch::randn({1, 2, 1, 32}, torch::kDouble).expand({1, 2, 9, 32}),
                        k = torch::randn({1, 2, 1, 32}, torch::kDouble).expand({1, 2, 9, 32});
    const torch::Tensor near = rotary(q).matmul(rotary(k).mT());
    const torch::Tensor far = rotary->forward(q, {}, 1000).matmul(rotary->forward(k, {}, 1000).mT());
    CHECK(max_difference(near, far) < 1e-10);
    CHECK(max_difference(near.slice(2, 1).slice(3, 1), near.slice(2, 0, 8).slice(3, 0, 8)) < 1e-12);
  }
}

TEST_CASE("RotaryEmbedding: an offset counts on, and long sequences need no table") {
  RotaryEmbedding rotary(RotaryEmbeddingOptions(8));
  const torch::Tensor x = torch::randn({1, 2, 20, 8});
  const torch::Tensor y = rotary(x);
  for (std::int64_t i = 0; i < 20; ++i) CHECK(rotary->forward(x.narrow(2, i, 1), {}, i).equal(y.narrow(2, i, 1)));
  for (const std::int64_t offset : {(1 << 17) - 20, 1 << 17, 1 << 30})
    CHECK(rotary->forward(x, {}, offset).equal(rotary(x, torch::arange(offset, offset + 20))));
}

TEST_CASE("RotaryEmbedding: DynamicRotaryScaling follows the longest position of each call alone") {
  RotaryEmbedding dynamic(RotaryEmbeddingOptions(8).scaling(DynamicRotaryScaling(2, 16))), plain(8);
  const torch::Tensor x = torch::randn({1, 2, 20, 8}, torch::kDouble), some = x.narrow(2, 0, 10);
  const torch::Tensor y = dynamic(x);
  CHECK_FALSE(y.equal(plain(x)));
  CHECK(dynamic(some).equal(plain(some)));  // after a longer call
  CHECK(dynamic(x, torch::arange(20)).equal(y));
  CHECK(dynamic->forward(some, {}, 10).equal(y.narrow(2, 10, 10)) == false);  // x differs
  CHECK(dynamic->forward(x.narrow(2, 10, 10), {}, 10).equal(y.narrow(2, 10, 10)));
}

TEST_CASE("packed_positions: a packed batch is rotated as its sequences are alone") {
  const torch::Tensor offsets = torch::tensor({0, 3, 3, 8}, torch::kInt);
  CHECK(attend::packed_positions(offsets).equal(torch::tensor({0, 1, 2, 0, 1, 2, 3, 4})));
  CHECK(attend::packed_positions(torch::tensor({0}, torch::kLong)).equal(torch::zeros({0}, torch::kLong)));
  RotaryEmbedding rotary(8);
  const torch::Tensor x = torch::randn({1, 2, 8, 8}, torch::kDouble);
  const torch::Tensor packed = rotary(x, attend::packed_positions(offsets));
  check_equal_in_float64(packed.narrow(2, 0, 3), rotary(x.narrow(2, 0, 3)));
  check_equal_in_float64(packed.narrow(2, 3, 5), rotary(x.narrow(2, 3, 5)));
}

TEST_CASE("grid_positions: row by row, for any number of axes") {
  CHECK(attend::grid_positions({2, 3}).equal(
      torch::tensor({0, 0, 0, 1, 0, 2, 1, 0, 1, 1, 1, 2}, torch::kLong).view({6, 2})));
  CHECK(attend::grid_positions({2, 1, 2}).equal(torch::tensor({0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1}).view({4, 3})));
}

TEST_CASE("RotaryEmbedding: tables are float32 for bfloat16, and never a part of the state") {
  RotaryEmbedding rotary(8);
  rotary->to(torch::kBFloat16);
  const torch::Tensor x = torch::randn({1, 2, 300, 8}, torch::kBFloat16);
  const RotaryTables tables = rotary->cos_sin(x);
  CHECK((tables.cos.scalar_type() == torch::kFloat));
  CHECK(tables.cos.sizes() == torch::IntArrayRef({300, 4}));
  CHECK(rotary(x).equal(rotary(x.to(torch::kFloat)).to(torch::kBFloat16)));
  CHECK(rotary->parameters().empty());
  CHECK(rotary->buffers().empty());
}

TEST_CASE("RotaryEmbedding: after a call under InferenceMode, gradients can be recorded") {
  RotaryEmbedding rotary(8);
  const torch::Tensor x = torch::ones({1, 1, 3, 8}, torch::kDouble).requires_grad_();
  {
    const c10::InferenceMode inference_mode;
    rotary(x);
  }
  rotary(x).sum().backward();
  const torch::Tensor gradient = x.grad().clone();
  RotaryEmbedding other(8);
  x.mutable_grad().zero_();
  other(x).sum().backward();
  CHECK(torch::equal(x.grad(), gradient));
}

TEST_CASE("RotaryEmbedding: clones, archives, Sequential, AnyModule and printing") {
  RotaryEmbedding rotary(RotaryEmbeddingOptions(8).rotary_dim(4).scaling(LinearRotaryScaling(4))),
      loaded(RotaryEmbeddingOptions(8).rotary_dim(4).scaling(LinearRotaryScaling(4)));
  const torch::Tensor x = torch::randn({1, 2, 5, 8});
  const torch::Tensor y = rotary(x);
  CHECK(std::dynamic_pointer_cast<attend::RotaryEmbeddingImpl>(rotary->clone())->forward(x).equal(y));
  std::stringstream archive;
  torch::save(rotary, archive);
  torch::load(loaded, archive);
  CHECK(loaded(x).equal(y));
  CHECK(torch::nn::Sequential(rotary)->forward(x).equal(y));
  CHECK(torch::nn::AnyModule(rotary).forward(x).equal(y));
  std::ostringstream stream;
  stream << *rotary << RotaryEmbedding(RotaryEmbeddingOptions(8).axes(2).layout(RotaryLayout::kInterleaved));
  CHECK(stream.str() ==
        "attend::RotaryEmbedding(8, theta=10000, rotary_dim=4, layout=kHalfSplit, scaling=linear(factor=4))"
        "attend::RotaryEmbedding(8, theta=10000, rotary_dim=8, layout=kInterleaved, axes=2)");
}

TEST_CASE("RotaryEmbedding: two threads may use it at the same time, for different lengths") {
  RotaryEmbedding rotary(8);
  const torch::Tensor x[] = {torch::randn({1, 2, 7, 8}), torch::randn({1, 2, 33, 8})};
  const torch::Tensor expected[] = {RotaryEmbedding(8)(x[0]), RotaryEmbedding(8)(x[1])};
  bool are_equal[2];
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i)
    threads.emplace_back([&, i] {
      are_equal[i] = true;
      for (int times = 0; times < 50; ++times) are_equal[i] &= rotary(x[i]).equal(expected[i]);
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(are_equal[0]);
  CHECK(are_equal[1]);
}

TEST_CASE("RotaryEmbedding and rotate: bad input is refused with the rule and the values") {
  const auto make = [](const RotaryEmbeddingOptions& options) { return [options] { RotaryEmbedding{options}; }; };
  using Options = RotaryEmbeddingOptions;
  const std::string name = "attend::RotaryEmbedding: ";
  RotaryEmbedding rotary(8), grid(Options(8).axes(2));
  const torch::Tensor x = torch::randn({2, 3, 5, 8}), table = torch::randn({5, 4});
  const auto call = [](RotaryEmbedding layer, const torch::Tensor& of, const torch::Tensor& positions = {},
                       std::int64_t offset = 0) { return [=]() mutable { layer->forward(of, positions, offset); }; };
  const auto turn = [](const torch::Tensor& of, const torch::Tensor& cos, const torch::Tensor& sin) {
    return [=] { rotate(of, cos, sin); };
  };
  const Refused cases[] = {
      {name + "head_dim (0) must be at least 1", false, make(Options(0))},
      {name + "axes (4) must be from 1 to 3", false, make(Options(8).axes(4))},
      {name + "rotary_dim (7) must be a multiple of 2 · axes (2) and at most head_dim (7)", false, make(Options(7))},
      {name + "rotary_dim (10) must be a multiple of 2 · axes (2) and at most head_dim (8)", false,
       make(Options(8).rotary_dim(10))},
      {name + "rotary_dim (6) must be a multiple of 2 · axes (4) and at most head_dim (6)", false,
       make(Options(6).axes(2))},
      {name + "theta (1) must be above 1 and finite", false, make(Options(8).theta(1))},
      {name + "LinearRotaryScaling::factor (0) must be positive and finite", false,
       make(Options(8).scaling(LinearRotaryScaling(0)))},
      {name + "DynamicRotaryScaling::factor (0.5) must be at least 1", false,
       make(Options(8).scaling(DynamicRotaryScaling(0.5, 8)))},
      {name + "DynamicRotaryScaling::max_length (0) must be positive and finite", false,
       make(Options(8).scaling(DynamicRotaryScaling(2, 0)))},
      {name + "DynamicRotaryScaling needs a rotary_dim above 2 for each axis, got 2", false,
       make(Options(8).rotary_dim(2).scaling(DynamicRotaryScaling(2, 8)))},
      {name + "YarnRotaryScaling::factor (-1) must be positive and finite", false,
       make(Options(8).scaling(YarnRotaryScaling(-1, 8)))},
      {name + "YarnRotaryScaling::beta_fast (1) must be at least beta_slow (2)", false,
       make(Options(8).scaling(YarnRotaryScaling(2, 8).beta_fast(1).beta_slow(2)))},
      {name + "YarnRotaryScaling::attention_factor (0) must be positive and finite", false,
       make(Options(8).scaling(YarnRotaryScaling(2, 8).attention_factor(0.0)))},
      {name + "Llama3RotaryScaling::high_freq_factor (1) must be above low_freq_factor (1)", false,
       make(Options(8).scaling(Llama3RotaryScaling(2).high_freq_factor(1)))},
      {name + "x must be a tensor, got an undefined one", false, call(rotary, {})},
      {name + "x must be 4-d (N, H, L, 8), got 3-d [3, 5, 8]", false, call(rotary, x[0])},
      {name + "x must be 4-d (N, H, L, 8), got 4-d [2, 3, 5, 4]", false, call(rotary, x.narrow(3, 0, 4))},
      {name + "x (Long) must have a floating dtype", true, call(rotary, x.to(torch::kLong))},
      {name + "offset (-1) must be at least 0", false, call(rotary, x, {}, -1)},
      {name + "offset (1) must be 0 if positions are given", false, call(rotary, x, torch::arange(5), 1)},
      {name + "positions (Bool) must have an integer or floating dtype", true,
       call(rotary, x, torch::ones({5}, torch::kBool))},
      {name + "positions (meta) must be on the device of x (cpu)", false,
       call(rotary, x, torch::arange(5).to(torch::kMeta))},
      {name + "positions [4] must have one position for each of x [2, 3, 5, 8]: L = 5 or (N, L) = (2, 5)", false,
       call(rotary, x, torch::arange(4))},
      {name + "positions [3, 5] must have one position for each of x [2, 3, 5, 8]: L = 5 or (N, L) = (2, 5)", false,
       call(rotary, x, torch::zeros({3, 5}))},
      {name + "positions must be given for 2 axes, for example grid_positions({height, width})", false, call(grid, x)},
      {name + "positions [5] must be (L, 2) or (N, L, 2)", false, call(grid, x, torch::arange(5))},
      {name + "positions [4, 2] must have one position for each of x [2, 3, 5, 8]", false,
       call(grid, x, torch::zeros({4, 2}))},
      {"attend::rotate: x must be a tensor (N, H, L, D), got an undefined one", false, turn({}, table, table)},
      {"attend::rotate: x must be 4-d (N, H, L, D), got 3-d [3, 5, 8]", false, turn(x[0], table, table)},
      {"attend::rotate: x (Long) must have a floating dtype", true, turn(x.to(torch::kLong), table, table)},
      {"attend::rotate: cos (Long) must have a floating dtype", true, turn(x, table.to(torch::kLong), table)},
      {"attend::rotate: sin must be a tensor (L, R/2), got an undefined one", false, turn(x, table, {})},
      {"attend::rotate: cos [5, 4] and sin [5, 3] must have the same sizes", false,
       turn(x, table, table.narrow(1, 0, 3))},
      {"attend::rotate: cos must be (L, R/2), (N, L, R/2) or (N, H, L, R/2), got 1-d [4]", false,
       turn(x, table[0], table[0])},
      {"attend::rotate: cos and sin (meta) must be on the device of x (cpu)", false,
       turn(x, table, table.to(torch::kMeta))},
      {"attend::rotate: cos [4, 4] must have a row for each position of x [2, 3, 5, 8]", false,
       turn(x, table.narrow(0, 0, 4), table.narrow(0, 0, 4))},
      {"attend::rotate: cos [5, 5] must have from 1 to D/2 columns for x [2, 3, 5, 8]", false,
       turn(x, torch::zeros({5, 5}), torch::zeros({5, 5}))},
      {"attend::rotate: cos [3, 5, 4] must have the batch size of x [2, 3, 5, 8] or 1", false,
       turn(x, table.expand({3, 5, 4}), table.expand({3, 5, 4}))},
      {"attend::rotate: cos [2, 2, 5, 4] must have the heads of x [2, 3, 5, 8] or 1", false,
       turn(x, table.expand({2, 2, 5, 4}), table.expand({2, 2, 5, 4}))},
      {"attend::packed_positions: offsets must be 1-d with at least one element, got [2, 2]", false,
       [] { attend::packed_positions(torch::zeros({2, 2}, torch::kInt)); }},
      {"attend::packed_positions: offsets (Float) must be int32 or int64", true,
       [] { attend::packed_positions(torch::zeros({2})); }},
      {"attend::grid_positions: a size (0) must be at least 1", false, [] { attend::grid_positions({2, 0}); }},
      {"attend::grid_positions: sizes must have at least one axis, got none", false,
       [] { attend::grid_positions({}); }},
  };
  for (const Refused& each : cases) each.check();
}

}  // namespace rotary_test
