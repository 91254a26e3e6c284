// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/attention/detail/instruction_set.h>
#include <attend/detail/torch/fused_node.h>
#include <attend/detail/torch/parallel.h>
#include <attend/kernels/cpu/layer_norm.h>
#include <attend/layers/detail/flat_dropout.h>
#include <attend/version.h>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// A layer normalization. Its weight and its bias may be undefined.
struct Norm {
  at::IntArrayRef shape;
  at::Tensor weight, bias;
  double eps;
};

/// A sum, and its norm.
struct AddedNorm {
  at::Tensor sum, normed;
};

/// Layer normalization, alone or after a residual connection. On the CPU in float32, one kernel computes dropout, sum
/// and norm, and another one computes all gradients.
struct FusedLayerNorm {
  static at::Tensor run(const at::Tensor& x, const Norm& norm) {
    if (!is_fused({x, norm.weight, norm.bias}, norm)) return by_torch(x, norm);
    return FusedNode<Fused>::run({norm.shape.back(), norm.eps, {}},
                                 {x, {}, contiguous(norm.weight), contiguous(norm.bias)})[0];
  }

  /// residual + dropout(branch), and its norm.
  static AddedNorm add(const at::Tensor& residual, const at::Tensor& branch, double dropout, const Norm& norm) {
    if (!is_fused({residual, branch, norm.weight, norm.bias}, norm) || residual.sizes() != branch.sizes()) {
      const at::Tensor sum = residual + at::dropout(branch, dropout, /*train=*/true);
      return {sum, by_torch(sum, norm)};
    }
    const std::vector<at::Tensor> results = FusedNode<Fused>::run(
        {norm.shape.back(), norm.eps, draw_flat_dropout(dropout)},
        {residual.contiguous(), branch.contiguous(), contiguous(norm.weight), contiguous(norm.bias)});
    return {results[1], results[0]};
  }

 private:
  static at::Tensor contiguous(const at::Tensor& tensor) { return tensor.defined() ? tensor.contiguous() : tensor; }

  static at::Tensor by_torch(const at::Tensor& x, const Norm& norm) {
    return at::layer_norm(x, norm.shape, norm.weight, norm.bias, norm.eps);
  }

  static bool is_fused(const std::vector<at::Tensor>& inputs, const Norm& norm) {
    return norm.shape.size() == 1 && BackendGuard::current() != Backend::kReference &&
           is_measured(available_instruction_set()) &&
           std::all_of(inputs.begin(), inputs.end(),
                       [](const at::Tensor& input) { return !input.defined() || is_plain_float(input); });
  }

  /// inputs: x, the branch, weight and bias; all but x may be undefined. Outputs: the norm, and with a branch the sum.
  struct Fused {
    std::int64_t width;
    double eps;
    cpu::FlatDropout dropout;

    const char* name() const { return "attend::layer_norm"; }

    FusedOutputs forward(const std::vector<at::Tensor>& inputs, bool with_backward) const {
      const at::Tensor x = inputs[0].contiguous();
      const std::int64_t rows = x.numel() / width;
      const at::Tensor output = at::empty_like(x), sum = inputs[1].defined() ? at::empty_like(x) : at::Tensor();
      const at::Tensor moments = at::empty({2, rows}, x.options());
      const cpu::LayerNormParams params{numbers(x),
                                        numbers(inputs[1]),
                                        numbers(inputs[2]),
                                        numbers(inputs[3]),
                                        numbers(sum),
                                        numbers(output),
                                        numbers(moments),
                                        numbers(moments) + rows,
                                        width,
                                        static_cast<float>(eps),
                                        dropout};
      parallel_ranges(rows, grain(),
                      [&](std::int64_t begin, std::int64_t end) { operations().forward(&params, begin, end); });
      FusedOutputs result;
      result.outputs = {output};
      if (sum.defined()) result.outputs.push_back(sum);
      result.needs_outputs = false;
      if (with_backward) result.saved = {moments, sum.defined() ? sum.detach() : sum};
      return result;
    }

    std::vector<at::Tensor> backward(const std::vector<at::Tensor>& inputs, const FusedOutputs& forward,
                                     const std::vector<at::Tensor>& given) const {
      const bool has_branch = inputs[1].defined();
      const at::Tensor sum = has_branch ? forward.saved[1] : inputs[0].contiguous(), &moments = forward.saved[0];
      const std::int64_t rows = sum.numel() / width;
      const auto given_as_read = [&](std::size_t k) {
        return k < given.size() && given[k].defined() ? given[k].to(at::kFloat).contiguous() : at::Tensor();
      };
      const at::Tensor output_gradient = given_as_read(0), sum_gradient = given_as_read(1);
      const at::Tensor x_gradient = at::empty_like(sum),
                       branch_gradient = has_branch && dropout.is_active() ? at::empty_like(sum) : at::Tensor();
      const int threads =
          static_cast<int>(std::min<std::int64_t>(at::get_num_threads(), (rows + grain() - 1) / grain()));
      const at::Tensor sums = at::zeros({threads, 2 * width}, sum.options());
      parallel(threads, [&](int thread) {
        // Sums over some rows, then sums of these: more accurate than one sum.
        float* const own = numbers(sums) + thread * 2 * width;
        std::vector<float> some(static_cast<std::size_t>(2 * width));
        const cpu::LayerNormGradients gradients{numbers(output_gradient),
                                                numbers(sum_gradient),
                                                numbers(sum),
                                                numbers(inputs[2]),
                                                numbers(moments),
                                                numbers(moments) + rows,
                                                numbers(x_gradient),
                                                numbers(branch_gradient),
                                                inputs[2].defined() ? some.data() : nullptr,
                                                inputs[3].defined() ? some.data() + width : nullptr,
                                                width,
                                                dropout};
        const std::int64_t end = rows * (thread + 1) / threads;
        for (std::int64_t first = rows * thread / threads; first < end; first += kRowsOfSum) {
          std::fill(some.begin(), some.end(), 0.0f);
          operations().backward(&gradients, first, std::min(first + kRowsOfSum, end));
          for (std::int64_t j = 0; j < 2 * width; ++j) own[j] += some[static_cast<std::size_t>(j)];
        }
      });
      const at::Tensor all = sums.sum(0);
      return {x_gradient,
              !has_branch           ? at::Tensor()
              : dropout.is_active() ? branch_gradient
                                    : x_gradient,
              inputs[2].defined() ? all.narrow(0, 0, width) : at::Tensor(),
              inputs[3].defined() ? all.narrow(0, width, width) : at::Tensor()};
    }

    std::vector<at::Tensor> reference(const std::vector<at::Tensor>& inputs) const {
      const auto norm = [&](const at::Tensor& x) { return at::layer_norm(x, {width}, inputs[2], inputs[3], eps); };
      if (!inputs[1].defined()) return {norm(inputs[0])};
      const at::Tensor branch = dropout.is_active() ? inputs[1] * flat_dropout_factors(dropout, inputs[1]) : inputs[1];
      const at::Tensor sum = inputs[0] + branch;
      return {norm(sum), sum};
    }

   private:
    static const cpu::LayerNormOperations& operations() {
      return cpu::layer_norm_operations(available_instruction_set());
    }

    static float* numbers(const at::Tensor& tensor) {
      return tensor.defined() ? static_cast<float*>(tensor.data_ptr()) : nullptr;
    }

    static constexpr std::int64_t kRowsOfSum = 64;

    /// The smallest number of rows for a thread.
    std::int64_t grain() const { return std::max<std::int64_t>(1, (1 << 14) / width); }
  };
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
