// SPDX-License-Identifier: MIT
#include <attend/attention/detail/calls_impl.h>
#include <attend/attention/detail/problem.h>

#include <attend/attention.h>

#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using attend::AttentionOptions;
using attend::Window;
using attend::detail::attention_problem;
using attend::test::message_of;

namespace problem_test {
namespace {

torch::Tensor x(at::IntArrayRef sizes) { return torch::randn(sizes); }

torch::Tensor offsets(std::vector<std::int32_t> values) { return torch::tensor(values, torch::kInt); }

AttentionOptions mask(const torch::Tensor& m) { return AttentionOptions().attn_mask(m); }

AttentionOptions slopes(const torch::Tensor& s) { return AttentionOptions().alibi_slopes(s); }

AttentionOptions packed(const torch::Tensor& query_offsets, const torch::Tensor& key_offsets) {
  return AttentionOptions().query_offsets(query_offsets).key_offsets(key_offsets);
}

/// A call that must be refused, and how.
struct BadCall {
  torch::Tensor query, key, value;
  AttentionOptions options;
  std::string expected;
};

template <class Error>
void check_refused(const BadCall& bad) {
  CAPTURE(bad.expected);
  const std::string expected = "attend::attention: " + bad.expected;
  const auto is_refused = [&](const auto& call) {
    const std::string message = message_of<Error>([&] { call(bad.query, bad.key, bad.value, bad.options); });
    CAPTURE(message);
    CHECK(message.substr(0, message.find('\n')) == expected);
  };
  is_refused([](const auto&... arguments) { attend::attention(arguments...); });
  is_refused([](const auto&... arguments) { attend::attention_with_lse(arguments...); });
  is_refused([](const auto&... arguments) { attend::explain(arguments...); });
  if (bad.expected.find("value") == 0 || bad.expected.find("of value") != std::string::npos) return;
  is_refused([](const auto& query, const auto& key, const auto&, const auto& options) {
    attend::attention_weights(query, key, options);
  });
}

}  // namespace

TEST_CASE("attention: wrong arguments are refused by every function, with the rule and the values") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const torch::Tensor good = x({2, 4, 6, 8}), one = x({1, 4, 6, 8}), meta = good.to(torch::kMeta);
  const auto of_good = [&](const AttentionOptions& options, const std::string& expected) {
    return BadCall{good, good, good, options, expected};
  };
  const auto of_one = [&](const AttentionOptions& options, const std::string& expected) {
    return BadCall{one, one, one, options, expected};
  };

  const BadCall wrong_values[] = {
      {{}, good, good, {}, "query must be a tensor (N, H, L, D), got an undefined one"},
      {good, {}, good, {}, "key must be a tensor (N, G, S, D), got an undefined one"},
      {good, good, {}, {}, "value must be a tensor (N, G, S, Dv), got an undefined one"},
      {x({8}), good, good, {}, "query must be 4-d (N, H, L, D), or 3-d or 2-d without the first sizes, got 1-d [8]"},
      {good, x({}), good, {}, "key must be 4-d (N, G, S, D), or 3-d or 2-d without the first sizes, got 0-d []"},
      {good,
       good,
       x({1, 2, 4, 6, 8}),
       {},
       "value must be 4-d (N, G, S, Dv), or 3-d or 2-d without the first sizes, got 5-d [1, 2, 4, 6, 8]"},
      {x({4, 6, 8}), good, good, {}, "key [2, 4, 6, 8] must have as many dimensions as query [4, 6, 8]"},
      {good, x({6, 8}), good, {}, "key [6, 8] must have as many dimensions as query [2, 4, 6, 8]"},
      {good, good, x({4, 6, 8}), {}, "value [4, 6, 8] must have as many dimensions as query [2, 4, 6, 8]"},
      {good, meta, good, {}, "key (meta) must be on the device of query (cpu)"},
      {good, good, meta, {}, "value (meta) must be on the device of query (cpu)"},
      {good,
       x({3, 4, 6, 8}),
       good,
       {},
       "the batch size of key (3) must equal that of query (2), or one of them must be 1"},
      {one,
       x({3, 4, 6, 8}),
       good,
       {},
       "the batch size of value (2) must equal that of query and key (3), or one of them must be 1"},
      {good,
       good,
       x({2, 2, 6, 8}),
       {},
       "the number of heads of value (2) must equal that of key (4), or one of them must be 1"},
      {good, x({2, 4, 6, 7}), good, {}, "key [2, 4, 6, 7] must have the width of query [2, 4, 6, 8]"},
      {x({2, 4, 6, 0}), x({2, 4, 6, 0}), good, {}, "the width of query must be at least 1, got [2, 4, 6, 0]"},
      {good,
       x({2, 3, 6, 8}),
       x({2, 3, 6, 8}),
       {},
       "the heads of query (4) must be a multiple of the heads of key (3), or 1"},
      {good,
       x({2, 8, 6, 8}),
       x({2, 8, 6, 8}),
       {},
       "the heads of query (4) must be a multiple of the heads of key (8), or 1"},
      {good,
       x({2, 0, 6, 8}),
       x({2, 0, 6, 8}),
       {},
       "the heads of query (4) must be a multiple of the heads of key (0), or 1"},
      {x({2, 0, 6, 8}), good, good, {}, "the heads of query (0) must be a multiple of the heads of key (4), or 1"},
      {good, good, x({2, 4, 7, 8}), {}, "value [2, 4, 7, 8] must have the length of key [2, 4, 6, 8]"},
      of_good(AttentionOptions().scale(nan), "scale must be finite, got nan"),
      of_good(AttentionOptions().scale(-infinity), "scale must be finite, got -inf"),
      of_good(AttentionOptions().window({-2, 0}),
              "both sides of window must be at least 0, or -1 for unlimited, got Window{-2, 0}"),
      of_good(AttentionOptions().window({0, -2}).is_causal(true),
              "both sides of window must be at least 0, or -1 for unlimited, got Window{0, -2}"),
      of_good(AttentionOptions().softcap(-1.5), "softcap must be positive, or 0 for none, got -1.5"),
      of_good(AttentionOptions().softcap(nan), "softcap must be positive, or 0 for none, got nan"),
      of_good(AttentionOptions().softcap(infinity), "softcap must be positive, or 0 for none, got inf"),
      of_good(AttentionOptions().scale(-1e39),
              "scale must be finite in float32, in which Float is computed, got -1e+39"),
      of_good(AttentionOptions().softcap(1e-50),
              "softcap must be 0 (none) or from 1.2e-38 to 3.4e38, the range of float32, in which Float is computed, "
              "got 1e-50"),
      of_good(AttentionOptions().softcap(1e300),
              "softcap must be 0 (none) or from 1.2e-38 to 3.4e38, the range of float32, in which Float is computed, "
              "got 1e+300"),
      of_good(AttentionOptions().dropout(-0.1), "dropout must be a probability from 0 to 1, got -0.1"),
      of_good(AttentionOptions().dropout(1.5), "dropout must be a probability from 0 to 1, got 1.5"),
      of_good(AttentionOptions().dropout(nan), "dropout must be a probability from 0 to 1, got nan"),
      of_good(mask(x({6})), "attn_mask must be 2-d (L, S), 3-d (H, L, S) or 4-d (N, H, L, S), got 1-d [6]"),
      of_good(mask(x({1, 2, 4, 6, 6})),
              "attn_mask must be 2-d (L, S), 3-d (H, L, S) or 4-d (N, H, L, S), got 5-d [1, 2, 4, 6, 6]"),
      of_good(mask(x({5, 6})), "attn_mask [5, 6] must broadcast to (N, H, L, S) = [2, 4, 6, 6]"),
      of_good(mask(x({2, 6})),
              "attn_mask [2, 6] must broadcast to (N, H, L, S) = [2, 4, 6, 6]; pass a key padding mask (N, S) as "
              "mask.view({N, 1, 1, S})"),
      of_good(mask(x({2, 6, 6})), "attn_mask [2, 6, 6] must broadcast to (N, H, L, S) = [2, 4, 6, 6]"),
      of_good(mask(x({6, 6}).to(torch::kMeta)), "attn_mask (meta) must be on the device of query (cpu)"),
      of_good(slopes(x({3})), "alibi_slopes must be (H) or (N, H), with N = 2 and H = 4, got [3]"),
      of_good(slopes(x({3, 4})), "alibi_slopes must be (H) or (N, H), with N = 2 and H = 4, got [3, 4]"),
      of_good(slopes(x({2, 4, 1})), "alibi_slopes must be (H) or (N, H), with N = 2 and H = 4, got [2, 4, 1]"),
      of_good(slopes(x({4}).to(torch::kMeta)), "alibi_slopes (meta) must be on the device of query (cpu)"),
      of_one(packed(offsets({0, 6}), {}), "query_offsets and key_offsets must be given together"),
      of_one(packed({}, offsets({0, 6})), "query_offsets and key_offsets must be given together"),
      of_good(packed(offsets({0, 6}), offsets({0, 6})), "a packed batch must have N = 1, got [2, 4, 6, 8]"),
      of_one(packed(offsets({0, 6}).unsqueeze(0), offsets({0, 6})),
             "query_offsets must be 1-d with at least one element, got [1, 2]"),
      of_one(packed(offsets({0, 6}), offsets({})), "key_offsets must be 1-d with at least one element, got [0]"),
      of_one(packed(offsets({0, 6}).to(torch::kMeta), offsets({0, 6})),
             "query_offsets (meta) must be on the device of query (cpu)"),
      of_one(packed(offsets({0, 6}), offsets({0, 6}).to(torch::kMeta)),
             "key_offsets (meta) must be on the device of query (cpu)"),
      of_one(packed(offsets({1, 6}), offsets({0, 6})), "query_offsets must go from 0 to L = 6, got 1 to 6"),
      of_one(packed(offsets({0, 6}), offsets({0, 3, 7})), "key_offsets must go from 0 to S = 6, got 0 to 7"),
      of_one(packed(offsets({0, 4, 3, 6}), offsets({0, 2, 3, 6})), "query_offsets must not decrease, got 4 before 3"),
      of_one(packed(offsets({0, 6}), offsets({0, 3, 6})),
             "query_offsets [2] and key_offsets [3] must have the same length"),
  };
  for (const BadCall& bad : wrong_values) check_refused<c10::ValueError>(bad);

  const std::string dtypes = " must be float64, float32, bfloat16 or float16, got ";
  const BadCall wrong_types[] = {
      {good.to(torch::kLong), good, good, {}, "query" + dtypes + "Long"},
      {good, good.to(torch::kBool), good, {}, "key" + dtypes + "Bool"},
      {good, good, good.to(torch::kComplexFloat), {}, "value" + dtypes + "ComplexFloat"},
      {good, good.to(torch::kDouble), good, {}, "key (Double) must have the dtype of query (Float)"},
      {good, good, good.to(torch::kBFloat16), {}, "value (BFloat16) must have the dtype of query (Float)"},
      of_good(mask(torch::ones({6, 6}, torch::kInt)),
              "attn_mask must be bool (true = attend), float64, float32, bfloat16 or float16, got Int"),
      of_good(mask(x({6, 6}).to(torch::kComplexFloat)),
              "attn_mask must be bool (true = attend), float64, float32, bfloat16 or float16, got ComplexFloat"),
      of_good(slopes(x({4}).to(torch::kHalf)),
              "alibi_slopes must be float32 or have the dtype of query (Float), got Half"),
      of_one(packed(offsets({0, 6}).to(torch::kLong), offsets({0, 6})), "query_offsets must be int32, got Long"),
      of_one(packed(offsets({0, 6}), x({2})), "key_offsets must be int32, got Float"),
  };
  for (const BadCall& bad : wrong_types) check_refused<c10::TypeError>(bad);
}

TEST_CASE("attention: arguments at the limits of the rules are accepted") {
  const torch::Tensor good = x({2, 4, 6, 8}), one = x({1, 4, 6, 8}), half = one.to(torch::kHalf);
  const torch::Tensor none = x({1, 4, 0, 8});
  const auto check = [](const torch::Tensor& tensor, const AttentionOptions& options) {
    CHECK_NOTHROW(attend::attention(tensor, tensor, tensor, options));
  };
  check(good, AttentionOptions().softcap(0.0).dropout(1.0).window({-1, -1}));
  check(good, AttentionOptions().window({std::numeric_limits<std::int64_t>::max(), 0}));
  check(good, mask(x({1, 1})));
  check(good, slopes(x({2, 4})));
  check(half, slopes(x({4})));
  check(half, slopes(x({4}).to(torch::kHalf)));
  check(one, packed(offsets({0, 0, 6, 6}), offsets({0, 6, 6, 6})));
  check(none, packed(offsets({0}), offsets({0})));
}

TEST_CASE("window: a window that excludes no key is ignored and does not prevent a fused kernel") {
  const torch::Tensor query = x({1, 1, 4, 8}), key = x({1, 1, 6, 8});
  const auto window = [&](Window given, bool is_causal = false) {
    return attention_problem(query, key, key, AttentionOptions().window(given).is_causal(is_causal)).window;
  };
  struct Case {
    Window given, left_over;
    bool is_causal = false;
  };
  for (const Case& c : {Case{{4, 2}, {4, 2}}, Case{{5, 2}, {-1, 2}}, Case{{4, 3}, {4, -1}}, Case{{5, 3}, {-1, -1}},
                        Case{{4, 3}, {4, 0}, true}, Case{{-1, -1}, {-1, 0}, true}}) {
    CAPTURE(c.given.left);
    CAPTURE(c.given.right);
    const Window left_over = window(c.given, c.is_causal);
    CHECK(left_over.left == c.left_over.left);
    CHECK(left_over.right == c.left_over.right);
  }
}

}  // namespace problem_test
