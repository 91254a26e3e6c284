// SPDX-License-Identifier: MIT

// How much time and memory do the three modules of examples/from_hand_written take, in plain LibTorch and with attend's
// parts? One training step each: forward, and backward to input and weights. float32, on the CPU.
//
// Both have the same weights and the same input, and their outputs and gradients are compared before anything is timed.
// They run in turn. Prints CSV: the medians of the rounds in milliseconds, the median of the ratios, and the memory
// that a step holds at most beyond input and weights.

#include "../../examples/from_hand_written/by_hand.h"
#include "../../examples/from_hand_written/with_attend.h"
#include "../../tests/support/allocator_peak.h"

#include "support/program.h"

#include <ATen/Parallel.h>
#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr const char* kUsage =
    "usage: from_hand_written [options]\n"
    "  --rounds N    rounds; the result is their median (default: 11)\n"
    "  --threads N   threads (default: chosen by LibTorch)\n";

using Forward = std::function<torch::Tensor(const torch::Tensor& x)>;

struct Module {
  std::shared_ptr<torch::nn::Module> module;
  Forward forward;
};

struct Comparison {
  const char* name;
  torch::Tensor x;
  Module by_hand, with_attend;
};

/// The second module gets the weights of the first.
void copy_weights(const torch::nn::Module& from, torch::nn::Module& to) {
  const torch::NoGradGuard no_grad;
  const auto given = from.named_parameters();
  for (auto& parameter : to.named_parameters())
    parameter.value().copy_(given[parameter.key() == "bias.relative_position_bias_table" ? "table" : parameter.key()]);
}

/// A step: the output, then the gradients of the input and of all weights in the order of their names.
std::vector<torch::Tensor> step(const Module& module, const torch::Tensor& given) {
  module.module->zero_grad();
  const torch::Tensor x = given.detach().requires_grad_();
  const torch::Tensor y = module.forward(x);
  y.square().mean().backward();
  std::vector<torch::Tensor> results{y.detach(), x.grad()};
  for (const torch::Tensor& parameter : module.module->parameters()) results.push_back(parameter.grad());
  return results;
}

void check_same(const Comparison& each) {
  const auto ours = step(each.with_attend, each.x), theirs = step(each.by_hand, each.x);
  const auto sum = [](const std::vector<torch::Tensor>& results) {  // the weights may be in another order
    double total = 0;
    for (std::size_t i = 2; i < results.size(); ++i) total += results[i].abs().sum().item<double>();
    return total;
  };
  for (std::size_t i = 0; i < 2; ++i)
    if (!torch::allclose(ours[i], theirs[i], 1e-3, 1e-4 * theirs[i].abs().max().item<double>()))
      throw std::runtime_error(std::string(each.name) + ": the two modules give different results");
  if (std::abs(sum(ours) - sum(theirs)) > 1e-3 * sum(theirs))
    throw std::runtime_error(std::string(each.name) + ": the gradients of the weights differ");
}

std::vector<Comparison> comparisons() {
  torch::manual_seed(1);
  std::vector<Comparison> all;
  const auto add = [&](const char* name, const torch::Tensor& x, auto by_hand, auto with_attend) {
    copy_weights(*by_hand, *with_attend);
    const auto forward = [](const auto& module) {
      return [module](const torch::Tensor& in) { return module->forward(in); };
    };
    all.push_back({name, x, {by_hand.ptr(), forward(by_hand.ptr())}, {with_attend.ptr(), forward(with_attend.ptr())}});
  };
  add("windowed attention with rotary embeddings", torch::randn({4, 1666, 512}),
      by_hand::WindowedAttention(512, 8, 127, 128), with_attend::WindowedAttention(512, 8, 127, 128));
  add("shifted windows", torch::randn({8, 56, 56, 96}), by_hand::ShiftedWindows(96, 3, 56, 7, 3),
      with_attend::ShiftedWindows(96, 3, 56, 7, 3));
  // Both images in one tensor, so that a step has one input.
  const auto pair = [](const auto& module) {
    return [module](const torch::Tensor& in) {
      const torch::Tensor points = torch::arange(1024).unsqueeze(0);
      const torch::Tensor is_point1 = points < torch::tensor({1024, 700}).unsqueeze(1);
      const torch::Tensor is_point2 = points < torch::tensor({900, 1024}).unsqueeze(1);
      const auto [y1, y2] = module->forward(in.narrow(0, 0, 2), in.narrow(0, 2, 2), is_point1, is_point2);
      return torch::cat({y1, y2});
    };
  };
  by_hand::CrossAttention theirs(256, 4);
  with_attend::CrossAttention ours(256, 4);
  copy_weights(*theirs, *ours);
  all.push_back({"cross attention of a feature matcher",
                 torch::randn({4, 1024, 256}),
                 {theirs.ptr(), pair(theirs.ptr())},
                 {ours.ptr(), pair(ours.ptr())}});
  return all;
}

int run(const std::vector<std::string>& arguments) {
  std::int64_t rounds = 11;
  for (std::size_t i = 0; i < arguments.size(); i += 2) {
    if (arguments[i] == "--help") {
      std::cout << kUsage;
      return 0;
    }
    if (i + 1 == arguments.size()) throw std::invalid_argument("unknown option or missing value: " + arguments[i]);
    const std::int64_t value = benchmark::positive(arguments[i + 1]);
    if (arguments[i] == "--rounds")
      rounds = value;
    else if (arguments[i] == "--threads")
      at::set_num_threads(static_cast<int>(value));
    else
      throw std::invalid_argument("unknown option " + arguments[i]);
  }
  const auto median = [](std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  };
  const auto time = [](const Module& module, const torch::Tensor& x) {
    const auto begin = std::chrono::steady_clock::now();
    step(module, x);
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  };
  const auto megabytes = [](const Module& module, const torch::Tensor& x) {
    module.module->zero_grad();
    const attend::test::AllocatorPeak memory;
    step(module, x);
    return static_cast<double>(memory.peak()) / 1e6;
  };
  std::cout << "module,threads,by_hand_ms,attend_ms,ratio,by_hand_mb,attend_mb\n";
  for (const Comparison& each : comparisons()) {
    check_same(each);
    std::vector<double> theirs, ours, ratios;
    for (std::int64_t round = 0; round < rounds; ++round) {
      theirs.push_back(time(each.by_hand, each.x));
      ours.push_back(time(each.with_attend, each.x));
      ratios.push_back(theirs.back() / ours.back());
    }
    std::cout << each.name << ',' << at::get_num_threads() << ',' << median(theirs) << ',' << median(ours) << ','
              << median(ratios) << ',' << megabytes(each.by_hand, each.x) << ',' << megabytes(each.with_attend, each.x)
              << '\n';
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << "from_hand_written: " << error.what() << '\n' << kUsage;
    return 2;
  }
}
