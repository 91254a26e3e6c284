// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/version.h>
#include <attend/kernels/cuda/instructions.cuh>

#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

/// The numbers of type kType as kernels compute with them: float, or double for float64.
template <NumberType kType>
using Computed = std::conditional_t<kType == NumberType::kFloat64, double, float>;

/// The numbers of type kType in memory: std::uint16_t for the 16-bit types.
template <NumberType kType>
using Stored =
    std::conditional_t<kType == NumberType::kBFloat16 || kType == NumberType::kFloat16, std::uint16_t, Computed<kType>>;

/// log₂ e: exp(x) is exp2_fast(x · kLog2e).
inline constexpr float kLog2e = 1.44269504088896340736f;

/// Whether numbers of type kType are rounded when they are stored.
template <NumberType kType>
inline constexpr bool kIsRounded = !std::is_same_v<Stored<kType>, Computed<kType>>;

/// The value of a number in memory.
template <NumberType kType>
ATTEND_HOST_DEVICE Computed<kType> value_of(Stored<kType> number) {
  if constexpr (kIsRounded<kType>)
    return float_of<kType>(number);
  else
    return number;
}

/// The number in memory that is nearest to a value.
template <NumberType kType>
ATTEND_HOST_DEVICE Stored<kType> stored_of(Computed<kType> value) {
  if constexpr (kIsRounded<kType>)
    return round_number<kType>(value);
  else
    return value;
}

/// Number `index` after `data`.
template <NumberType kType>
ATTEND_HOST_DEVICE Computed<kType> load_number(const void* data, std::int64_t index) {
  return value_of<kType>(load_global(static_cast<const Stored<kType>*>(data) + index));
}

/// Sets number `index` after `data`.
template <NumberType kType>
ATTEND_HOST_DEVICE void store_number(void* data, std::int64_t index, Computed<kType> value) {
  store_global(static_cast<Stored<kType>*>(data) + index, stored_of<kType>(value));
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
