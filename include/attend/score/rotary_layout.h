// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Which two of the R rotated numbers of a head form a pair.
enum class RotaryLayout {
  kHalfSplit,    ///< numbers i and i + R/2, as in Llama, GPT-NeoX and Hugging Face
  kInterleaved,  ///< numbers 2i and 2i + 1, as in RoFormer, GPT-J and Meta's own Llama
};

/// Writes the name, for example "kHalfSplit".
inline std::ostream& operator<<(std::ostream& stream, RotaryLayout layout) {
  return stream << (layout == RotaryLayout::kHalfSplit ? "kHalfSplit" : "kInterleaved");
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
