// SPDX-License-Identifier: MIT

// Tests that a score_mod and a mask_mod give the same values, derivatives, masks and key ranges in device code and host
// code. Without a GPU it tests only that they compile.

#include <attend/score/mask_mod.h>
#include <attend/score/mask_operators.h>
#include <attend/score/score_mod.h>
#include <attend/score/tensor_view.h>

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>

namespace {

using attend::Coordinate;
using attend::Dual;
using attend::Real;

constexpr int kQueries = 64, kKeys = 96, kScores = kQueries * kKeys;
constexpr int kSkipped = 77;  // counts as "skipped" for ctest

struct SoftSign {
  float strength;

  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, Coordinate at) const {
    return score / (T(1) + abs(score) * T(strength)) - T(0.01f) * T(at.query - at.key);
  }
};

/// Every function that a score_mod may call.
struct EveryFunction {
  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, Coordinate at) const {
    T sum = log(1 + exp(score)) + sqrt(score * score + 0.25f) + tanh(score);
    sum -= max(score, T(0.5f)) * min(score, -score);
    sum += sin(score) * cos(score) + tan(score * 0.1f) + sigmoid(score) + erf(score) + pow(abs(score) + 1, 1.5f);
    sum += floor(score * 0.99f + 0.3f) - round(score * 0.99f + 0.3f);
    return select(at.key % 3 == 0, sum, sum / 2);
  }
};

/// Also reads outside of the tensor, which has one value less than there are keys.
struct KeyBias {
  attend::TensorView bias;

  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, Coordinate at) const {
    return score * bias.read<T>(at.key);
  }
};

struct SameParity {
  ATTEND_HOST_DEVICE bool operator()(Coordinate at) const { return (at.query - at.key) % 2 == 0; }
};

/// The results of the structs for one score.
struct Said {
  float value, slope;
  std::int32_t begin, end;  // the range of keys, for the query alone
  bool is_allowed;
};

template <class Score, class Mask>
ATTEND_HOST_DEVICE Said say(const Score& score_mod, const Mask& mask_mod, int i) {
  const Coordinate at{0, 0, i / kKeys, i % kKeys, kQueries, kKeys};
  const float score = static_cast<float>(i % 801 - 400) / 50;
  const Dual<float> changed = score_mod(Dual<float>(score, 1.0f), at);
  const attend::KeyRange keys = attend::detail::key_range(mask_mod, {0, 0, at.query, at.query + 1, kQueries, kKeys});
  return {Real<float>(score_mod(Real<float>(score), at)).value, changed.derivative.value, keys.begin, keys.end,
          mask_mod(at)};
}

template <class Score, class Mask>
__global__ void say_all(Score score_mod, Mask mask_mod, Said* said) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < kScores) said[i] = say(score_mod, mask_mod, i);
}

/// Whether two results of the same formula agree. The GPU contracts a · b + c; its division rounds as the CPU's.
bool is_near(float a, float b) {
  return std::abs(a - b) <= 1e-5f * (1 + std::abs(b)) || (std::isnan(a) && std::isnan(b));
}

/// The number of scores that differ between the first score_mod on the GPU and the second on the CPU.
template <class Score, class Mask>
int differences(const char* name, const Score& on_device, const Score& on_host, const Mask& mask_mod) {
  static Said said[kScores];
  Said* memory = nullptr;
  if (cudaMalloc(&memory, sizeof said) != cudaSuccess) return kScores;
  say_all<<<(kScores + 127) / 128, 128>>>(on_device, mask_mod, memory);
  const cudaError_t error = cudaMemcpy(said, memory, sizeof said, cudaMemcpyDeviceToHost);
  cudaFree(memory);
  int count = error == cudaSuccess ? 0 : kScores;
  for (int i = 0; i < kScores; ++i) {
    const Said expected = say(on_host, mask_mod, i);
    count +=
        !(is_near(said[i].value, expected.value) && is_near(said[i].slope, expected.slope) &&
          said[i].is_allowed == expected.is_allowed && said[i].begin == expected.begin && said[i].end == expected.end);
  }
  std::printf("%s: %s, %d of %d scores differ\n", name, cudaGetErrorString(error), count, kScores);
  return count;
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("skipped: this machine has no GPU");
    return kSkipped;
  }
  float bias[kKeys];
  for (int j = 0; j < kKeys; ++j) bias[j] = 0.125f * static_cast<float>(j);
  float* bias_on_device = nullptr;
  if (cudaMalloc(&bias_on_device, sizeof bias) != cudaSuccess ||
      cudaMemcpy(bias_on_device, bias, sizeof bias, cudaMemcpyHostToDevice) != cudaSuccess)
    return 1;
  const attend::detail::ViewShape shape{{kKeys - 1, 1, 1, 1}, {1, 0, 0, 0}};
  const KeyBias by_device{attend::TensorView(bias_on_device, shape)}, by_host{attend::TensorView(bias, shape)};
  const SoftSign soft_sign{0.5f};
  const attend::Softcap softcap{2};
  const auto chain = attend::then(softcap, soft_sign);

  int count = differences("SoftSign, SameParity & Causal", soft_sign, soft_sign, SameParity() & attend::Causal());
  count += differences("Softcap, SlidingWindow", softcap, softcap, attend::SlidingWindow(20, 3));
  count += differences("then, | and !", chain, chain, attend::PrefixLM(5) | !attend::SlidingWindow(7, -1));
  count += differences("every function", EveryFunction(), EveryFunction(), attend::EveryKey());
  count += differences("a TensorView", by_device, by_host, attend::Causal());
  cudaFree(bias_on_device);
  return count > 0 ? 1 : 0;
}
