// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/attention/detail/instruction_set.h>
#include <attend/detail/torch/autocast.h>
#include <attend/detail/torch/fused_node.h>
#include <attend/detail/torch/parallel.h>
#include <attend/kernels/cpu/bf16_operations.h>
#include <attend/kernels/cpu/linear.h>
#include <attend/kernels/cpu/tile_operations.h>
#include <attend/kernels/cpu/workspace.h>
#include <attend/layers/detail/linear_without_gradients.h>
#include <attend/simd/product.h>
#include <attend/version.h>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// A linear layer: its bias may be undefined.
struct Linear {
  at::Tensor weight, bias;  // (out, channels), (out)
};

/// Several linear layers of one input: y_j = x W_jᵀ + b_j, as the queries, keys and values of self-attention. On the
/// CPU in float32 and bfloat16, the forward pass reads x once, and the backward pass reads x and all gradients once.
/// torch computes one product for each weight forward, two backward, and then adds the gradients of x.
///
/// If no gradients are recorded, LinearWithoutGradients computes layers of any width in float32.
struct FusedLinear {
  /// x (…, channels) to tensors (…, out_j); torch computes them with kReference.
  static std::vector<at::Tensor> run(const at::Tensor& x, const std::vector<Linear>& layers, Backend backend) {
    std::vector<at::Tensor> inputs{x};
    for (const Linear& layer : layers) inputs.insert(inputs.end(), {layer.weight, layer.bias});
    if (backend == Backend::kAuto) backend = BackendGuard::current();
    if (backend == Backend::kReference) return by_torch(inputs);
    if (LinearWithoutGradients::is_faster(inputs))
      return LinearWithoutGradients::run(inputs, cpu::LinearActivation::kNone);
    if (!is_fused(inputs) || !is_faster_fused(inputs)) return by_torch(inputs);
    inputs[0] = x.to(dtype_under_autocast(x));
    return FusedNode<Fused>::run({}, inputs);
  }

  /// GELU(x Wᵀ + b) with the exact GELU, torch's default.
  static at::Tensor gelu(const at::Tensor& x, const Linear& layer, Backend backend) {
    if (backend == Backend::kAuto) backend = BackendGuard::current();
    const std::vector<at::Tensor> inputs{x, layer.weight, layer.bias};
    if (backend != Backend::kReference && LinearWithoutGradients::is_faster(inputs))
      return LinearWithoutGradients::run(inputs, cpu::LinearActivation::kGelu)[0];
    return at::gelu(run(x, {layer}, backend)[0]);
  }

 private:
  static std::vector<at::Tensor> by_torch(const std::vector<at::Tensor>& inputs) {
    std::vector<at::Tensor> outputs;
    for (std::size_t k = 1; k < inputs.size(); k += 2)
      outputs.push_back(at::linear(inputs[0], inputs[k], inputs[k + 1]));
    return outputs;
  }

  /// Whether the fused kernels are at least as fast as torch. The rule follows from benchmarks/results/fused_linear.md.
  static bool is_faster_fused(const std::vector<at::Tensor>& inputs) {
    std::int64_t outputs = 0;
    for (std::size_t k = 1; k < inputs.size(); k += 2) outputs += inputs[k].size(0);
    const std::int64_t width = std::max(inputs[0].size(-1), (outputs + 2) / 3);
    const bool has_avx512 = available_instruction_set() >= simd::InstructionSet::kAvx512;
    const std::int64_t widest = dtype_under_autocast(inputs[0]) == at::kBFloat16 ? 128 : has_avx512 ? 512 : 256;
    return width <= 64 || (width <= widest && Fused::threads_for(inputs[0]) == at::get_num_threads());
  }

  static bool is_fused(const std::vector<at::Tensor>& inputs) {
    const at::Tensor& x = inputs[0];
    const at::ScalarType dtype = dtype_under_autocast(x);
    const simd::InstructionSet set = available_instruction_set();
    const bool is_fast = dtype == at::kBFloat16 ? simd::has_bf16_dot(set) : is_measured(set);
    if ((dtype != at::kFloat && dtype != at::kBFloat16) || !is_fast || x.dim() < 1 || x.numel() == 0 ||
        !x.is_contiguous() || x.size(-1) % 16 != 0)
      return false;
    const auto is_read = [&](const at::Tensor& input) {
      return input.is_cpu() && dtype_under_autocast(input) == dtype && !input._fw_grad(/*level=*/0).defined() &&
             !input.is_neg();
    };
    if (!is_read(x)) return false;
    for (std::size_t k = 1; k < inputs.size(); k += 2) {
      const at::Tensor &weight = inputs[k], &bias = inputs[k + 1];
      if (!is_read(weight) || weight.dim() != 2 || weight.size(0) % 16 != 0 || weight.size(1) != x.size(-1))
        return false;
      if (bias.defined() && !is_read(bias)) return false;
    }
    return true;
  }

  /// inputs: x, then the weight and the bias of each layer, which may be float32 where x is bfloat16.
  struct Fused {
    const char* name() const { return "attend::linear"; }

    FusedOutputs forward(const std::vector<at::Tensor>& inputs, bool /*with_backward*/) const {
      const at::Tensor& x = inputs[0];
      const int channels = static_cast<int>(x.size(-1));
      const bool has_bf16_dot = x.scalar_type() == at::kBFloat16;
      FusedOutputs result;
      result.needs_outputs = false;
      std::vector<Panel> panels;
      for (std::size_t k = 1; k < inputs.size(); k += 2) {
        std::vector<std::int64_t> sizes = x.sizes().vec();
        sizes.back() = inputs[k].size(0);
        result.outputs.push_back(at::empty(sizes, x.options()));
        add_panels(inputs[k], inputs[k + 1], result.outputs.back(), panels);
      }
      each_block(x, kRows * cpu::kTileQueries, [&](const Block& block, float* sums) {
        for (const Panel& panel : panels) {
          const std::int64_t begin = block.first * panel.output_row + panel.first_column;
          if (has_bf16_dot) {
            panel.write_bias(sums, cpu::kTileQueries, block.rows);
            bf16_operations().product({words(numbers<BFloat16>(x)) + block.first * channels / 2, channels / 2, 1},
                                      words(panel.weights.data()), cpu::kTileQueries, sums, cpu::kTileQueries,
                                      block.rows, panel.columns, channels / 2, panel.has_bias(), 1.0f);
            bf16_operations().round_rows(sums, cpu::kTileQueries, numbers<BFloat16>(panel.output) + begin,
                                         panel.output_row, block.rows, panel.columns);
          } else {
            float* const output = numbers<float>(panel.output) + begin;
            panel.write_bias(output, panel.output_row, block.rows);
            operations().product({numbers<float>(x) + block.first * channels, channels, 1}, panel.weights.data(),
                                 cpu::kTileQueries, output, panel.output_row, block.rows, panel.columns, channels,
                                 panel.has_bias());
          }
        }
      });
      return result;
    }

    /// dx = Σ_j dy_j W_j, dW_j = dy_jᵀ x, and db_j is the sum of the rows of dy_j. In float32 every matrix is read in
    /// place. In bfloat16 two neighbours along the direction of the sum are packed into a word.
    std::vector<at::Tensor> backward(const std::vector<at::Tensor>& inputs, const FusedOutputs&,
                                     const std::vector<at::Tensor>& given) const {
      const at::Tensor& x = inputs[0];
      const int channels = static_cast<int>(x.size(-1));
      const bool has_bf16_dot = x.scalar_type() == at::kBFloat16;
      const int threads = threads_for(x);
      std::vector<at::Tensor> results{x.requires_grad() ? at::empty_like(x) : at::Tensor()};
      std::vector<Given> all;
      std::int64_t size_of_sums = 0, widest = 0;
      for (std::size_t j = 0; j < given.size(); ++j) {
        if (!given[j].defined()) continue;
        const at::Tensor gradient = given[j].to(x.scalar_type()).contiguous();  // (…, out_j)
        at::Tensor weights = inputs[1 + 2 * j].to(x.scalar_type()).contiguous();
        const std::int64_t out = weights.size(0);
        if (has_bf16_dot) {
          const at::Tensor pairs = at::empty({out / 2, channels}, x.options().dtype(at::kFloat));
          bf16_operations().pack_rows(halves(weights), channels, static_cast<int>(out), channels,
                                      words(numbers<float>(pairs)), channels);
          weights = pairs;
        }
        all.push_back({gradient, weights, static_cast<int>(out), size_of_sums});
        size_of_sums += out * channels;
        widest = std::max(widest, out);
      }
      const at::Tensor sums = at::empty({threads, size_of_sums}, x.options().dtype(at::kFloat));
      each_block(x, kRows * channels + kRows / 2 * (channels + widest), [&](const Block& block, float* memory) {
        float* const own_sums = numbers<float>(sums) + block.thread * size_of_sums;
        if (has_bf16_dot)
          backward_in_pairs(block, x, all, own_sums, results[0], memory);
        else
          backward_in_float32(block, x, all, own_sums, results[0]);
      });
      auto next = all.begin();
      for (std::size_t j = 0; j < given.size(); ++j) {
        const at::Tensor &weight = inputs[1 + 2 * j], &bias = inputs[2 + 2 * j];
        at::Tensor weight_gradient, bias_gradient;
        if (given[j].defined()) {
          weight_gradient = at::empty(weight.sizes(), sums.options());
          add_sums_of_threads(numbers<float>(sums) + next->sums, size_of_sums, threads, weight_gradient.numel(),
                              numbers<float>(weight_gradient));
          if (bias.defined() && bias.requires_grad())
            bias_gradient = next->gradient.view({-1, weight.size(0)}).sum(0, /*keepdim=*/false, at::kFloat);
          ++next;
        }
        results.insert(results.end(), {weight_gradient, bias_gradient});
      }
      return results;
    }

    std::vector<at::Tensor> reference(std::vector<at::Tensor> inputs) const {
      for (at::Tensor& input : inputs)
        if (input.defined()) input = input.to(inputs[0].scalar_type());
      return by_torch(inputs);
    }

    /// The number of threads. Each has at least one block of kRows rows.
    static int threads_for(const at::Tensor& x) {
      const std::int64_t blocks = (rows_of(x) + kRows - 1) / kRows;
      return static_cast<int>(std::min<std::int64_t>(at::get_num_threads(), blocks));
    }

   private:
    using BFloat16 = cpu::BFloat16;
    using Bf16x2 = cpu::Bf16x2;

    /// Some rows of x.
    struct Block {
      std::int64_t first;
      int rows, thread;
      bool is_first_of_thread;
    };

    /// Some columns of an output, and the weights that compute them: (channels, kTileQueries), or (channels / 2,
    /// kTileQueries) pairs of two neighbouring channels.
    struct Panel {
      std::vector<float> weights, bias;  // the bias may be empty
      at::Tensor output;
      int output_row, first_column, columns;

      bool has_bias() const { return !bias.empty(); }

      /// Writes the bias, if there is one, to all rows, so that a product can be added.
      void write_bias(float* rows, int row, int count) const {
        for (int i = 0; i < count && has_bias(); ++i) std::copy(bias.begin(), bias.end(), rows + i * row);
      }
    };

    /// The gradient of an output.
    struct Given {
      at::Tensor gradient, weights;  // contiguous; in bfloat16 the weights are pairs (out / 2, channels)
      int out;
      std::int64_t sums;  // where the sums for the gradient of the weights begin
    };

    static void add_panels(const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& output,
                           std::vector<Panel>& panels) {
      const at::Tensor weights = weight.to(output.scalar_type()).contiguous();
      const at::Tensor biases = bias.defined() ? bias.to(at::kFloat).contiguous() : bias;
      const int outputs = static_cast<int>(weights.size(0)), channels = static_cast<int>(weights.size(1));
      const bool has_bf16_dot = output.scalar_type() == at::kBFloat16;
      for (int first = 0; first < outputs; first += cpu::kTileQueries) {
        const int columns = std::min(outputs - first, cpu::kTileQueries);
        Panel panel{std::vector<float>(static_cast<std::size_t>(channels / (has_bf16_dot ? 2 : 1) * cpu::kTileQueries)),
                    {},
                    output,
                    outputs,
                    first,
                    columns};
        if (biases.defined())
          panel.bias.assign(numbers<float>(biases) + first, numbers<float>(biases) + first + columns);
        if (has_bf16_dot)
          bf16_operations().transpose_words(words(numbers<BFloat16>(weights)) + first * channels / 2, channels / 2,
                                            columns, columns, channels / 2, words(panel.weights.data()));
        else
          operations().read_transposed({reinterpret_cast<char*>(numbers<float>(weights)), channels, 1, false}, first,
                                       columns, columns, channels, 1.0f, panel.weights.data());
        panels.push_back(std::move(panel));
      }
    }

    static void backward_in_float32(const Block& block, const at::Tensor& x, const std::vector<Given>& all, float* sums,
                                    const at::Tensor& x_gradient) {
      const int channels = static_cast<int>(x.size(-1));
      for (const Given& each : all) {
        const cpu::Strided<float> gradient{numbers<float>(each.gradient) + block.first * each.out, each.out, 1};
        if (x_gradient.defined())
          operations().product(gradient, numbers<float>(each.weights), channels,
                               numbers<float>(x_gradient) + block.first * channels, channels, block.rows, channels,
                               each.out, /*add=*/&each != all.data());
        operations().product(gradient.transposed(), numbers<float>(x) + block.first * channels, channels,
                             sums + each.sums, channels, each.out, channels, block.rows,
                             /*add=*/!block.is_first_of_thread);
      }
    }

    static void backward_in_pairs(const Block& block, const at::Tensor& x, const std::vector<Given>& all, float* sums,
                                  const at::Tensor& x_gradient, float* memory) {
      const cpu::Bf16Operations& operations = bf16_operations();
      const int channels = static_cast<int>(x.size(-1));
      float* const x_sums = memory;
      Bf16x2 *const x_pairs = words(memory + kRows * channels), *const pairs = x_pairs + kRows / 2 * channels;
      operations.pack_rows(halves(x) + block.first * channels, channels, block.rows, channels, x_pairs, channels);
      for (const Given& each : all) {
        const std::uint16_t* const gradient = halves(each.gradient) + block.first * each.out;
        if (x_gradient.defined())
          operations.product({words(gradient), each.out / 2, 1}, words(each.weights.data_ptr()), channels, x_sums,
                             channels, block.rows, channels, each.out / 2, /*add=*/&each != all.data(), 1.0f);
        operations.pack_rows(gradient, each.out, block.rows, each.out, pairs, each.out);
        operations.product({pairs, 1, each.out}, x_pairs, channels, sums + each.sums, channels, each.out, channels,
                           (block.rows + 1) / 2, /*add=*/!block.is_first_of_thread, 1.0f);
      }
      if (x_gradient.defined())
        operations.round_rows(x_sums, channels, numbers<BFloat16>(x_gradient) + block.first * channels, channels,
                              block.rows, channels);
    }

    static const cpu::TileOperations<float>& operations() {
      return cpu::tile_operations<float>(available_instruction_set());
    }
    /// Must be called only if the instruction set has dot products of bfloat16.
    static const cpu::Bf16Operations& bf16_operations() { return *cpu::bf16_operations(available_instruction_set()); }

    template <class T>
    static T* numbers(const at::Tensor& tensor) {
      return static_cast<T*>(tensor.data_ptr());
    }
    static const std::uint16_t* halves(const at::Tensor& tensor) {
      return static_cast<const std::uint16_t*>(tensor.const_data_ptr());
    }

    // The same memory holds numbers, or pairs of them.
    static Bf16x2* words(void* memory) { return static_cast<Bf16x2*>(memory); }
    static const Bf16x2* words(const void* memory) { return static_cast<const Bf16x2*>(memory); }

    static std::int64_t rows_of(const at::Tensor& x) { return x.numel() / x.size(-1); }

    static constexpr std::int64_t kRows = 96;  // of x and of all gradients, which stay in the L2 cache

    /// Calls work(block, memory for `size` floats) for all rows of x. A thread's share is the same in every call, so
    /// that sums have the same order.
    template <class Work>
    static void each_block(const at::Tensor& x, std::int64_t size, const Work& work) {
      const std::int64_t rows = rows_of(x), blocks = (rows + kRows - 1) / kRows;
      const int threads = threads_for(x);
      parallel(threads, [&](int thread) {
        cpu::Workspace<float> memory;
        float* const own = memory.take(size);
        const std::int64_t begin = blocks * thread / threads, end = blocks * (thread + 1) / threads;
        for (std::int64_t i = begin; i < end; ++i)
          work({i * kRows, static_cast<int>(std::min(kRows, rows - i * kRows)), thread, i == begin}, own);
      });
    }
  };
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
