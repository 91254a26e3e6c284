// SPDX-License-Identifier: MIT

// The C++ of README. tests/readme_test.py compares it with README; this test checks its results. The code of "Custom
// scores" is in flex_attention_test.cpp.

#include <attend/attend.h>
#include <attend/data.h>
#include <attend/layers/conv_stack.h>
#include <attend/training.h>

#include "support/accuracy.h"
#include "training/support.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/container/sequential.h>

#include <filesystem>
#include <iostream>
#include <string>

// clang-format off: the lines are README's

TEST_CASE("README, attention as a function: a window, grouped heads, a padding mask, explain()") {
  torch::manual_seed(0);
  torch::Tensor q = torch::randn({2, 8, 512, 64});                        // (N, H, L, D)
  torch::Tensor k = torch::randn({2, 2, 512, 64});                        // (N, G, S, D)
  torch::Tensor v = torch::randn({2, 2, 512, 64});                        // (N, G, S, Dv)
  auto options = attend::AttentionOptions().is_causal(true).window({256, 0});
  torch::Tensor y = attend::attention(q, k, v, options);                  // (N, H, L, Dv)

  torch::Tensor lengths = torch::tensor({512, 300});                      // mask padding: the length of each batch entry
  torch::Tensor keep = torch::arange(512) < lengths.view({-1, 1, 1, 1});  // (N, 1, 1, S), true = attend
  y = attend::attention(q, k, v, options.attn_mask(keep));
  std::cout << attend::explain(q, k, v, options) << '\n';                 // which backend runs, and why not a faster one

  // Keys beyond the end of a sequence change nothing.
  k[1].slice(1, 300) += 1;
  v[1].slice(1, 300) += 1;
  CHECK(y.equal(attend::attention(q, k, v, options)));
  CHECK(attend::test::max_difference(y, attend::attention(q, k, v, options.backend(attend::Backend::kReference))) < 1e-5);
}

TEST_CASE("README, layers: MultiheadAttention with grouped heads, causal, a window and padding") {
  torch::manual_seed(0);
  attend::MultiheadAttention layer(
      attend::MultiheadAttentionOptions(512, 8).num_kv_heads(2).batch_first(true).is_causal(true).window({256, 0}));
  torch::Tensor x = torch::randn({2, 100, 512});                                        // (N, L, E)
  torch::Tensor padding = torch::arange(100) >= torch::tensor({100, 60}).unsqueeze(1);  // (N, S), true = ignore
  auto [y, weights] = layer(x, x, x, /*key_padding_mask=*/padding, /*need_weights=*/false);

  CHECK(y.sizes() == x.sizes());
  CHECK(!weights.defined());
  torch::Tensor changed = x.clone();
  changed[1].slice(0, 60) += 1;
  CHECK(y[1].slice(0, 0, 60).equal(std::get<0>(layer(changed, changed, changed, padding, false))[1].slice(0, 0, 60)));
}

TEST_CASE("README, training: Trainer, ProgressBar and CsvLog") {
  attend::test::TemporaryFolder folder;
  const struct WorkingFolder {
    std::filesystem::path before = std::filesystem::current_path();
    ~WorkingFolder() { std::filesystem::current_path(before); }
  } working_folder;
  const std::string file = folder.file("history.csv");
  std::filesystem::current_path(folder.path());
  torch::manual_seed(0);

  torch::nn::Sequential model(
      attend::ConvStack(attend::ConvStackOptions(1, 64, 64).depth(2).activation_after_last(true)),
      attend::SelfAttention1d(64, 64, 64), attend::ConvStack(attend::ConvStackOptions(64, 64, 1).depth(2)));
  attend::ShapeDataset train_set(attend::ShapeDatasetOptions().max_samples(2000).seed(1));
  attend::ShapeDataset held_out(attend::ShapeDatasetOptions().max_samples(500).seed(2));
  attend::Trainer trainer(model, attend::TrainerOptions().epochs(3).batch_size(32).learning_rate(1e-3).seed(7));
  attend::History history = trainer.fit(train_set, held_out, attend::ProgressBar(), attend::CsvLog("history.csv"));

  CHECK(attend::test::lines_of(file).size() == 4);  // the header and three epochs
  CHECK(history.epochs().size() == 3);
  CHECK(history.validation_loss().back() < history.validation_loss().front());
}

// clang-format on
