// SPDX-License-Identifier: MIT
#include <attend/attention/options.h>

#include <doctest/doctest.h>

#include <sstream>

using attend::AttentionOptions;
using attend::Backend;
using attend::Scale;

TEST_CASE("AttentionOptions: the defaults give scaled dot product attention") {
  const AttentionOptions options;
  CHECK_FALSE(options.is_causal());
  CHECK(options.window().left == -1);
  CHECK(options.window().right == -1);
  CHECK_FALSE(options.attn_mask().defined());
  CHECK(options.scale().factor(64) == 0.125);
  CHECK(options.softcap() == 0.0);
  CHECK_FALSE(options.alibi_slopes().defined());
  CHECK(options.dropout() == 0.0);
  CHECK_FALSE(options.query_offsets().defined());
  CHECK_FALSE(options.key_offsets().defined());
  CHECK(options.backend() == Backend::kAuto);
}

TEST_CASE("Scale: a scale is a number or kInverseSqrt, and prints as it is written") {
  CHECK(Scale(attend::kInverseSqrt).factor(16) == 0.25);
  CHECK(Scale(2.5).factor(16) == 2.5);
  CHECK(AttentionOptions().scale(1).scale().factor(16) == 1.0);  // from an int
  std::ostringstream stream;
  stream << Scale(0.5) << ' ' << Scale(attend::kInverseSqrt);
  CHECK(stream.str() == "0.5 kInverseSqrt");
}

TEST_CASE("Window: it is written and printed as {left, right}") {
  const AttentionOptions options = AttentionOptions().window({256, 0});
  CHECK(options.window().left == 256);
  CHECK(options.window().right == 0);
  std::ostringstream stream;
  stream << options.window() << ' ' << attend::Window{};
  CHECK(stream.str() == "Window{256, 0} Window{-1, -1}");
}
