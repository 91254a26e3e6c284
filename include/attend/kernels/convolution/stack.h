// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/convolution/row_operations.h>
#include <attend/kernels/cpu/bf16_operations.h>
#include <attend/kernels/cpu/head_view.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/kernels/cpu/tile_operations.h>
#include <attend/simd/bfloat16.h>
#include <attend/version.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// One convolution of a stack.
struct Convolution {
  int in_channels, out_channels, kernel_size;
  bool has_relu;            // after it
  bool input_is_bfloat16;   // in the saved inputs
  bool has_bf16_dot;        // whether it uses dot products of bfloat16
  std::vector<float> bias;  // (out_row)

  // The weights as the forward pass reads them: (kernel_size · in_row, out_row), or, if the output is narrow,
  // (out_channels, kernel_size · in_row).
  std::vector<float> forward;
  // The weights with reversed taps as the backward pass reads them: (kernel_size · out_row, in_row), or, if the input
  // is narrow, (in_channels, kernel_size · out_row).
  std::vector<float> backward;
  // The same, with two neighbours of the first index in a word.
  std::vector<Bf16x2> forward_pairs, backward_pairs;

  int in_row() const { return row_of_channels(in_channels); }
  int out_row() const { return row_of_channels(out_channels); }
  int in_depth() const { return kernel_size * in_row(); }
  int out_depth() const { return kernel_size * out_row(); }
  bool has_narrow_input() const { return in_channels <= kFewChannels; }
  bool has_narrow_output() const { return out_channels <= kFewChannels; }

  /// The sums of the gradient of the weights are (in_depth, gradient_row), or, if the output is narrow, (out_channels,
  /// gradient_row).
  int gradient_row() const { return has_narrow_output() ? (in_depth() + 15) / 16 * 16 : out_row(); }
  std::int64_t gradient_size() const {
    return static_cast<std::int64_t>(gradient_row()) * (has_narrow_output() ? out_channels : in_depth());
  }

  /// Packs contiguous weights (out_channels, in_channels, kernel_size) into `forward` or forward_pairs.
  void pack_forward(const TileOperations<float>& operations, const RowOperations& row_operations,
                    const float* weights) {
    forward.assign(size_of(in_depth(), out_row()), 0.0f);
    const int depth = in_channels * kernel_size;
    if (has_narrow_output()) {
      float* const to = forward.data();
      for (int o = 0; o < out_channels; ++o)
        for (int c = 0; c < in_channels; ++c)
          for (int j = 0; j < kernel_size; ++j)
            to[o * in_depth() + j * in_row() + c] = weights[(o * in_channels + c) * kernel_size + j];
    } else {
      std::vector<float> transposed(static_cast<std::size_t>(depth) * kTileQueries);
      const HeadView<float> rows{reinterpret_cast<char*>(const_cast<float*>(weights)), depth, 1, false};  // to be read
      for (int o = 0; o < out_channels; o += kTileQueries) {
        const int count = std::min(out_channels - o, kTileQueries);
        operations.read_transposed(rows, o, count, columns_for(count), depth, 1.0f, transposed.data());
        for (int j = 0; j < kernel_size; ++j)
          for (int c = 0; c < in_channels; ++c)
            std::copy_n(transposed.data() + (c * kernel_size + j) * kTileQueries, count,
                        forward.data() + static_cast<std::int64_t>(j * in_row() + c) * out_row() + o);
      }
    }
    if (has_bf16_dot) pair(row_operations, forward, in_depth(), out_row(), forward_pairs);
  }

  /// Packs the same weights into `backward` or backward_pairs.
  void pack_backward(const RowOperations& row_operations, const float* weights) {
    const int depth = in_channels * kernel_size;
    backward.assign(size_of(out_depth(), in_row()), 0.0f);
    for (int o = 0; o < out_channels; ++o)
      for (int j = 0; j < kernel_size; ++j) {
        const int back = (kernel_size - 1 - j) * out_row() + o;
        const float* const from = weights + static_cast<std::int64_t>(o) * depth + j;
        float* const to = backward.data() + (has_narrow_input() ? back : back * in_row());
        const int step = has_narrow_input() ? out_depth() : 1;
        for (int c = 0; c < in_channels; ++c) to[c * step] = from[c * kernel_size];
      }
    if (has_bf16_dot) pair(row_operations, backward, out_depth(), in_row(), backward_pairs);
  }

  /// Adds the sums of all threads, and writes the gradient of the weights (out_channels, in_channels, kernel_size).
  void unpack(const TileOperations<float>& operations, const std::vector<const float*>& sums, float* to) const {
    const int depth = in_channels * kernel_size;
    if (has_narrow_output()) {
      for (int o = 0; o < out_channels; ++o)
        for (int c = 0; c < in_channels; ++c)
          for (int j = 0; j < kernel_size; ++j) {
            float sum = 0;
            for (const float* each : sums) sum += each[o * gradient_row() + j * in_row() + c];
            *to++ = sum;
          }
      return;
    }
    std::vector<float> transposed(static_cast<std::size_t>(depth) * kTileQueries);
    const HeadView<float> rows{reinterpret_cast<char*>(to), depth, 1, false};
    for (int o = 0; o < out_channels; o += kTileQueries) {
      const int count = std::min(out_channels - o, kTileQueries);
      for (int j = 0; j < kernel_size; ++j)
        for (int c = 0; c < in_channels; ++c) {
          float* const row = transposed.data() + static_cast<std::int64_t>(c * kernel_size + j) * kTileQueries;
          const std::int64_t from = static_cast<std::int64_t>(j * in_row() + c) * out_row() + o;
          std::copy_n(sums[0] + from, count, row);
          for (std::size_t t = 1; t < sums.size(); ++t)
            for (int i = 0; i < count; ++i) row[i] += sums[t][from + i];
        }
      operations.write_transposed(rows, o, count, depth, 1.0f, transposed.data());
    }
  }

 private:
  static std::size_t size_of(int rows, int row) { return static_cast<std::size_t>(std::int64_t{rows} * row); }

  /// Packs two neighbours of the first index into a word. Clears the numbers themselves.
  static void pair(const RowOperations& row_operations, std::vector<float>& weights, int rows, int row,
                   std::vector<Bf16x2>& pairs) {
    pairs.resize(size_of(rows / 2, row));
    row_operations.pack_floats(weights.data(), row, rows, pairs.data());
    weights.clear();
  }
};

/// One call of a stack of convolutions as plain numbers and pointers. Signals are contiguous (N, L, channels).
struct ConvStackParams {
  const TileOperations<float>* operations;
  const RowOperations* row_operations;
  const Bf16Operations* bf16 = nullptr;  // for products of bfloat16
  std::int64_t batch = 0;
  int length = 0, kernel_size = 0;
  std::vector<Convolution> convolutions;
  std::vector<float> zeros;   // largest_row() of them
  std::vector<void*> inputs;  // of each convolution: (slots, rows(), in_row), with zeros around each signal

  /// The number of zeros before the first position of an input. An even kernel_size has one more after the last.
  int zeros_before() const { return (kernel_size - 1) / 2; }
  int zeros_after() const { return kernel_size - 1 - zeros_before(); }

  /// The rows of an input with its zeros, and one more: products read whole vectors, and rows in pairs.
  int rows() const { return length + kernel_size; }

  /// The size of one slot, in numbers. Every slot begins at a cache line.
  std::int64_t input_size(std::size_t i) const {
    return (static_cast<std::int64_t>(rows()) * convolutions[i].in_row() + 2 * kLine - 1) / kLine * kLine;
  }

  /// The size of all inputs, in bytes.
  std::int64_t memory_for_inputs(std::int64_t slots) const {
    std::int64_t size = 0;
    for (std::size_t i = 0; i < convolutions.size(); ++i) size += slots * input_bytes(i);
    return size;
  }

  void set_inputs(void* memory, std::int64_t slots) {
    char* next = static_cast<char*>(memory);
    for (std::size_t i = 0; i < convolutions.size(); ++i) {
      inputs.push_back(next);
      next += slots * input_bytes(i);
    }
  }

  int largest_row() const {
    int row = 0;
    for (const Convolution& each : convolutions) row = std::max({row, each.in_row(), each.out_row()});
    return row;
  }

 private:
  // bfloat16 numbers in a cache line. It is a multiple of kRunOfRow, because kernels read whole runs.
  static constexpr std::int64_t kLine = 32;

  std::int64_t input_bytes(std::size_t i) const {
    return input_size(i) *
           static_cast<std::int64_t>(convolutions[i].input_is_bfloat16 ? sizeof(BFloat16) : sizeof(float));
  }
};

/// The input of convolution i, with the zeros around the signal. `slot` is the number of the signal in the batch or,
/// without a backward pass, of the thread.
template <class Element>
Element* input_rows(const ConvStackParams& stack, std::size_t i, std::int64_t slot) {
  return static_cast<Element*>(stack.inputs[i]) + slot * stack.input_size(i);
}

/// Calls action(pointer to the input of convolution i), typed.
template <class Action>
void with_input(const ConvStackParams& stack, std::size_t i, std::int64_t slot, const Action& action) {
  if (stack.convolutions[i].input_is_bfloat16)
    action(input_rows<BFloat16>(stack, i, slot));
  else
    action(input_rows<float>(stack, i, slot));
}

/// to (rows, to_row) = from (rows, width) in float32. The rows of `to` end with zeros.
template <class Element>
void widen(const Element* from, int from_row, int width, float* to, int to_row, int rows) {
  for (int l = 0; l < rows; ++l, from += from_row, to += to_row) {
    int c = 0;
    for (; c + 4 <= width; c += 4) copy_four(from + c, to + c);
    for (; c < width; ++c) to[c] = static_cast<float>(from[c]);
    for (; c < to_row; ++c) to[c] = 0.0f;
  }
}

/// The input of convolution i in float32: in place, or converted into `scratch`.
inline const float* input_in_float32(const ConvStackParams& stack, std::size_t i, std::int64_t slot, float* scratch) {
  if (!stack.convolutions[i].input_is_bfloat16) return input_rows<float>(stack, i, slot);
  const int row = stack.convolutions[i].in_row();
  widen(input_rows<BFloat16>(stack, i, slot), row, row, scratch, row, stack.rows());
  return scratch;
}

/// FinishRows for all positions.
inline void finish_rows(const ConvStackParams& stack, const float* from, int from_row, const float* bias, float* to,
                        int to_row, int width, bool has_relu) {
  stack.row_operations->finish(from, from_row, bias, to, to_row, stack.length, width, has_relu);
}
inline void finish_rows(const ConvStackParams& stack, const float* from, int from_row, const float* bias, BFloat16* to,
                        int to_row, int width, bool has_relu) {
  stack.row_operations->finish_bfloat16(from, from_row, bias, to, to_row, stack.length, width, has_relu);
}

/// GradientRows for all positions.
inline void gradient_rows(const ConvStackParams& stack, const float* from, int from_row, const float* output,
                          int output_row, float* to, int to_row, int width) {
  stack.row_operations->gradient(from, from_row, output, output_row, to, to_row, stack.length, width);
}
inline void gradient_rows(const ConvStackParams& stack, const float* from, int from_row, const BFloat16* output,
                          int output_row, float* to, int to_row, int width) {
  stack.row_operations->gradient_bfloat16(from, from_row, output, output_row, to, to_row, stack.length, width);
}

/// Clears the first `before` of `rows` rows, and those after the next `length`.
template <class Element>
void clear_around(Element* memory, int row, int rows, int before, int length) {
  const auto clear = [&](int begin, int end) {
    Element *const first = memory + std::int64_t{begin} * row, *const last = memory + std::int64_t{end} * row;
    std::memset(static_cast<void*>(first), 0, sizeof(Element) * static_cast<std::size_t>(last - first));
  };
  clear(0, before);
  clear(before + length, rows);
}

/// to (L, to_row) = A W. Row l of A is the kernel_size · row numbers from rows + l · row on; W has to_row columns. Each
/// tap is one product, so that its part of W stays in the L1 cache.
inline void multiply_rows(const ConvStackParams& stack, const float* rows, int row, const float* weights, float* to,
                          int to_row) {
  const int depth = stack.kernel_size * row, step = std::max(row, 64);
  for (int k = 0; k < depth; k += step)
    stack.operations->product({rows + k, row, 1}, weights + static_cast<std::int64_t>(k) * to_row, to_row, to, to_row,
                              stack.length, to_row, std::min(step, depth - k), /*add=*/k > 0);
}

/// The same in pairs of bfloat16.
inline void multiply_rows(const ConvStackParams& stack, const BFloat16* rows, int row, const Bf16x2* weights, float* to,
                          int to_row) {
  const int words = row / 2, depth = stack.kernel_size * words, step = std::max(words, 64);
  const auto* pairs = reinterpret_cast<const Bf16x2*>(rows);
  for (int k = 0; k < depth; k += step)
    stack.bf16->product({pairs + k, words, 1}, weights + static_cast<std::int64_t>(k) * to_row, to_row, to, to_row,
                        stack.length, to_row, std::min(step, depth - k), /*add=*/k > 0, 1.0f);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
