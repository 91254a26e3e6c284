// SPDX-License-Identifier: MIT

// How long do parallel sections take? Times calls of attention and convolutions in float32 on the CPU, alone and in
// turn with a matrix product, which runs on LibTorch's threads. Prints CSV: medians in microseconds.
//
// measure.py runs the programs of two versions of attend in turn, to measure a change, and runs the experiment beside
// busy processes.

#include <attend/attention.h>
#include <attend/detail/torch/parallel.h>
#include <attend/layers/conv_stack.h>

#include "support/program.h"

#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <c10/core/GradMode.h>
#include <torch/utils.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

void measure(const std::string& name, const std::function<void()>& call) {
  std::vector<double> all;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    call();
    all.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  } while (all.size() < 20 || Clock::now() - begin < std::chrono::milliseconds(400));
  const auto middle = all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2);
  std::nth_element(all.begin(), middle, all.end());
  std::cout << name << ',' << *middle << std::endl;
}

void measure_all() {
  torch::manual_seed(1);
  const int threads = torch::get_num_threads();
  measure("empty section", [&] { attend::detail::parallel(threads, [](int) {}); });
  const at::Tensor matrix = at::randn({512, 512});
  measure("product of matrices of 512²", [&] { at::mm(matrix, matrix); });
  for (const std::int64_t length : {16, 128, 512, 2048}) {
    const at::Tensor q = at::randn({1, 8, length, 64}), k = at::randn({1, 8, length, 64}),
                     v = at::randn({1, 8, length, 64});
    const auto forward = [&] { return attend::attention(q, k, v); };
    const std::string name = "attention of (1; 8; " + std::to_string(length) + "; 64)";
    measure(name + " forward", forward);
    measure(name + " forward; and a product of matrices", [&] { at::mm(matrix, matrix), forward(); });
    for (const at::Tensor& each : {q, k, v}) each.requires_grad_();
    const at::Tensor gradient = at::ones_like(q);
    measure(name + " forward and backward", [&] { forward().backward(gradient); });
  }
  attend::ConvStack stack(attend::ConvStackOptions(1, 64, 1).depth(5));
  const at::Tensor x = at::randn({32, 1, 100});
  measure("ConvStack of (32; 1; 100) forward", [&] {
    const c10::NoGradGuard no_grad;
    stack->forward(x);
  });
  measure("ConvStack of (32; 1; 100) forward and backward", [&] { stack->forward(x).sum().backward(); });
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc > 2) throw std::invalid_argument("expected at most one argument, the number of threads");
    if (argc == 2) torch::set_num_threads(static_cast<int>(benchmark::positive(argv[1])));
    measure_all();
  } catch (const std::exception& error) {
    std::cerr << "threads: " << error.what() << "\nusage: threads [NUMBER OF THREADS]\n";
    return 1;
  }
}
