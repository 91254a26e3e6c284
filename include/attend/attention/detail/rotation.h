// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/instruction_set.h>
#include <attend/attention/detail/row_elements.h>
#include <attend/detail/torch/autograd_node.h>
#include <attend/detail/torch/const_data.h>
#include <attend/detail/torch/expanded.h>
#include <attend/detail/torch/in_memory.h>
#include <attend/detail/torch/parallel.h>
#include <attend/kernels/cpu/rotate.h>
#include <attend/score/rotary_layout.h>
#include <attend/version.h>

#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The rotation of rotate(), after its checks. It is linear in x, so its gradient is the rotation by the negative
/// angles, and no x is kept for it.
///
/// A tensor that nothing else reads is rotated in its own memory. This saves an allocation and a quarter of the time of
/// the kernel (benchmarks/results/rotary.md).
class Rotation {
 public:
  /// x (N, H, L, D) to the same sizes.
  static at::Tensor apply_to(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, RotaryLayout layout) {
    return Rotation(as_4d(cos, x), as_4d(sin, x), layout, /*is_inverse=*/false).rotated(x, /*is_owned=*/false);
  }

  /// The same for an x that only the caller has, and whose numbers no backward pass reads, such as the result of a
  /// linear layer. The result may use the memory of x. The version counter of x does not change. If x is a part of a
  /// tensor, the other parts stay valid, but torch would refuse them after a change of the counter.
  static at::Tensor apply_to_owned(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                                   RotaryLayout layout) {
    return Rotation(as_4d(cos, x), as_4d(sin, x), layout, /*is_inverse=*/false).rotated(x, /*is_owned=*/true);
  }

 private:
  Rotation(const at::Tensor& cos, const at::Tensor& sin, RotaryLayout layout, bool is_inverse)
      : cos_(cos), sin_(sin), layout_(layout), is_inverse_(is_inverse) {}

  static at::Tensor as_4d(const at::Tensor& table, const at::Tensor& x) {
    const at::Tensor converted = table.to(at::toOpMathType(x.scalar_type()));
    if (table.dim() == 2) return converted.unsqueeze(0).unsqueeze(0);
    return table.dim() == 3 ? converted.unsqueeze(1) : converted;
  }

  at::Tensor rotated(const at::Tensor& x, bool is_owned) const {
    return is_fused(x) ? fused(x, is_owned && can_be_written(x)) : by_torch(x);
  }

  /// Whether the kernel computes it. Tables that need a gradient are left to torch.
  bool is_fused(const at::Tensor& x) const {
    const auto has_tangent = [](const at::Tensor& tensor) { return tensor._fw_grad(/*level=*/0).defined(); };
    return x.is_cpu() && is_element_of_rows(x.scalar_type()) && x.numel() > 0 &&
           !torch::autograd::compute_requires_grad(cos_, sin_) && !has_tangent(x) && !has_tangent(cos_) &&
           !has_tangent(sin_);
  }

  at::Tensor by_torch(const at::Tensor& x) const {
    const std::int64_t pairs = cos_.size(3), rotated_width = 2 * pairs, rest = x.size(3) - rotated_width;
    const at::Tensor numbers = x.narrow(3, 0, rotated_width).to(cos_.scalar_type());
    const bool is_split = layout_ == RotaryLayout::kHalfSplit;
    const at::Tensor a = is_split ? numbers.narrow(3, 0, pairs) : numbers.slice(3, 0, rotated_width, 2);
    const at::Tensor b = is_split ? numbers.narrow(3, pairs, pairs) : numbers.slice(3, 1, rotated_width, 2);
    const at::Tensor sin = is_inverse_ ? -sin_ : sin_;
    const at::Tensor rotated_a = a * cos_ - b * sin, rotated_b = b * cos_ + a * sin;
    const at::Tensor rotated =
        (is_split ? at::cat({rotated_a, rotated_b}, 3) : at::stack({rotated_a, rotated_b}, 4).flatten(3))
            .to(x.scalar_type());
    return rest == 0 ? rotated : at::cat({rotated, x.narrow(3, rotated_width, rest)}, 3);
  }

  /// Whether each number has a place of its own in memory, and those of a head are adjacent.
  static bool can_be_written(const at::Tensor& x) { return x.stride(3) == 1 && !x.is_neg() && !is_expanded(x); }

  at::Tensor fused(const at::Tensor& x, bool is_owned) const {
    at::Tensor y;
    {
      const c10::AutoGradMode no_grad(false);
      y = by_kernel(x, is_owned);
    }
    if (torch::autograd::compute_requires_grad(x)) {
      const auto node = make_node(new Node(*this));
      node->set_next_edges(torch::autograd::collect_next_edges(x));
      torch::autograd::set_history(y, node);
    }
    return y;
  }

  at::Tensor by_kernel(const at::Tensor& given, bool is_owned) const {
    const at::Tensor x = with_adjacent_numbers(in_memory(given)), cos = with_adjacent_numbers(in_memory(cos_)),
                     sin = with_adjacent_numbers(in_memory(sin_)), y = is_owned ? x.tensor_data() : empty_rows_like(x);
    // The inner loop goes over the heads or over the positions: whichever are closer together in memory.
    const bool heads_first = x.stride(1) < x.stride(2);
    const auto three = [&](at::IntArrayRef of) {
      return heads_first ? cpu::Three{of[0], of[2], of[1]} : cpu::Three{of[0], of[1], of[2]};
    };
    const auto shared = [&](const at::Tensor& table) {
      return three(
          {table.size(0) == 1 ? 0 : table.stride(0), table.size(1) == 1 ? 0 : table.stride(1), table.stride(2)});
    };
    with_element_of_rows(x.scalar_type(), [&](auto element) {
      using Element = decltype(element);
      using T = cpu::Computed<Element>;
      const cpu::RotateParams<Element> params{three(x.sizes()),
                                              {static_cast<const Element*>(x.const_data_ptr()), three(x.strides())},
                                              {static_cast<Element*>(y.data_ptr()), three(y.strides())},
                                              {const_data<T>(cos), shared(cos)},
                                              {const_data<T>(sin), shared(sin)},
                                              static_cast<int>(cos.size(3)),
                                              static_cast<int>(x.size(3)),
                                              is_inverse_};
      const auto function =
          cpu::rotate_function<Element>(available_instruction_set(), layout_ == RotaryLayout::kInterleaved);
      constexpr std::int64_t kGrain = 1 << 15;  // numbers, for one thread
      parallel_ranges(x.numel() / x.size(3), std::max<std::int64_t>(1, kGrain / x.size(3)),
                      [&](std::int64_t begin, std::int64_t end) { cpu::rotate(params, function, begin, end); });
    });
    return y;
  }

  /// The gradient in torch's graph. It can be differentiated again: it is a Rotation.
  class Node : public torch::autograd::Node {
   public:
    explicit Node(const Rotation& rotation)
        : cos_(rotation.cos_, /*is_output=*/false),
          sin_(rotation.sin_, /*is_output=*/false),
          layout_(rotation.layout_),
          is_inverse_(rotation.is_inverse_) {}

    std::string name() const override { return "attend::rotate"; }

    void release_variables() override {
      const std::lock_guard<std::mutex> lock(mutex_);
      cos_.reset_data();
      sin_.reset_data();
    }

   protected:
    torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
      if (!gradients[0].defined()) return {at::Tensor()};
      at::Tensor cos, sin;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        cos = cos_.unpack();
        sin = sin_.unpack();
      }
      // Without other references nothing else can read the gradient. torch's engine checks the same before it adds
      // gradients in place.
      const bool is_owned = !c10::GradMode::is_enabled() && gradients[0].use_count() == 1 &&
                            gradients[0].has_storage() && gradients[0].storage().use_count() == 1;
      return {Rotation(cos, sin, layout_, !is_inverse_).rotated(gradients[0], is_owned)};
    }

   private:
    torch::autograd::SavedVariable cos_, sin_;
    RotaryLayout layout_;
    bool is_inverse_;
  };

  at::Tensor cos_, sin_;  // (N or 1, H or 1, L, R/2), in the dtype of the products
  RotaryLayout layout_;
  bool is_inverse_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
