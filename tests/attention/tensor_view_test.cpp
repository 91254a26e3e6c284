// SPDX-License-Identifier: MIT
#include <attend/attention/tensor_view.h>

#include <doctest/doctest.h>

#include <cstdint>
#include <type_traits>

using attend::Dual;
using attend::IntegerView;
using attend::Real;
using attend::TensorView;

namespace {

constexpr std::int64_t kStrides[4] = {24, 12, 4, 1};  // of sizes (2, 2, 3, 4)

template <class V>
struct Values {
  V data[48];

  Values() {
    for (int i = 0; i < 48; ++i) data[i] = static_cast<V>(i) / 2;
  }
};

}  // namespace

TEST_CASE_TEMPLATE("a view reads by up to four indices, in the dtype that is computed in", V, float, double) {
  const Values<V> values;
  const TensorView view(values.data, kStrides, 0);
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j)
      for (int k = 0; k < 3; ++k)
        for (int l = 0; l < 4; ++l)
          CHECK(view.read<Real<V>>(i, j, k, l).value == values.data[24 * i + 12 * j + 4 * k + l]);
  CHECK(view.read<Real<V>>(1).value == values.data[24]);
  CHECK(view.read<Real<V>>(1, 1).value == values.data[36]);
  CHECK(view.read<Real<V>>(1, 0, 2).value == values.data[32]);
  static_assert(std::is_same_v<decltype(view.read<Dual<Dual<V>>>(0)), Dual<Dual<V>>>);
  static_assert(std::is_trivially_copyable_v<TensorView>);
}

TEST_CASE_TEMPLATE("a value that nothing is differentiated by is a constant", V, float, double) {
  const Values<V> values;
  const TensorView view(values.data, kStrides, 0);
  const Dual<V> once = view.read<Dual<V>>(0, 1);
  CHECK(once.value.value == values.data[12]);
  CHECK(once.derivative.value == 0);
  CHECK(once.source == 0);
  const Dual<Dual<V>> twice = view.read<Dual<Dual<V>>>(0, 1);
  CHECK(twice.value.value.value == values.data[12]);
  CHECK(twice.value.derivative.value == 0);
  CHECK(twice.derivative.value.value == 0);
  CHECK(twice.derivative.derivative.value == 0);
  CHECK(twice.source == 0);
}

TEST_CASE_TEMPLATE("a value that is differentiated by has the derivative 1 at that depth, and its place as source", V,
                   float, double) {
  const Values<V> values;
  const TensorView inner(values.data, kStrides, 1), outer(values.data, kStrides, 2), both(values.data, kStrides, 3);
  const Dual<V> once = inner.read<Dual<V>>(1, 0, 2, 3);
  CHECK(once.value.value == values.data[35]);
  CHECK(once.derivative.value == 1);
  CHECK(once.source == 36);
  CHECK(outer.read<Dual<V>>(1, 0, 2, 3).derivative.value == 0);
  CHECK(outer.read<Dual<V>>(1, 0, 2, 3).source == 0);

  struct Case {
    TensorView view;
    V inner, outer;
  };
  for (const Case& c : {Case{inner, 1, 0}, Case{outer, 0, 1}, Case{both, 1, 1}}) {
    const Dual<Dual<V>> twice = c.view.template read<Dual<Dual<V>>>(1, 0, 2, 3);
    CAPTURE(c.inner);
    CAPTURE(c.outer);
    CHECK(twice.value.value.value == values.data[35]);
    CHECK(twice.value.derivative.value == c.inner);
    CHECK(twice.derivative.value.value == c.outer);
    CHECK(twice.derivative.derivative.value == 0);
  }
}

TEST_CASE("a stride of 0 reads the same value everywhere, and it has one place") {
  const float value = 2.5f;
  const TensorView view(&value, {0, 0, 0, 0}, 1);
  CHECK(view.read<Real<float>>(7, 8, 9, 10).value == 2.5f);
  CHECK(view.read<Dual<float>>(7, 8, 9, 10).source == 1);
}

TEST_CASE("a view of whole numbers reads by up to two indices") {
  const std::int32_t numbers[] = {5, -4, 3, 2, 1, 2147483647};
  const IntegerView view(numbers, {3, 1}), transposed(numbers, {1, 3});
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j) {
      CHECK(view.read(i, j) == numbers[3 * i + j]);
      CHECK(transposed.read(j, i) == numbers[3 * i + j]);
    }
  CHECK(view.read(1) == 2);
  static_assert(std::is_trivially_copyable_v<IntegerView>);
}
