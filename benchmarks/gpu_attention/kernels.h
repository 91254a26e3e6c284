// SPDX-License-Identifier: MIT
#pragma once

// Included by kernels.cu, which nvcc compiles, and by operators.cpp: a user's structs, and the objects with the
// kernels.

#include <attend/attention/backend.h>
#include <attend/attention/binder.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/tensor_view.h>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>

namespace gpu_attention {

/// A score_mod that reads a table: score + table[head][distance], for distances below 128.
class TableBias {
 public:
  static constexpr std::int32_t kDistances = 128;

  explicit TableBias(at::Tensor table) : table_(std::move(table)) {}

  struct View {
    attend::TensorView table;  // (H, kDistances)

    template <class T>
    ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
      const std::int32_t distance = at.query - at.key < 0 ? at.key - at.query : at.query - at.key;
      return score + table.read_unchecked<T>(at.head, distance < kDistances ? distance : kDistances - 1);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(table_)}; }

 private:
  at::Tensor table_;
};

/// A score_mod that bounds scores to the range from -limit to limit.
struct Bounded {
  float limit;

  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate) const {
    return tanh(score / T(limit)) * T(limit);
  }
};

/// Kernels without structs.
attend::BackendChoice plain_kernels();
/// Kernels for TableBias and attend::Causal.
attend::BackendChoice table_kernels();
/// Kernels for Bounded and attend::Causal.
attend::BackendChoice bounded_kernels();

}  // namespace gpu_attention
