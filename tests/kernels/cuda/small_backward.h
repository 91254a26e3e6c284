// SPDX-License-Identifier: MIT
#pragma once

#include "kernels/cuda/small_call.h"

#include <attend/kernels/cuda/backward_plan.cuh>
#include <attend/kernels/cuda/call.cuh>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace attend::test {

/// The backward pass of a small call, with its memory.
template <NumberType kType>
struct SmallBackwardOf : SmallCallOf<kType> {
  using Base = SmallCallOf<kType>;
  using Base::kColumns, Base::kHeads, Base::key, Base::key_gradient, Base::log_sum_exp, Base::output,
      Base::output_gradient, Base::params, Base::query, Base::query_gradient, Base::value, Base::value_gradient;

  typename Base::Rows rounded_output, computed_query, computed_key, computed_value;
  std::vector<double> saved, workspace;
  GlobalMemory memory;
  cuda::BackwardCall call;

  SmallBackwardOf(int L, int S, bool is_causal, double dropout, SmallRotary rotary = {})
      : Base(L, S, is_causal, dropout, rotary),
        rounded_output(kHeads, L),
        computed_query(kHeads, L),
        computed_key(1, S),
        computed_value(1, S),
        saved(static_cast<std::size_t>(cuda::saved_bytes(params)) / 8 + 1) {
    AttentionOutputs outputs;
    outputs.output = contiguous(rounded_output.numbers.data(), kHeads, L, kColumns);
    outputs.saved = saved.data();
    outputs.saved_bytes = static_cast<std::int64_t>(8 * saved.size());
    const cuda::Call forward = cuda::call_of(params, outputs);
    save(forward);

    AttentionGradients gradients;
    gradients.output = contiguous(output_gradient.numbers.data(), kHeads, L, kColumns);
    gradients.query = contiguous(computed_query.numbers.data(), kHeads, L, kColumns);
    gradients.key = contiguous(computed_key.numbers.data(), 1, S, kColumns);
    gradients.value = contiguous(computed_value.numbers.data(), 1, S, kColumns);
    const std::int64_t bytes = cuda::backward_workspace_bytes(forward, gradients);
    workspace.assign(static_cast<std::size_t>(bytes / 8 + 1), std::numeric_limits<double>::quiet_NaN());
    call = cuda::detail::backward_call_of(forward, gradients, workspace.data(), bytes);
    call.plain_rows = nullptr;

    query.add_to(memory, "query", /*is_output=*/false);
    key.add_to(memory, "key", /*is_output=*/false);
    value.add_to(memory, "value", /*is_output=*/false);
    this->add_rotary_to(memory);
    output_gradient.add_to(memory, "gradient of output", /*is_output=*/false);
    rounded_output.add_to(memory, "output", /*is_output=*/false);
    memory.add_input(saved.data(), outputs.saved_bytes, "saved");
    memory.add_output(workspace.data(), bytes, "workspace");
    computed_query.add_to(memory, "gradient of query", /*is_output=*/true);
    computed_key.add_to(memory, "gradient of key", /*is_output=*/true);
    computed_value.add_to(memory, "gradient of value", /*is_output=*/true);
  }

  /// Calls launch(kernel, call) for each kernel, in order.
  template <class Launch>
  void launch_all(const Launch& launch) {
    launch(cuda::TensorCoreRowSums<kType>(), call);
    launch(cuda::TensorCoreKeys<kType, kColumns, cuda::KeyPart::kBoth, Unchanged, EveryKey>(), call);
    launch(cuda::TensorCoreQueries<kType, kColumns, Unchanged, EveryKey>(), call);
  }

  /// Prints what is wrong. Returns whether nothing is.
  bool check() const {
    // Four times the root mean square errors of docs/cuda.md. tf32_test.cpp and backward_test.cpp check the accuracy.
    constexpr double kLimit = kType == NumberType::kFloat32 ? 0.002 : 0.01;
    const bool is_query_right = check_and_print("gradient of query", query_gradient, computed_query, kLimit);
    const bool is_key_right = check_and_print("gradient of key", key_gradient, computed_key, kLimit);
    return check_and_print("gradient of value", value_gradient, computed_value, kLimit) && is_query_right &&
           is_key_right;
  }

 private:
  // What the forward pass leaves: the output, what its rounding has cut off, and the log-sum-exp.
  void save(const cuda::Call& forward) {
    for (std::size_t i = 0; i < output.size(); ++i) {
      const float exact = static_cast<float>(output[i]);
      rounded_output.numbers[i] = cuda::detail::stored_of<kType>(exact);
      if (forward.output_rest != nullptr)
        static_cast<typename Base::Rows::Number*>(forward.output_rest)[i] =
            cuda::detail::stored_of<kType>(exact - static_cast<float>(rounded_output(i)));
    }
    for (std::size_t i = 0; i < log_sum_exp.size(); ++i)
      static_cast<float*>(forward.saved_log_sum_exp)[i] = static_cast<float>(log_sum_exp[i]);
  }
};

using SmallBackward = SmallBackwardOf<NumberType::kBFloat16>;

}  // namespace attend::test
