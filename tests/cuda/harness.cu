// SPDX-License-Identifier: MIT

// One program, compiled wholly by nvcc, that has the kernels on tensor cores twice: for the host, where the harness
// runs them, and for a GPU. Both must be right and nearly equal. Without a GPU only the harness runs.

#include "kernels/cuda/small_backward.h"
#include "kernels/cuda/small_decode.h"
#include "kernels/cuda/small_forward.h"

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdio>
#include <type_traits>
#include <vector>

namespace {

using attend::EveryKey;
using attend::Unchanged;
using attend::test::Bfloat16Rows;
using attend::test::SmallBackward;
using attend::test::SmallDecode;
using attend::test::SmallForward;

constexpr int kSkipped = 77;  // counts as "skipped" for ctest

template <class Kernel, class Call>
__global__ void __launch_bounds__(Kernel::kThreads) run_kernel(const __grid_constant__ Call call) {
  Kernel::run(call, Unchanged{}, EveryKey{});
}

bool is_success(cudaError_t error) {
  if (error != cudaSuccess) std::printf("CUDA: %s\n", cudaGetErrorString(error));
  return error == cudaSuccess;
}

// Memory of the host that a GPU can access at the same addresses, until the end of the scope.
class Registered {
 public:
  Registered() = default;
  Registered(const Registered&) = delete;
  Registered& operator=(const Registered&) = delete;
  ~Registered() {
    for (void* data : registered_) cudaHostUnregister(data);
  }

  template <class Number>
  bool add(std::vector<Number>& numbers) {
    if (!is_success(cudaHostRegister(numbers.data(), numbers.size() * sizeof(Number), cudaHostRegisterMapped)))
      return false;
    registered_.push_back(numbers.data());
    return true;
  }

 private:
  std::vector<void*> registered_;
};

bool register_all(Registered& memory, SmallForward& pass) {
  return memory.add(pass.query.numbers) && memory.add(pass.key.numbers) && memory.add(pass.value.numbers) &&
         memory.add(pass.computed_output.numbers) && memory.add(pass.computed_log_sum_exp);
}
bool register_all(Registered& memory, SmallDecode& pass) {
  return register_all(memory, static_cast<SmallForward&>(pass)) && memory.add(pass.partials);
}
bool register_all(Registered& memory, SmallBackward& pass) {
  return memory.add(pass.query.numbers) && memory.add(pass.key.numbers) && memory.add(pass.value.numbers) &&
         memory.add(pass.output_gradient.numbers) && memory.add(pass.rounded_output.numbers) &&
         memory.add(pass.saved) && memory.add(pass.workspace) && memory.add(pass.computed_query.numbers) &&
         memory.add(pass.computed_key.numbers) && memory.add(pass.computed_value.numbers);
}

std::vector<Bfloat16Rows*> results_of(SmallForward& pass) { return {&pass.computed_output}; }
std::vector<Bfloat16Rows*> results_of(SmallBackward& pass) {
  return {&pass.computed_query, &pass.computed_key, &pass.computed_value};
}

// The pass on the GPU.
template <class Pass>
bool run_on_gpu(Pass& pass) {
  Registered memory;
  if (!register_all(memory, pass)) return false;
  bool is_right = true;
  pass.launch_all([&](auto kernel, const auto& call) {
    using Kernel = decltype(kernel);
    const auto function = &run_kernel<Kernel, std::decay_t<decltype(call)>>;
    is_right = is_right && is_success(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                           Kernel::kSharedBytes));
    if (!is_right) return;
    function<<<static_cast<unsigned>(Kernel::blocks(call)), Kernel::kThreads, Kernel::kSharedBytes>>>(call);
    is_right = is_success(cudaGetLastError());
  });
  return is_success(cudaDeviceSynchronize()) && is_right;
}

// The pass by the harness, and by a GPU if there is one.
template <class Pass>
bool check(int L, int S, bool is_causal, double dropout, bool has_gpu) {
  Pass pass(L, S, is_causal, dropout);
  if (!attend::test::run_and_print(pass) || !pass.check()) return false;
  if (!has_gpu) return true;
  std::vector<Bfloat16Rows> of_host;
  for (Bfloat16Rows* rows : results_of(pass)) {
    of_host.push_back(*rows);
    rows->numbers.assign(rows->numbers.size(), 0xFFFF);
  }
  if (!run_on_gpu(pass) || !pass.check()) return false;
  std::size_t i = 0;
  for (Bfloat16Rows* rows : results_of(pass)) {
    const Bfloat16Rows& expected = of_host[i++];
    std::vector<double> exact;
    for (std::size_t k = 0; k < expected.numbers.size(); ++k) exact.push_back(expected(k));
    if (!attend::test::check_and_print("result of the GPU, compared with the harness,", exact, *rows, 0.01))
      return false;
  }
  return true;
}

}  // namespace

int main() {
  int devices = 0;
  const bool has_gpu = cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
  for (const bool is_causal : {false, true})
    for (const double dropout : {0.0, 0.3})
      if (!check<SmallForward>(70, 215, is_causal, dropout, has_gpu) ||
          !check<SmallDecode>(3, 289, is_causal, dropout, has_gpu) ||
          !check<SmallBackward>(71, 215, is_causal, dropout, has_gpu))
        return 1;
  std::printf("the harness is right%s\n", has_gpu ? ", and the GPU" : "; skipped: this machine has no GPU");
  return has_gpu ? 0 : kSkipped;
}
