// SPDX-License-Identifier: MIT

// What does a rotary embedding cost within a training step? Attention forward and backward, on the CPU: without a
// rotary embedding, with attend's as MultiheadAttention uses it, with rotate(), and with the formula of Hugging Face's
// models in torch's operations.
//
// usage: rotary [ROUNDS] (default: 15). Prints CSV: medians in milliseconds, and the medians of the ratios to the
// attention without.

#include <attend/attention.h>
#include <attend/attention/detail/rotation.h>
#include <attend/positions/rotary.h>

#include "support/program.h"
#include "support/rounds.h"

#include <ATen/Parallel.h>
#include <torch/autograd.h>
#include <torch/version.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

/// q cos + rotate_half(q) sin, with tables (L, D).
torch::Tensor rotated_by_formula(const torch::Tensor& x, const torch::Tensor& cos, const torch::Tensor& sin) {
  const std::vector<torch::Tensor> halves = x.chunk(2, -1);
  return x * cos + torch::cat({-halves[1], halves[0]}, -1) * sin;
}

void measure(at::ScalarType dtype, std::int64_t batch, std::int64_t width, bool is_causal, std::int64_t rounds) {
  constexpr std::int64_t kHeads = 8, kLength = 1024;
  torch::manual_seed(1);
  // As a layer has it: one projection to queries, keys and values, (N, L, 3, H, D) in memory.
  const torch::Tensor x = torch::randn({batch, kLength, 3 * kHeads * width}).to(dtype).requires_grad_();
  const torch::Tensor gradient = torch::randn({batch, kHeads, kLength, width}).to(dtype);
  const auto options = attend::AttentionOptions().is_causal(is_causal);
  attend::RotaryEmbedding rotary(width);
  const attend::RotaryTables half = rotary->cos_sin(gradient);
  const torch::Tensor cos = torch::cat({half.cos, half.cos}, -1).to(dtype),
                      sin = torch::cat({half.sin, half.sin}, -1).to(dtype);

  using Rotate = std::function<torch::Tensor(const torch::Tensor&)>;
  const auto step = [&](const Rotate& rotate) {
    const torch::Tensor projected = x * 1.0;  // new memory, as the result of a linear layer
    const auto parts = projected.unflatten(2, {3 * kHeads, width}).transpose(1, 2).chunk(3, 1);
    const torch::Tensor y = attend::attention(rotate(parts[0]), rotate(parts[1]), parts[2], options);
    return torch::autograd::grad({y}, {x}, {gradient})[0];
  };
  const Rotate none = [](const torch::Tensor& heads) { return heads; };
  const Rotate in_layer = [&](const torch::Tensor& heads) {
    const attend::RotaryTables tables = rotary->cos_sin(heads);
    return attend::detail::Rotation::apply_to_owned(heads, tables.cos, tables.sin, attend::RotaryLayout::kHalfSplit);
  };
  const Rotate function = [&](const torch::Tensor& heads) { return rotary(heads); };
  const Rotate formula = [&](const torch::Tensor& heads) { return rotated_by_formula(heads, cos, sin); };
  const double difference = (step(in_layer) - step(formula)).abs().max().item<double>();
  if (!(difference < (dtype == torch::kFloat ? 1e-4 : 0.3)))
    throw std::runtime_error("the two rotations differ by " + std::to_string(difference));

  const benchmark::Medians medians = benchmark::run_in_turn(
      {[&] { step(none); }, [&] { step(in_layer); }, [&] { step(function); }, [&] { step(formula); }}, rounds);
  std::cout << c10::toString(dtype) << ',' << batch << ',' << width << ',' << is_causal;
  for (const double time : medians.milliseconds) std::cout << ',' << time;
  for (std::size_t i = 1; i < medians.ratios.size(); ++i) std::cout << ',' << medians.ratios[i];
  std::cout << std::endl;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::int64_t rounds = argc > 1 ? benchmark::positive(argv[1]) : 15;
  std::cout << "# " << benchmark::kCompiler << ", LibTorch " << TORCH_VERSION << ", " << at::get_num_threads()
            << " threads, 8 heads, L = 1024\n"
            << "dtype,batch,head_dim,is_causal,without_ms,in_layer_ms,rotate_ms,formula_ms,in_layer_ratio,"
               "rotate_ratio,formula_ratio\n";
  for (const auto dtype : {torch::kFloat, torch::kBFloat16})
    for (const std::int64_t width : {64, 128})
      for (const std::int64_t batch : {1, 4})
        for (const bool is_causal : {false, true}) measure(dtype, batch, width, is_causal, rounds);
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
