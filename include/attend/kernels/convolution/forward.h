// SPDX-License-Identifier: MIT
#pragma once

// Forward pass of a stack of convolutions on the CPU.
//
//   for each signal of the batch (one task):
//     for each convolution:
//       Y = bias + Σ_j X_j W_j      (L, out channels); X_j is X, with zeros around it, from row j on
//       X = relu(Y)                 saved for the backward pass
//
// A row is a position, its channels side by side. Then the inputs of an output are contiguous, and a convolution is a
// matrix product whose left side has overlapping rows: nothing is unfolded. A signal passes through the whole stack
// while it is in the caches.

#include <attend/kernels/convolution/stack.h>
#include <attend/kernels/cpu/workspace.h>
#include <attend/simd/bfloat16.h>
#include <attend/version.h>

#include <cstddef>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Computes signal n of y (N, L, out channels) from that of x (N, L, in channels). The inputs of the convolutions are
/// saved in `slot`.
template <class Element>
void forward_signal(const ConvStackParams& stack, std::int64_t n, std::int64_t slot, const Element* x, Element* y,
                    Workspace<float>& memory) {
  memory.begin_again();
  const int L = stack.length;
  const std::int64_t size = static_cast<std::int64_t>(stack.rows()) * stack.largest_row() + kRunOfRow;
  float *const sums = memory.take(size), *const wide = memory.take(size);

  const Convolution &first = stack.convolutions.front(), &last = stack.convolutions.back();
  widen(x + n * L * first.in_channels, first.in_channels, first.in_channels, sums, first.in_row(), L);
  for (std::size_t i = 0; i < stack.convolutions.size(); ++i) {
    const Convolution& convolution = stack.convolutions[i];
    const int row = convolution.in_row(), out_row = convolution.out_row();
    with_input(stack, i, slot, [&](auto* input) {
      clear_around(input, row, stack.rows(), stack.zeros_before(), L);
      const bool is_first = i == 0;
      finish_rows(stack, sums, row, is_first ? stack.zeros.data() : stack.convolutions[i - 1].bias.data(),
                  input + stack.zeros_before() * row, row, convolution.in_channels,
                  !is_first && stack.convolutions[i - 1].has_relu);
    });
    if (convolution.has_bf16_dot) {
      multiply_rows(stack, input_rows<BFloat16>(stack, i, slot), row, convolution.forward_pairs.data(), sums, out_row);
    } else {
      const float* input = input_in_float32(stack, i, slot, wide);
      if (convolution.has_narrow_output())
        stack.row_operations->narrow_product(input, row, convolution.forward.data(), convolution.in_depth(), sums,
                                             out_row, L, convolution.out_channels, convolution.in_depth());
      else
        multiply_rows(stack, input, row, convolution.forward.data(), sums, out_row);
    }
  }
  finish_rows(stack, sums, last.out_row(), last.bias.data(), y + n * L * last.out_channels, last.out_channels,
              last.out_channels, last.has_relu);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
