// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

/// Numbers of columns for which kernels on tensor cores are compiled.
template <int... kWidths>
struct Widths {
  /// Whether there are kernels for heads of this width.
  static constexpr bool has(int width) { return ((width == kWidths) || ...); }
};

/// The kernels on tensor cores that are compiled. A call of another type or width uses the kernels without tensor
/// cores. Each width takes time to compile, so a program may pass a class that names fewer.
///
/// A class may also have a member Float32. Calls in float32 of these widths then use tensor cores in tf32, which rounds
/// the factors of all products to 10 bits of fraction. EveryKernel has none: float32 is computed in float32 unless a
/// program asks for tf32. The backward pass in tf32 has at most 192 columns.
///
/// @code
/// struct InTf32 : attend::cuda::EveryKernel {
///   using Float32 = attend::cuda::Widths<64>;
/// };
/// @endcode
struct EveryKernel {
  using BFloat16 = Widths<32, 64, 96, 128, 192, 256>;  ///< of bfloat16
  using Float16 = BFloat16;                            ///< of float16
};

namespace detail {

/// The widths of Kernels for a type.
template <class Kernels, NumberType kType>
constexpr auto widths_of() {
  if constexpr (kType == NumberType::kBFloat16)
    return typename Kernels::BFloat16();
  else if constexpr (kType == NumberType::kFloat16)
    return typename Kernels::Float16();
  else if constexpr (requires { typename Kernels::Float32; } && kType == NumberType::kFloat32)
    return typename Kernels::Float32();
  else
    return Widths<>();
}

/// Whether Kernels has kernels of this type and width.
template <class Kernels>
constexpr bool has_kernels(NumberType type, int width) {
  switch (type) {
    case NumberType::kFloat32:
      return widths_of<Kernels, NumberType::kFloat32>().has(width);
    case NumberType::kBFloat16:
      return widths_of<Kernels, NumberType::kBFloat16>().has(width);
    case NumberType::kFloat16:
      return widths_of<Kernels, NumberType::kFloat16>().has(width);
    case NumberType::kFloat64:
      break;
  }
  return false;
}

/// How many numbers of a type with kernels on tensor cores have 16 bytes.
constexpr int numbers_of_16_bytes(NumberType type) { return type == NumberType::kFloat32 ? 4 : 8; }

/// The smallest width of a kernel with at least this number of columns. 0: there is none.
constexpr int kernel_width(int columns) {
  for (const int width : {32, 64, 96, 128, 192, 256})
    if (columns <= width) return width;
  return 0;
}

/// Whether the numbers of each row of a tensor are neighbours, and the rows are aligned to 16 bytes.
inline bool has_aligned_rows(const ConstTensorView4d& tensor, NumberType type) {
  bool is_aligned = reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0 && tensor.strides[3] == 1 &&
                    std::abs(tensor.strides[2]) <= std::numeric_limits<std::int32_t>::max();
  for (int i = 0; i < 3; ++i) is_aligned = is_aligned && tensor.strides[i] % numbers_of_16_bytes(type) == 0;
  return is_aligned;
}

/// Why the kernels on tensor cores cannot rotate queries and keys; null if they can, or need not.
inline const char* why_not_rotated(const Call& call) {
  if (!call.has_rotary()) return nullptr;
  if (call.dtype == NumberType::kFloat32) return "float32 is not rotated on tensor cores";
  if (call.rotary_dim % 16 != 0) return "rotary_dim is not a multiple of 16";
  for (const RotaryView& tables : {call.query_rotary, call.key_rotary})
    for (const void* const table : {tables.cos, tables.sin})
      if (reinterpret_cast<std::uintptr_t>(table) % 16 != 0 || tables.strides[0] % 4 != 0 || tables.strides[1] % 4 != 0)
        return "the tables of the rotary embedding have rows that are not aligned to 16 bytes";
  return nullptr;
}

/// Why a call uses no tensor cores, or null. `tensors` are those that its kernels copy or write by rows.
template <class Kernels>
const char* why_no_tensor_cores(const Call& call, std::initializer_list<ConstTensorView4d> tensors) {
  const bool is_float32 = call.dtype == NumberType::kFloat32;
  if (call.dtype == NumberType::kFloat64) return "the tensors are float64";
  if (is_float32 && std::is_same_v<decltype(widths_of<Kernels, NumberType::kFloat32>()), Widths<>>)
    return "the tensors are float32, and no kernels in tf32 are compiled";
  const int width = kernel_width(std::max(call.head_dim, call.value_dim)), numbers = numbers_of_16_bytes(call.dtype);
  if (width == 0) return "head_dim or value_dim is above 256";
  if (call.head_dim % numbers != 0 || call.value_dim % numbers != 0)
    return is_float32 ? "head_dim or value_dim is not a multiple of 4" : "head_dim or value_dim is not a multiple of 8";
  if (!has_kernels<Kernels>(call.dtype, width))
    return "the kernels on tensor cores of this type and width are not compiled";
  for (const ConstTensorView4d& tensor : tensors)
    if (!has_aligned_rows(tensor, call.dtype))
      return "a tensor has columns that are not neighbours, or rows that are not aligned to 16 bytes";
  return why_not_rotated(call);
}

}  // namespace detail
}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
