// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/score/dual.h>
#include <attend/score/real.h>
#include <attend/version.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

namespace detail {

/// Counts the values that a score_mod reads from one tensor for one score. The derivative is with respect to one of
/// them: value number `wanted`, counted from 0. Each thread has its own object.
struct TensorReads {
  int wanted = 0;
  int turn = 0;            // the number of values that have been read
  std::int64_t place = 0;  // the index of the wanted value in memory

  ATTEND_HOST_DEVICE void begin(int wanted_turn) {
    wanted = wanted_turn;
    turn = 0;
  }
};

/// The sizes and strides of a tensor that is viewed. Missing dimensions have size 1.
struct ViewShape {
  std::int64_t sizes[4] = {1, 1, 1, 1};
  std::int64_t strides[4] = {};

  ATTEND_HOST_DEVICE bool has(std::int64_t i, std::int64_t j, std::int64_t k, std::int64_t l) const {
    const auto is_within = [](std::int64_t index, std::int64_t size) {  // 1 or 0: && would be a branch
      return static_cast<int>(static_cast<std::uint64_t>(index) < static_cast<std::uint64_t>(size));
    };
    return (is_within(i, sizes[0]) & is_within(j, sizes[1]) & is_within(k, sizes[2]) & is_within(l, sizes[3])) != 0;
  }
  ATTEND_HOST_DEVICE std::int64_t place(std::int64_t i, std::int64_t j, std::int64_t k, std::int64_t l) const {
    return i * strides[0] + j * strides[1] + k * strides[2] + l * strides[3];
  }
};

/// The shape of contiguous memory with these sizes. A dimension of size 1 gets the stride 0. `name` is the name of the
/// class in error messages.
inline ViewShape contiguous_shape(const char* name, const void* data, std::initializer_list<std::int64_t> sizes) {
  constexpr std::int64_t kMost = std::int64_t{1} << 58;
  const auto check = [name](bool is_right, const char* rule) {
    if (!is_right) throw std::invalid_argument(std::string("attend::") + name + ": " + rule);
  };
  check(sizes.size() <= 4, "sizes must be up to 4 numbers, each at least 0");
  ViewShape shape;
  std::int64_t count = 1;
  std::size_t d = sizes.size();
  for (const std::int64_t* size = sizes.end(); d-- > 0; count *= *size) {
    --size;
    check(*size >= 0, "sizes must be up to 4 numbers, each at least 0");
    check(*size == 0 || count <= kMost / *size, "sizes must have at most 2^58 numbers");
    shape.sizes[d] = *size;
    shape.strides[d] = *size == 1 ? 0 : count;
  }
  check(data != nullptr || count == 0, "data must not be null");
  return shape;
}

/// A read outside of a tensor, for the error message.
struct OutsideRead {
  bool is_found = false;
  std::int64_t index[4] = {}, sizes[4] = {};

  ATTEND_HOST_DEVICE void note(const ViewShape& shape, std::int64_t i, std::int64_t j, std::int64_t k, std::int64_t l) {
    const std::int64_t read[4] = {i, j, k, l};
    for (int d = 0; d < 4; ++d) {
      index[d] = read[d];
      sizes[d] = shape.sizes[d];
    }
    is_found = true;
  }
};

}  // namespace detail

/// A view of a floating-point tensor with at most 4 dimensions, for a score_mod or mask_mod. Binder::values() makes a
/// view of a tensor of LibTorch. The constructor makes a view of memory.
///
/// A score_mod may read any number of values for a score. Gradients reach the tensor.
///
/// A read outside of the tensor accesses no memory outside of it and returns NaN:
/// - If a mask excludes the score, the read has no effect.
/// - Otherwise, if a score_mod has read it, attention throws c10::ValueError, and kernels::flex_attention_forward()
///   writes NaN.
/// - If a mask_mod has read it, there is no error.
///
/// @code
/// T bias = slopes.read<T>(at.head);
/// @endcode
class TensorView {
 public:
  /// The value at these indices.
  ///
  /// @tparam T The type that the score_mod is called with; attend::Real<float> in a mask_mod.
  /// @param i The index of the first dimension. Default: 0.
  /// @param j The index of the second dimension. Default: 0.
  /// @param k The index of the third dimension. Default: 0.
  /// @param l The index of the fourth dimension. Default: 0.
  /// @return The value, or NaN outside of the tensor.
  template <class T>
  ATTEND_HOST_DEVICE T read(std::int64_t i = 0, std::int64_t j = 0, std::int64_t k = 0, std::int64_t l = 0) const {
    const bool is_inside = shape_.has(i, j, k, l);
    if constexpr (detail::kIsChecking<T>)
      if (!is_inside && outside_ != nullptr) outside_->note(shape_, i, j, k, l);
    const std::int64_t place = shape_.place(i, j, k, l);
    return value_at(is_inside, is_inside ? place : 0, detail::Type<T>());
  }

  /// The same as read() without the check, which is faster. The indices must be inside of the tensor.
  template <class T>
  ATTEND_HOST_DEVICE T read_unchecked(std::int64_t i, std::int64_t j = 0, std::int64_t k = 0,
                                      std::int64_t l = 0) const {
    return value_at(true, shape_.place(i, j, k, l), detail::Type<T>());
  }

  /// The place in memory of the value at these indices, which must be inside of the tensor; see ScoreMod.
  ATTEND_HOST_DEVICE std::int64_t place(std::int64_t i, std::int64_t j = 0, std::int64_t k = 0,
                                        std::int64_t l = 0) const {
    return shape_.place(i, j, k, l);
  }

  TensorView() = default;

  /// A view of contiguous memory.
  ///
  /// @param data The numbers. For a score_mod: float in a call in float32 or bfloat16, and double in a call in float64.
  /// For a mask_mod: float, which it reads by read<attend::Real<float>>().
  /// @param sizes Up to four sizes. The memory must stay valid while the view is used.
  /// @throws std::invalid_argument for more than four sizes, a negative size, more than 2^58 numbers, and for a null
  /// pointer unless a size is 0.
  ///
  /// @code
  /// std::vector<float> bias(8 * 64);
  /// attend::TensorView view(bias.data(), {8, 64});
  /// @endcode
  template <class V>
  requires(std::is_same_v<V, float> || std::is_same_v<V, double>)
      TensorView(const V* data, std::initializer_list<std::int64_t> sizes)
      : data_(data), shape_(detail::contiguous_shape("TensorView", data, sizes)), number_size_(sizeof(V)) {
    static constexpr V kZero = 0;
    for (const std::int64_t size : sizes)
      if (size == 0) data_ = &kZero;  // a read outside reads the first number
  }

  /// The sizes. Missing dimensions have size 1.
  const std::int64_t (&sizes() const)[4] { return shape_.sizes; }

  /// Called by the kernels: the size of a number in bytes. It is 0 for a view without memory, and for a view that a
  /// Binder has made.
  int number_size() const { return number_size_; }
  /// Called by the kernels: makes derivatives with respect to a value that is read through this view.
  void differentiate(detail::TensorReads* reads) { reads_[0] = reads; }

  /// Used by Binder, with internal types.
  ATTEND_HOST_DEVICE TensorView(const void* data, const detail::ViewShape& shape,
                                detail::TensorReads* inner_reads = nullptr, detail::TensorReads* outer_reads = nullptr,
                                detail::OutsideRead* outside = nullptr)
      : data_(data), shape_(shape), reads_{inner_reads, outer_reads}, outside_(outside) {}

 private:
  template <class V>
  ATTEND_HOST_DEVICE Real<V> value_at(bool is_inside, std::int64_t place, detail::Type<Real<V>>) const {
    const V value = static_cast<const V*>(data_)[place];
    return is_inside ? value : simd::FloatFormat<V>::kNaN;
  }
  template <class V, bool kByTensor>
  ATTEND_HOST_DEVICE Dual<V, kByTensor> value_at(bool is_inside, std::int64_t place,
                                                 detail::Type<Dual<V, kByTensor>>) const {
    using Number = typename Dual<V, kByTensor>::Number;
    const Number value = value_at(is_inside, place, detail::Type<Number>());
    if constexpr (kByTensor) {
      detail::TensorReads* const reads = reads_[detail::kDepth<V>];
      if (reads == nullptr || !is_inside || reads->turn++ != reads->wanted) return {value, Number(0)};
      reads->place = place;
      return {value, Number(1)};
    } else {
      return {value, Number(0)};
    }
  }

  const void* data_ = nullptr;
  detail::ViewShape shape_;
  detail::TensorReads* reads_[2] = {};
  detail::OutsideRead* outside_ = nullptr;
  int number_size_ = 0;
};

/// A view of an integer or bool tensor with at most 4 dimensions, for a score_mod or mask_mod. Binder::integers() makes
/// a view of a tensor of LibTorch. The constructor makes a view of memory.
///
/// A read outside of the tensor accesses no memory outside of it and returns 0. If a mask excludes the score, the read
/// has no effect. Otherwise attention throws c10::ValueError, and kernels::flex_attention_forward() uses the 0.
///
/// @code
/// struct SameGroup {
///   torch::Tensor group;  // (L), integers, for self-attention: L = S
///   struct View {
///     attend::IntegerView group;
///     ATTEND_HOST_DEVICE bool operator()(attend::Coordinate at) const {
///       return group.read(at.query) == group.read(at.key);
///     }
///   };
///   View bind(attend::Binder& binder) const { return {binder.integers(group)}; }
/// };
/// @endcode
class IntegerView {
 public:
  /// The number at these indices.
  ///
  /// @param i The index of the first dimension. Default: 0.
  /// @param j The index of the second dimension. Default: 0.
  /// @param k The index of the third dimension. Default: 0.
  /// @param l The index of the fourth dimension. Default: 0.
  /// @return The number, or 0 outside of the tensor. A bool is 0 or 1.
  ATTEND_HOST_DEVICE std::int32_t read(std::int64_t i = 0, std::int64_t j = 0, std::int64_t k = 0,
                                       std::int64_t l = 0) const {
    const bool is_inside = shape_.has(i, j, k, l);
    if (is_inside) return data_[shape_.place(i, j, k, l)];
#if !defined(__CUDA_ARCH__)  // a GPU notes nothing
    if (outside_ != nullptr) outside_->note(shape_, i, j, k, l);
    if (seen_outside_ != nullptr) __atomic_store_n(seen_outside_, 1, __ATOMIC_RELAXED);
#endif
    return 0;
  }

  /// The same as read() without the check: the indices must be inside of the tensor.
  ATTEND_HOST_DEVICE std::int32_t read_unchecked(std::int64_t i, std::int64_t j = 0, std::int64_t k = 0,
                                                 std::int64_t l = 0) const {
    return data_[shape_.place(i, j, k, l)];
  }

  IntegerView() = default;

  /// A view of contiguous memory.
  ///
  /// @param data The numbers.
  /// @param sizes Up to four sizes. The memory must stay valid while the view is used.
  /// @throws std::invalid_argument as TensorView.
  ///
  /// @code
  /// std::vector<std::int32_t> group(64);
  /// attend::IntegerView view(group.data(), {64});
  /// @endcode
  IntegerView(const std::int32_t* data, std::initializer_list<std::int64_t> sizes)
      : data_(data), shape_(detail::contiguous_shape("IntegerView", data, sizes)) {}

  /// Used by Binder, with internal types.
  ATTEND_HOST_DEVICE IntegerView(const std::int32_t* data, const detail::ViewShape& shape, int* seen_outside = nullptr,
                                 detail::OutsideRead* outside = nullptr)
      : data_(data), shape_(shape), seen_outside_(seen_outside), outside_(outside) {}

 private:
  const std::int32_t* data_ = nullptr;
  detail::ViewShape shape_;
  int* seen_outside_ = nullptr;
  detail::OutsideRead* outside_ = nullptr;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
