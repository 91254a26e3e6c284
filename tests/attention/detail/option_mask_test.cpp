// SPDX-License-Identifier: MIT
#include <attend/attention/detail/calls_impl.h>
#include <attend/attention/detail/option_mask.h>

#include <attend/attention/reference.h>

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>
#include <string>

using attend::AttentionOptions;
using attend::Coordinate;

TEST_CASE("OptionMask: it allows exactly the scores that attention_weights() does not mask") {
  torch::manual_seed(1);
  struct Case {
    std::string name;
    AttentionOptions options;
    std::int64_t batch = 2, queries = 5, keys = 7;
  };
  const auto options = [] { return AttentionOptions(); };
  const torch::Tensor starts = torch::tensor({0, 2, 2, 5}, torch::kInt),
                      key_starts = torch::tensor({0, 3, 4, 7}, torch::kInt);
  const Case cases[] = {
      {"nothing", options()},
      {"is_causal", options().is_causal(true)},
      {"is_causal, L > S", options().is_causal(true), 2, 7, 5},
      {"window", options().window({1, 2})},
      {"bool attn_mask (L, S)", options().attn_mask(torch::rand({5, 7}) > 0.4)},
      {"bool attn_mask of bytes 0 and 6",
       options().attn_mask((torch::rand({5, 7}) > 0.4).to(torch::kByte).mul(6).view(torch::kBool))},
      {"bool attn_mask (N, H, L, S)", options().attn_mask(torch::rand({2, 3, 5, 7}) > 0.4)},
      {"bool attn_mask (H, 1, S) with is_causal", options().attn_mask(torch::rand({3, 1, 7}) > 0.4).is_causal(true)},
      {"packed", options().query_offsets(starts).key_offsets(key_starts), 1},
      {"packed, is_causal, window", options().query_offsets(starts).key_offsets(key_starts).window({1, 0}), 1},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    const torch::Tensor query = torch::randn({c.batch, 3, c.queries, 4}), key = torch::randn({c.batch, 3, c.keys, 4});
    const auto problem = attend::detail::scores_problem(query, key, c.options);
    const torch::Tensor is_allowed = attend::detail::Reference::weights(problem) > 0;  // (N, H, L, S)
    const attend::detail::OptionMask mask(problem);
    int differences = 0;
    Coordinate at{0, 0, 0, 0, static_cast<std::int32_t>(c.queries), static_cast<std::int32_t>(c.keys)};
    for (at.batch = 0; at.batch < c.batch; ++at.batch)
      for (at.head = 0; at.head < 3; ++at.head)
        for (at.query = 0; at.query < c.queries; ++at.query)
          for (at.key = 0; at.key < c.keys; ++at.key)
            differences += mask(at) != is_allowed[at.batch][at.head][at.query][at.key].item<bool>();
    CHECK(differences == 0);
  }
}
