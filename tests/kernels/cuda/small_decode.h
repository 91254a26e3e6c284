// SPDX-License-Identifier: MIT
#pragma once

#include "kernels/cuda/small_forward.h"

#include <attend/kernels/cuda/forward_plan.cuh>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace attend::test {

/// The forward pass of few queries, whose keys are split, with its memory.
struct SmallDecode : SmallForward {
  std::vector<float> partials;

  SmallDecode(int L, int S, bool is_causal, double dropout, SmallRotary rotary = {})
      : SmallForward(L, S, is_causal, dropout, rotary) {
    call.splits = cuda::detail::decode_splits(call);
    partials.assign(static_cast<std::size_t>(kHeads * L * call.splits * (kColumns + 2)),
                    std::numeric_limits<float>::quiet_NaN());
    call.partials = partials.data();
    memory.add_output(partials.data(), static_cast<std::int64_t>(4 * partials.size()), "partials");
  }

  /// Calls launch(kernel, call) for both kernels, in order.
  template <class Launch>
  void launch_all(const Launch& launch) {
    launch(cuda::detail::Decode<NumberType::kBFloat16, kColumns, /*kHasOptions=*/true>(), call);
    launch(cuda::detail::Combine<NumberType::kBFloat16>(), call);
  }
};

}  // namespace attend::test
