// SPDX-License-Identifier: MIT

// Compares our CPU convolutions, as ConvStack uses them, with torch's in float64 and in the same dtype.

#include <attend/layers/detail/cpu_convolution.h>

#include <attend/layers/conv_stack.h>

#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/types.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

using attend::Backend;
using attend::ConvStack;
using attend::ConvStackOptions;
using attend::test::Accuracy;
using attend::test::max_difference;
using attend::test::message_of;

namespace cpu_convolution_test {
namespace {

using Tensors = std::vector<torch::Tensor>;

struct Case {
  std::int64_t in, hidden, out, depth, taps, length, batch;
  bool has_relu_after_last;
};

std::ostream& operator<<(std::ostream& stream, const Case& c) {
  return stream << c.in << " to " << c.hidden << " to " << c.out << " channels, depth " << c.depth << ", taps "
                << c.taps << ", length " << c.length << ", batch " << c.batch << ", last ReLU "
                << c.has_relu_after_last;
}

ConvStackOptions options_of(const Case& c, Backend backend) {
  return ConvStackOptions(c.in, c.hidden, c.out)
      .depth(c.depth)
      .kernel_size(c.taps)
      .activation_after_last(c.has_relu_after_last)
      .backend(backend);
}

// Few and many channels, odd numbers, multiples of vector widths; even and odd kernel_size, also above the length.
const Case kCases[] = {
    {1, 64, 1, 5, 5, 100, 6, false},  {1, 64, 64, 2, 5, 100, 4, true},  {64, 64, 1, 2, 5, 100, 4, false},
    {3, 20, 7, 3, 4, 33, 3, false},   {5, 16, 2, 1, 1, 8, 2, true},     {2, 3, 1, 4, 7, 5, 3, false},
    {64, 64, 64, 1, 3, 17, 2, false}, {17, 130, 70, 2, 5, 40, 2, true}, {4, 5, 6, 2, 2, 1, 5, false},
    {16, 4, 32, 3, 3, 65, 3, true},   {1, 1, 1, 2, 9, 30, 2, true},     {8, 96, 12, 2, 6, 31, 1, false},
};

/// The output of a stack with these weights, and the gradients of its input and of all parameters.
Tensors results_of(const Case& c, Backend backend, at::ScalarType dtype, const Tensors& weights, const torch::Tensor& x,
                   const torch::Tensor& output_gradient) {
  ConvStack stack(options_of(c, backend));
  stack->to(dtype);
  {
    const torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < weights.size(); ++i) stack->parameters()[i].copy_(weights[i]);
  }
  Tensors leaves{x.to(dtype).requires_grad_()};
  for (const torch::Tensor& parameter : stack->parameters()) leaves.push_back(parameter);
  Tensors results{stack(leaves[0])};
  const Tensors gradients = torch::autograd::grad({results[0]}, leaves, {output_gradient.to(dtype)});
  results.insert(results.end(), gradients.begin(), gradients.end());
  return results;
}

bool has_kernels(at::ScalarType dtype) {
  const attend::simd::InstructionSet set = attend::detail::available_instruction_set();
  return set >=
         (dtype == torch::kBFloat16 ? attend::simd::InstructionSet::kAvx512Bf16 : attend::simd::InstructionSet::kAvx2);
}

}  // namespace

TEST_CASE("ConvStack: float32 and bfloat16 are as accurate as torch's convolutions, forward and backward") {
  for (const auto dtype : {torch::kFloat, torch::kBFloat16}) {
    if (!has_kernels(dtype)) continue;
    Accuracy accuracy;
    for (const Case& c : kCases) {
      INFO(c);
      CAPTURE(dtype);
      torch::manual_seed(7);
      // All numbers are representable in the dtype, so that all backends compute the same function.
      const auto rounded = [&](const torch::Tensor& tensor) { return tensor.to(dtype).to(torch::kDouble); };
      Tensors weights;
      for (const torch::Tensor& parameter : ConvStack(options_of(c, Backend::kReference))->parameters())
        weights.push_back(rounded(parameter.detach() * 1.5));
      const torch::Tensor x = rounded(torch::randn({c.batch, c.in, c.length})),
                          gradient = rounded(torch::randn({c.batch, c.out, c.length}));
      const Tensors exact = results_of(c, Backend::kReference, torch::kDouble, weights, x, gradient);
      const Tensors dense = results_of(c, Backend::kReference, dtype, weights, x, gradient);
      const Tensors ours = results_of(c, Backend::kCpu, dtype, weights, x, gradient);
      for (std::size_t i = 0; i < exact.size(); ++i) {
        CAPTURE(i);  // output, gradients of x, weights and biases
        REQUIRE(ours[i].sizes() == exact[i].sizes());
        accuracy.check(i == 0 ? "output" : "gradient", dense[i], ours[i], exact[i]);
      }
    }
    accuracy.check_results_of_few_numbers();
  }
}

TEST_CASE("ConvStack: autocast computes in bfloat16 and gives float32 parameters float32 gradients") {
  if (!has_kernels(torch::kBFloat16)) return;
  torch::manual_seed(1);
  ConvStack stack(ConvStackOptions(1, 32, 3).depth(3).backend(Backend::kCpu));
  const torch::Tensor x = torch::randn({4, 1, 50}).to(torch::kBFloat16).to(torch::kFloat);
  torch::Tensor y;
  {
    const attend::test::Autocast autocast;
    y = stack(x);
    CHECK(stack->explain(x).how == "kCpu runs attend's own convolutions with AVX-512 and AVX512_BF16 instructions.");
  }
  CHECK((y.scalar_type() == torch::kBFloat16));
  const torch::Tensor expected = stack(x);
  CHECK(max_difference(y, expected) < 0.02);
  const Tensors gradients = torch::autograd::grad({y.to(torch::kFloat).sum()}, stack->parameters()),
                in_float32 = torch::autograd::grad({expected.sum()}, stack->parameters());
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    CHECK((gradients[i].scalar_type() == torch::kFloat));
    CHECK(max_difference(gradients[i], in_float32[i]) < 0.03 * attend::test::size_of(in_float32[i]));
  }
}

TEST_CASE("ConvStack: results do not depend on gradient mode, frozen parameters or strides of the input") {
  if (!has_kernels(torch::kFloat)) return;
  torch::manual_seed(2);
  ConvStack stack(ConvStackOptions(6, 24, 5).depth(3).backend(Backend::kCpu));
  const torch::Tensor x = torch::randn({3, 6, 21}), y = stack(x);
  {
    const torch::NoGradGuard no_grad;
    CHECK(stack(x).equal(y));
  }
  CHECK(stack(x.transpose(1, 2).contiguous().transpose(1, 2)).equal(y));
  CHECK(stack(torch::stack({x, x}, 3).select(3, 1)).equal(y));
  CHECK(stack(torch::_neg_view(-x)).equal(y));
  CHECK(y.transpose(1, 2).is_contiguous());

  const Tensors all = torch::autograd::grad({y.sum()}, stack->parameters(), {}, /*retain_graph=*/true);  // expanded
  stack->convolutions[1]->weight.set_requires_grad(false);
  stack->convolutions[0]->bias.set_requires_grad(false);
  const Tensors some =
      torch::autograd::grad({stack(x).sum()}, {stack->convolutions[0]->weight, stack->convolutions[2]->bias});
  CHECK(some[0].equal(all[0]));
  CHECK(some[1].equal(all[5]));
}

TEST_CASE("ConvStack: the same number of threads gives the same bits") {
  torch::manual_seed(3);
  ConvStack stack(
      ConvStackOptions(1, 48, 2).depth(3).backend(has_kernels(torch::kFloat) ? Backend::kCpu : Backend::kReference));
  const torch::Tensor x = torch::randn({7, 1, 64});
  Tensors first;
  for (int i = 0; i < 3; ++i) {
    const Tensors gradients = torch::autograd::grad({stack(x).pow(2).sum()}, stack->parameters());
    if (i == 0) first = gradients;
    for (std::size_t k = 0; k < gradients.size(); ++k) CHECK(gradients[k].equal(first[k]));
  }
}

TEST_CASE("ConvStack: second derivatives equal those of torch's convolutions") {
  if (!has_kernels(torch::kFloat)) return;
  Tensors seconds[2];
  for (const Backend backend : {Backend::kReference, Backend::kCpu}) {
    torch::manual_seed(4);
    ConvStack stack(ConvStackOptions(2, 8, 2).depth(2).backend(backend));
    const torch::Tensor x = torch::randn({3, 2, 11}).requires_grad_();
    const torch::Tensor first = torch::autograd::grad({stack(x).pow(2).sum()}, {x}, {}, true, /*create_graph=*/true)[0];
    Tensors leaves = stack->parameters();
    leaves.push_back(x);
    seconds[backend == Backend::kCpu] = torch::autograd::grad({first.pow(2).sum()}, leaves, {}, std::nullopt, false,
                                                              /*allow_unused=*/true);
  }
  for (std::size_t i = 0; i < seconds[0].size(); ++i) {
    REQUIRE(seconds[0][i].defined() == seconds[1][i].defined());
    if (seconds[0][i].defined())
      CHECK(max_difference(seconds[0][i], seconds[1][i]) < 1e-5 * attend::test::size_of(seconds[0][i]));
  }
}

TEST_CASE("ConvStack: the output has NaN at the same places as torch's convolutions") {
  if (!has_kernels(torch::kFloat)) return;
  torch::manual_seed(5);
  torch::Tensor x = torch::randn({2, 1, 30});
  x[1][0][12] = std::numeric_limits<float>::quiet_NaN();
  ConvStack ours(ConvStackOptions(1, 16, 1).depth(2).backend(Backend::kCpu));
  const auto torchs = std::dynamic_pointer_cast<attend::ConvStackImpl>(ours->clone());
  torchs->options.backend(Backend::kReference);
  CHECK(ours(x).isnan().equal(torchs->forward(x).isnan()));
}

TEST_CASE("ConvStack: the output has infinity where torch's has it; padding channels do not turn it into NaN") {
  if (!has_kernels(torch::kFloat)) return;
  torch::manual_seed(9);
  torch::Tensor x = torch::randn({2, 1, 30});
  x[1][0][12] = std::numeric_limits<float>::infinity();
  ConvStack ours(ConvStackOptions(1, 20, 7).depth(2).backend(Backend::kCpu).activation_after_last(true));
  {
    const torch::NoGradGuard no_grad;
    ours->convolutions[0]->weight.abs_().neg_();  // so that ReLU gives 0
  }
  const auto torchs = std::dynamic_pointer_cast<attend::ConvStackImpl>(ours->clone());
  torchs->options.backend(Backend::kReference);
  const torch::Tensor y = ours(x);
  CHECK(y.isfinite().all().item<bool>());
  CHECK(max_difference(y, torchs->forward(x)) < 1e-5);
}

TEST_CASE("ConvStack: tensors of sizes that do not fit together are refused and not read") {
  const torch::Tensor x = torch::randn({4, 1, 30});
  // One activation returns twice the channels, the other fewer channels.
  for (const auto& activation : {attend::Activation([](const torch::Tensor& y) {
                                   return torch::cat({y, -y}, 1);
                                 }),
                                 attend::Activation([](const torch::Tensor& y) { return y.slice(1, 0, 3); })}) {
    ConvStack stack(ConvStackOptions(1, 8, 8).depth(2).activation(activation));
    CHECK_THROWS_AS(stack(x), c10::Error);
  }
  ConvStack stack(ConvStackOptions(1, 8, 8).depth(2));
  stack->convolutions[1]->weight.set_data(torch::randn({8, 4, 5}));
  CHECK(stack->explain(x).why_not_faster != "");
  CHECK_THROWS_AS(stack(x), c10::Error);
  ConvStack biased(ConvStackOptions(1, 8, 8).depth(2));
  biased->convolutions[0]->bias.set_data(torch::randn({800}));
  CHECK_THROWS_AS(biased(x), c10::Error);
}

TEST_CASE("ConvStack: a BackendGuard selects the backend if the options do not name one") {
  const torch::Tensor x = torch::randn({64, 1, 20});
  ConvStack stack(ConvStackOptions(1, 8, 1));
  const Backend chosen = stack->explain(x).backend;
  {
    const attend::BackendGuard guard(Backend::kReference);
    CHECK(stack->explain(x).backend == Backend::kReference);
  }
  {
    const attend::BackendGuard guard(Backend::kSdpa);
    CHECK(stack->explain(x).backend == chosen);
  }
  if (!has_kernels(torch::kFloat)) return;
  const attend::BackendGuard guard(Backend::kCpu);
  CHECK(stack->explain(x.slice(0, 0, 1)).backend == Backend::kCpu);
}

TEST_CASE("ConvStack: with other activations the backend is chosen for each convolution") {
  if (!has_kernels(torch::kFloat)) return;
  torch::manual_seed(10);
  const torch::Tensor x = torch::randn({64, 1, 20});
  ConvStack ours(ConvStackOptions(1, 24, 2).depth(3).activation(torch::kGELU).backend(Backend::kCpu));
  const auto torchs = std::dynamic_pointer_cast<attend::ConvStackImpl>(ours->clone());
  torchs->options.backend(Backend::kReference);
  CHECK(max_difference(ours(x), torchs->forward(x)) < 1e-5);
  CHECK(ours->explain(x).backend == Backend::kCpu);
  ConvStack wide(ConvStackOptions(1, 8, 512).depth(2).activation(torch::kGELU));
  CHECK(wide->explain(x).backend == Backend::kReference);
}

TEST_CASE("ConvStack: an output without a final ReLU may be changed in place; weights may not before backward") {
  if (!has_kernels(torch::kFloat)) return;
  ConvStack stack(ConvStackOptions(1, 16, 4).depth(2).backend(Backend::kCpu));
  const torch::Tensor x = torch::randn({2, 1, 30});
  torch::Tensor y = stack(x);
  y.relu_();
  y.sum().backward();
  CHECK(stack->parameters()[0].grad().defined());
  y = stack(x);
  {
    const torch::NoGradGuard no_grad;
    stack->parameters()[0].add_(1.0);
  }
  CHECK_THROWS_AS(y.sum().backward(), c10::Error);

  ConvStack rectified(ConvStackOptions(1, 16, 4).depth(2).backend(Backend::kCpu).activation_after_last(true));
  y = rectified(x);
  y.mul_(2.0);
  CHECK_THROWS_AS(y.sum().backward(), c10::Error);
}

TEST_CASE("ConvStack: two threads may use one layer at the same time") {
  torch::manual_seed(11);
  ConvStack stack(ConvStackOptions(1, 32, 3).depth(3));
  const torch::Tensor x = torch::randn({8, 1, 60}), expected = stack(x);
  bool is_equal[2] = {true, true};
  std::vector<std::thread> threads;
  for (bool& each : is_equal)
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        const torch::Tensor y = stack(x);
        torch::autograd::grad({y.sum()}, stack->parameters());
        each = each && max_difference(y, expected) < 1e-5;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(is_equal[0]);
  CHECK(is_equal[1]);
}

TEST_CASE("ConvStack: explain() names the backend and the reason; a requested backend runs or throws with the reason") {
  const torch::Tensor x = torch::randn({64, 1, 20});
  ConvStack stack(ConvStackOptions(1, 8, 1));
  if (has_kernels(torch::kFloat)) {
    CHECK(stack->explain(x).backend == Backend::kCpu);
    CHECK(stack->explain(x).how.find("kCpu runs attend's own convolutions with AVX") == 0);
  } else {
    CHECK(stack->explain(x).why_not_faster == "kCpu needs AVX2, AVX-512 or NEON for convolutions.");
  }
  if (has_kernels(torch::kFloat) && at::get_num_threads() > 1)
    CHECK(stack->explain(x.slice(0, 0, 1)).why_not_faster.find("kCpu can run, but a batch of 1 does not keep ") == 0);
  CHECK(ConvStack(1, 512, 1)->explain(x).backend == Backend::kReference);
  CHECK(ConvStack(2, 3, 2)->explain(torch::randn({64, 2, 20})).backend == Backend::kReference);
  if (has_kernels(torch::kFloat)) {
    const torch::Tensor rows = torch::randn({64, 2, 20});
    CHECK(ConvStack(2, 64, 2)->explain(rows).copies == "It copies x, so that the channels are side by side in memory.");
    CHECK(ConvStack(2, 64, 2)->explain(torch::randn({64, 20, 2}).transpose(1, 2)).copies == "");
    CHECK(stack->explain(x).copies == "");
    CHECK(ConvStack(1, 512, 1)->explain(x).text() ==
          "kReference runs torch's convolutions. kCpu can run, but torch is faster for more than 128 channels.");
    CHECK(ConvStack(1, 64, 1)->explain(x).backend == Backend::kCpu);
    CHECK(ConvStack(1, 512, 1)->explain(x).why_not_faster ==
          "kCpu can run, but torch is faster for more than 128 channels.");
    CHECK(ConvStack(2, 3, 2)->explain(torch::randn({64, 2, 20})).why_not_faster ==
          "kCpu can run, but torch is faster for a convolution with at most 4 input and output channels.");
  }
  CHECK(stack->explain(x.slice(0, 0, 0)).why_not_faster != "");
  CHECK(stack(x.slice(0, 0, 0)).sizes() == torch::IntArrayRef{0, 1, 20});

  stack->to(torch::kDouble);
  CHECK(stack->explain(x.to(torch::kDouble)).backend == Backend::kReference);
  stack->options.backend(Backend::kCpu);
  CHECK(stack(x.to(torch::kDouble).slice(0, 0, 0)).size(0) == 0);  // there is nothing to compute
  CHECK(message_of<c10::NotImplementedError>([&] { stack(x.to(torch::kDouble)); }) ==
        "attend::ConvStack: kCpu supports convolutions in float32 and bfloat16, not in Double.");
  stack->options.backend(Backend::kReference);
  CHECK(stack->explain(x.to(torch::kDouble)).why_not_faster.empty());
  CHECK(message_of<c10::ValueError>([] { ConvStack(ConvStackOptions(1, 8, 1).backend(Backend::kSdpa)); }) ==
        "attend::ConvStack: backend (kSdpa) must be kAuto, kReference or kCpu");
}

TEST_CASE("ConvStack: forward-mode derivatives are computed by torch") {
  ConvStack stack(ConvStackOptions(1, 8, 1).depth(2));
  const std::uint64_t level = torch::autograd::ForwardADLevel::get_next_idx();
  {
    torch::Tensor x = torch::randn({16, 1, 10});
    x._set_fw_grad(torch::randn_like(x), level, /*is_inplace_op=*/false);
    CHECK(stack->explain(x).backend == Backend::kReference);
    CHECK(stack(x)._fw_grad(level).defined());
    ConvStack biased(ConvStackOptions(1, 8, 1).depth(2));
    const torch::Tensor& bias = biased->convolutions[0]->bias;
    bias._set_fw_grad(torch::randn_like(bias), level, /*is_inplace_op=*/false);
    CHECK(biased(torch::randn({16, 1, 10}))._fw_grad(level).defined());
  }
  torch::autograd::ForwardADLevel::release_idx(level);
}

}  // namespace cpu_convolution_test
