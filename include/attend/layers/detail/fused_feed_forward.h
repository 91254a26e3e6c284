// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/instruction_set.h>
#include <attend/detail/torch/fused_node.h>
#include <attend/detail/torch/parallel.h>
#include <attend/kernels/cpu/feed_forward.h>
#include <attend/kernels/cpu/feed_forward_activation.h>
#include <attend/kernels/cpu/workspace.h>
#include <attend/layers/detail/flat_dropout.h>
#include <attend/layers/detail/fused_linear.h>
#include <attend/version.h>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/relu.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// second(dropout(activation(first(x)))) on the CPU in float32. The hidden numbers are written once; their gradients
/// are not written at all. torch writes the hidden numbers three times, and three times more in the backward pass.
struct FusedFeedForward {
  /// Whether run() can compute the call, and is faster than torch (benchmarks/results/transformer.md). With few rows,
  /// packing the weights would take most of the time.
  static bool is_faster(const at::Tensor& x, const Linear& first, const Linear& second) {
    if (!is_measured(available_instruction_set())) return false;
    const auto is_read = [](const at::Tensor& input) {
      return !input.defined() || (is_plain_float(input) && input.is_contiguous());
    };
    if (x.dim() < 1 || !is_read(x)) return false;
    for (const Linear& layer : {first, second})
      if (!is_read(layer.weight) || !is_read(layer.bias) || layer.weight.size(0) % 16 != 0 ||
          layer.weight.size(1) % 16 != 0)
        return false;
    return x.numel() / x.size(-1) >= kRowsPerThread * at::get_num_threads();
  }

  static at::Tensor run(const at::Tensor& x, const Linear& first, cpu::HiddenActivation activation, double dropout,
                        const Linear& second) {
    return FusedNode<Fused>::run({activation, draw_flat_dropout(dropout)},
                                 {x, first.weight, first.bias, second.weight, second.bias})[0];
  }

 private:
  static constexpr std::int64_t kRowsPerThread = 96;

  struct Fused {
    cpu::HiddenActivation activation;
    cpu::FlatDropout dropout;

    const char* name() const { return "attend::feed_forward"; }

    FusedOutputs forward(const std::vector<at::Tensor>& inputs, bool with_backward) const {
      const cpu::FeedForwardSizes sizes = sizes_of(inputs);
      const at::Tensor& x = inputs[0];
      std::vector<std::int64_t> output_sizes = x.sizes().vec();
      output_sizes.back() = sizes.out;
      const at::Tensor output = at::empty(output_sizes, x.options());
      const at::Tensor hidden = at::empty({with_backward ? sizes.hidden_numbers() : 0}, x.options());
      const at::Tensor packed1 = at::empty({sizes.packed(sizes.width, sizes.hidden)}, x.options()),
                       packed2 = at::empty({sizes.packed(sizes.hidden, sizes.out)}, x.options());
      const cpu::FeedForwardForward pass{sizes,
                                         numbers(x),
                                         numbers(inputs[1]),
                                         numbers(inputs[2]),
                                         numbers(inputs[3]),
                                         numbers(inputs[4]),
                                         numbers(output),
                                         with_backward ? numbers(hidden) : nullptr,
                                         numbers(packed1),
                                         numbers(packed2),
                                         activation,
                                         dropout,
                                         tables()};
      pack(pass);
      each_block(sizes, cpu::FeedForwardForward::kMemory,
                 [&](std::int64_t block, bool, int, float* memory) { pass.compute(block, memory); });
      FusedOutputs result;
      result.outputs = {output};
      result.needs_outputs = false;
      if (with_backward) result.saved = {hidden};
      return result;
    }

    std::vector<at::Tensor> backward(const std::vector<at::Tensor>& inputs, const FusedOutputs& forward,
                                     const std::vector<at::Tensor>& given) const {
      using Sums = cpu::FeedForwardBackward::Sums;
      const cpu::FeedForwardSizes sizes = sizes_of(inputs);
      const at::Tensor& x = inputs[0];
      const at::Tensor gradient = given[0].to(at::kFloat).contiguous();
      const at::Tensor x_gradient = x.requires_grad() ? at::empty_like(x) : at::Tensor();
      const at::Tensor packed1 = at::empty({sizes.packed(sizes.hidden, sizes.width)}, x.options()),
                       packed2 = at::empty({sizes.packed(sizes.out, sizes.hidden)}, x.options());
      const int threads = threads_for(sizes);
      const std::int64_t count = Sums::numbers(sizes);
      const at::Tensor memory = at::empty({threads, count}, x.options());
      const cpu::FeedForwardBackward pass{sizes,
                                          numbers(x),
                                          numbers(inputs[1]),
                                          numbers(inputs[3]),
                                          numbers(gradient),
                                          numbers(forward.saved[0]),
                                          numbers(x_gradient),
                                          numbers(packed1),
                                          numbers(packed2),
                                          activation,
                                          dropout,
                                          tables()};
      pack(pass);
      each_block(sizes, pass.memory(), [&](std::int64_t block, bool is_first, int thread, float* scratch) {
        pass.compute(block, is_first, scratch, Sums(sizes, numbers(memory) + thread * count));
      });
      const Sums sums(sizes, numbers(memory));
      const auto sum = [&](const float* first, at::IntArrayRef shape) {
        const at::Tensor result = at::empty(shape, x.options());
        add_sums_of_threads(first, count, threads, result.numel(), numbers(result));
        return result;
      };
      const auto bias_gradient = [&](const at::Tensor& bias, const float* first) {
        return bias.defined() ? sum(first, bias.sizes()) : at::Tensor();
      };
      const at::Tensor panels =
          sum(sums.weight2, {cpu::FeedForwardSizes::panels(sizes.hidden), sizes.out, cpu::kPanel});
      return {x_gradient, sum(sums.weight1, inputs[1].sizes()), bias_gradient(inputs[2], sums.bias1),
              panels.transpose(0, 1).flatten(1).narrow(1, 0, sizes.hidden).contiguous(),
              bias_gradient(inputs[4], sums.bias2)};
    }

    std::vector<at::Tensor> reference(const std::vector<at::Tensor>& inputs) const {
      at::Tensor hidden = at::linear(inputs[0], inputs[1], inputs[2]);
      hidden = activation == cpu::HiddenActivation::kReLU ? at::relu(hidden) : at::gelu(hidden);
      if (dropout.is_active()) hidden = hidden * flat_dropout_factors(dropout, hidden);
      return {at::linear(hidden, inputs[3], inputs[4])};
    }

   private:
    static cpu::FeedForwardTables tables() { return cpu::feed_forward_tables(available_instruction_set()); }

    static float* numbers(const at::Tensor& tensor) {
      return tensor.defined() ? static_cast<float*>(tensor.data_ptr()) : nullptr;
    }

    static cpu::FeedForwardSizes sizes_of(const std::vector<at::Tensor>& inputs) {
      const at::Tensor& x = inputs[0];
      return {x.numel() / x.size(-1), x.size(-1), inputs[1].size(0), inputs[3].size(0)};
    }

    static int threads_for(const cpu::FeedForwardSizes& sizes) {
      return static_cast<int>(std::min<std::int64_t>(at::get_num_threads(), sizes.blocks()));
    }

    template <class Pass>
    static void pack(const Pass& pass) {
      parallel_ranges(pass.packs(), /*grain=*/4, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) pass.pack(i);
      });
    }

    /// Calls work(block, whether it is the thread's first, thread, memory for `size` floats) for all blocks. A thread's
    /// share is the same in every call, so that sums have the same order.
    template <class Work>
    static void each_block(const cpu::FeedForwardSizes& sizes, std::int64_t size, const Work& work) {
      const int threads = threads_for(sizes);
      parallel(threads, [&](int thread) {
        cpu::Workspace<float> memory;
        float* const own = memory.take(size);
        const std::int64_t begin = sizes.blocks() * thread / threads, end = sizes.blocks() * (thread + 1) / threads;
        for (std::int64_t block = begin; block < end; ++block) work(block, block == begin, thread, own);
      });
    }
  };
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
