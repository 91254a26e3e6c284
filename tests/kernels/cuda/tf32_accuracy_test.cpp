// SPDX-License-Identifier: MIT

// The table of errors in docs/cuda.md: float32 in tf32 beside the other types, by the kernels on the host.

#include "kernels/cuda/small_backward.h"
#include "kernels/cuda/small_forward.h"

#include <attend/kernels/cuda/forward_plan.cuh>
#include <attend/kernels/cuda/plain_backward.cuh>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace attend::test {
namespace {

/// Of the output and of the gradients of query, key and value.
struct Errors {
  double output, query, key, value;
};

/// The root mean square of the errors, divided by that of the numbers.
template <class Rows>
double error_of(const std::vector<double>& exact, const Rows& rows) {
  double of_errors = 0, of_numbers = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    of_errors += std::pow(rows(i) - exact[i], 2);
    of_numbers += std::pow(exact[i], 2);
  }
  return std::sqrt(of_errors / of_numbers);
}

template <class Kernel, class Call>
void run(const Kernel&, const Call& call, GlobalMemory& memory) {
  const CudaReport report = run_on_host({.grid = {static_cast<int>(Kernel::blocks(call)), 1, 1},
                                         .threads = Kernel::kThreads,
                                         .shared_bytes = Kernel::kSharedBytes},
                                        memory, [&] { Kernel::run(call, Unchanged{}, EveryKey{}); });
  CHECK(report.text() == "");
}

/// A causal call with normally distributed numbers that kType can hold.
template <NumberType kType, bool kHasTensorCores>
Errors errors() {
  constexpr int kQueries = 256, kKeys = 512;
  SmallForwardOf<kType> forward(kQueries, kKeys, /*is_causal=*/true, /*dropout=*/0);
  SmallBackwardOf<kType> backward(kQueries, kKeys, /*is_causal=*/true, /*dropout=*/0);
  const auto run_forward = [&](auto kernel, const cuda::Call& call) { run(kernel, call, forward.memory); };
  const auto run_backward = [&](auto kernel, const cuda::BackwardCall& call) { run(kernel, call, backward.memory); };
  if constexpr (kHasTensorCores)
    forward.launch_all(run_forward);
  else
    run_forward(cuda::detail::PlainForward<kType>(), forward.call);
  if constexpr (kType == NumberType::kFloat32) {  // what the forward pass saves
    backward.rounded_output.numbers = forward.computed_output.numbers;
    std::memcpy(backward.saved.data(), forward.computed_log_sum_exp.data(), 4 * forward.computed_log_sum_exp.size());
  }
  if constexpr (kHasTensorCores) {
    backward.launch_all(run_backward);
  } else {
    const cuda::detail::BackwardLayout layout(backward.call.forward, {});
    backward.call.plain_rows = reinterpret_cast<char*>(backward.workspace.data()) + layout.plain_rows;
    run_backward(cuda::PlainRowSums<float, Unchanged, EveryKey>(), backward.call);
    run_backward(cuda::PlainKeys<float, Unchanged, EveryKey>(), backward.call);
    run_backward(cuda::PlainQueries<float, Unchanged, EveryKey>(), backward.call);
  }
  return {error_of(forward.output, forward.computed_output), error_of(backward.query_gradient, backward.computed_query),
          error_of(backward.key_gradient, backward.computed_key),
          error_of(backward.value_gradient, backward.computed_value)};
}

}  // namespace
}  // namespace attend::test

TEST_CASE("cuda in tf32: the errors in docs/cuda.md, beside those of the other types") {
  using attend::NumberType;
  using attend::test::errors;
  struct Case {
    const char* name;
    attend::test::Errors computed, documented;
  };
  const Case cases[] = {
      {"float32", errors<NumberType::kFloat32, false>(), {4.4e-7, 5.6e-7, 5.9e-7, 5.6e-7}},
      {"tf32", errors<NumberType::kFloat32, true>(), {4.0e-4, 5.3e-4, 5.1e-4, 4.2e-4}},
      {"float16", errors<NumberType::kFloat16, true>(), {2.7e-4, 3.0e-4, 2.9e-4, 2.9e-4}},
      {"bfloat16", errors<NumberType::kBFloat16, true>(), {2.2e-3, 2.4e-3, 2.4e-3, 2.3e-3}},
  };
  for (const Case& each : cases) {
    CAPTURE(each.name);
    const auto check = [](double computed, double documented) {
      CHECK(std::fabs(computed - documented) < 0.03 * documented);
    };
    check(each.computed.output, each.documented.output);
    check(each.computed.query, each.documented.query);
    check(each.computed.key, each.documented.key);
    check(each.computed.value, each.documented.value);
  }
}
