// SPDX-License-Identifier: MIT

// Tests the gradients of tensors made by expand(): an attn_mask or a tensor of a score_mod.

#include <attend/detail/torch/expanded.h>

#include <attend/attention.h>
#include <attend/flex_attention.h>

#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/dense.h"
#include "support/tensor_structs.h"

#include <ATen/Parallel.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

using attend::AttentionOptions;
using attend::Backend;
using attend::test::AddedBias;
using attend::test::check_as_accurate_as;
using attend::test::check_equal_in_float64;
using attend::test::Tensors;

namespace expanded_test {
namespace {

constexpr std::int64_t kBatch = 2, kHeads = 3, kQueries = 70, kKeys = 130, kWidth = 8;

using Attention = std::function<torch::Tensor(const Tensors& qkv, const torch::Tensor& bias)>;

struct Way {
  std::string name;
  Attention attention;
};

const Way kWays[] = {
    {"attn_mask",
     [](const Tensors& in, const torch::Tensor& bias) {
       return attend::attention(in[0], in[1], in[2], AttentionOptions().attn_mask(bias).backend(Backend::kCpu));
     }},
    {"DenseBias",
     [](const Tensors& in, const torch::Tensor& bias) {
       return attend::flex_attention(in[0], in[1], in[2], attend::DenseBias(bias), attend::EveryKey{},
                                     AttentionOptions().backend(Backend::kCpu));
     }},
    {"a user's struct",
     [](const Tensors& in, const torch::Tensor& bias) {
       const torch::Tensor all = bias.dim() == 4 ? bias : bias.expand({kBatch, kHeads, kQueries, kKeys});
       return attend::flex_attention(in[0], in[1], in[2], AddedBias{all}, attend::EveryKey{},
                                     AttentionOptions().backend(Backend::kCpu));
     }},
};

torch::Tensor formula(const Tensors& in, const torch::Tensor& bias) {
  return attend::test::dense({in[0], in[1], in[2]}, [&](const torch::Tensor& scores, const attend::test::Grid&,
                                                        const Tensors&) { return scores + bias; })
      .output;
}

Tensors random_inputs(at::ScalarType dtype = torch::kDouble) {
  return {torch::randn({kBatch, kHeads, kQueries, kWidth}).to(dtype),
          torch::randn({kBatch, kHeads, kKeys, kWidth}).to(dtype),
          torch::randn({kBatch, kHeads, kKeys, kWidth}).to(dtype)};
}

torch::Tensor to_all(const torch::Tensor& bias) { return bias.expand({kBatch, kHeads, kQueries, kKeys}); }

struct Shape {
  std::string name;
  std::vector<std::int64_t> sizes;
  std::function<torch::Tensor(const torch::Tensor&)> expand = to_all;
};

const Shape kShapes[] = {
    {"over batch and heads", {1, 1, kQueries, kKeys}},
    {"from two sizes", {kQueries, kKeys}},
    {"to three sizes",
     {kQueries, kKeys},
     [](const torch::Tensor& bias) {
       return bias.expand({kHeads, kQueries, kKeys});
     }},
    {"over the batch", {1, kHeads, kQueries, kKeys}},
    {"over heads", {kBatch, 1, kQueries, kKeys}},
    {"over queries", {kBatch, kHeads, 1, kKeys}},
    {"over batch and queries", {1, kHeads, 1, kKeys}},
    {"over keys", {kHeads, kQueries, 1}},
    {"one value", {}},
    {"twice",
     {kQueries, kKeys},
     [](const torch::Tensor& bias) {
       return to_all(bias.expand({1, kHeads, kQueries, kKeys}));
     }},
    {"after unsqueeze", {kHeads, kKeys}, [](const torch::Tensor& bias) { return to_all(bias.unsqueeze(1)); }},
    {"before unsqueeze",
     {kQueries, kKeys},
     [](const torch::Tensor& bias) {
       return bias.expand({kHeads, kQueries, kKeys}).unsqueeze(0).expand({kBatch, -1, -1, -1});
     }},
    {"after transpose", {kKeys, kQueries}, [](const torch::Tensor& bias) { return to_all(bias.t()); }},
    {"one of two outputs",
     {2, kQueries, kKeys},
     [](const torch::Tensor& bias) { return to_all(bias.unbind()[1] * 2); }},
    {"before transpose",
     {kKeys, kQueries},
     [](const torch::Tensor& bias) {
       return bias.expand({kBatch, kHeads, kKeys, kQueries}).transpose(2, 3);
     }},
    {"before narrow",
     {1, kHeads, kQueries, kKeys},
     [](const torch::Tensor& bias) {
       return bias.expand({2 * kBatch, kHeads, kQueries, kKeys}).narrow(0, 1, kBatch);
     }},
    {"before select",
     {kHeads, kQueries, kKeys},
     [](const torch::Tensor& bias) {
       return bias.expand({2, kBatch, kHeads, kQueries, kKeys}).select(0, 1);
     }},
    {"before a copy", {kQueries, kKeys}, [](const torch::Tensor& bias) { return to_all(bias).contiguous(); }},
    {"before multiplication", {kQueries, kKeys}, [](const torch::Tensor& bias) { return to_all(bias) * 3; }},
};

}  // namespace

TEST_CASE("attn_mask, DenseBias, score_mod: the gradient of an expanded tensor equals that of the dense formula") {
  torch::manual_seed(1);
  for (const Shape& shape : kShapes) {
    for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      Tensors in = random_inputs(dtype);
      in.push_back(torch::randn(shape.sizes).to(dtype));
      const torch::Tensor given = torch::randn(in[0].sizes()).to(dtype);
      const auto gradients = [&](const Attention& attention, at::ScalarType computed_in) {
        Tensors inputs;
        for (const torch::Tensor& each : in) inputs.push_back(each.to(computed_in).detach().requires_grad_());
        const torch::Tensor output = attention(inputs, shape.expand(inputs[3]));
        return torch::autograd::grad({output}, inputs, {given.to(computed_in)});
      };
      const Tensors exact = gradients(formula, torch::kDouble), plain = gradients(formula, dtype);
      for (const Way& way : kWays) {
        CAPTURE(shape.name);
        CAPTURE(dtype);
        CAPTURE(way.name);
        const Tensors ours = gradients(way.attention, dtype);
        for (std::size_t k = 0; k < ours.size(); ++k) {
          CAPTURE(k);
          CHECK((ours[k].scalar_type() == dtype));
          if (dtype == torch::kDouble)
            check_equal_in_float64(ours[k], exact[k]);
          else
            check_as_accurate_as(plain[k], ours[k], exact[k]);
        }
      }
    }
  }
}

TEST_CASE("attn_mask: retain_grad(), hooks and grad() on an expanded tensor see the gradient of every copy") {
  torch::manual_seed(2);
  struct Look {
    std::string name;
    // The gradients of the bias and of the expanded bias.
    std::function<Tensors(const Attention&, const Tensors& in, const torch::Tensor& bias)> gradients;
  };
  const Look looks[] = {
      {"torch::autograd::grad",
       [](const Attention& attention, const Tensors& in, const torch::Tensor& bias) {
         const torch::Tensor expanded = to_all(bias);
         return torch::autograd::grad({attention(in, expanded).square().sum()}, {bias, expanded});
       }},
      {"torch::autograd::grad of the expanded tensor alone",
       [](const Attention& attention, const Tensors& in, const torch::Tensor& bias) {
         const torch::Tensor expanded = to_all(bias);
         const torch::Tensor loss = attention(in, expanded).square().sum();
         const Tensors copies = torch::autograd::grad({loss}, {expanded}, {}, /*retain_graph=*/true);
         return Tensors{torch::autograd::grad({loss}, {bias})[0], copies[0]};
       }},
      {"retain_grad before",
       [](const Attention& attention, const Tensors& in, const torch::Tensor& bias) {
         const torch::Tensor expanded = to_all(bias);
         expanded.retain_grad();
         attention(in, expanded).square().sum().backward();
         return Tensors{bias.grad(), expanded.grad()};
       }},
      {"retain_grad after the forward pass",
       [](const Attention& attention, const Tensors& in, const torch::Tensor& bias) {
         const torch::Tensor expanded = to_all(bias);
         const torch::Tensor loss = attention(in, expanded).square().sum();
         expanded.retain_grad();
         loss.backward();
         return Tensors{bias.grad(), expanded.grad()};
       }},
      {"backward with inputs",
       [](const Attention& attention, const Tensors& in, const torch::Tensor& bias) {
         const torch::Tensor expanded = to_all(bias);
         attention(in, expanded).square().sum().backward({}, std::nullopt, false, Tensors{bias, expanded});
         return Tensors{bias.grad(), expanded.grad()};
       }},
      {"a hook that sees",
       [](const Attention& attention, const Tensors& in, const torch::Tensor& bias) {
         const torch::Tensor expanded = to_all(bias);
         torch::Tensor seen;
         expanded.register_hook([&](const torch::Tensor& gradient) { seen = gradient.clone(); });
         attention(in, expanded).square().sum().backward();
         return Tensors{bias.grad(), seen};
       }},
      {"a hook that changes",
       [](const Attention& attention, const Tensors& in, const torch::Tensor& bias) {
         const torch::Tensor expanded = to_all(bias);
         torch::Tensor seen;
         const torch::Tensor factors = torch::arange(kBatch, torch::kDouble).view({kBatch, 1, 1, 1});
         const torch::Tensor loss = attention(in, expanded).square().sum();
         expanded.register_hook([&](const torch::Tensor& gradient) { return seen = gradient * factors; });
         loss.backward();
         return Tensors{bias.grad(), seen};
       }},
      {"a tensor between",
       [](const Attention& attention, const Tensors& in, const torch::Tensor& bias) {
         const torch::Tensor between = bias.expand({1, kHeads, kQueries, kKeys}), expanded = to_all(between);
         between.retain_grad();
         attention(in, expanded).square().sum().backward();
         return Tensors{bias.grad(), between.grad()};
       }},
      {"a hook of what was expanded",
       [](const Attention& attention, const Tensors& in, const torch::Tensor& bias) {
         torch::Tensor seen;
         bias.register_hook([&](const torch::Tensor& gradient) { return seen = gradient * 2; });
         attention(in, to_all(bias)).square().sum().backward();
         return Tensors{bias.grad(), seen};
       }},
      {"another use of the expanded tensor",
       [](const Attention& attention, const Tensors& in, const torch::Tensor& bias) {
         const torch::Tensor expanded = to_all(bias);
         (attention(in, expanded).square().sum() + expanded.square().sum()).backward();
         return Tensors{bias.grad(), bias.grad()};
       }},
      {"twice",
       [](const Attention& attention, const Tensors& in, const torch::Tensor& bias) {
         const torch::Tensor expanded = to_all(bias), loss = attention(in, expanded).square().sum();
         loss.backward({}, /*retain_graph=*/true);
         loss.backward();
         return Tensors{bias.grad(), bias.grad()};
       }},
      {"create_graph",
       [](const Attention& attention, const Tensors& in, const torch::Tensor& bias) {
         const torch::Tensor expanded = to_all(bias);
         const Tensors first =
             torch::autograd::grad({attention(in, expanded).square().sum()}, {bias}, {}, std::nullopt, true);
         return torch::autograd::grad({first[0].square().sum()}, {bias, expanded});
       }},
  };
  const Tensors in = random_inputs();
  const torch::Tensor values = torch::randn({kQueries, kKeys}, torch::kDouble);
  for (const Look& look : looks) {
    const auto gradients = [&](const Attention& attention) {
      return look.gradients(attention, in, values.clone().requires_grad_());
    };
    const Tensors exact = gradients(formula);
    for (const Way& way : kWays) {
      CAPTURE(look.name);
      CAPTURE(way.name);
      const Tensors ours = gradients(way.attention);
      for (std::size_t k = 0; k < exact.size(); ++k) {
        CAPTURE(k);
        check_equal_in_float64(ours[k], exact[k]);
      }
    }
  }
}

TEST_CASE("attn_mask, DenseBias, score_mod: an expanded leaf has the gradient of every copy") {
  torch::manual_seed(3);
  const Tensors in = random_inputs();
  const torch::Tensor leaf = to_all(torch::randn({kQueries, kKeys}, torch::kDouble)).requires_grad_();
  REQUIRE(leaf.is_leaf());
  REQUIRE(attend::detail::is_expanded(leaf));
  const torch::Tensor exact = torch::autograd::grad({formula(in, leaf).square().sum()}, {leaf})[0];
  for (const Way& way : kWays) {
    CAPTURE(way.name);
    check_equal_in_float64(torch::autograd::grad({way.attention(in, leaf).square().sum()}, {leaf})[0], exact);
  }
}

TEST_CASE("attn_mask: the gradient of an expanded mask has the mask's dtype, also under autocast") {
  torch::manual_seed(4);
  const torch::Tensor values = torch::randn({kQueries, kKeys}, torch::kDouble);
  for (const auto query_dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf})
    for (const auto mask_dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      CAPTURE(query_dtype);
      CAPTURE(mask_dtype);
      const Tensors in = random_inputs(query_dtype);
      const torch::Tensor bias = values.to(mask_dtype).requires_grad_();
      const auto gradient_by_copies = [&](bool is_expanded) {
        const torch::Tensor all = is_expanded ? to_all(bias) : to_all(bias).contiguous();
        return torch::autograd::grad({kWays[0].attention(in, all).sum()}, {bias})[0];
      };
      const auto exact = [&](at::ScalarType rounded_to) {
        Tensors wide;
        for (const torch::Tensor& each : in) wide.push_back(each.to(rounded_to).to(torch::kDouble));
        const torch::Tensor exact_bias = bias.detach().to(torch::kDouble).requires_grad_();
        return torch::autograd::grad({formula(wide, to_all(exact_bias)).sum()}, {exact_bias})[0];
      };
      const torch::Tensor without_autocast = exact(query_dtype);
      check_as_accurate_as(gradient_by_copies(false), gradient_by_copies(true), without_autocast, /*factor=*/1.0);
      const torch::Tensor with_autocast = exact(query_dtype == torch::kDouble ? query_dtype : torch::kBFloat16);
      const attend::test::Autocast autocast;
      check_as_accurate_as(gradient_by_copies(false), gradient_by_copies(true), with_autocast, /*factor=*/1.0);
    }
}

TEST_CASE("attn_mask, DenseBias, score_mod: the gradient is right with more threads than copies of it") {
  torch::manual_seed(5);
  constexpr std::int64_t kLength = 400;  // 160,000 numbers: more than 1 MiB in float64
  const auto normal = [](std::vector<std::int64_t> sizes) { return torch::randn(sizes, torch::kDouble); };
  const Tensors in{normal({kBatch, kHeads, kLength, kWidth}), normal({kBatch, kHeads, kLength, kWidth}),
                   normal({kBatch, kHeads, kLength, kWidth})};
  const torch::Tensor values = normal({1, 1, kLength, kLength});
  for (const bool is_full : {false, true}) {
    const torch::Tensor bias = (is_full ? values.repeat({kBatch, kHeads, 1, 1}) : values).requires_grad_();
    const torch::Tensor exact = torch::autograd::grad({formula(in, bias).square().sum()}, {bias})[0];
    for (const Way& way : kWays) {
      CAPTURE(is_full);
      CAPTURE(way.name);
      const auto gradient = [&](int threads, at::ScalarType dtype) {
        const int before = at::get_num_threads();
        at::set_num_threads(threads);
        Tensors inputs;
        for (const torch::Tensor& each : in) inputs.push_back(each.to(dtype));
        const torch::Tensor learned = bias.detach().to(dtype).requires_grad_();
        const torch::Tensor all = learned.expand({kBatch, kHeads, kLength, kLength});
        const torch::Tensor result = torch::autograd::grad({way.attention(inputs, all).square().sum()}, {learned})[0];
        at::set_num_threads(before);
        return result;
      };
      check_equal_in_float64(gradient(16, torch::kDouble), exact);
      for (const int threads : {1, 2}) CHECK(gradient(threads, torch::kFloat).equal(gradient(threads, torch::kFloat)));
    }
  }
}

TEST_CASE("DenseBias: a NaN in a masked key does not change its gradient, for any number of threads") {
  torch::manual_seed(6);
  constexpr std::int64_t kLength = 400;
  const auto normal = [](std::vector<std::int64_t> sizes) { return torch::randn(sizes, torch::kDouble); };
  const Tensors in{normal({kBatch, kHeads, kLength, kWidth}), normal({kBatch, kHeads, kLength, kWidth}),
                   normal({kBatch, kHeads, kLength, kWidth})};
  const torch::Tensor bias = normal({kLength, kLength}).requires_grad_();
  const torch::Tensor allowed = torch::arange(kLength) < kLength - 1;
  const torch::Tensor ruled_out = torch::zeros({kLength}, torch::kDouble).masked_fill(allowed.logical_not(), -INFINITY);
  const torch::Tensor exact = torch::autograd::grad({formula(in, bias + ruled_out).square().sum()}, {bias})[0];
  Tensors dirty{in[0], in[1].clone(), in[2]};
  dirty[1].select(0, 1).select(0, 2).select(0, kLength - 1).fill_(NAN);
  for (const int threads : {1, 2, 16}) {
    CAPTURE(threads);
    const int before = at::get_num_threads();
    at::set_num_threads(threads);
    const torch::Tensor output = attend::flex_attention(
        dirty[0], dirty[1], dirty[2], attend::DenseBias(bias.expand({kBatch, kHeads, kLength, kLength})),
        attend::EveryKey{}, AttentionOptions().attn_mask(allowed.view({1, kLength})).backend(Backend::kCpu));
    const torch::Tensor gradient = torch::autograd::grad({output.square().sum()}, {bias})[0];
    at::set_num_threads(before);
    check_equal_in_float64(gradient, exact);
  }
}

}  // namespace expanded_test
