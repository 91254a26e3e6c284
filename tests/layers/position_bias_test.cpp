// SPDX-License-Identifier: MIT
#include <attend/layers/position_bias.h>

#include <attend/attention.h>
#include <attend/layers/relative_position_bias.h>
#include <attend/layers/t5_position_bias.h>
#include <attend/layers/window_partition.h>
#include <attend/score/shifted_window_mask.h>

#include "support/accuracy.h"
#include "support/allocator_peak.h"
#include "support/backends.h"
#include "support/derivatives.h"
#include "support/errors.h"
#include "support/reference_data.h"

#include <doctest/doctest.h>
#include <torch/serialize.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

using attend::AttentionOptions;
using attend::Backend;
using attend::RelativePositionBias;
using attend::ShiftedWindowMask;
using attend::T5PositionBias;
using attend::T5PositionBiasOptions;
using attend::test::kAllBackendsWithAllOptions;
using attend::test::max_difference;
using attend::test::reference_data;
using attend::test::Refused;

namespace position_bias_test {
namespace {

using Data = std::map<std::string, torch::Tensor>;

const Data& data() {
  static const Data numbers = reference_data("position_bias");
  return numbers;
}

torch::Tensor leaf(const std::string& name) { return data().at(name).clone().requires_grad_(); }

std::vector<std::int64_t> numbers(const std::string& name) {
  const torch::Tensor tensor = data().at(name);
  return {tensor.const_data_ptr<std::int64_t>(), tensor.const_data_ptr<std::int64_t>() + tensor.numel()};
}

void assign(const torch::Tensor& parameter, const torch::Tensor& values) {
  const torch::NoGradGuard no_grad;
  parameter.copy_(values);
}

/// Passes scores through a user's own path: the bias as a module of a user, told by the abstract class alone.
torch::Tensor by_face(attend::PositionBias& bias, const torch::Tensor& q, const torch::Tensor& k,
                      const torch::Tensor& v, const AttentionOptions& options) {
  return bias.attention(q, k, v, options);
}

}  // namespace

TEST_CASE("t5_buckets: they are those of Hugging Face's T5Attention, in both directions and in one") {
  struct Case {
    std::string name;
    T5PositionBiasOptions options;
  };
  const auto options = [](std::int64_t buckets, std::int64_t distance, bool both) {
    return T5PositionBiasOptions(1).num_buckets(buckets).max_distance(distance).bidirectional(both);
  };
  for (const bool both : {true, false})
    for (const auto& [buckets, distance] : {std::pair{32, 128}, {8, 20}, {4, 3}, {64, 1000}}) {
      const std::string name = std::string("t5_buckets/") + (both ? "both_" : "causal_") + std::to_string(buckets) +
                               "_" + std::to_string(distance);
      CAPTURE(name);
      CHECK(attend::t5_buckets(data().at(name + "/distances"), options(buckets, distance, both))
                .equal(data().at(name + "/buckets")));
    }
}

TEST_CASE("T5PositionBias: attention, dense() and gradients equal T5's formula in Python, on every backend") {
  for (const bool both : {true, false})
    for (const std::string lengths : {"9_9", "3_9", "150_150"})
      for (const Backend backend : kAllBackendsWithAllOptions) {
        const std::string prefix = std::string("t5/") + (both ? "both_" : "causal_") + lengths + "/";
        CAPTURE(prefix);
        CAPTURE(backend);
        T5PositionBias bias(T5PositionBiasOptions(3).num_buckets(8).max_distance(20).bidirectional(both));
        bias->to(torch::kDouble);
        assign(bias->weight, data().at(prefix + "weight"));
        const torch::Tensor q = leaf(prefix + "query"), k = leaf(prefix + "key"), v = leaf(prefix + "value");
        CHECK(max_difference(bias->dense(q.size(2), k.size(2)), data().at(prefix + "bias")) == 0.0);
        const torch::Tensor y =
            by_face(*bias, q, k, v, AttentionOptions().scale(1.0).is_causal(!both).backend(backend));
        CHECK(max_difference(y, data().at(prefix + "output")) < 1e-12);
        y.backward(data().at(prefix + "output_gradient"));
        CHECK(max_difference(q.grad(), data().at(prefix + "query_gradient")) < 1e-12);
        CHECK(max_difference(k.grad(), data().at(prefix + "key_gradient")) < 1e-12);
        CHECK(max_difference(v.grad(), data().at(prefix + "value_gradient")) < 1e-12);
        CHECK(max_difference(bias->weight.grad(), data().at(prefix + "weight_gradient")) < 1e-12);
      }
}

TEST_CASE(
    "RelativePositionBias, ShiftedWindowMask: Swin's attention in 1 to 3 dimensions equals its formula in Python") {
  for (const std::string name :
       {"line", "image", "image_unshifted", "image_one_window", "image_49", "volume", "volume_196"})
    for (const Backend backend : kAllBackendsWithAllOptions) {
      const std::string prefix = "swin/" + name + "/";
      CAPTURE(prefix);
      CAPTURE(backend);
      const std::vector<std::int64_t> sizes = numbers(prefix + "sizes"), window = numbers(prefix + "window"),
                                      shift = numbers(prefix + "shift");
      RelativePositionBias bias(2, window);
      bias->to(torch::kDouble);
      assign(bias->relative_position_bias_table, data().at(prefix + "table"));
      const torch::Tensor x = leaf(prefix + "x");
      std::vector<std::int64_t> back, axes;
      for (std::size_t d = 0; d < shift.size(); ++d) {
        back.push_back(-shift[d]);
        axes.push_back(static_cast<std::int64_t>(d) + 1);
      }
      const torch::Tensor windows = attend::window_partition(torch::roll(x, back, axes), window);
      CHECK(windows.equal(data().at(prefix + "windows")));
      CHECK(attend::window_reverse(windows, window, sizes).roll(shift, axes).equal(x));
      CHECK(bias->dense(windows.size(1), windows.size(1)).equal(data().at(prefix + "bias")));
      const auto heads = windows.unflatten(2, {3, 2, -1}).permute({2, 0, 3, 1, 4}).unbind();
      const torch::Tensor y =
          attend::flex_attention(heads[0], heads[1], heads[2], bias->score_mod(),
                                 ShiftedWindowMask(sizes, window, shift), AttentionOptions().backend(backend));
      CHECK(max_difference(y, data().at(prefix + "output")) < 1e-12);
      y.backward(data().at(prefix + "output_gradient"));
      CHECK(max_difference(x.grad(), data().at(prefix + "x_gradient")) < 1e-12);
      CHECK(max_difference(bias->relative_position_bias_table.grad(), data().at(prefix + "table_gradient")) <
            1e-12 * attend::test::size_of(data().at(prefix + "table_gradient")));
    }
}

TEST_CASE("RelativePositionBias: attention() has the second derivatives of the dense formula") {
  const std::vector<std::int64_t> window{2, 3};
  const auto dense = [&](const std::vector<torch::Tensor>& in) {
    RelativePositionBias bias(2, window);
    bias->relative_position_bias_table = in[3];
    return std::vector{(in[0].matmul(in[1].mT()) + bias->dense(6, 6)).softmax(-1).matmul(in[2])};
  };
  const auto ours = [&](const std::vector<torch::Tensor>& in) {
    RelativePositionBias bias(2, window);
    bias->relative_position_bias_table = in[3];
    return std::vector{bias->attention(in[0], in[1], in[2], AttentionOptions().scale(1.0))};
  };
  torch::manual_seed(1);
  const auto head = [] { return torch::randn({3, 2, 6, 4}, torch::kDouble); };
  attend::test::check_same_derivatives(ours, dense, {head(), head(), head(), torch::randn({15, 2}, torch::kDouble)});
}

TEST_CASE("RelativePositionBias, T5PositionBias: float32 is as accurate as the dense formula") {
  torch::manual_seed(2);
  struct Case {
    std::shared_ptr<attend::PositionBias> bias;
    torch::Tensor parameter;
  };
  RelativePositionBias swin(3, std::vector<std::int64_t>{7, 7});
  T5PositionBias t5(3);
  for (const Case& c : {Case{swin.ptr(), swin->relative_position_bias_table}, Case{t5.ptr(), t5->weight}}) {
    assign(c.parameter, torch::randn_like(c.parameter));
    const torch::Tensor given = torch::randn({64, 3, 49, 32});
    const auto run = [&](at::ScalarType dtype, bool is_dense) {
      attend::detail::module_of(c.bias)->to(dtype);
      c.parameter.mutable_grad() = torch::Tensor();
      const torch::Tensor x = given.to(dtype).requires_grad_();
      const torch::Tensor y = is_dense
                                  ? (x.matmul(x.mT()) / std::sqrt(32.0) + c.bias->dense(49, 49)).softmax(-1).matmul(x)
                                  : c.bias->attention(x, x, x, AttentionOptions());
      y.square().sum().backward();
      return std::vector{y.detach(), x.grad(), c.parameter.grad().clone()};
    };
    const auto exact = run(torch::kDouble, true), dense = run(torch::kFloat, true), ours = run(torch::kFloat, false);
    for (std::size_t i = 0; i < exact.size(); ++i) {
      CAPTURE(i);
      attend::test::check_as_accurate_as(dense[i], ours[i], exact[i]);
    }
  }
}

TEST_CASE("RelativePositionBias: many windows have the gradients of the reference") {
  torch::manual_seed(3);
  const std::vector<std::int64_t> window{7, 7};
  RelativePositionBias bias(3, window);
  bias->to(torch::kDouble);
  const auto heads = [] { return torch::randn({64, 3, 49, 8}, torch::kDouble); };
  const std::vector<torch::Tensor> given{heads(), heads(), heads()};
  given[1].select(2, 48).fill_(std::numeric_limits<double>::quiet_NaN());  // masked by the second mask
  const auto check = [&](const auto& mask, std::int64_t finite_keys) {
    std::vector<std::vector<torch::Tensor>> results;
    for (const Backend backend : {Backend::kReference, Backend::kCpu}) {
      std::vector<torch::Tensor> in;
      for (const torch::Tensor& tensor : given) in.push_back(tensor.clone().requires_grad_());
      bias->zero_grad();
      const torch::Tensor key = in[1].masked_fill(torch::arange(49).ge(finite_keys).unsqueeze(1), 0.5);
      const torch::Tensor y =
          attend::flex_attention(in[0], key, in[2], bias->score_mod(), mask, AttentionOptions().backend(backend));
      y.square().sum().backward();
      results.push_back(
          {y.detach(), in[0].grad(), in[1].grad(), in[2].grad(), bias->relative_position_bias_table.grad().clone()});
    }
    for (std::size_t i = 0; i < results[0].size(); ++i) {
      CAPTURE(i);
      attend::test::check_equal_in_float64(results[1][i], results[0][i]);
    }
  };
  check(ShiftedWindowMask({56, 56}, {7, 7}, {3, 3}), 48);
  check(attend::KeyPadding(torch::full({64}, 48, torch::kLong)), 49);
}

TEST_CASE("RelativePositionBias: no (L, L) tensor is allocated, forward and backward") {
  RelativePositionBias bias(2, std::vector<std::int64_t>{40, 40});
  const torch::Tensor x = torch::randn({1, 2, 1600, 8}).requires_grad_();
  const attend::test::AllocatorPeak memory;
  bias->attention(x, x, x).sum().backward();
  CHECK(memory.peak() < 1600 * 1600 * 4);
}

TEST_CASE("RelativePositionBias, T5PositionBias: clone, save and load, printing, explain()") {
  const auto check = [](auto layer, auto other, const std::string& printed, std::int64_t length) {
    const torch::Tensor x = torch::randn({2, 4, length, 8});
    const torch::Tensor y = layer->attention(x, x, x);
    const auto clone = attend::detail::clone_of(layer.ptr());
    CHECK(clone->attention(x, x, x, AttentionOptions()).equal(y));
    CHECK(clone->num_heads() == 4);
    {
      const torch::NoGradGuard no_grad;
      for (torch::Tensor& parameter : attend::detail::module_of(clone)->parameters()) parameter.zero_();
    }
    CHECK(layer->attention(x, x, x).equal(y));
    CHECK_FALSE(clone->attention(x, x, x, AttentionOptions()).equal(y));
    std::stringstream stream, text;
    torch::save(layer, stream);
    torch::load(other, stream);
    CHECK(other->attention(x, x, x).equal(y));
    layer->pretty_print(text);
    CHECK(text.str() == printed);
    CHECK((layer->explain(x, x, x).backend == Backend::kCpu));
    const torch::Tensor before = layer->parameters()[0].detach().clone();
    layer->reset_parameters();
    CHECK_FALSE(layer->parameters()[0].equal(before));
  };
  const std::vector<std::int64_t> window{2, 3};
  check(RelativePositionBias(4, window), RelativePositionBias(4, window),
        "attend::RelativePositionBias(4, window_size=[2, 3])", 6);
  check(T5PositionBias(4), T5PositionBias(4),
        "attend::T5PositionBias(4, num_buckets=32, max_distance=128, bidirectional=true)", 9);
}

TEST_CASE("RelativePositionBias, T5PositionBias, NeighborhoodMask: sizes that do not fit are refused") {
  const torch::Tensor x = torch::randn({4, 2, 6, 8});
  const std::vector<std::int64_t> window{2, 3};
  const auto grid = [&](const torch::Tensor& table, const std::vector<std::int64_t>& sizes) {
    attend::flex_attention(x, x, x, attend::RelativeGridBias(table, sizes));
  };
  const auto masked = [&](const auto& mask) { attend::flex_attention(x, x, x, attend::Unchanged{}, mask); };
  const Refused cases[] = {
      {"attend::RelativePositionBias: num_heads (0) must be at least 1", false,
       [&] { RelativePositionBias(0, window); }},
      {"attend::RelativePositionBias: window_size must have 1 to 3 numbers, got []", false,
       [] { RelativePositionBias(2, std::vector<std::int64_t>{}); }},
      {"attend::RelativePositionBias: window_size (0) must be at least 1", false,
       [] {
         RelativePositionBias(2, std::vector<std::int64_t>{7, 0});
       }},
      {"attend::RelativePositionBias: window_size (6 positions) must fit the number of queries and keys, got L = 6 and "
       "S = 5",
       false, [&] { RelativePositionBias(2, window)->dense(6, 5); }},
      {"attend::RelativeGridBias: window_size (6 positions) must fit the number of queries and keys, got L = 6 and S = "
       "5",
       false, [&] { RelativePositionBias(2, window)->attention(x, x.narrow(2, 0, 5), x.narrow(2, 0, 5)); }},
      {"attend::RelativeGridBias: table must be (15, 2), one row for each offset and H = 2, got [15, 3]", false,
       [&] { RelativePositionBias(3, window)->attention(x, x, x); }},
      {"attend::RelativeGridBias: table must be (15, 2), one row for each offset and H = 2, got [30]", false,
       [&] { grid(torch::zeros({30}), window); }},
      {"attend::RelativeGridBias: table must be a tensor (15, 2), got an undefined one", false,
       [&] { grid({}, window); }},
      {"attend::RelativeGridBias: window_size must have 1 to 3 numbers, got 0", false,
       [&] {
         grid(torch::zeros({15, 2}), {});
       }},
      {"attend::RelativeGridBias: window_size must be at least 1, got -1", false,
       [&] {
         grid(torch::zeros({15, 2}), {-1});
       }},
      {"needs a floating-point tensor, got Long", true,
       [&] {
         grid(torch::zeros({15, 2}, torch::kLong), window);
       }},
      {"attend::T5PositionBias: num_heads (0) must be at least 1", false, [] { T5PositionBias(0); }},
      {"attend::T5PositionBias: num_buckets (7) must be even and at least 4 with bidirectional", false,
       [] { T5PositionBias(T5PositionBiasOptions(2).num_buckets(7)); }},
      {"attend::T5PositionBias: num_buckets (1) must be at least 2", false,
       [] { T5PositionBias(T5PositionBiasOptions(2).num_buckets(1).bidirectional(false)); }},
      {"attend::T5PositionBias: max_distance (8) must be from 9 to 1048576 for 32 buckets", false,
       [] { T5PositionBias(T5PositionBiasOptions(2).max_distance(8)); }},
      {"attend::T5PositionBias: query_length (0) must be at least 1", false, [] { T5PositionBias(2)->dense(0, 5); }},
      {"attend::RelativeBias: table must be (H, 2M + 1) or (1, 2M + 1), with H = 2, got [3, 257]", false,
       [&] { T5PositionBias(3)->attention(x, x, x); }},
      {"attend::NeighborhoodMask: sizes (8 positions) must fit the number of queries and keys, got L = 6 and S = 6",
       false,
       [&] {
         masked(attend::NeighborhoodMask({2, 4}, {2, 3}));
       }},
      {"attend::ShiftedWindowMask: window_size (4 positions) must fit the number of queries and keys, got L = 6 and S "
       "= 6",
       false,
       [&] {
         masked(ShiftedWindowMask({4, 4}, {2, 2}, {1, 1}));
       }},
      {"attend::ShiftedWindowMask: the batch size (4) must be a multiple of the number of windows (6)", false,
       [&] {
         masked(ShiftedWindowMask({4, 9}, {2, 3}, {1, 1}));
       }},
  };
  for (const Refused& c : cases) c.check();
}

TEST_CASE("PositionBias: a bias that is no module cannot be registered") {
  struct NoModule : attend::PositionBias {
    std::int64_t num_heads() const override { return 1; }
    torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                            const AttentionOptions& options) override {
      return attend::attention(q, k, v, options);
    }
    attend::Explanation explain(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                                const AttentionOptions& options) override {
      return attend::explain(q, k, v, options);
    }
    torch::Tensor dense(std::int64_t queries, std::int64_t keys) override { return torch::zeros({1, queries, keys}); }
  };
  attend::test::check_throws<c10::ValueError>("attend::PositionBias: the bias must also be a torch::nn::Module",
                                              [] { attend::detail::clone_of(std::make_shared<NoModule>()); });
}

}  // namespace position_bias_test
