// SPDX-License-Identifier: MIT
#pragma once

// Included by model.cpp and by kernels.cu: the structs, and the functions that make their backends.

#include <attend/attention/attention_backend.h>
#include <attend/score/coordinate.h>

#include <memory>

/// Keys lose 0.1 for each step away from the query.
struct Tilted {
  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
    return score - 0.1f * abs(T(at.query - at.key));
  }
};

/// A backend for attention() and for layers without structs of their own.
std::shared_ptr<const attend::detail::AttentionBackend> plain_on_cuda();
/// A backend for flex_attention() with Tilted and attend::Causal.
std::shared_ptr<const attend::detail::AttentionBackend> tilted_on_cuda();
/// A backend for flex_attention() with attend::Causal alone, which takes less time to compile.
std::shared_ptr<const attend::detail::AttentionBackend> small_on_cuda();
