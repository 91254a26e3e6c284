// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// How a layer of positions combines its channels with those of a signal.
enum class Combine {
  kConcatenate,  ///< behind the signal's channels: (N, C, L) → (N, C + channels of the positions, L)
  kAdd,          ///< to the signal's channels, which must be as many, unless the positions have only one
};

/// Writes the name, for example "kAdd".
inline std::ostream& operator<<(std::ostream& stream, Combine combine) {
  return stream << (combine == Combine::kConcatenate ? "kConcatenate" : "kAdd");
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
