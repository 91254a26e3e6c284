// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/detail/safetensors_header.h>
#include <attend/version.h>

#include <c10/core/ScalarType.h>
#include <torch/version.h>

#include <array>
#include <optional>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

inline constexpr auto kSafetensorsDtypes = std::to_array<std::pair<SafetensorsDtype, c10::ScalarType>>({
  {SafetensorsDtype::kBool, c10::ScalarType::Bool}, {SafetensorsDtype::kU8, c10::ScalarType::Byte},
      {SafetensorsDtype::kI8, c10::ScalarType::Char}, {SafetensorsDtype::kF8E5M2, c10::ScalarType::Float8_e5m2},
      {SafetensorsDtype::kF8E4M3, c10::ScalarType::Float8_e4m3fn},
      {SafetensorsDtype::kF8E8M0, c10::ScalarType::Float8_e8m0fnu},
      {SafetensorsDtype::kF8E4M3Fnuz, c10::ScalarType::Float8_e4m3fnuz},
      {SafetensorsDtype::kF8E5M2Fnuz, c10::ScalarType::Float8_e5m2fnuz},
      {SafetensorsDtype::kI16, c10::ScalarType::Short}, {SafetensorsDtype::kU16, c10::ScalarType::UInt16},
      {SafetensorsDtype::kF16, c10::ScalarType::Half}, {SafetensorsDtype::kBf16, c10::ScalarType::BFloat16},
      {SafetensorsDtype::kI32, c10::ScalarType::Int}, {SafetensorsDtype::kU32, c10::ScalarType::UInt32},
      {SafetensorsDtype::kF32, c10::ScalarType::Float}, {SafetensorsDtype::kC64, c10::ScalarType::ComplexFloat},
      {SafetensorsDtype::kF64, c10::ScalarType::Double}, {SafetensorsDtype::kI64, c10::ScalarType::Long},
      {SafetensorsDtype::kU64, c10::ScalarType::UInt64},
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 8
      {SafetensorsDtype::kF4, c10::ScalarType::Float4_e2m1fn_x2},  // two numbers in one element of a tensor
#endif
});

/// torch's dtype for a dtype of the format. Nothing if this LibTorch lacks it.
inline std::optional<c10::ScalarType> torch_dtype(SafetensorsDtype dtype) {
  for (const auto& [ours, torchs] : kSafetensorsDtypes)
    if (ours == dtype) return torchs;
  return std::nullopt;
}

/// The dtype of the format for a dtype of torch. Nothing if the format lacks it.
inline std::optional<SafetensorsDtype> safetensors_dtype(c10::ScalarType dtype) {
  for (const auto& [ours, torchs] : kSafetensorsDtypes)
    if (torchs == dtype) return ours;
  return std::nullopt;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
