// SPDX-License-Identifier: MIT
//
// A score_mod and a mask_mod, compiled into one operator for Python: torch.ops.dilated_attention.attention. It is
// registered with TORCH_LIBRARY, so this file needs neither pybind11 nor Python's headers.

#include <attend/flex_attention.h>

#include <torch/library.h>

#include <cstdint>

namespace {

/// The score_mod: a penalty that grows with the logarithm of the distance, with two learned numbers per head.
/// Source: Chi et al., "KERPLE: Kernelized Relative Positional Embedding for Length Extrapolation", 2022.
struct LogarithmicPenalty {
  at::Tensor strength, rate;  // (H), both positive; may require a gradient

  struct View {
    attend::TensorView strength, rate;

    template <class T>
    ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
      const T distance = abs(T(at.query_position() - at.key));
      return score - strength.read<T>(at.head) * log(1 + rate.read<T>(at.head) * distance);
    }
  };

  View bind(attend::Binder& binder) const {
    const std::int64_t heads = binder.sizes().num_heads;
    TORCH_CHECK_VALUE(strength.sizes() == at::IntArrayRef({heads}) && rate.sizes() == at::IntArrayRef({heads}),
                      "strength and rate must have ", heads, " values each, got sizes ", strength.sizes(), " and ",
                      rate.sizes());
    return {binder.values(strength), binder.values(rate)};
  }
};

/// The mask_mod: every `dilation`-th key of the last `window` keys.
/// Source: Beltagy et al., "Longformer", 2020, section 3.1.
struct DilatedWindow {
  std::int32_t window, dilation;

  ATTEND_HOST_DEVICE bool operator()(attend::Coordinate at) const {
    const std::int32_t distance = at.query_position() - at.key;
    return 0 <= distance && distance < window && distance % dilation == 0;
  }

  // No key outside of this range is computed. Without `keys`, all keys are.
  ATTEND_HOST_DEVICE attend::KeyRange keys(attend::QueryBlock block) const {
    return {block.first_position() - window + 1, block.last_position() + 1};
  }
};

at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const at::Tensor& strength, const at::Tensor& rate, std::int64_t window, std::int64_t dilation) {
  constexpr std::int64_t kLargest = 1 << 30;
  TORCH_CHECK_VALUE(1 <= window && window <= kLargest, "window must be between 1 and ", kLargest, ", got ", window);
  TORCH_CHECK_VALUE(1 <= dilation && dilation <= kLargest, "dilation must be between 1 and ", kLargest, ", got ",
                    dilation);
  return attend::flex_attention(query, key, value, LogarithmicPenalty{strength, rate},
                                DilatedWindow{static_cast<std::int32_t>(window), static_cast<std::int32_t>(dilation)});
}

}  // namespace

// attend computes the gradients, so the operator needs no derivative of its own.
TORCH_LIBRARY(dilated_attention, library) {
  library.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor strength, Tensor rate, int window, int dilation=1) "
      "-> Tensor",
      &attention);
}
