// SPDX-License-Identifier: MIT
#pragma once

#include "kernels/cuda/small_call.h"

#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/forward_plan.cuh>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace attend::test {

/// The forward pass of a small call, with its memory.
template <NumberType kType>
struct SmallForwardOf : SmallCallOf<kType> {
  using Base = SmallCallOf<kType>;
  using Base::kColumns, Base::kHeads, Base::key, Base::log_sum_exp, Base::output, Base::params, Base::query,
      Base::value;
  static constexpr bool kIsTf32 = kType == NumberType::kFloat32;

  typename Base::Rows computed_output;
  std::vector<float> computed_log_sum_exp;
  GlobalMemory memory;
  cuda::Call call;

  SmallForwardOf(int L, int S, bool is_causal, double dropout, SmallRotary rotary = {})
      : Base(L, S, is_causal, dropout, rotary),
        computed_output(kHeads, L),
        computed_log_sum_exp(log_sum_exp.size(), std::numeric_limits<float>::quiet_NaN()) {
    query.add_to(memory, "query", /*is_output=*/false);
    key.add_to(memory, "key", /*is_output=*/false);
    value.add_to(memory, "value", /*is_output=*/false);
    this->add_rotary_to(memory);
    computed_output.add_to(memory, "output", /*is_output=*/true);
    memory.add_output(computed_log_sum_exp.data(), static_cast<std::int64_t>(4 * log_sum_exp.size()), "log_sum_exp");
    AttentionOutputs outputs;
    outputs.output = contiguous(computed_output.numbers.data(), kHeads, L, kColumns);
    outputs.log_sum_exp = computed_log_sum_exp.data();
    call = cuda::call_of(params, outputs);
  }

  /// Calls launch(kernel, call) for the kernel on tensor cores.
  template <class Launch>
  void launch_all(const Launch& launch) {
    if (cuda::detail::has_options(call))
      launch(cuda::detail::TensorCoreForward<kType, kColumns, true>(), call);
    else
      launch(cuda::detail::TensorCoreForward<kType, kColumns, false>(), call);
  }

  /// Prints what is wrong. Returns whether nothing is.
  bool check() const {
    const auto sum = [&](std::size_t i) { return static_cast<double>(computed_log_sum_exp[i]); };
    const bool is_output_right = check_and_print("output", output, computed_output, kIsTf32 ? 0.0006 : 0.006);
    return check_and_print("log_sum_exp", log_sum_exp, sum, kIsTf32 ? 1e-4 : 1e-6) && is_output_right;
  }
};

using SmallForward = SmallForwardOf<NumberType::kBFloat16>;

}  // namespace attend::test
