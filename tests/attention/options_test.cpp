// SPDX-License-Identifier: MIT
#include <attend/attention/options.h>

#include <doctest/doctest.h>

#include <sstream>

using attend::AttentionOptions;
using attend::Backend;
using attend::Scale;

TEST_CASE("the defaults are those of scaled dot product attention") {
  const AttentionOptions options;
  CHECK_FALSE(options.is_causal());
  CHECK_FALSE(options.attn_mask().defined());
  CHECK(options.scale().factor(64) == 0.125);
  CHECK(options.backend() == Backend::kAuto);
}

TEST_CASE("a scale is a number or kInverseSqrt") {
  CHECK(Scale(attend::kInverseSqrt).factor(16) == 0.25);
  CHECK(Scale(2.5).factor(16) == 2.5);
  CHECK(AttentionOptions().scale(1).scale().factor(16) == 1.0);  // an int will do
  std::ostringstream stream;
  stream << Scale(0.5) << ' ' << Scale(attend::kInverseSqrt);
  CHECK(stream.str() == "0.5 kInverseSqrt");
}
