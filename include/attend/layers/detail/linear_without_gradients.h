// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/instruction_set.h>
#include <attend/detail/torch/autocast.h>
#include <attend/detail/torch/parallel.h>
#include <attend/kernels/cpu/linear.h>
#include <attend/kernels/cpu/tile_operations.h>
#include <attend/kernels/cpu/workspace.h>
#include <attend/version.h>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Several linear layers of one input for which no gradients are recorded, in float32 on the CPU: the kernels of
/// kernels/cpu/linear.h, which take layers of any width. `inputs` has x (…, channels), then the weight and the bias of
/// each layer. A bias may be undefined.
struct LinearWithoutGradients {
  /// Whether run() can compute the layers, and is faster than torch. Packing the weights takes 1 % of the
  /// time with 2,048 rows (benchmarks/results/sentence_embedding.md), so 4 % with 512 rows.
  static bool is_faster(const std::vector<at::Tensor>& inputs) {
    constexpr std::int64_t kFewestRows = 512;
    const at::Tensor& x = inputs[0];
    if (!is_measured(available_instruction_set()) || x.dim() < 2 || x.numel() == 0 ||
        x.numel() < kFewestRows * x.size(-1))
      return false;
    const auto is_read = [](const at::Tensor& input) {
      return input.is_cpu() && input.scalar_type() == at::kFloat && dtype_under_autocast(input) == at::kFloat &&
             !(input.requires_grad() && c10::GradMode::is_enabled()) && !input._fw_grad(/*level=*/0).defined() &&
             !input.is_neg();
    };
    if (!is_read(x)) return false;
    for (std::size_t k = 1; k < inputs.size(); k += 2) {
      const at::Tensor &weight = inputs[k], &bias = inputs[k + 1];
      if (!is_read(weight) || weight.dim() != 2 || weight.size(0) == 0 || weight.size(1) != x.size(-1)) return false;
      if (bias.defined() && !is_read(bias)) return false;
    }
    return true;
  }

  static std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs, cpu::LinearActivation activation) {
    const at::Tensor x = inputs[0].contiguous();
    std::vector<at::Tensor> held{x}, outputs;  // contiguous weights and biases
    std::vector<cpu::LinearCall> calls;
    std::int64_t packed_size = 0;
    int panels = 0;
    for (std::size_t k = 1; k < inputs.size(); k += 2) {
      std::vector<std::int64_t> sizes = x.sizes().vec();
      sizes.back() = inputs[k].size(0);
      outputs.push_back(at::empty(sizes, x.options()));
      held.push_back(inputs[k].contiguous());
      held.push_back(inputs[k + 1].defined() ? inputs[k + 1].contiguous() : at::Tensor());
      const auto numbers = [](const at::Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); };
      calls.push_back({numbers(x), numbers(held[k]), held[k + 1].defined() ? numbers(held[k + 1]) : nullptr,
                       numbers(outputs.back()), x.numel() / x.size(-1), static_cast<int>(x.size(-1)),
                       static_cast<int>(sizes.back()), activation});
      packed_size += calls.back().packed_size();
      panels += calls.back().panels();
    }
    const at::Tensor storage = at::empty({packed_size}, x.options());
    float* const packed = static_cast<float*>(storage.data_ptr());
    const auto& tiles = cpu::tile_operations<float>(available_instruction_set());
    const auto& operations = cpu::linear_operations(available_instruction_set());
    /// Calls action(call, its packed weights).
    const auto each_call = [&](const auto& action) {
      float* own = packed;
      for (const cpu::LinearCall& call : calls) {
        action(call, own);
        own += call.packed_size();
      }
    };
    const int threads = at::get_num_threads();
    /// Calls work(i) for i = 0 … count − 1. A thread that is done takes the next number.
    const auto each = [&](std::int64_t count, const auto& work) {
      std::atomic<std::int64_t> next{0};
      parallel(static_cast<int>(std::min<std::int64_t>(threads, count)), [&](int) {
        cpu::Workspace<float> memory;
        for (std::int64_t i = next++; i < count; i = next++) work(i, memory);
      });
    };
    each(panels, [&](std::int64_t panel, auto&) {
      each_call([&](const cpu::LinearCall& call, float* own) {
        if (panel >= 0 && panel < call.panels()) call.pack(static_cast<int>(panel), own, tiles);
        panel -= call.panels();
      });
    });
    // Large blocks read the weights seldom. They are of equal size, so that all threads end at the same time.
    constexpr std::int64_t kMostRows = 288, kRowsOfPanel = 12;
    const std::int64_t rows = calls[0].rows;
    const std::int64_t blocks = (rows + kMostRows * threads - 1) / (kMostRows * threads) * threads;
    const std::int64_t size = ((rows + blocks - 1) / blocks + kRowsOfPanel - 1) / kRowsOfPanel * kRowsOfPanel;
    each((rows + size - 1) / size, [&](std::int64_t block, cpu::Workspace<float>& memory) {
      memory.begin_again();
      float* const sums = memory.take(size * cpu::kTileQueries);
      const std::int64_t first = block * size;
      each_call([&](const cpu::LinearCall& call, const float* own) {
        call.compute(first, static_cast<int>(std::min(size, rows - first)), own, sums, tiles, operations);
      });
    });
    return outputs;
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
