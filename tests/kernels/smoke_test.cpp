// SPDX-License-Identifier: MIT

// The CPU kernels, forward and backward, against naive loops in double. This file includes no LibTorch, and is also
// compiled for aarch64 and run there under an emulator (tests/simd/aarch64_test.py).

#include <attend/kernels/attention_params.h>
#include <attend/kernels/cpu/attention_pass.h>
#include <attend/kernels/executor.h>
#include <attend/simd/bfloat16.h>
#include <attend/simd/dispatch.h>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <type_traits>
#include <vector>

using attend::simd::BFloat16;
using attend::simd::InstructionSet;

namespace {

constexpr std::int64_t N = 2, H = 4, G = 2, L = 70, D = 20, Dv = 24;

/// Contiguous (N, heads, rows, columns).
template <class Element>
struct Tensor4d {
  std::int64_t heads, rows, columns;
  std::vector<Element> numbers;

  Tensor4d(std::int64_t heads, std::int64_t rows, std::int64_t columns)
      : heads(heads), rows(rows), columns(columns), numbers(static_cast<std::size_t>(N * heads * rows * columns)) {}

  attend::TensorView4d view() { return {numbers.data(), {heads * rows * columns, rows * columns, columns, 1}}; }
  double at(std::int64_t n, std::int64_t h, std::int64_t i, std::int64_t d) const {
    return static_cast<double>(numbers[static_cast<std::size_t>(((n * heads + h) * rows + i) * columns + d)]);
  }
};

template <class Element>
Tensor4d<Element> random_tensor(std::int64_t heads, std::int64_t rows, std::int64_t columns, std::mt19937& generator) {
  Tensor4d<Element> tensor(heads, rows, columns);
  std::normal_distribution<float> normal;
  for (Element& number : tensor.numbers) number = Element(normal(generator));
  return tensor;
}

/// The largest difference from `exact`.
template <class Element>
double error(const Tensor4d<Element>& result, const Tensor4d<double>& exact) {
  double largest = 0;
  for (std::size_t i = 0; i < exact.numbers.size(); ++i) {
    const double difference = std::abs(static_cast<double>(result.numbers[i]) - exact.numbers[i]);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

/// Causal attention with S keys on one instruction set.
template <class Element>
void check_attention(std::int64_t S, InstructionSet set, double allowed) {
  using T = std::conditional_t<std::is_same_v<Element, double>, double, float>;
  std::mt19937 generator(9);
  auto query = random_tensor<Element>(H, L, D, generator), key = random_tensor<Element>(G, S, D, generator),
       value = random_tensor<Element>(G, S, Dv, generator),
       output_gradient = random_tensor<Element>(H, L, Dv, generator);
  Tensor4d<Element> output(H, L, Dv), query_gradient(H, L, D), key_gradient(G, S, D), value_gradient(G, S, Dv);

  attend::AttentionParams params;
  params.dtype = std::is_same_v<Element, double>  ? attend::NumberType::kFloat64
                 : std::is_same_v<Element, float> ? attend::NumberType::kFloat32
                                                  : attend::NumberType::kBFloat16;
  params.batch_size = N;
  params.num_heads = H;
  params.num_kv_heads = G;
  params.query_length = L;
  params.key_length = S;
  params.head_dim = D;
  params.value_dim = Dv;
  params.query = query.view();
  params.key = key.view();
  params.value = value.view();
  params.window_right = 0;
  const attend::cpu::AttentionPass<T> pass(params, set);
  std::vector<std::byte> saved(static_cast<std::size_t>(pass.saved_bytes()));
  attend::AttentionOutputs outputs;
  outputs.output = output.view();
  outputs.saved = saved.data();
  attend::AttentionGradients gradients;
  gradients.output = output_gradient.view();
  gradients.query = query_gradient.view();
  gradients.key = key_gradient.view();
  gradients.value = value_gradient.view();
  attend::ThreadPoolExecutor threads(2);
  pass.forward(outputs, threads);
  pass.backward(outputs, gradients, threads);

  Tensor4d<double> exact_output(H, L, Dv), exact_query(H, L, D), exact_key(G, S, D), exact_value(G, S, Dv);
  const auto entry = [](Tensor4d<double>& tensor, std::int64_t n, std::int64_t h, std::int64_t i,
                        std::int64_t d) -> double& {
    return tensor.numbers[static_cast<std::size_t>(((n * tensor.heads + h) * tensor.rows + i) * tensor.columns + d)];
  };
  const double scale = 1 / std::sqrt(static_cast<double>(D));
  for (std::int64_t n = 0; n < N; ++n)
    for (std::int64_t h = 0; h < H; ++h)
      for (std::int64_t i = 0; i < L; ++i) {
        const std::int64_t g = h * G / H, keys = i + S - L + 1;
        std::vector<double> weights(static_cast<std::size_t>(keys)), weight_gradients(weights.size());
        double sum = 0, delta = 0;
        for (std::int64_t j = 0; j < keys; ++j) {
          double score = 0;
          for (std::int64_t d = 0; d < D; ++d) score += scale * query.at(n, h, i, d) * key.at(n, g, j, d);
          sum += weights[static_cast<std::size_t>(j)] = std::exp(score);
        }
        for (std::int64_t j = 0; j < keys; ++j) {
          double &weight = weights[static_cast<std::size_t>(j)],
                 &gradient = weight_gradients[static_cast<std::size_t>(j)];
          weight /= sum;
          for (std::int64_t d = 0; d < Dv; ++d) {
            gradient += output_gradient.at(n, h, i, d) * value.at(n, g, j, d);
            entry(exact_output, n, h, i, d) += weight * value.at(n, g, j, d);
            entry(exact_value, n, g, j, d) += weight * output_gradient.at(n, h, i, d);
          }
          delta += weight * gradient;
        }
        for (std::int64_t j = 0; j < keys; ++j) {
          const double score_gradient =
              weights[static_cast<std::size_t>(j)] * (weight_gradients[static_cast<std::size_t>(j)] - delta) * scale;
          for (std::int64_t d = 0; d < D; ++d) {
            entry(exact_query, n, h, i, d) += score_gradient * key.at(n, g, j, d);
            entry(exact_key, n, g, j, d) += score_gradient * query.at(n, h, i, d);
          }
        }
      }
  CAPTURE(S);
  CAPTURE(static_cast<int>(set));
  CHECK(error(output, exact_output) <= allowed);
  CHECK(error(query_gradient, exact_query) <= allowed);
  CHECK(error(key_gradient, exact_key) <= allowed);
  CHECK(error(value_gradient, exact_value) <= allowed);
}

}  // namespace

TEST_CASE("AttentionPass: causal attention forward and backward on every instruction set, against naive loops") {
  for (const InstructionSet set : {InstructionSet::kPortable, InstructionSet::kNeon, InstructionSet::kNeonBf16,
                                   InstructionSet::kAvx2, InstructionSet::kAvx512, InstructionSet::kAvx512Bf16}) {
    if (!attend::simd::is_supported(set)) continue;
    for (const std::int64_t S : {100, 200, 500}) {  // one pass over the keys; several; too many tiles to be kept
      check_attention<float>(S, set, 1e-5);
      check_attention<double>(S, set, 1e-13);
      check_attention<BFloat16>(S, set, 0.1);
    }
  }
}
