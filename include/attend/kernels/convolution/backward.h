// SPDX-License-Identifier: MIT
#pragma once

// Backward pass of a stack of convolutions on the CPU.
//
//   for each signal of a thread's share of the batch:
//     for each convolution, from the last:
//       dY = dX of the next, where its input relu(Y) > 0        (L, out channels)
//       d bias += Σ_l dY
//       dW_j += X_jᵀ dY                                         (in channels, out channels)
//       dX = Σ_j dY_j W'_j                                      W' is W with reversed taps and exchanged channels
//
// So both gradients are products of overlapping rows, as in the forward pass. X is read number by number in place, so
// nothing is transposed in float32. Each thread has its own sums, which are added in the order of the threads: the same
// number of threads gives the same bits. benchmarks/results/convolution.md has the time of each part of a training
// step.

#include <attend/kernels/convolution/stack.h>
#include <attend/kernels/cpu/workspace.h>
#include <attend/simd/bfloat16.h>
#include <attend/version.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// The sums of one thread: for each convolution, the gradients of its weights (Convolution::gradient_size() numbers)
/// and of its bias.
struct ConvStackGradients {
  std::vector<float*> weights, bias;
};

template <class Element>
class ConvStackBackward {
 public:
  ConvStackBackward(const ConvStackParams& stack, Workspace<float>& memory) : stack_(stack) {
    memory.begin_again();
    const std::int64_t size = static_cast<std::int64_t>(stack.rows()) * stack.largest_row() + kRunOfRow;
    for (float** each : {&gradient_, &next_, &wide_, &even_, &odd_, &paired_, &rounded_}) *each = memory.take(size);
  }

  /// Computes signal n: reads y and its gradient (N, L, out channels), adds to the sums, and writes the gradient of x
  /// (N, L, in channels) unless it is null. y is read only if a ReLU follows the last convolution.
  void signal(std::int64_t n, const Element* y, const Element* y_gradient, Element* x_gradient,
              const ConvStackGradients& sums) {
    const int L = stack_.length;
    const Convolution &first = stack_.convolutions.front(), &last = stack_.convolutions.back();
    const std::int64_t begin = n * L * last.out_channels;
    widen(y_gradient + begin, last.out_channels, last.out_channels, next_, last.out_row(), L);
    for (std::size_t i = stack_.convolutions.size(); i-- > 0;) {
      const Convolution& convolution = stack_.convolutions[i];
      const int row = convolution.out_row();
      clear_around(gradient_, row, stack_.rows(), stack_.zeros_after(), L);
      dY_ = gradient_ + stack_.zeros_after() * row;
      if (!convolution.has_relu)
        finish_rows(stack_, next_, row, stack_.zeros.data(), dY_, row, convolution.out_channels, /*has_relu=*/false);
      else if (&convolution == &last)
        gradient_rows(stack_, next_, row, y + begin, last.out_channels, dY_, row, last.out_channels);
      else
        with_input(stack_, i + 1, n, [&](const auto* input) {
          gradient_rows(stack_, next_, row, input + stack_.zeros_before() * row, row, dY_, row,
                        convolution.out_channels);
        });
      stack_.row_operations->add_columns(dY_, row, L, convolution.out_channels, sums.bias[i]);
      const bool has_next = i > 0 || x_gradient != nullptr;
      if (convolution.has_bf16_dot)
        in_pairs(i, n, sums.weights[i], has_next);
      else
        in_float32(i, n, sums.weights[i], has_next);
    }
    if (x_gradient != nullptr)
      finish_rows(stack_, next_, first.in_row(), stack_.zeros.data(), x_gradient + n * L * first.in_channels,
                  first.in_channels, first.in_channels, /*has_relu=*/false);
  }

 private:
  void in_float32(std::size_t i, std::int64_t n, float* sums, bool has_next) {
    const Convolution& convolution = stack_.convolutions[i];
    const int in_row = convolution.in_row(), row = convolution.out_row(), L = stack_.length;
    const float* const input = input_in_float32(stack_, i, n, wide_);
    const int sums_row = convolution.gradient_row();
    if (convolution.has_narrow_output())
      stack_.operations->product({dY_, 1, row}, input, in_row, sums, sums_row, convolution.out_channels, sums_row, L,
                                 /*add=*/true);
    else
      stack_.operations->product({input, 1, in_row}, dY_, row, sums, sums_row, convolution.in_depth(), row, L,
                                 /*add=*/true);
    if (!has_next) return;
    if (convolution.has_narrow_input())
      stack_.row_operations->narrow_product(gradient_, row, convolution.backward.data(), convolution.out_depth(), next_,
                                            in_row, L, convolution.in_channels, convolution.out_depth());
    else
      multiply_rows(stack_, gradient_, row, convolution.backward.data(), next_, in_row);
  }

  /// Products of bfloat16 in pairs: pairs of neighbouring positions for dW, and of neighbouring channels for dX.
  void in_pairs(std::size_t i, std::int64_t n, float* sums, bool has_next) {
    const Convolution& convolution = stack_.convolutions[i];
    const int in_row = convolution.in_row(), row = convolution.out_row(), L = stack_.length;
    auto* const rounded = reinterpret_cast<BFloat16*>(rounded_);
    auto *const dY_pairs = reinterpret_cast<Bf16x2*>(paired_), *const even = reinterpret_cast<Bf16x2*>(even_),
                *const odd = reinterpret_cast<Bf16x2*>(odd_);
    clear_around(rounded, row, stack_.rows(), stack_.zeros_after(), L);
    BFloat16* const dY_rounded = rounded + stack_.zeros_after() * row;
    stack_.row_operations->finish_bfloat16(dY_, row, stack_.zeros.data(), dY_rounded, row, L, row, /*has_relu=*/false);

    const auto words = [](const BFloat16* numbers) { return reinterpret_cast<const std::uint16_t*>(numbers); };
    stack_.bf16->pack_rows(words(dY_rounded), row, L, row, dY_pairs, row);
    const BFloat16* const input = input_rows<BFloat16>(stack_, i, n);
    stack_.bf16->pack_rows(words(input), in_row, stack_.rows(), in_row, even, in_row);
    if (stack_.kernel_size > 1)
      stack_.bf16->pack_rows(words(input + in_row), in_row, stack_.rows() - 1, in_row, odd, in_row);
    for (int j = 0; j < stack_.kernel_size; ++j)
      stack_.bf16->product({(j % 2 == 0 ? even : odd) + j / 2 * in_row, 1, in_row}, dY_pairs, row,
                           sums + static_cast<std::int64_t>(j) * in_row * row, row, in_row, row, (L + 1) / 2,
                           /*add=*/true, 1.0f);
    if (!has_next) return;
    multiply_rows(stack_, rounded, row, convolution.backward_pairs.data(), next_, in_row);
  }

  const ConvStackParams& stack_;
  float* gradient_ = nullptr;  // dY with zeros around it
  float* dY_ = nullptr;        // dY itself
  float* next_ = nullptr;      // dX: the dY of the convolution before
  float *wide_ = nullptr, *even_ = nullptr, *odd_ = nullptr, *paired_ = nullptr, *rounded_ = nullptr;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
