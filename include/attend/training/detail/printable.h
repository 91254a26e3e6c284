// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <cmath>
#include <limits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The number; NaN without its sign, which means nothing, follows from the machine and would be printed as "-nan".
inline double printable(double number) {
  return std::isnan(number) ? std::numeric_limits<double>::quiet_NaN() : number;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
