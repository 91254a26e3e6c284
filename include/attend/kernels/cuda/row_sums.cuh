// SPDX-License-Identifier: MIT
#pragma once

// The sums of each row that the tensor-core kernels of the backward pass read:
//
//   δ = Σ dO · O − d(log-sum-exp),   and the log-sum-exp, so that P = 2^((score − log-sum-exp) · log₂ e)
//
// One warp per row, one pair of numbers per lane at a time. The kernel reads 3 numbers of 16 bits per output and writes
// 16 bytes per row; it is limited by memory.
//
// O is `output` + `output_rest`. An error of δ affects all keys of a query. With O rounded to 16 bits, the gradients
// would have several times the error of the dense formula.
//
// A float32 output has no rest. δ is subtracted from the products dO · v, and the two are nearly equal. So both must be
// computed from the same rounded numbers: O by a forward pass in tf32, and dO rounded to tf32 here, too.

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/simd/math.h>
#include <attend/version.h>
#include <attend/kernels/cuda/backward_call.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/number.cuh>
#include <attend/kernels/cuda/sequence.cuh>
#include <attend/kernels/cuda/warp.cuh>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

namespace detail {

/// The numbers of a query that the kernels read. log_sum_exp is ∞ if the query has no key.
///
/// `rest` is log₂ e times the rounding error: the log-sum-exp before rounding minus log_sum_exp. It matters where an
/// added mask has the same large number for all keys, for example −10⁹.
struct alignas(16) TensorRow {
  float log_sum_exp, rest, delta, padding = 0;

  /// e^(score − log-sum-exp).
  ATTEND_HOST_DEVICE float weight(float score) const { return exp2_fast((score - log_sum_exp) * kLog2e - rest); }
};

}  // namespace detail

/// One thread of the kernel that writes BackwardCall::rows, and plain_rows if it is not null.
template <NumberType kType>
struct TensorCoreRowSums {
  static constexpr const char* name() { return "row_sums"; }
  static constexpr int kThreads = 128, kSharedBytes = 0, kRows = kThreads / kWarpSize;

  static std::int64_t blocks(const BackwardCall& call) { return (rows(call) + kRows - 1) / kRows; }

  template <class Score, class Mask>
  ATTEND_HOST_DEVICE static void run(const BackwardCall& call, const Score&, const Mask&) {
    const Call& forward = call.forward;
    const std::int64_t row = std::int64_t{block_index().x} * kRows + warp_index();
    if (row >= rows(call)) return;
    const auto i = static_cast<std::int32_t>(row % forward.queries);
    const std::int64_t head_row = row / forward.queries;
    const auto head = static_cast<std::int32_t>(head_row % forward.heads),
               batch = static_cast<std::int32_t>(head_row / forward.heads);
    const std::int64_t output = detail::row_place(forward.output.strides, batch, head, i),
                       gradient = detail::row_place(call.output_gradient.strides, batch, head, i);
    float sum = 0;
    for (std::int32_t d = lane_index(); d < forward.value_dim; d += kWarpSize) {
      float number = detail::load_number<kType>(forward.output.data, output + d * forward.output.strides[3]);
      if constexpr (detail::kIsRounded<kType>)
        number += detail::load_number<kType>(forward.output_rest, row * forward.value_dim + d);
      float factor =
          detail::load_number<kType>(call.output_gradient.data, gradient + d * call.output_gradient.strides[3]);
      if constexpr (kType == NumberType::kFloat32) factor = __builtin_bit_cast(float, round_to_tf32(factor));
      sum += number * factor;
    }
    sum = detail::sum_of_lanes<kWarpSize>(sum);
    if (lane_index() != 0) return;
    if (call.log_sum_exp_gradient != nullptr)
      sum -= load_global(static_cast<const float*>(call.log_sum_exp_gradient) + row);
    const float log_sum_exp = load_global(static_cast<const float*>(forward.saved_log_sum_exp) + row);
    const float rest = load_global(static_cast<const float*>(forward.log_sum_exp_rest) + row);
    constexpr float kInfinity = simd::FloatFormat<float>::kInfinity;
    store_global(static_cast<detail::TensorRow*>(call.rows) + row,
                 {log_sum_exp == -kInfinity ? kInfinity : log_sum_exp, rest * detail::kLog2e, sum});
    if (call.plain_rows == nullptr) return;
    float* const plain = static_cast<float*>(call.plain_rows) + 3 * row;
    store_global(plain, log_sum_exp);
    store_global(plain + 1, exp2_fast(-rest * detail::kLog2e));
    store_global(plain + 2, sum);
  }

 private:
  ATTEND_HOST_DEVICE static std::int64_t rows(const BackwardCall& call) {
    return std::int64_t{call.forward.batch_size} * call.forward.heads * call.forward.queries;
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
