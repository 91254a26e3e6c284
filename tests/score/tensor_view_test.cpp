// SPDX-License-Identifier: MIT
#include <attend/score/tensor_view.h>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

using attend::Dual;
using attend::IntegerView;
using attend::Real;
using attend::TensorView;
using attend::detail::OutsideRead;
using attend::detail::TensorReads;

namespace {

constexpr attend::detail::ViewShape kShape{{2, 2, 3, 4}, {24, 12, 4, 1}};

template <class V>
using ByTensor = Dual<V, /*kByTensor=*/true>;

template <class V>
struct Values {
  V data[48];

  Values() {
    for (int i = 0; i < 48; ++i) data[i] = static_cast<V>(i) / 2;
  }
};

}  // namespace

TEST_CASE_TEMPLATE("TensorView: it reads by up to four indices, in the dtype of the computation", V, float, double) {
  const Values<V> values;
  const TensorView view(values.data, kShape);
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

TEST_CASE_TEMPLATE("TensorView: a value without a derivative is a constant", V, float, double) {
  const Values<V> values;
  const TensorView view(values.data, kShape);
  const Dual<V> once = view.read<Dual<V>>(0, 1);
  CHECK(once.value.value == values.data[12]);
  CHECK(once.derivative.value == 0);
  const Dual<Dual<V>> twice = view.read<Dual<Dual<V>>>(0, 1);
  CHECK(twice.value.value.value == values.data[12]);
  CHECK(twice.value.derivative.value == 0);
  CHECK(twice.derivative.value.value == 0);
  CHECK(twice.derivative.derivative.value == 0);
}

TEST_CASE_TEMPLATE("TensorView: a value has derivative 1 at the order at which it is differentiated", V, float,
                   double) {
  const Values<V> values;
  TensorReads inner, outer;
  const TensorView by_inner(values.data, kShape, &inner), by_outer(values.data, kShape, nullptr, &outer),
      by_both(values.data, kShape, &inner, &outer);
  for (int wanted = 0; wanted < 3; ++wanted) {
    CAPTURE(wanted);
    inner.begin(wanted);
    const int places[] = {35, 0, 35};
    for (int turn = 0; turn < 3; ++turn) {
      const int place = places[turn];
      const ByTensor<V> once =
          by_inner.template read<ByTensor<V>>(place / 24, place / 12 % 2, place / 4 % 3, place % 4);
      CHECK(once.value.value == values.data[place]);
      CHECK(once.derivative.value == (turn == wanted ? 1 : 0));
    }
    CHECK(inner.turn == 3);
    CHECK(inner.place == places[wanted]);
  }
  CHECK(by_outer.template read<ByTensor<V>>(1, 0, 2, 3).derivative.value == 0);

  struct Case {
    TensorView view;
    V inner, outer;
  };
  for (const Case& c : {Case{by_inner, 1, 0}, Case{by_outer, 0, 1}, Case{by_both, 1, 1}}) {
    inner.begin(0);
    outer.begin(0);
    const ByTensor<ByTensor<V>> twice = c.view.template read<ByTensor<ByTensor<V>>>(1, 0, 2, 3);
    CAPTURE(c.inner);
    CAPTURE(c.outer);
    CHECK(twice.value.value.value == values.data[35]);
    CHECK(twice.value.derivative.value == c.inner);
    CHECK(twice.derivative.value.value == c.outer);
    CHECK(twice.derivative.derivative.value == 0);
  }
}

TEST_CASE("TensorView: with a stride of 0 all indices read the same value, which has one gradient entry") {
  const float value = 2.5f;
  TensorReads reads;
  const TensorView view(&value, {{8, 9, 10, 11}, {0, 0, 0, 0}}, &reads);
  CHECK(view.read<Real<float>>(7, 8, 9, 10).value == 2.5f);
  CHECK(view.read<ByTensor<float>>(7, 8, 9, 10).derivative.value == 1);
  CHECK(reads.place == 0);
}

TEST_CASE_TEMPLATE("TensorView: a read outside the tensor gives NaN without a derivative, and a check reports it", V,
                   float, double) {
  const Values<V> values;
  TensorReads reads;
  OutsideRead outside;
  const TensorView view(values.data, kShape, &reads, nullptr, &outside);
  const std::int64_t indices[][4] = {{-1, 0, 0, 0}, {2, 0, 0, 0}, {0, 2, 0, 0},  {0, -1, 0, 0},
                                     {0, 0, 3, 0},  {0, 0, 0, 4}, {0, 0, 0, -1}, {std::int64_t{1} << 62, 0, 0, 0}};
  for (const auto& index : indices) {
    const std::int64_t i = index[0], j = index[1], k = index[2], l = index[3];
    CAPTURE(i);
    CAPTURE(j);
    CAPTURE(k);
    CAPTURE(l);
    reads.begin(0);
    CHECK(std::isnan(view.read<Real<V>>(i, j, k, l).value));
    const ByTensor<V> once = view.read<ByTensor<V>>(i, j, k, l);
    CHECK(std::isnan(once.value.value));
    CHECK(once.derivative.value == 0);
    CHECK(reads.turn == 0);
    CHECK_FALSE(outside.is_found);
    CHECK(std::isnan(view.read<ByTensor<ByTensor<V>>>(i, j, k, l).value.value.value));
    CHECK(outside.is_found);
    CHECK(outside.index[0] == i);
    CHECK(outside.index[3] == l);
    CHECK(outside.sizes[2] == 3);
    outside.is_found = false;
  }
}

TEST_CASE("IntegerView: it reads by up to four indices; a read outside the tensor gives 0 and is recorded") {
  const std::int32_t numbers[] = {5, -4, 3, 2, 1, 2147483647};
  int seen_outside = 0;
  const IntegerView view(numbers, {{2, 3, 1, 1}, {3, 1, 0, 0}}, &seen_outside),
      transposed(numbers, {{3, 2, 1, 1}, {1, 3, 0, 0}}), deep(numbers, {{1, 2, 1, 3}, {6, 3, 3, 1}});
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j) {
      CHECK(view.read(i, j) == numbers[3 * i + j]);
      CHECK(view.read_unchecked(i, j) == numbers[3 * i + j]);
      CHECK(transposed.read(j, i) == numbers[3 * i + j]);
      CHECK(deep.read(0, i, 0, j) == numbers[3 * i + j]);
    }
  CHECK(view.read(1) == 2);
  CHECK(seen_outside == 0);
  CHECK(transposed.read(0, 2) == 0);
  CHECK(view.read(2) == 0);
  CHECK(seen_outside == 1);
  static_assert(std::is_trivially_copyable_v<IntegerView>);
}
