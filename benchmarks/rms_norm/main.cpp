// SPDX-License-Identifier: MIT

// How fast is attend::RMSNorm, compared with at::rms_norm and with torch's fused layer_norm? On the CPU, forward alone
// and with backward.
//
// usage: rms_norm [ROUNDS] (default: 15). Prints CSV: medians in milliseconds, and medians of the ratios to attend.

#include <attend/layers/rms_norm.h>

#include "support/program.h"
#include "support/rounds.h"

#include <ATen/Parallel.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/rms_norm.h>
#include <torch/autograd.h>
#include <torch/version.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <iostream>
#include <vector>

namespace {

void measure(at::ScalarType dtype, std::int64_t rows, std::int64_t width, std::int64_t rounds) {
  torch::manual_seed(1);
  attend::RMSNorm norm(attend::RMSNormOptions(width).eps(1e-6));
  norm->to(dtype);
  const torch::Tensor x = torch::randn({rows, width}).to(dtype), gradient = torch::randn({rows, width}).to(dtype);
  const torch::Tensor leaf = x.clone().requires_grad_(), bias = torch::zeros({width}, dtype);
  using Function = std::function<torch::Tensor(const torch::Tensor&)>;
  const Function functions[] = {
      [&](const torch::Tensor& of) { return norm(of); },
      [&](const torch::Tensor& of) { return at::rms_norm(of, {width}, norm->weight, 1e-6); },
      [&](const torch::Tensor& of) { return at::layer_norm(of, {width}, norm->weight, bias, 1e-6); }};
  for (const bool with_backward : {false, true}) {
    std::vector<std::function<void()>> peers;
    for (const Function& function : functions)
      peers.push_back([&x, &leaf, &gradient, &function, &norm, with_backward] {
        const torch::AutoGradMode mode(with_backward);
        if (!with_backward)
          function(x);
        else
          torch::autograd::grad({function(leaf)}, {leaf, norm->weight}, {gradient});
      });
    const benchmark::Medians medians = benchmark::run_in_turn(peers, rounds, /*least=*/5.0);
    std::cout << c10::toString(dtype) << ',' << rows << ',' << width << ','
              << (with_backward ? "forward_backward" : "forward");
    for (const double time : medians.milliseconds) std::cout << ',' << time;
    std::cout << ',' << medians.ratios[1] << ',' << medians.ratios[2] << std::endl;
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const std::int64_t rounds = argc > 1 ? benchmark::positive(argv[1]) : 15;
  std::cout << "# " << benchmark::kCompiler << ", LibTorch " << TORCH_VERSION << ", " << at::get_num_threads()
            << " threads\n"
            << "dtype,rows,width,pass,attend_ms,rms_norm_ms,layer_norm_ms,rms_norm_ratio,layer_norm_ratio\n";
  for (const auto dtype : {torch::kFloat, torch::kBFloat16}) {
    measure(dtype, 1, 512, rounds);
    measure(dtype, 8192, 64, rounds);
    measure(dtype, 1024, 512, rounds);
    measure(dtype, 4096, 512, rounds);
    measure(dtype, 2048, 4096, rounds);
  }
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
