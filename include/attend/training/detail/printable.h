// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <cmath>
#include <limits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The number, or NaN without its sign. The sign of NaN has no meaning but would be printed as "-nan" on some machines.
inline double printable(double number) {
  return std::isnan(number) ? std::numeric_limits<double>::quiet_NaN() : number;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
