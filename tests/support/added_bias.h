// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/binder.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/tensor_view.h>

#include <torch/types.h>

namespace attend::test {

/// A user's score_mod that reads a tensor of four sizes.
struct AddedBias {
  torch::Tensor bias;  // (N, H, L, S)

  struct View {
    attend::TensorView bias;

    template <class T>
    ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
      return score + bias.read<T>(at.batch, at.head, at.query, at.key);
    }
  };
  View bind(attend::Binder& binder) const { return {binder.values(bias)}; }
};

}  // namespace attend::test
