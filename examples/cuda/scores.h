// SPDX-License-Identifier: MIT
#pragma once

// Included by model.cpp and by kernels.cu: the structs, and the functions that make their backends.

#include <attend/attention/backend.h>
#include <attend/score/coordinate.h>

/// Keys lose 0.1 for each step away from the query.
struct Tilted {
  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
    return score - 0.1f * abs(T(at.query - at.key));
  }
};

/// A backend for attention() and for layers without structs of their own.
attend::BackendChoice plain_on_cuda();
/// The same, with float32 in tf32.
attend::BackendChoice tf32_on_cuda();
/// A backend for flex_attention() with Tilted and attend::Causal.
attend::BackendChoice tilted_on_cuda();
