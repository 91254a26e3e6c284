// SPDX-License-Identifier: MIT
#include <attend/attention/binder.h>

#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

using attend::AttentionSizes;
using attend::Binder;
using attend::Dual;
using attend::Real;
using attend::test::message_of;

namespace {

constexpr AttentionSizes kSizes{2, 3, 4, 5};

}  // namespace

TEST_CASE("Binder: a collecting Binder records every requested tensor in order, with its sizes") {
  Binder binder(kSizes, torch::kCPU);
  CHECK(binder.sizes().batch_size == 2);
  CHECK(binder.sizes().num_heads == 3);
  CHECK(binder.sizes().query_length == 4);
  CHECK(binder.sizes().key_length == 5);
  const torch::Tensor values = torch::rand({3}), numbers = torch::arange(4), more = torch::rand({2, 2, 2, 2});
  binder.values(values);
  binder.integers(numbers);
  binder.values(more);
  binder.values(values);
  REQUIRE(binder.tensors().size() == 4);
  CHECK(binder.tensors()[0].is_same(values));
  CHECK(binder.tensors()[1].is_same(numbers));
  CHECK(binder.tensors()[2].is_same(more));
  CHECK(binder.tensors()[3].is_same(values));
}

TEST_CASE("Binder: values() takes floating-point, integers() takes integer and bool tensors of 0 to 4 dimensions") {
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf})
    for (std::int64_t dim = 0; dim <= 4; ++dim) {
      Binder binder(kSizes, torch::kCPU);
      binder.values(torch::ones(std::vector<std::int64_t>(static_cast<std::size_t>(dim), 2)).to(dtype));
      CHECK(binder.tensors().size() == 1);
    }
  for (const auto dtype : {torch::kBool, torch::kByte, torch::kChar, torch::kShort, torch::kInt, torch::kLong})
    for (std::int64_t dim = 0; dim <= 4; ++dim) {
      Binder binder(kSizes, torch::kCPU);
      binder.integers(torch::ones(std::vector<std::int64_t>(static_cast<std::size_t>(dim), 2)).to(dtype));
      CHECK(binder.tensors().size() == 1);
    }
}

TEST_CASE("Binder: a binding Binder returns views of its tensors in the order of the requests") {
  const torch::Tensor values = torch::rand({2, 3}), numbers = torch::tensor({4, 5, 6}, torch::kInt);
  const torch::Tensor others = torch::rand({2, 2, 2, 2});
  Binder binder(kSizes, {values, numbers, others});
  const torch::Tensor asked = torch::rand({1});  // the struct's own tensors are no longer read
  const attend::TensorView first = binder.values(asked);
  const attend::IntegerView second = binder.integers(asked);
  const attend::TensorView third = binder.values(asked);
  CHECK(first.read<Real<float>>(1, 2).value == values[1][2].item<float>());
  CHECK(second.read(2) == 6);
  CHECK(third.read<Real<float>>(1, 0, 1, 0).value == others[1][0][1][0].item<float>());
}

TEST_CASE("Binder: first and second derivatives are taken with respect to the tensors named for each order") {
  const torch::Tensor some = torch::ones({2}, torch::kDouble), others = torch::ones({2}, torch::kDouble);
  struct Case {
    int differentiated[2];
    double first[2], second[2];  // the derivatives at each depth, of the values of the first and the second tensor
  };
  const Case cases[] = {
      {{-1, -1}, {0, 0}, {0, 0}}, {{0, -1}, {1, 0}, {0, 0}}, {{1, -1}, {0, 0}, {1, 0}},
      {{0, 1}, {1, 0}, {0, 1}},   {{1, 0}, {0, 1}, {1, 0}},  {{1, 1}, {0, 0}, {1, 1}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.differentiated[0]);
    CAPTURE(c.differentiated[1]);
    attend::detail::TensorReads reads[2];
    attend::detail::ViewPurpose purpose;
    for (int depth = 0; depth < 2; ++depth) {
      purpose.differentiated[depth] = c.differentiated[depth];
      purpose.reads[depth] = &reads[depth];
    }
    Binder binder(kSizes, {some, others}, purpose);
    using Number = Dual<Dual<double, true>, true>;
    const Number first = binder.values(some).read<Number>(1), second = binder.values(others).read<Number>(1);
    CHECK(first.value.derivative.value == c.first[0]);
    CHECK(first.derivative.value.value == c.first[1]);
    CHECK(second.value.derivative.value == c.second[0]);
    CHECK(second.derivative.value.value == c.second[1]);
  }
}

TEST_CASE("Binder: a struct that requests other tensors than in its first bind() is refused") {
  const torch::Tensor numbers = torch::ones({2});
  Binder binder(kSizes, {numbers});
  CHECK(message_of<c10::ValueError>([&] { binder.integers(torch::ones({2}, torch::kInt)); }) ==
        "attend::Binder: bind() must request the same tensors in the same order each time, got integers() for tensor 0 "
        "of 1");
  binder.values(numbers);
  CHECK(message_of<c10::ValueError>([&] { binder.values(numbers); }) ==
        "attend::Binder: bind() must request the same tensors in the same order each time, got values() for tensor 1 "
        "of 1");
}

TEST_CASE("Binder: type and text of errors") {
  struct Case {
    std::string expected;
    bool is_type_error;
    std::function<void(Binder&)> ask;
  };
  const auto values = [](const torch::Tensor& tensor) { return [tensor](Binder& binder) { binder.values(tensor); }; };
  const auto integers = [](const torch::Tensor& tensor) {
    return [tensor](Binder& binder) { binder.integers(tensor); };
  };
  const torch::TensorOptions meta(torch::kMeta);
  const Case cases[] = {
      {"attend::Binder: values() needs a tensor, got an undefined one", false, values({})},
      {"attend::Binder: integers() needs a tensor, got an undefined one", false, integers({})},
      {"attend::Binder: values() needs a floating-point tensor, got Int", true, values(torch::ones({2}, torch::kInt))},
      {"attend::Binder: values() needs a floating-point tensor, got Bool", true,
       values(torch::ones({2}, torch::kBool))},
      {"attend::Binder: values() needs a floating-point tensor, got ComplexFloat", true,
       values(torch::ones({2}, torch::kComplexFloat))},
      {"attend::Binder: integers() needs an integer or bool tensor, got Float", true, integers(torch::ones({2}))},
      {"attend::Binder: values() needs a tensor with at most 4 dimensions, got [1, 2, 1, 2, 1]", false,
       values(torch::ones({1, 2, 1, 2, 1}))},
      {"attend::Binder: integers() needs a tensor with at most 4 dimensions, got [1, 2, 1, 2, 1]", false,
       integers(torch::ones({1, 2, 1, 2, 1}, torch::kInt))},
      {"attend::Binder: a tensor of a score_mod or mask_mod (meta) must be on the device of query (cpu)", false,
       values(torch::empty({2}, meta))},
      {"attend::Binder: a tensor of a score_mod or mask_mod (meta) must be on the device of query (cpu)", false,
       integers(torch::empty({2}, meta.dtype(torch::kInt)))},
  };
  for (const Case& c : cases) {
    CAPTURE(c.expected);
    Binder binder(kSizes, torch::kCPU);
    const auto call = [&] { c.ask(binder); };
    const std::string message = c.is_type_error ? message_of<c10::TypeError>(call) : message_of<c10::ValueError>(call);
    CAPTURE(message);
    CHECK(message.find(c.expected) != std::string::npos);
  }
}
