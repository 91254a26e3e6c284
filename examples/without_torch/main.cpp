// Attention without LibTorch, with a custom score_mod. The program checks the forward pass against plain loops, checks
// the backward pass, and prints the speed of both.

#include <attend/kernels.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

constexpr int kHeads = 4, kLength = 512, kWidth = 64;

/// Lowers the score of far keys: score − slope · distance², with a slope for each head.
struct Near {
  const float* slopes;
  template <class T>
  T operator()(T score, attend::Coordinate at) const {
    const T distance(at.query - at.key);
    return score - T(slopes[at.head]) * distance * distance;
  }
};

/// One query of one head by the formula, in double.
std::vector<double> by_formula(const std::vector<float>& q, const std::vector<float>& k, const std::vector<float>& v,
                               const float* slopes, int head, int query) {
  const auto at = [head](const std::vector<float>& x, int i, int d) {
    return static_cast<double>(x[static_cast<std::size_t>((head * kLength + i) * kWidth + d)]);
  };
  std::vector<double> output(kWidth);
  double sum = 0;
  for (int j = 0; j <= query; ++j) {  // causal
    double score = -static_cast<double>(slopes[head]) * (query - j) * (query - j);
    for (int d = 0; d < kWidth; ++d) score += at(q, query, d) * at(k, j, d) / std::sqrt(kWidth);
    sum += std::exp(score);
    for (int d = 0; d < kWidth; ++d) output[static_cast<std::size_t>(d)] += std::exp(score) * at(v, j, d);
  }
  for (double& number : output) number /= sum;
  return output;
}

int main() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto numbers = [&] {
    std::vector<float> made(kHeads * kLength * kWidth);
    for (float& number : made) number = normal(random);
    return made;
  };
  const std::vector<float> q = numbers(), k = numbers(), v = numbers(), dy = numbers();  // (1, H, L, D)
  std::vector<float> y(q.size()), dq(q.size()), dk(q.size()), dv(q.size());
  const float slopes[kHeads] = {0, 0.0001f, 0.001f, 0.01f};

  const auto view = [](auto& x) { return attend::contiguous(x.data(), kHeads, kLength, kWidth); };
  attend::AttentionParams params;
  params.num_heads = params.num_kv_heads = kHeads;
  params.query_length = params.key_length = kLength;
  params.head_dim = params.value_dim = kWidth;
  params.query = view(q);
  params.key = view(k);
  params.value = view(v);

  const Near score_mod{slopes};
  const attend::Causal mask_mod;
  const std::int64_t size = attend::kernels::flex_saved_bytes(params, score_mod, mask_mod);
  std::vector<double> saved(static_cast<std::size_t>(size + 7) / 8);
  attend::AttentionOutputs outputs;
  outputs.output = view(y);
  outputs.saved = saved.data();
  outputs.saved_bytes = size;
  attend::AttentionGradients gradients;
  gradients.output = view(dy);
  gradients.query = view(dq);
  gradients.key = view(dk);
  gradients.value = view(dv);
  const auto forward = [&] { attend::kernels::flex_attention_forward(params, score_mod, mask_mod, outputs); };
  const auto backward = [&] {
    attend::kernels::flex_attention_backward(params, score_mod, mask_mod, outputs, gradients);
  };
  forward();
  backward();

  double error = 0;
  for (int head = 0; head < kHeads; ++head)
    for (int query = 0; query < kLength; query += 7) {
      const std::vector<double> exact = by_formula(q, k, v, slopes, head, query);
      for (int d = 0; d < kWidth; ++d)
        error = std::max(
            error, std::abs(exact[static_cast<std::size_t>(d)] -
                            static_cast<double>(y[static_cast<std::size_t>((head * kLength + query) * kWidth + d)])));
    }
  // The output is linear in v: the gradient of v times v is that of the output times the output.
  double by_output = 0, by_value = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    by_output += static_cast<double>(dy[i]) * static_cast<double>(y[i]);
    by_value += static_cast<double>(dv[i]) * static_cast<double>(v[i]);
  }

  const auto median_seconds = [](const auto& call) {
    std::vector<double> seconds;
    for (int i = 0; i < 21; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      call();
      seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    std::nth_element(seconds.begin(), seconds.begin() + 10, seconds.end());
    return seconds[10];
  };
  // Two products forward and five backward, of the scores that the causal mask leaves.
  const double product = 2.0 * kHeads * kWidth * kLength * (kLength + 1) / 2 * 1e-9;
  std::printf("%s, %d threads\n", attend::kernels::instruction_set(), attend::default_executor().threads());
  std::printf("forward:  %.0f GFLOP/s\n", 2 * product / median_seconds(forward));
  std::printf("backward: %.0f GFLOP/s\n", 5 * product / median_seconds(backward));
  std::printf("largest error: %.1e\n", error);
  return error < 1e-5 && std::abs(by_output - by_value) < 1e-3 * std::abs(by_output) + 1e-3 ? 0 : 1;
}
