// SPDX-License-Identifier: MIT
#include <attend/detail/torch/const_data.h>

#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>

TEST_CASE("const_data: it returns the elements of a tensor of this dtype and throws for another dtype") {
  const torch::Tensor x = torch::arange(6, torch::kFloat).slice(0, 2);
  CHECK(attend::detail::const_data<float>(x) == x.const_data_ptr());
  CHECK(attend::detail::const_data<float>(x)[1] == 3);
  CHECK(attend::detail::const_data<std::int64_t>(torch::ones({1}, torch::kLong)) != nullptr);
  CHECK(attend::test::message_of<c10::TypeError>([&] { attend::detail::const_data<double>(x); }) ==
        "attend::detail::const_data: expected a tensor of dtype Double, got Float");
}
