// SPDX-License-Identifier: MIT

// One program, compiled wholly by nvcc, that has the kernels on tensor cores twice: for the host, where the harness
// runs them, and for a GPU. Both must be right and nearly equal. Without a GPU only the harness runs.

#include "cuda/run_on_gpu.cuh"
#include "kernels/cuda/small_backward.h"
#include "kernels/cuda/small_decode.h"
#include "kernels/cuda/small_forward.h"

#include <cstddef>
#include <cstdio>
#include <exception>
#include <vector>

namespace {

using attend::NumberType;
using attend::test::SmallBackward;
using attend::test::SmallBackwardOf;
using attend::test::SmallDecode;
using attend::test::SmallForward;
using attend::test::SmallForwardOf;
using attend::test::SmallRows;

template <NumberType kType>
std::vector<SmallRows<kType>*> results_of(SmallForwardOf<kType>& pass) {
  return {&pass.computed_output};
}
template <NumberType kType>
std::vector<SmallRows<kType>*> results_of(SmallBackwardOf<kType>& pass) {
  return {&pass.computed_query, &pass.computed_key, &pass.computed_value};
}

// The pass by the harness, and by a GPU if there is one.
template <class Pass>
bool check(int L, int S, bool is_causal, double dropout, bool has_gpu) {
  Pass pass(L, S, is_causal, dropout);
  if (!attend::test::run_and_print(pass) || !pass.check()) return false;
  if (!has_gpu) return true;
  using Rows = typename Pass::Rows;
  std::vector<Rows> of_host;
  for (Rows* rows : results_of(pass)) {
    of_host.push_back(*rows);
    rows->clear();
  }
  pass.launch_all([&](auto kernel, const auto& call) {
    attend::test::run_on_gpu<decltype(kernel)>(call, attend::Unchanged(), attend::EveryKey(), pass.memory);
  });
  if (!pass.check()) return false;
  std::size_t i = 0;
  for (Rows* rows : results_of(pass)) {
    const Rows& expected = of_host[i++];
    std::vector<double> exact;
    for (std::size_t k = 0; k < expected.numbers.size(); ++k) exact.push_back(expected(k));
    if (!attend::test::check_and_print("result of the GPU, compared with the harness,", exact, *rows, 0.01))
      return false;
  }
  return true;
}

}  // namespace

int main() {
  const bool has_gpu = attend::test::has_gpu();
  try {
    for (const bool is_causal : {false, true})
      for (const double dropout : {0.0, 0.3})
        if (!check<SmallForward>(70, 215, is_causal, dropout, has_gpu) ||
            !check<SmallDecode>(3, 289, is_causal, dropout, has_gpu) ||
            !check<SmallBackward>(71, 215, is_causal, dropout, has_gpu) ||
            !check<SmallForwardOf<NumberType::kFloat32>>(70, 215, is_causal, dropout, has_gpu) ||
            !check<SmallBackwardOf<NumberType::kFloat32>>(71, 215, is_causal, dropout, has_gpu))
          return 1;
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 1;
  }
  std::printf("the harness is right%s\n", has_gpu ? ", and the GPU" : "; skipped: this machine has no GPU");
  return has_gpu ? 0 : attend::test::kSkipped;
}
