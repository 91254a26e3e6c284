// SPDX-License-Identifier: MIT

// What does a rotary embedding cost within a training step? Forward and backward, on the CPU: attention() alone, and
// MultiheadAttention without a rotary embedding, with attend's, and with the formula of Hugging Face's models in
// torch's operations. The cost is the time of the layer with it minus that of the layer without, divided by that of the
// attention.
//
// usage: rotary [ROUNDS] (default: 15). Prints CSV: medians in milliseconds, and the difference of the medians of the
// ratios to the attention.

#include <attend/attention.h>
#include <attend/layers/multihead_attention.h>
#include <attend/positions/rotary.h>

#include "support/program.h"
#include "support/rounds.h"

#include <ATen/Parallel.h>
#include <torch/autograd.h>
#include <torch/version.h>

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
  const torch::Tensor x = torch::randn({batch, kLength, kHeads * width}).to(dtype).requires_grad_();
  const torch::Tensor gradient = torch::randn({batch, kLength, kHeads * width}).to(dtype);
  const auto options =
      attend::MultiheadAttentionOptions(kHeads * width, kHeads).batch_first(true).bias(false).is_causal(is_causal);
  attend::RotaryEmbedding rotary(width);
  const attend::RotaryTables half = rotary->cos_sin(torch::empty({1, 1, kLength, width}, dtype));
  const torch::Tensor cos = torch::cat({half.cos, half.cos}, -1).to(dtype),
                      sin = torch::cat({half.sin, half.sin}, -1).to(dtype);
  attend::MultiheadAttention without(options);
  attend::MultiheadAttention with(attend::MultiheadAttentionOptions(options).rotary(rotary->options));
  attend::MultiheadAttention by_formula(attend::MultiheadAttentionOptions(options).attention_function(
      [=](const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
          const attend::AttentionOptions& of_call) {
        return attend::attention(rotated_by_formula(q, cos, sin), rotated_by_formula(k, cos, sin), v, of_call);
      }));
  for (auto* layer : {&without, &with, &by_formula}) {
    const torch::NoGradGuard no_grad;
    (*layer)->to(dtype);
    for (auto& parameter : (*layer)->named_parameters())
      parameter.value().copy_(without->named_parameters()[parameter.key()]);
  }
  const auto step = [&](attend::MultiheadAttention& layer) {
    std::vector<torch::Tensor> inputs = layer->parameters();
    inputs.push_back(x);
    return torch::autograd::grad({layer->self_attention(x)}, inputs, {gradient}).back();
  };
  const torch::Tensor heads[] = {torch::randn({batch, kHeads, kLength, width}).to(dtype).requires_grad_(),
                                 torch::randn({batch, kHeads, kLength, width}).to(dtype).requires_grad_(),
                                 torch::randn({batch, kHeads, kLength, width}).to(dtype).requires_grad_()};
  const auto attention_alone = [&] {
    const torch::Tensor y =
        attend::attention(heads[0], heads[1], heads[2], attend::AttentionOptions().is_causal(is_causal));
    torch::autograd::grad({y}, {heads[0], heads[1], heads[2]}, {heads[0].detach()});
  };
  const double difference = (step(with) - step(by_formula)).abs().max().item<double>();
  if (!(difference < (dtype == torch::kFloat ? 1e-4 : 0.3)))
    throw std::runtime_error("the two rotations differ by " + std::to_string(difference));

  const benchmark::Medians medians = benchmark::run_in_turn(
      {attention_alone, [&] { step(without); }, [&] { step(with); }, [&] { step(by_formula); }}, rounds);
  std::cout << c10::toString(dtype) << ',' << batch << ',' << width << ',' << is_causal;
  for (const double time : medians.milliseconds) std::cout << ',' << time;
  const std::vector<double>& ratios = medians.ratios;  // to the attention
  std::cout << ',' << ratios[2] - ratios[1] << ',' << ratios[3] - ratios[1] << std::endl;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::int64_t rounds = argc > 1 ? benchmark::positive(argv[1]) : 15;
  std::cout << "# " << benchmark::kCompiler << ", LibTorch " << TORCH_VERSION << ", " << at::get_num_threads()
            << " threads, 8 heads, L = 1024\n"
            << "dtype,batch,head_dim,is_causal,attention_ms,layer_without_ms,layer_with_ms,layer_with_formula_ms,cost,"
               "cost_of_formula\n";
  for (const auto dtype : {torch::kFloat, torch::kBFloat16})
    for (const std::int64_t width : {64, 128})
      for (const std::int64_t batch : {1, 4})
        for (const bool is_causal : {false, true}) measure(dtype, batch, width, is_causal, rounds);
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
