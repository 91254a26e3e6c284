// SPDX-License-Identifier: MIT

// object_code_test.py compiles this file and inspects its instructions: attention(), and flex_attention() with a user's
// structs.

#include <attend/attention.h>
#include <attend/flex_attention.h>

struct SoftSign {
  float strength;
  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
    return score / (T(1) + abs(score) * T(strength)) - T(0.01f) * T(at.query - at.key);
  }
};

struct SameParity {
  ATTEND_HOST_DEVICE bool operator()(attend::Coordinate at) const { return (at.query - at.key) % 2 == 0; }
};

at::Tensor plain(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  return attend::attention(query, key, value);
}

at::Tensor modified(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  return attend::flex_attention(query, key, value, SoftSign{0.5f}, SameParity{} & attend::Causal{});
}
