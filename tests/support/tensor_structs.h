// SPDX-License-Identifier: MIT
#pragma once

// A user's score_mod and mask_mod that hold tensors.

#include <attend/attention/binder.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/tensor_view.h>

#include <torch/types.h>

namespace attend::test {

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

struct HeadBias {
  torch::Tensor bias;  // (H)

  struct View {
    attend::TensorView bias;

    template <class T>
    ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
      return score + bias.read<T>(at.head);
    }
  };
  View bind(attend::Binder& binder) const { return {binder.values(bias)}; }
};

/// Allows only the keys that a tensor switches on.
struct SwitchedOn {
  torch::Tensor is_on;  // bool or integers (N, S)

  struct View {
    attend::IntegerView is_on;

    ATTEND_HOST_DEVICE bool operator()(attend::Coordinate at) const { return is_on.read(at.batch, at.key) != 0; }
  };
  View bind(attend::Binder& binder) const { return {binder.integers(is_on)}; }
};

}  // namespace attend::test
