// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/instruction_set.h>
#include <attend/detail/torch/autocast.h>
#include <attend/detail/torch/const_data.h>
#include <attend/detail/torch/fused_node.h>
#include <attend/detail/torch/parallel.h>
#include <attend/detail/torch/refused.h>
#include <attend/kernels/convolution/backward.h>
#include <attend/kernels/convolution/forward.h>
#include <attend/layers/detail/convolution_stack.h>
#include <attend/version.h>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// attend's own convolutions for the CPU (kernels/convolution/).
struct CpuConvolution {
  /// Whether these kernels can compute it. If not, `reason` says why, unless it is null.
  static bool can_run(const ConvolutionStack& stack, const at::Tensor& x, std::string* reason = nullptr) {
    if (!x.is_cpu()) return refused(reason, "kCpu runs on the CPU only; x is on ", x.device().type(), ".");
    const at::ScalarType dtype = dtype_under_autocast(x);
    if (dtype != at::kFloat && dtype != at::kBFloat16)
      return refused(reason, "kCpu supports convolutions in float32 and bfloat16, not in ", dtype, ".");
    if (available_instruction_set() == simd::InstructionSet::kPortable)
      return refused(reason, "kCpu needs AVX2, AVX-512 or NEON for convolutions.");
    if (dtype == at::kBFloat16 && !simd::has_bf16_dot(available_instruction_set()))
      return refused(reason, "kCpu needs AVX512_BF16, or BF16 on ARM, for convolutions in bfloat16.");
    if (x.numel() == 0) return refused(reason, "kCpu needs a non-empty x.");
    if (x._fw_grad(/*level=*/0).defined()) return refused(reason, "kCpu computes no forward-mode derivatives.");
    // Sizes that do not fit together are left to torch, which reports the error.
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() / 4;
    std::int64_t channels = x.size(1);
    for (std::size_t i = 0; i < stack.weights.size(); ++i) {
      const at::Tensor &weight = stack.weights[i], &bias = stack.biases[i];
      const std::int64_t kernel_size = stack.weights.front().size(-1);
      if (weight.dim() != 3 || weight.size(1) != channels || weight.size(2) != kernel_size || weight.numel() == 0 ||
          (bias.defined() && (bias.dim() != 1 || bias.size(0) != weight.size(0))))
        return refused(reason, "kCpu cannot compute convolution ", i, ", which has weights ", weight.sizes(), " for ",
                       channels, " channels.");
      for (const at::Tensor& parameter : {weight, bias}) {
        if (!parameter.defined()) continue;
        if (parameter._fw_grad(/*level=*/0).defined())
          return refused(reason, "kCpu computes no forward-mode derivatives.");
        if (!parameter.is_cpu() || (parameter.scalar_type() != at::kFloat && parameter.scalar_type() != at::kBFloat16))
          return refused(reason, "kCpu needs weights of float32 or bfloat16 on the CPU; these are ",
                         parameter.scalar_type(), " on ", parameter.device().type(), ".");
      }
      const std::int64_t widest = std::max(weight.size(0), weight.size(1)) + 16;
      if (widest > kMost / widest / kernel_size || x.size(2) + kernel_size > kMost / widest)
        return refused(reason, "kCpu cannot compute a signal or weights of this size.");
      channels = weight.size(0);
    }
    return true;
  }

  /// Whether these kernels are at least as fast as torch. If not, `reason` says why, unless it is null. The rule
  /// follows from benchmarks/results/convolution.md.
  static bool is_faster(const ConvolutionStack& stack, const at::Tensor& x, std::string* reason = nullptr) {
    if (!is_measured(available_instruction_set()))
      return refused(reason, "kCpu can run, but its speed on this kind of processor was never measured.");
    if (x.size(0) < at::get_num_threads())
      return refused(reason, "kCpu can run, but a batch of ", x.size(0), " does not keep ", at::get_num_threads(),
                     " threads busy.");
    constexpr std::int64_t kWidest = 128;
    for (const at::Tensor& weight : stack.weights) {
      if (std::max(weight.size(0), weight.size(1)) > kWidest)
        return refused(reason, "kCpu can run, but torch is faster for more than ", kWidest, " channels.");
      if (std::max(weight.size(0), weight.size(1)) <= cpu::kFewChannels)
        return refused(reason, "kCpu can run, but torch is faster for a convolution with at most ", cpu::kFewChannels,
                       " input and output channels.");
    }
    return true;
  }

  static std::string how(const at::Tensor& x) {
    return "kCpu runs attend's own convolutions " + with_instructions(dtype_under_autocast(x));
  }

  static std::string copies(const at::Tensor& x) {
    return x.transpose(1, 2).is_contiguous() ? "" : "It copies x, so that the channels are side by side in memory.";
  }

  /// x (N, in channels, L) to (N, out channels, L), whose channels lie side by side in memory.
  static at::Tensor run(const ConvolutionStack& stack, const at::Tensor& x) {
    std::vector<at::Tensor> inputs{x.to(dtype_under_autocast(x)).transpose(1, 2).contiguous()};  // (N, L, in channels)
    inputs.insert(inputs.end(), stack.weights.begin(), stack.weights.end());
    inputs.insert(inputs.end(), stack.biases.begin(), stack.biases.end());
    return FusedNode<Fused>::run({stack.has_relu, stack.has_relu_after_last}, inputs)[0].transpose(1, 2);
  }

 private:
  /// inputs: x (N, L, in channels), the weights, the biases. One output, (N, L, out channels).
  struct Fused {
    bool has_relu, has_relu_after_last;

    const char* name() const { return "attend::ConvStack"; }

    FusedOutputs forward(const std::vector<at::Tensor>& inputs, bool with_backward) const {
      const at::Tensor& x = inputs[0];
      cpu::ConvStackParams stack = packed(inputs, /*for_backward=*/false);
      const int threads = threads_for(stack);
      FusedOutputs result;
      result.outputs = {at::empty({x.size(0), x.size(1), stack.convolutions.back().out_channels}, x.options())};
      result.needs_outputs = has_relu_after_last;
      // One block of memory. Several smaller ones would return to the system after each step and be mapped again page
      // by page, which takes a quarter of the time of a forward pass.
      result.saved = {
          at::empty({stack.memory_for_inputs(with_backward ? stack.batch : threads)}, x.options().dtype(at::kByte))};
      stack.set_inputs(result.saved[0].data_ptr(), with_backward ? stack.batch : threads);
      with_elements(x, [&](auto type) {
        using Element = decltype(type);
        const auto* from = static_cast<const Element*>(x.const_data_ptr());
        auto* to = static_cast<Element*>(result.outputs[0].data_ptr());
        parallel(threads, [&](int thread) {
          cpu::Workspace<float> memory;
          for (std::int64_t n = begin_of(stack, thread, threads); n < begin_of(stack, thread + 1, threads); ++n)
            cpu::forward_signal(stack, n, with_backward ? n : thread, from, to, memory);
        });
      });
      if (!with_backward) result.saved.clear();
      return result;
    }

    std::vector<at::Tensor> backward(const std::vector<at::Tensor>& inputs, const FusedOutputs& forward,
                                     const std::vector<at::Tensor>& gradients) const {
      const at::Tensor& x = inputs[0];
      const at::Tensor gradient = gradients[0].to(x.scalar_type()).contiguous();
      cpu::ConvStackParams stack = packed(inputs, /*for_backward=*/true);
      stack.set_inputs(forward.saved[0].data_ptr(), stack.batch);
      const int threads = threads_for(stack);
      const std::size_t count = stack.convolutions.size();
      std::vector<std::int64_t> offsets{0};  // of each convolution's sums, then of each bias's
      for (const cpu::Convolution& each : stack.convolutions)
        offsets.push_back(offsets.back() + cpu::Workspace<float>::rounded(each.gradient_size()));
      for (const cpu::Convolution& each : stack.convolutions)
        offsets.push_back(offsets.back() + cpu::Workspace<float>::rounded(each.out_channels));
      const at::Tensor sums = at::empty({threads, offsets.back()}, x.options().dtype(at::kFloat));
      std::vector<at::Tensor> results{x.requires_grad() ? at::empty_like(x) : at::Tensor()};

      with_elements(x, [&](auto type) {
        using Element = decltype(type);
        const auto* y =
            forward.outputs[0].defined() ? static_cast<const Element*>(forward.outputs[0].const_data_ptr()) : nullptr;
        const auto* y_gradient = static_cast<const Element*>(gradient.const_data_ptr());
        auto* x_gradient = results[0].defined() ? static_cast<Element*>(results[0].data_ptr()) : nullptr;
        parallel(threads, [&](int thread) {
          float* const own = sums.mutable_data_ptr<float>() + thread * offsets.back();
          std::fill_n(own, offsets.back(), 0.0f);
          cpu::ConvStackGradients places;
          for (std::size_t i = 0; i < count; ++i) {
            places.weights.push_back(own + offsets[i]);
            places.bias.push_back(own + offsets[count + i]);
          }
          cpu::Workspace<float> memory;
          cpu::ConvStackBackward<Element> pass(stack, memory);
          for (std::int64_t n = begin_of(stack, thread, threads); n < begin_of(stack, thread + 1, threads); ++n)
            pass.signal(n, y, y_gradient, x_gradient, places);
        });
      });

      std::vector<at::Tensor> weight_gradients;
      for (std::size_t i = 0; i < count; ++i)
        weight_gradients.push_back(at::empty(inputs[1 + i].sizes(), x.options().dtype(at::kFloat)));
      each_convolution(threads, count, [&](std::size_t i) {
        std::vector<const float*> of_threads;
        for (int thread = 0; thread < threads; ++thread)
          of_threads.push_back(const_data<float>(sums) + thread * offsets.back() + offsets[i]);
        stack.convolutions[i].unpack(*stack.operations, of_threads, weight_gradients[i].mutable_data_ptr<float>());
      });
      for (std::size_t i = 0; i < count; ++i) results.push_back(weight_gradients[i].to(inputs[1 + i].scalar_type()));
      for (std::size_t i = 0; i < count; ++i) {
        const at::Tensor& bias = inputs[1 + count + i];
        if (!bias.defined()) continue;
        results.resize(1 + count + i);
        const at::Tensor bias_gradient = at::empty(bias.sizes(), x.options().dtype(at::kFloat));
        add_sums_of_threads(const_data<float>(sums) + offsets[count + i], offsets.back(), threads, bias.size(0),
                            bias_gradient.mutable_data_ptr<float>());
        results.push_back(bias_gradient.to(bias.scalar_type()));
      }
      return results;
    }

    std::vector<at::Tensor> reference(const std::vector<at::Tensor>& inputs) const {
      const std::size_t count = (inputs.size() - 1) / 2;
      const at::Tensor& x = inputs[0];
      ConvolutionStack stack{{}, {}, has_relu, has_relu_after_last};
      for (std::size_t i = 0; i < count; ++i) {
        const at::Tensor& bias = inputs[1 + count + i];
        stack.weights.push_back(inputs[1 + i].to(x.scalar_type()));
        stack.biases.push_back(bias.defined() ? bias.to(x.scalar_type()) : bias);
      }
      return {convolve_by_torch(stack, x.transpose(1, 2)).transpose(1, 2)};
    }

   private:
    cpu::ConvStackParams packed(const std::vector<at::Tensor>& inputs, bool for_backward) const {
      const at::Tensor& x = inputs[0];
      const bool is_bfloat16 = x.scalar_type() == at::kBFloat16;
      const std::size_t count = (inputs.size() - 1) / 2;
      cpu::ConvStackParams stack;
      const simd::InstructionSet available = available_instruction_set();
      stack.operations = &cpu::tile_operations<float>(available);
      stack.row_operations = &cpu::row_operations(available);
      stack.bf16 = cpu::bf16_operations(available);
      stack.batch = x.size(0);
      stack.length = static_cast<int>(x.size(1));
      stack.kernel_size = static_cast<int>(inputs[1].size(2));
      std::vector<at::Tensor> weights;
      for (std::size_t i = 0; i < count; ++i) {
        weights.push_back(inputs[1 + i].to(at::kFloat).contiguous());
        cpu::Convolution convolution;
        convolution.out_channels = static_cast<int>(weights[i].size(0));
        convolution.in_channels = static_cast<int>(weights[i].size(1));
        convolution.kernel_size = stack.kernel_size;
        convolution.has_relu = i + 1 < count ? has_relu : has_relu_after_last;
        convolution.input_is_bfloat16 = is_bfloat16 && convolution.in_channels > cpu::kFewChannels;
        convolution.has_bf16_dot = convolution.input_is_bfloat16 && !convolution.has_narrow_output();
        convolution.bias.assign(static_cast<std::size_t>(convolution.out_row()), 0.0f);
        if (const at::Tensor& bias = inputs[1 + count + i]; bias.defined() && !for_backward) {
          const at::Tensor wide = bias.to(at::kFloat).contiguous();
          std::copy_n(const_data<float>(wide), wide.numel(), convolution.bias.begin());
        }
        stack.convolutions.push_back(std::move(convolution));
      }
      stack.zeros.assign(static_cast<std::size_t>(stack.largest_row()), 0.0f);
      each_convolution(threads_for(stack), count, [&](std::size_t i) {
        const float* const from = const_data<float>(weights[i]);
        if (!for_backward)
          stack.convolutions[i].pack_forward(*stack.operations, *stack.row_operations, from);
        else if (i > 0 || x.requires_grad())
          stack.convolutions[i].pack_backward(*stack.row_operations, from);
      });
      return stack;
    }

    /// Calls work(i) for each convolution, on several threads.
    template <class Work>
    static void each_convolution(int threads, std::size_t count, const Work& work) {
      const int end = static_cast<int>(count), used = std::min(threads, end);
      parallel(used, [&](int thread) {
        for (int i = thread; i < end; i += used) work(static_cast<std::size_t>(i));
      });
    }

    static int threads_for(const cpu::ConvStackParams& stack) {
      return static_cast<int>(std::min<std::int64_t>(at::get_num_threads(), stack.batch));
    }

    /// The first signal of a thread: the same for every call, so that sums have the same order.
    static std::int64_t begin_of(const cpu::ConvStackParams& stack, int thread, int threads) {
      return stack.batch * thread / threads;
    }

    template <class Action>
    static void with_elements(const at::Tensor& x, const Action& action) {
      if (x.scalar_type() == at::kFloat)
        action(float());
      else
        action(cpu::BFloat16(0.0f));
    }
  };
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
