// SPDX-License-Identifier: MIT
#pragma once

// A user's score_mod and mask_mod. They need no LibTorch; support/tensor_structs.h has those that hold tensors.

#include <attend/macros.h>
#include <attend/score/coordinate.h>

#include <cstdint>

namespace attend::test {

struct SoftSign {
  float strength;

  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, Coordinate at) const {
    return score / (T(1) + abs(score) * T(strength)) - T(0.01f) * T(at.query - at.key);
  }
};

/// Is no fixed band, so no part of it can be skipped.
struct SameParity {
  ATTEND_HOST_DEVICE bool operator()(Coordinate at) const { return (at.query - at.key) % 2 == 0; }
};

struct SameBlock {
  std::int32_t width;

  ATTEND_HOST_DEVICE bool operator()(Coordinate at) const { return at.query / width == at.key / width; }
};

struct NoKey {
  ATTEND_HOST_DEVICE bool operator()(Coordinate) const { return false; }
};

}  // namespace attend::test
