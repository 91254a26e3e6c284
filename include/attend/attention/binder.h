// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/check_dense.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The sizes of one call of attention().
struct AttentionSizes {
  std::int64_t batch_size,  ///< N
      num_heads,            ///< H, the query heads
      query_length,         ///< L
      key_length;           ///< S
};

namespace detail {

/// The number of keys of each batch entry: S, or the number in the option key_lengths.
class KeyLengths {
 public:
  KeyLengths() = default;
  /// @param key_lengths Undefined, or int32 (N).
  explicit KeyLengths(const at::Tensor& key_lengths) {
    if (!key_lengths.defined()) return;
    const at::Tensor on_cpu = key_lengths.cpu().contiguous();
    const auto* const first = static_cast<const std::int32_t*>(on_cpu.const_data_ptr());
    lengths_.assign(first, first + on_cpu.numel());
  }

  std::int64_t of(std::int64_t batch, const AttentionSizes& sizes) const {
    return lengths_.empty() ? sizes.key_length : lengths_[static_cast<std::size_t>(batch)];
  }

  /// Whether the option key_lengths is set.
  bool are_given() const { return !lengths_.empty(); }

 private:
  std::vector<std::int32_t> lengths_;
};

/// The objects in which views note what is read.
struct ViewPurpose {
  /// For each depth of Dual: the number of the tensor with respect to which it is differentiated, or −1 for none.
  int differentiated[2] = {-1, -1};
  TensorReads* reads[2] = {};      // for each depth of Dual: counts the reads of that tensor
  int* seen_outside = nullptr;     // becomes 1 if an IntegerView is read outside of its tensor
  OutsideRead* outside = nullptr;  // where a check notes what was read outside of a tensor
};

}  // namespace detail

/// Turns the tensors of a score_mod or mask_mod into views, which the struct reads in the kernel.
///
/// A struct that holds tensors has `auto bind(attend::Binder& binder) const`. bind() checks the tensors against
/// sizes(), requests a view of each tensor, and returns the struct that is called for every score. attention calls
/// bind() several times. Each time, bind() must request the same tensors in the same order.
///
/// @code
/// struct HeadBias {
///   torch::Tensor bias;  // (H); may require a gradient
///   struct View {
///     attend::TensorView bias;
///     template <class T>
///     ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
///       return score + bias.read<T>(at.head);
///     }
///   };
///   View bind(attend::Binder& binder) const { return {binder.values(bias)}; }
/// };
/// @endcode
class Binder {
 public:
  /// The sizes of the call that bind() prepares: N, H, L and S.
  const AttentionSizes& sizes() const { return sizes_; }

  /// A view of a floating-point tensor.
  ///
  /// If a score_mod reads the view, gradients reach the tensor. A mask_mod, which has no type T, reads the view with
  /// `read<attend::Real<float>>`.
  ///
  /// @param tensor Floating-point, with at most 4 dimensions, on the device of query.
  /// @return The view, for a member of the struct that bind() returns.
  /// @throws c10::TypeError for another dtype, and for a tensor that is sparse, nested, mkldnn or quantized.
  /// @throws c10::ValueError for an undefined tensor, more dimensions or another device.
  TensorView values(const at::Tensor& tensor) {
    const at::Tensor& bound = next(tensor, "values()", at::isFloatingType, "a floating-point");
    const auto reads_at = [this](int depth) {
      return purpose_.differentiated[depth] == number_ - 1 ? purpose_.reads[depth] : nullptr;
    };
    return {data_of(bound), shape_of(bound), reads_at(0), reads_at(1), purpose_.outside};
  }

  /// A view of an integer or bool tensor, whose elements are read as int32.
  ///
  /// @param tensor Integers or bool, with at most 4 dimensions, on the device of query.
  /// @return The view, for a member of the struct that bind() returns.
  /// @throws c10::TypeError as values().
  /// @throws c10::ValueError as values(). After bind(), attention also throws it if an element does not fit into int32.
  /// Exception: attend::cuda::backend() does not check this.
  IntegerView integers(const at::Tensor& tensor) {
    constexpr auto is_whole = [](at::ScalarType dtype) { return at::isIntegralType(dtype, /*includeBool=*/true); };
    const at::Tensor& bound = next(tensor, "integers()", is_whole, "an integer or bool");
    return {static_cast<const std::int32_t*>(data_of(bound)), shape_of(bound), purpose_.seen_outside, purpose_.outside};
  }

  /// Checks that L and S are the number of positions for which a struct was made.
  ///
  /// @param name The name of the struct, for the message.
  /// @param argument The name of the argument that determines the number, for the message.
  /// @param positions The number.
  /// @throws c10::ValueError if L or S is another number.
  void check_positions(const char* name, const char* argument, std::int64_t positions) const {
    TORCH_CHECK_VALUE(sizes_.query_length == positions && sizes_.key_length == positions, name, ": ", argument, " (",
                      positions, " positions) must fit the number of queries and keys, got L = ", sizes_.query_length,
                      " and S = ", sizes_.key_length);
  }
  /// Checks that N is a multiple of the number of windows for which a struct was made.
  ///
  /// @param name The name of the struct, for the message.
  /// @param windows The number of windows.
  /// @throws c10::ValueError if N is not a multiple.
  void check_windows(const char* name, std::int64_t windows) const {
    TORCH_CHECK_VALUE(sizes_.batch_size % windows == 0, name, ": the batch size (", sizes_.batch_size,
                      ") must be a multiple of the number of windows (", windows, ")");
  }

  /// Used by attention to collect the tensors that a struct requests.
  Binder(const AttentionSizes& sizes, c10::Device device) : sizes_(sizes), device_(device), is_collecting_(true) {}

  /// Used by attention to bind a struct to tensors on the CPU. Their dtype is that of the computation, or int32. They
  /// are contiguous, or expanded from a contiguous tensor.
  Binder(const AttentionSizes& sizes, std::vector<at::Tensor> tensors, const detail::ViewPurpose& purpose = {})
      : sizes_(sizes), tensors_(std::move(tensors)), purpose_(purpose) {}

  /// All tensors that the struct has requested, in order.
  const std::vector<at::Tensor>& tensors() const { return tensors_; }

 private:
  static detail::ViewShape shape_of(const at::Tensor& tensor) {
    detail::ViewShape shape;
    for (std::size_t d = 0; d < tensor.sizes().size(); ++d) {
      shape.sizes[d] = tensor.sizes()[d];
      shape.strides[d] = tensor.strides()[d];
    }
    return shape;
  }

  /// The address of the numbers. For an empty tensor it is that of a zero, because a read outside of a tensor reads the
  /// first number.
  const void* data_of(const at::Tensor& tensor) const {
    static constexpr double kZero = 0.0;
    return is_collecting_ ? nullptr : tensor.numel() == 0 ? &kZero : tensor.const_data_ptr();
  }

  template <class IsWanted>
  const at::Tensor& next(const at::Tensor& tensor, const char* function, const IsWanted& is_wanted,
                         const char* wanted) {
    if (!is_collecting_) {
      TORCH_CHECK_VALUE(number_ < static_cast<int>(tensors_.size()) &&
                            is_wanted(tensors_[static_cast<std::size_t>(number_)].scalar_type()),
                        "attend::Binder: bind() must request the same tensors in the same order each time, got ",
                        function, " for tensor ", number_, " of ", tensors_.size());
      return tensors_[static_cast<std::size_t>(number_++)];
    }
    TORCH_CHECK_VALUE(tensor.defined(), "attend::Binder: ", function, " needs a tensor, got an undefined one");
    detail::check_dense("attend::Binder", "a tensor of a score_mod or mask_mod", tensor);
    TORCH_CHECK_TYPE(is_wanted(tensor.scalar_type()), "attend::Binder: ", function, " needs ", wanted, " tensor, got ",
                     tensor.scalar_type());
    TORCH_CHECK_VALUE(tensor.dim() <= 4, "attend::Binder: ", function,
                      " needs a tensor with at most 4 dimensions, got ", tensor.sizes());
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
  detail::ViewPurpose purpose_;
  int number_ = 0;  // the number of tensors that have been requested
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
