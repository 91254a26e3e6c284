// SPDX-License-Identifier: MIT

// Which share of the processor's peak rate does attention() reach, and how fast is ATen? kCpu and kSdpa run in turn,
// call by call. The peak is measured in the same run, on all threads at once. Prints the tables of
// results/product_rate.md. ATEN_CPU_CAPABILITY=avx2 in the environment selects AVX2 for both.

#include <attend/attention.h>
#include <attend/attention/detail/instruction_set.h>

#include "support/peak.h"
#include "support/program.h"
#include "support/rounds.h"

#include <ATen/Parallel.h>
#include <ATen/ops/randn.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <numeric>
#include <thread>
#include <vector>

namespace {

struct Case {
  std::int64_t batch, heads, length, width;
  bool is_causal = false;
  at::ScalarType dtype = at::kFloat;
};

constexpr Case kCases[] = {
    {1, 8, 4096, 64},        {1, 8, 4096, 64, true}, {1, 4, 4096, 128, true},
    {1, 4, 1024, 256, true}, {8, 12, 197, 64},       {1, 8, 1024, 64, false, at::kDouble},
};

/// The peak of all threads at once, in billions of operations per second.
double peak_of(at::ScalarType dtype) {
  std::vector<double> rates(static_cast<std::size_t>(at::get_num_threads()));
  std::vector<std::thread> threads;
  for (double& rate : rates)
    threads.emplace_back([&rate, dtype] {
      attend::simd::for_isa(attend::detail::available_instruction_set(), [&](auto isa) {
        using Isa = decltype(isa);
        rate = dtype == at::kDouble ? benchmark::peak_rate<double, Isa>() : benchmark::peak_rate<float, Isa>();
      });
    });
  for (std::thread& thread : threads) thread.join();
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

void measure(const Case& c, bool with_backward, double peak, std::int64_t rounds) {
  std::vector<at::Tensor> inputs;
  for (int i = 0; i < 3; ++i)
    inputs.push_back(at::randn({c.batch, c.heads, c.length, c.width}, c.dtype).requires_grad_(with_backward));
  const at::Tensor given = at::randn_like(inputs[0]);
  const auto run_on = [&](attend::Backend backend) {
    return [&, options = attend::AttentionOptions().is_causal(c.is_causal).backend(backend)] {
      const at::Tensor output = attend::attention(inputs[0], inputs[1], inputs[2], options);
      if (with_backward) torch::autograd::grad({output}, {inputs[0], inputs[1], inputs[2]}, {given});
    };
  };
  const benchmark::Medians medians =
      benchmark::run_in_turn({run_on(attend::Backend::kCpu), run_on(attend::Backend::kSdpa)}, rounds, /*least=*/1.0);
  const double products = with_backward ? 7 : 2;  // of matrices, each with 2 N H L L D operations
  const double all = products * 2.0 * static_cast<double>(c.batch * c.heads * c.length * c.length * c.width);
  const double rate = (c.is_causal ? all / 2 : all) / medians.milliseconds[0] * 1e-6;
  std::printf("| N %lld, H %lld, L %lld, D %lld, %s, %s | %s | %.3g | %.3g | %.2f | %.0f | %.0f %% |\n",
              static_cast<long long>(c.batch), static_cast<long long>(c.heads), static_cast<long long>(c.length),
              static_cast<long long>(c.width), c.is_causal ? "causal" : "dense",
              c.dtype == at::kDouble ? "float64" : "float32", with_backward ? "forward + backward" : "forward",
              medians.milliseconds[0], medians.milliseconds[1], medians.ratios[1], rate, 100 * rate / peak);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::int64_t rounds = argc > 1 ? benchmark::positive(argv[1]) : 15;
    const double peaks[] = {peak_of(at::kFloat), peak_of(at::kDouble)};
    std::printf("Peak of %d threads %s float32: %.0f GFLOP/s, float64: %.0f GFLOP/s\n\n", at::get_num_threads(),
                attend::detail::with_instructions(at::kFloat).c_str(), peaks[0], peaks[1]);
    std::printf(
        "| call | pass | attend (ms) | ATen (ms) | ratio | GFLOP/s | share of the peak |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n");
    for (const Case& c : kCases)
      for (const bool with_backward : {false, true}) measure(c, with_backward, peaks[c.dtype == at::kDouble], rounds);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "product_rate: %s\nusage: product_rate [rounds, default 15]\n", error.what());
    return 1;
  }
}
