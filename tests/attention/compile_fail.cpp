// SPDX-License-Identifier: MIT

// None of these must compile. compile_fail_test.py looks for the error above each namespace.

#include <attend/flex_attention.h>

// clang-format off

// the fourth argument must be a score_mod, but it is a mask_mod
namespace mask_mod_in_place_of_the_score_mod {
at::Tensor attention(const at::Tensor& x) { return attend::flex_attention(x, x, x, attend::Causal()); }
}  // namespace mask_mod_in_place_of_the_score_mod

// attend::flex_attention: a mask_mod needs `bool operator()(attend::Coordinate at) const`
namespace mask_mod_of_other_arguments {
struct OfTwoNumbers {
  bool operator()(int query, int key) const { return query >= key; }
};

at::Tensor attention(const at::Tensor& x) {
  return attend::flex_attention(x, x, x, attend::Unchanged(), OfTwoNumbers());
}
}  // namespace mask_mod_of_other_arguments

// attend::flex_attention: a mask_mod needs `bool operator()(attend::Coordinate at) const`
namespace mask_mod_of_other_arguments_combined {
struct OfTwoNumbers {
  bool operator()(int query, int key) const { return query >= key; }
};

at::Tensor attention(const at::Tensor& x) {
  return attend::flex_attention(x, x, x, attend::Unchanged(), OfTwoNumbers() & attend::Causal());
}
}  // namespace mask_mod_of_other_arguments_combined

// attend::flex_attention: a mask_mod must be trivially copyable; one that holds tensors needs `auto bind
namespace mask_mod_that_holds_a_tensor {
struct Padding {
  at::Tensor lengths;

  bool operator()(attend::Coordinate) const { return true; }
};

at::Tensor attention(const at::Tensor& x) { return attend::flex_attention(x, x, x, attend::Unchanged(), Padding{x}); }
}  // namespace mask_mod_that_holds_a_tensor

// attend::flex_attention: a mask_mod needs `bool operator()(attend::Coordinate at) const`
namespace mask_mod_that_returns_a_number {
struct ReturnsANumber {
  int operator()(attend::Coordinate at) const { return at.key; }
};

at::Tensor attention(const at::Tensor& x) {
  return attend::flex_attention(x, x, x, attend::Unchanged(), ReturnsANumber());
}
}  // namespace mask_mod_that_returns_a_number

// attend: `keys` of a mask_mod must be `attend::KeyRange keys(attend::QueryBlock block) const`
namespace mask_mod_with_other_keys {
struct FirstKeys {
  bool operator()(attend::Coordinate at) const { return at.key < 8; }
  attend::KeyRange keys(attend::QueryBlock) { return {0, 8}; }  // not const
};

at::Tensor attention(const at::Tensor& x) {
  return attend::flex_attention(x, x, x, attend::Unchanged(), FirstKeys() & attend::Causal());
}
}  // namespace mask_mod_with_other_keys

// attend::flex_attention: a score_mod must be trivially copyable; one that holds tensors needs `auto bind
namespace score_mod_that_holds_a_tensor {
struct HeadBias {
  at::Tensor bias;

  template <class T>
  T operator()(T score, attend::Coordinate) const {
    return score;
  }
};

at::Tensor attention(const at::Tensor& x) { return attend::flex_attention(x, x, x, HeadBias{x}); }
}  // namespace score_mod_that_holds_a_tensor

// attend::flex_attention: a score_mod needs `template <class T> T operator()(T score, attend::
namespace score_mod_that_returns_nothing {
struct ChangesInPlace {
  template <class T>
  void operator()(T& score, attend::Coordinate) const {
    score = score + score;
  }
};

at::Tensor attention(const at::Tensor& x) { return attend::flex_attention(x, x, x, ChangesInPlace()); }
}  // namespace score_mod_that_returns_nothing

// attend::flex_attention: a score_mod needs `template <class T> T operator()(T score, attend::
namespace score_mod_without_template {
struct OfFloat {
  float operator()(float score, attend::Coordinate) const { return score; }
};

at::Tensor attention(const at::Tensor& x) { return attend::flex_attention(x, x, x, OfFloat()); }
}  // namespace score_mod_without_template
