// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/instruction_set.h>
#include <attend/attention/detail/row_elements.h>
#include <attend/detail/torch/const_data.h>
#include <attend/detail/torch/fused_node.h>
#include <attend/detail/torch/parallel.h>
#include <attend/kernels/cpu/rms_norm.h>
#include <attend/version.h>

#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The function of RMSNorm, after its checks.
struct FusedRmsNorm {
  /// x (…, shape) to the same sizes; the weight may be undefined.
  static at::Tensor run(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef shape,
                        std::optional<double> eps) {
    const std::vector<at::Tensor> inputs{x, weight};
    const Fused function{shape.vec(), eps};
    return is_fused(inputs) ? FusedNode<Fused>::run(function, inputs)[0] : function.reference(inputs)[0];
  }

 private:
  static bool is_fused(const std::vector<at::Tensor>& inputs) {
    for (const at::Tensor& input : inputs)
      if (input.defined() && (!input.is_cpu() || input.numel() == 0 || input._fw_grad(/*level=*/0).defined()))
        return false;
    return is_element_of_rows(inputs[0].scalar_type());
  }

  /// inputs: x, and the weight, which may be undefined, or float32 where x is bfloat16.
  struct Fused {
    std::vector<std::int64_t> shape;
    std::optional<double> eps;

    const char* name() const { return "attend::RMSNorm"; }

    FusedOutputs forward(const std::vector<at::Tensor>& inputs, bool /*with_backward*/) const {
      const at::Tensor &x = inputs[0], y = has_order_of_x(x) ? empty_rows_like(x) : at::empty(x.sizes(), x.options());
      const at::Tensor x_rows = as_rows(x), y_rows = as_rows(y), weight = numbers_of_weight(inputs);
      const at::Tensor inverses = at::empty({x.numel() / width()}, weight.options());
      with_element_of_rows(x.scalar_type(), [&](auto element) {
        using Element = decltype(element);
        using T = cpu::Computed<Element>;
        const auto params = params_of<Element>(x_rows, weight, inverses);
        const T epsilon = static_cast<T>(eps.value_or(std::numeric_limits<T>::epsilon()));
        parallel_ranges(
            params.rows(), std::max<std::int64_t>(1, kGrain / width()), [&](std::int64_t begin, std::int64_t end) {
              params.forward({static_cast<Element*>(y_rows.data_ptr()), strides_of(y_rows)}, epsilon, begin, end);
            });
      });
      return {{y}, {inverses}, /*needs_outputs=*/false};
    }

    std::vector<at::Tensor> backward(const std::vector<at::Tensor>& inputs, const FusedOutputs& forward,
                                     const std::vector<at::Tensor>& gradients) const {
      const at::Tensor &x = inputs[0], &weight = inputs[1];
      const at::Tensor x_rows = as_rows(x), g_rows = as_rows(gradients[0]), factors = numbers_of_weight(inputs);
      const bool has_weight_gradient = weight.defined() && weight.requires_grad();
      const int threads = static_cast<int>(
          std::clamp<std::int64_t>(x.numel() / kGrain, 1, static_cast<std::int64_t>(at::get_num_threads())));
      at::Tensor x_gradient, x_gradient_rows, sums;
      if (x.requires_grad()) {
        x_gradient = has_order_of_x(x) ? empty_rows_like(x) : at::empty(x.sizes(), x.options());
        x_gradient_rows = as_rows(x_gradient);
      }
      if (has_weight_gradient) sums = at::zeros({threads, width()}, factors.options());
      with_element_of_rows(x.scalar_type(), [&](auto element) {
        using Element = decltype(element);
        using T = cpu::Computed<Element>;
        const auto params = params_of<Element>(x_rows, factors, forward.saved[0]);
        const cpu::Rows<const Element> g{static_cast<const Element*>(g_rows.const_data_ptr()), strides_of(g_rows)};
        cpu::Rows<Element> to{};
        if (x_gradient.defined()) to = {static_cast<Element*>(x_gradient_rows.data_ptr()), strides_of(x_gradient_rows)};
        T* const all_sums = has_weight_gradient ? static_cast<T*>(sums.data_ptr()) : nullptr;
        parallel(threads, [&](int thread) {
          params.backward(g, to, has_weight_gradient ? all_sums + thread * width() : nullptr,
                          params.rows() * thread / threads, params.rows() * (thread + 1) / threads);
        });
      });
      if (!has_weight_gradient) return {x_gradient};
      return {x_gradient, sums.sum(0).view(weight.sizes()).to(weight.scalar_type())};
    }

    std::vector<at::Tensor> reference(const std::vector<at::Tensor>& inputs) const {
      return {at::rms_norm(inputs[0], shape, inputs[1], eps)};
    }

   private:
    static constexpr std::int64_t kGrain = 1 << 14;  // numbers, for one thread

    std::int64_t width() const {
      std::int64_t width = 1;
      for (const std::int64_t size : shape) width *= size;
      return width;
    }

    /// Whether rows are read where they are, in any order. Otherwise they are copied if they are not contiguous.
    bool has_order_of_x(const at::Tensor& x) const { return shape.size() == 1 && x.dim() <= 4; }

    /// (…, shape) to rows in three dimensions (…, …, …, width), whose numbers are adjacent.
    at::Tensor as_rows(const at::Tensor& tensor) const {
      if (!has_order_of_x(tensor)) return tensor.contiguous().view({1, 1, -1, width()});
      at::Tensor rows = with_adjacent_numbers(tensor);
      while (rows.dim() < 4) rows = rows.unsqueeze(0);
      return rows;
    }

    static cpu::Three strides_of(const at::Tensor& rows) { return {rows.stride(0), rows.stride(1), rows.stride(2)}; }

    /// The weight, or ones, in the dtype of the products.
    at::Tensor numbers_of_weight(const std::vector<at::Tensor>& inputs) const {
      const at::TensorOptions options = inputs[0].options().dtype(at::toOpMathType(inputs[0].scalar_type()));
      return inputs[1].defined() ? inputs[1].to(options.dtype()).contiguous() : at::ones(shape, options);
    }

    template <class Element>
    cpu::RmsNormParams<Element> params_of(const at::Tensor& x_rows, const at::Tensor& weight,
                                          const at::Tensor& inverses) const {
      using T = cpu::Computed<Element>;
      return {{x_rows.size(0), x_rows.size(1), x_rows.size(2)},
              static_cast<int>(width()),
              {static_cast<const Element*>(x_rows.const_data_ptr()), strides_of(x_rows)},
              const_data<T>(weight),
              static_cast<T*>(inverses.data_ptr()),
              &cpu::rms_norm_operations<Element>(available_instruction_set())};
    }
  };
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
