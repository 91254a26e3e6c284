// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// How a layer of positional encodings combines its channels with those of a signal.
enum class Combine {
  kConcatenate,  ///< appends the P channels of the positions: (N, C, L) → (N, C + P, L)
  kAdd,          ///< adds the P channels to those of the signal: (N, C, L) → (N, C, L); P must be C or 1
};

/// Writes the name, for example "kAdd".
inline std::ostream& operator<<(std::ostream& stream, Combine combine) {
  return stream << (combine == Combine::kConcatenate ? "kConcatenate" : "kAdd");
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
