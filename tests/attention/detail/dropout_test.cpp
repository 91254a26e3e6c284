// SPDX-License-Identifier: MIT
#include <attend/attention/detail/dropout.h>

#include <attend/attention.h>

#include "support/accuracy.h"
#include "support/backends.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

using attend::AttentionOptions;
using attend::Backend;
using attend::detail::dropout_keep;
using attend::detail::dropout_threshold;
using attend::detail::philox;
using attend::detail::philox_words;
using attend::test::max_difference;

namespace dropout_test {
namespace {

/// The weights (N, H, L, S): the output for values that are unit vectors.
torch::Tensor dropped_weights(const torch::Tensor& query, const torch::Tensor& key, const AttentionOptions& options) {
  const torch::Tensor units = torch::eye(key.size(2), key.options()).expand({key.size(0), key.size(1), -1, -1});
  return attend::attention(query, key, units, options);
}

}  // namespace

TEST_CASE("dropout: philox_words() gives the words of Philox at (key / 4, query, head, batch entry)") {
  struct Sizes {
    std::vector<std::int64_t> sizes;
    std::int64_t seed;
  };
  const std::int64_t largest = std::numeric_limits<std::int64_t>::max();
  for (const Sizes& c : {Sizes{{1, 1, 1, 1}, 0}, Sizes{{2, 3, 5, 8}, 1}, Sizes{{3, 2, 4, 7}, 0x123456789abcdef},
                         Sizes{{1, 4, 9, 33}, largest}, Sizes{{2, 1, 1, 4}, -1}}) {
    CAPTURE(c.seed);
    const torch::Tensor words = philox_words(torch::tensor({c.seed}), c.sizes);
    CHECK(words.sizes() == torch::IntArrayRef{c.sizes[0], c.sizes[1], c.sizes[2], (c.sizes[3] + 3) / 4 * 4});
    const auto word = words.accessor<std::int64_t, 4>();
    bool are_equal = true;
    for (std::int64_t n = 0; n < word.size(0); ++n)
      for (std::int64_t h = 0; h < word.size(1); ++h)
        for (std::int64_t i = 0; i < word.size(2); ++i)
          for (std::int64_t j = 0; j < word.size(3); ++j) {
            const std::uint64_t low = static_cast<std::uint64_t>(i) << 32 | static_cast<std::uint64_t>(j / 4),
                                high = static_cast<std::uint64_t>(n) << 32 | static_cast<std::uint64_t>(h);
            const auto block = philox(static_cast<std::uint64_t>(c.seed), low, high);
            are_equal = are_equal && word[n][h][i][j] == block.words[j % 4];
          }
    CHECK(are_equal);
  }
}

TEST_CASE("dropout: the CPU kernel keeps the same weights as the tensor formula of other devices") {
  for (const std::vector<std::int64_t>& sizes : std::vector<std::vector<std::int64_t>>{{1, 1, 1, 1},
                                                                                       {1, 1, 1, 2},
                                                                                       {1, 1, 1, 3},
                                                                                       {1, 1, 1, 4},
                                                                                       {1, 1, 1, 5},
                                                                                       {2, 3, 4, 5},
                                                                                       {3, 1, 7, 31},
                                                                                       {1, 5, 3, 32},
                                                                                       {2, 2, 33, 33},
                                                                                       {1, 1, 65, 127},
                                                                                       {0, 2, 3, 4},
                                                                                       {2, 0, 3, 4},
                                                                                       {2, 2, 0, 4},
                                                                                       {2, 2, 3, 0}}) {
    for (const std::int64_t seed : {std::int64_t{0}, std::int64_t{42}, std::numeric_limits<std::int64_t>::max()}) {
      for (const double dropout : {0.0, 1e-9, 0.1, 0.5, 0.999, 1.0}) {
        CAPTURE(sizes.back());
        CAPTURE(seed);
        CAPTURE(dropout);
        const torch::Tensor of_loop = dropout_keep(torch::tensor({seed}), dropout, sizes);
        const torch::Tensor words = philox_words(torch::tensor({seed}), sizes).slice(3, 0, sizes[3]);
        CHECK(of_loop.equal(words.ge(static_cast<std::int64_t>(dropout_threshold(dropout)))));
        if (dropout == 0.0) CHECK(of_loop.all().item<bool>());
        if (dropout == 1.0) CHECK_FALSE(of_loop.any().item<bool>());
      }
    }
  }
}

TEST_CASE("dropout: the smallest word that keeps a weight is dropout · 2³²") {
  const torch::Tensor seed = torch::tensor({std::int64_t{9}});
  const double word = philox(9, 0, 0).words[0];
  const auto is_kept = [&](double threshold) {
    return dropout_keep(seed, threshold / 4294967296.0, {1, 1, 1, 1}).item<bool>();
  };
  CHECK(is_kept(word));
  CHECK_FALSE(is_kept(word + 1));
}

TEST_CASE("dropout: the share of dropped weights is the probability, and no part of the mask repeats another") {
  constexpr double kEntries = 4 * 4 * 64 * 64;
  for (const double dropout : {0.01, 0.1, 0.5, 0.9}) {
    CAPTURE(dropout);
    const torch::Tensor kept = dropout_keep(torch::tensor({std::int64_t{7}}), dropout, {4, 4, 64, 64});
    const auto check_share = [&](const torch::Tensor& part) {
      const double sigma = std::sqrt(dropout * (1 - dropout) / static_cast<double>(part.numel()));
      CHECK(std::abs(part.to(torch::kDouble).mean().item<double>() - (1 - dropout)) < 4 * sigma);
    };
    CHECK(kept.numel() == kEntries);
    check_share(kept);
    for (int dimension = 0; dimension < 4; ++dimension) {
      CAPTURE(dimension);
      const torch::Tensor first = kept.select(dimension, 0), second = kept.select(dimension, 1);
      check_share(first);
      check_share(second);
      CHECK_FALSE(first.equal(second));
    }
  }
}

TEST_CASE("dropout: manual_seed determines the dropped weights, for every call, dtype and backend") {
  const torch::Tensor query = torch::randn({2, 4, 33, 8}, torch::kDouble),
                      key = torch::randn({2, 2, 31, 8}, torch::kDouble);
  const auto is_dropped = [&](at::ScalarType dtype, Backend backend, bool is_causal = false) {
    torch::manual_seed(3);
    return dropped_weights(query.to(dtype), key.to(dtype),
                           AttentionOptions().dropout(0.4).is_causal(is_causal).backend(backend))
        .eq(0);
  };
  const torch::Tensor expected = is_dropped(torch::kDouble, Backend::kReference);
  CHECK(expected.any().item<bool>());
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    for (const Backend backend : attend::test::kAllBackendsWithAllOptions) {
      CAPTURE(dtype);
      CAPTURE(backend);
      CHECK(is_dropped(dtype, backend).equal(expected));
    }
  }
  const torch::Tensor allowed = torch::ones({33, 31}, torch::kBool).tril(31 - 33);
  for (const Backend backend : attend::test::kNamedBackendsWithAllOptions)
    CHECK(is_dropped(torch::kFloat, backend, /*is_causal=*/true).equal(expected.logical_or(~allowed)));

  torch::manual_seed(3);
  const AttentionOptions options = AttentionOptions().dropout(0.4);
  const torch::Tensor first = dropped_weights(query, key, options), second = dropped_weights(query, key, options);
  CHECK(first.eq(0).equal(expected));
  CHECK_FALSE(second.eq(0).equal(expected));  // each call draws new numbers
}

TEST_CASE("dropout: a kept weight is multiplied by 1 / (1 - dropout), so that the expectation is unchanged") {
  torch::manual_seed(4);
  constexpr std::int64_t kTimes = 400;  // the same query and key in 400 batch entries
  const torch::Tensor query = torch::randn({1, 2, 20, 8}, torch::kDouble).expand({kTimes, -1, -1, -1}),
                      key = torch::randn({1, 2, 30, 8}, torch::kDouble).expand({kTimes, -1, -1, -1});
  const double dropout = 0.3;
  const torch::Tensor weights = attend::attention_weights(query, key);
  const torch::Tensor dropped = dropped_weights(query, key, AttentionOptions().dropout(dropout));
  CHECK(max_difference(dropped, (weights / (1 - dropout)).masked_fill(dropped.eq(0), 0.0)) < 1e-15);

  const double sigma = std::sqrt(dropout / (1 - dropout) / kTimes);  // of a mean, relative to the weight
  const torch::Tensor errors = (dropped.mean(0) / weights[0] - 1) / sigma;
  CHECK(errors.abs().max().item<double>() < 5);
  CHECK(std::abs(errors.pow(2).mean().item<double>() - 1) < 0.2);
}

TEST_CASE("dropout: 1 gives zeros and zero gradients; 0 drops nothing and draws no random number") {
  const torch::Tensor x = torch::randn({1, 2, 5, 8}, torch::kDouble).requires_grad_();
  const torch::Tensor none = attend::attention(x, x, x, AttentionOptions().dropout(1.0));
  CHECK(none.eq(0).all().item<bool>());
  CHECK(torch::autograd::grad({none.sum()}, {x})[0].eq(0).all().item<bool>());

  torch::manual_seed(5);
  const torch::Tensor next = torch::rand({3});
  torch::manual_seed(5);
  CHECK(attend::attention(x, x, x, AttentionOptions().dropout(0.0)).equal(attend::attention(x, x, x)));
  CHECK(torch::rand({3}).equal(next));
}

TEST_CASE("dropout: explain(), attention_weights() and a refused call draw nothing from the generator") {
  const torch::Tensor x = torch::randn({1, 2, 5, 8});
  const AttentionOptions options = AttentionOptions().dropout(0.5);
  torch::manual_seed(6);
  const torch::Tensor next = torch::rand({3});
  torch::manual_seed(6);
  CHECK(attend::explain(x, x, x, options).backend == Backend::kCpu);
  CHECK(attend::attention_weights(x, x, options).equal(attend::attention_weights(x, x)));  // before dropout
  CHECK_THROWS_AS(attend::attention(x, x, x, AttentionOptions(options).backend(Backend::kSdpa)),
                  c10::NotImplementedError);
  CHECK(torch::rand({3}).equal(next));
}

TEST_CASE("dropout: attention_with_lse() returns the log-sum-exp before dropout") {
  const torch::Tensor x = torch::randn({1, 2, 5, 8}, torch::kDouble);
  for (const Backend backend : attend::test::kNamedBackendsWithAllOptions) {
    CAPTURE(backend);
    const auto log_sum_exp = [&](double dropout) {
      return attend::attention_with_lse(x, x, x, AttentionOptions().dropout(dropout).backend(backend)).log_sum_exp;
    };
    CHECK(log_sum_exp(0.5).equal(log_sum_exp(0.0)));
    CHECK(log_sum_exp(1.0).equal(log_sum_exp(0.0)));
  }
}

TEST_CASE("dropout: a value that every query drops gets a zero gradient, and the other gradients are right") {
  torch::manual_seed(7);
  const torch::Tensor query = torch::randn({1, 1, 1, 8}, torch::kDouble),
                      key = torch::randn({1, 1, 40, 8}, torch::kDouble);
  const torch::Tensor weights = attend::attention_weights(query, key);  // (1, 1, 1, 40)
  torch::manual_seed(8);
  const torch::Tensor dropped = dropped_weights(query, key, AttentionOptions().dropout(0.5));
  const torch::Tensor value = torch::randn({1, 1, 40, 8}, torch::kDouble).requires_grad_();
  torch::manual_seed(8);
  const torch::Tensor output = attend::attention(query, key, value, AttentionOptions().dropout(0.5));
  CHECK(max_difference(output, dropped.matmul(value)) < 1e-15);
  torch::rand({5});  // numbers drawn between the passes do not matter
  const torch::Tensor gradient = torch::autograd::grad({output.sum()}, {value})[0];
  CHECK(max_difference(gradient, dropped.transpose(2, 3).expand_as(value)) < 1e-15);
  CHECK(gradient.eq(0).any().item<bool>());
  CHECK(gradient.ne(0).any().item<bool>());
}

}  // namespace dropout_test
