// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/tensor_view.h>
#include <attend/detail/const_data.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/util/Exception.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The sizes of one call of attention.
struct AttentionSizes {
  std::int64_t batch_size, num_heads, query_length, key_length;  // N, H, L, S
};

/// Gives a score_mod or mask_mod that holds tensors the views through which they are read.
///
/// Such a struct has `auto bind(attend::Binder& binder) const`, which checks its tensors against the sizes of the call
/// and returns the struct that is called for every score. bind is called several times, and must ask for the same
/// tensors in the same order each time.
///
/// Example:
///   struct HeadBias {
///     torch::Tensor bias;  // (H); may need a gradient
///     struct View {
///       attend::TensorView bias;
///       template <class T>
///       ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const { return score + bias.read<T>(at.head);
///       }
///     };
///     View bind(attend::Binder& binder) const { return {binder.values(bias)}; }
///   };
class Binder {
 public:
  /// Of the call that is being prepared.
  const AttentionSizes& sizes() const { return sizes_; }

  /// A view of a floating-point tensor of one to four sizes; gradients go back to it. A mask_mod, which has no T, reads
  /// it by `read<attend::Real<float>>`.
  /// Throws c10::TypeError for another dtype, c10::ValueError for another number of sizes or a device that is not the
  /// query's.
  TensorView values(const at::Tensor& tensor) {
    const at::Tensor& bound = next(tensor, "values", at::isFloatingType, "floating-point", 4);
    std::int64_t strides[4] = {};
    for (int i = 0; i < bound.dim(); ++i) strides[i] = bound.stride(i);
    unsigned levels = 0;
    for (std::size_t depth = 0; depth < differentiated_.size(); ++depth)
      if (differentiated_[depth] == number_ - 1) levels |= 1u << depth;
    return {is_collecting_ ? nullptr : bound.const_data_ptr(), strides, levels};
  }

  /// A view of a whole-number or bool tensor of one or two sizes. Errors as in values().
  IntegerView integers(const at::Tensor& tensor) {
    constexpr auto is_whole = [](at::ScalarType dtype) { return at::isIntegralType(dtype, /*includeBool=*/true); };
    const at::Tensor& bound = next(tensor, "integers", is_whole, "whole numbers or bool", 2);
    std::int64_t strides[2] = {};
    for (int i = 0; i < bound.dim(); ++i) strides[i] = bound.stride(i);
    return {is_collecting_ ? nullptr : detail::const_data<std::int32_t>(bound), strides};
  }

  /// To find out which tensors a struct asks for.
  Binder(const AttentionSizes& sizes, c10::Device device) : sizes_(sizes), device_(device), is_collecting_(true) {}

  /// To bind it to these, which are contiguous, on the CPU, and of the dtype that is computed in (or int32).
  /// `differentiated` says by the values of which tensor the derivatives are, for each depth of Dual; −1: by none.
  Binder(const AttentionSizes& sizes, std::vector<at::Tensor> tensors, std::array<int, 2> differentiated = {-1, -1})
      : sizes_(sizes), tensors_(std::move(tensors)), differentiated_(differentiated) {}

  /// All that have been asked for.
  const std::vector<at::Tensor>& tensors() const { return tensors_; }

 private:
  template <class IsWanted>
  const at::Tensor& next(const at::Tensor& tensor, const char* function, const IsWanted& is_wanted, const char* wanted,
                         int most_sizes) {
    if (!is_collecting_) {
      TORCH_CHECK_VALUE(number_ < static_cast<int>(tensors_.size()) &&
                            is_wanted(tensors_[static_cast<std::size_t>(number_)].scalar_type()),
                        "attend::Binder: bind must ask for the same tensors in the same order each time, got ",
                        function, " for tensor ", number_, " of ", tensors_.size());
      return tensors_[static_cast<std::size_t>(number_++)];
    }
    TORCH_CHECK_VALUE(tensor.defined(), "attend::Binder: ", function, " needs a tensor, got an undefined one");
    TORCH_CHECK_TYPE(is_wanted(tensor.scalar_type()), "attend::Binder: ", function, " needs a tensor of ", wanted,
                     ", got ", tensor.scalar_type());
    TORCH_CHECK_VALUE(tensor.dim() >= 1 && tensor.dim() <= most_sizes, "attend::Binder: ", function,
                      " needs a tensor of 1 to ", most_sizes, " sizes, got ", tensor.sizes());
    TORCH_CHECK_VALUE(tensor.device() == device_, "attend::Binder: a tensor of a score_mod or mask_mod (",
                      tensor.device(), ") must be on the device of query (", device_, ")");
    ++number_;
    tensors_.push_back(tensor);
    return tensors_.back();
  }

  AttentionSizes sizes_;
  c10::Device device_ = c10::kCPU;
  bool is_collecting_ = false;
  std::vector<at::Tensor> tensors_;
  std::array<int, 2> differentiated_ = {-1, -1};
  int number_ = 0;  // of tensors that have been asked for
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
