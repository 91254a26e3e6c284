// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/attention/cpu/available_instruction_set.h>
#include <attend/attention/cpu/tile_operations.h>
#include <attend/detail/fused_function.h>
#include <attend/detail/parallel.h>

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::detail {

/// Several linear layers of one input: y_j = x W_jᵀ, with the queries, keys and values of self-attention in mind. On
/// the CPU in float32 it is one pass over x forward, and one over x and all gradients backward, where torch would take
/// a product and two for each weight and add up their gradients of x.
struct Projections {
  /// x (N, L, channels), weights (out_j, channels) to tensors (N, L, out_j); by torch if kReference is asked for.
  static std::vector<at::Tensor> run(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                                     Backend backend = Backend::kAuto) {
    std::vector<at::Tensor> inputs{x};
    inputs.insert(inputs.end(), weights.begin(), weights.end());
    if (backend == Backend::kAuto) backend = BackendGuard::current();
    return backend != Backend::kReference && is_fused(inputs) && is_faster_fused(inputs)
               ? FusedFunction<Fused>::run({}, inputs)
               : Fused().reference(inputs);
  }

 private:
  /// Our speed over torch's, forward / backward, with two threads of a Zen 4 with AVX-512, 2026-11-24, three weights
  /// (channels, channels):
  ///
  ///   channels         16           32           64          128          256          512         1,024
  ///      96 rows    2.8 / 3.0    2.3 / 2.5    1.4 / 1.7    0.8 / 0.9    0.7 / 0.7    0.6 / 0.6    0.5 / 0.6
  ///     800 rows    1.8 / 2.3    1.5 / 1.9    1.3 / 1.5    1.2 / 1.2    1.1 / 1.1    1.1 / 1.0    1.0 / 0.9
  ///   3,200 rows    1.5 / 1.8    1.2 / 1.4    1.3 / 1.5    1.3 / 1.3    1.2 / 1.2    1.2 / 1.0    1.2 / 1.0
  static bool is_faster_fused(const std::vector<at::Tensor>& inputs) {
    std::int64_t widest = 0;
    for (const at::Tensor& weight : inputs)
      if (!weight.is_same(inputs[0])) widest = std::max({widest, weight.size(0), weight.size(1)});
    return widest <= 64 || (widest <= 512 && Fused::threads_for(inputs[0]) == at::get_num_threads());
  }

  static bool is_fused(const std::vector<at::Tensor>& inputs) {
    const at::Tensor& x = inputs[0];
    if (x.dim() != 3 || at::autocast::is_autocast_enabled(at::kCPU) || x.numel() == 0 || !x.is_contiguous() ||
        available_instruction_set() == cpu::InstructionSet::kBaseline)
      return false;
    return std::all_of(inputs.begin(), inputs.end(), [&](const at::Tensor& input) {
      return input.is_cpu() && input.scalar_type() == at::kFloat && !input._fw_grad(/*level=*/0).defined() &&
             !input.is_neg() && input.size(-1) % 16 == 0 && input.size(-1) == x.size(-1) &&
             (input.is_same(x) || (input.dim() == 2 && input.size(0) % 16 == 0));
    });
  }

  /// inputs: x, then the weights.
  struct Fused {
    const char* name() const { return "attend::SelfAttention1d"; }

    FusedOutputs forward(const std::vector<at::Tensor>& inputs, bool /*with_backward*/) const {
      const at::Tensor& x = inputs[0];
      const int channels = static_cast<int>(x.size(2));
      FusedOutputs result;
      result.needs_outputs = false;
      std::vector<Panel> panels;
      for (std::size_t j = 1; j < inputs.size(); ++j) {
        result.outputs.push_back(at::empty({x.size(0), x.size(1), inputs[j].size(0)}, x.options()));
        add_panels(inputs[j], result.outputs.back().mutable_data_ptr<float>(), panels);
      }
      each_block(x, [&](int, std::int64_t first, int rows, bool) {
        const cpu::Strided<float> block{x.const_data_ptr<float>() + first * channels, channels, 1};
        for (const Panel& panel : panels)
          operations().product(block, panel.weights.data(), cpu::kTileQueries, panel.output + first * panel.output_row,
                               panel.output_row, rows, panel.columns, channels, /*add=*/false);
      });
      return result;
    }

    /// dx = Σ_j dy_j W_j and dW_j = dy_jᵀ x: every matrix is read as it lies.
    std::vector<at::Tensor> backward(const std::vector<at::Tensor>& inputs, const FusedOutputs&,
                                     const std::vector<at::Tensor>& given) const {
      const at::Tensor& x = inputs[0];
      const int channels = static_cast<int>(x.size(2));
      const int threads = threads_for(x);
      std::vector<at::Tensor> results{x.requires_grad() ? at::empty_like(x) : at::Tensor()}, gradients, weights;
      std::vector<std::int64_t> offsets{0};  // of each weight's sums
      for (std::size_t j = 1; j < inputs.size(); ++j) {
        if (!given[j - 1].defined()) continue;
        gradients.push_back(given[j - 1].contiguous().resolve_neg());  // (N, L, out_j)
        weights.push_back(inputs[j].contiguous());
        offsets.push_back(offsets.back() + inputs[j].numel());
      }
      const at::Tensor sums = at::empty({threads, offsets.back()}, x.options());
      each_block(x, [&](int thread, std::int64_t first, int rows, bool is_first_of_thread) {
        const float* const block = x.const_data_ptr<float>() + first * channels;
        float* const own_sums = sums.mutable_data_ptr<float>() + thread * offsets.back();
        float* const to = results[0].defined() ? results[0].mutable_data_ptr<float>() + first * channels : nullptr;
        for (std::size_t j = 0; j < weights.size(); ++j) {
          const std::int64_t out = weights[j].size(0);
          const cpu::Strided<float> gradient{gradients[j].const_data_ptr<float>() + first * out, out, 1};
          if (to != nullptr)
            operations().product(gradient, weights[j].const_data_ptr<float>(), channels, to, channels, rows, channels,
                                 static_cast<int>(out), /*add=*/j > 0);
          operations().product(gradient.transposed(), block, channels, own_sums + offsets[j], channels,
                               static_cast<int>(out), channels, rows, /*add=*/!is_first_of_thread);
        }
      });
      auto offset = offsets.begin();
      for (std::size_t j = 1; j < inputs.size(); ++j) {
        results.emplace_back();
        if (!given[j - 1].defined()) continue;
        results.back() = at::empty(inputs[j].sizes(), x.options());
        add_sums_of_threads(sums.const_data_ptr<float>() + *offset++, offsets.back(), threads, inputs[j].numel(),
                            results.back().mutable_data_ptr<float>());
      }
      return results;
    }

    /// Each thread has some blocks of rows.
    static int threads_for(const at::Tensor& x) {
      const std::int64_t blocks = (x.size(0) * x.size(1) + kRows - 1) / kRows;
      return static_cast<int>(std::min<std::int64_t>(at::get_num_threads(), blocks));
    }

    std::vector<at::Tensor> reference(const std::vector<at::Tensor>& inputs) const {
      std::vector<at::Tensor> outputs;
      for (std::size_t j = 1; j < inputs.size(); ++j) outputs.push_back(at::linear(inputs[0], inputs[j]));
      return outputs;
    }

   private:
    static const cpu::TileOperations<float>& operations() {
      return cpu::tile_operations<float>(available_instruction_set());
    }

    /// Some columns of an output, and the weights that they take: (channels, kTileQueries).
    struct Panel {
      std::vector<float> weights;
      float* output;
      std::int64_t output_row;
      int columns;
    };

    static void add_panels(const at::Tensor& weights, float* output, std::vector<Panel>& panels) {
      const std::int64_t outputs = weights.size(0), channels = weights.size(1);
      const cpu::Rows<float> rows{reinterpret_cast<char*>(const_cast<float*>(weights.const_data_ptr<float>())),
                                  weights.stride(0), weights.stride(1), false};  // to be read
      for (std::int64_t first = 0; first < outputs; first += cpu::kTileQueries) {
        const int columns = static_cast<int>(std::min<std::int64_t>(outputs - first, cpu::kTileQueries));
        Panel panel{std::vector<float>(static_cast<std::size_t>(channels * cpu::kTileQueries)), output + first, outputs,
                    columns};
        operations().read_transposed(rows, first, columns, columns, static_cast<int>(channels), 1.0f,
                                     panel.weights.data());
        panels.push_back(std::move(panel));
      }
    }

    static constexpr std::int64_t kRows = 96;  // of x and of all gradients, which stay in the second cache

    /// Calls work(thread, first row, rows, is_first_of_thread) for all rows of x; a thread's share is the same in every
    /// call, so that sums have the same order.
    template <class Work>
    static void each_block(const at::Tensor& x, const Work& work) {
      const std::int64_t rows = x.size(0) * x.size(1), blocks = (rows + kRows - 1) / kRows;
      const int threads = threads_for(x);
      parallel(threads, [&](int thread) {
        const std::int64_t begin = blocks * thread / threads, end = blocks * (thread + 1) / threads;
        for (std::int64_t block = begin; block < end; ++block)
          work(thread, block * kRows, static_cast<int>(std::min(kRows, rows - block * kRows)), block == begin);
      });
    }
  };
};

}  // namespace attend::detail
