// SPDX-License-Identifier: MIT

// Tests the headers that are lists of includes, together with a layer that is in none of them.

#include <attend/attend.h>
#include <attend/data.h>
#include <attend/layers/conv_stack.h>
#include <attend/training.h>

#include "support/accuracy.h"
#include "training/support.h"

#include <doctest/doctest.h>

#include <sstream>

TEST_CASE("attend.h, data.h, training.h: their layers, data and trainer work together with ConvStack") {
  const torch::Tensor x = torch::randn({2, 64, 30});

  attend::SelfAttention1d attention(
      attend::SelfAttention1dOptions(/*in*/ 64, /*out*/ 64, /*key*/ 64).num_heads(1).scale(1.0));
  torch::Tensor y = attention(x);                   // (N, 64, L) -> (N, 64, L)
  torch::Tensor map = attention->attention_map(x);  // (N, num_heads, L, L), rows sum to 1
  CHECK(y.sizes() == x.sizes());
  CHECK(map.sizes() == torch::IntArrayRef{2, 1, 30, 30});
  CHECK(attend::test::max_difference(map.sum(-1), torch::ones({2, 1, 30})) < 1e-5);

  attend::ConvStack convs(
      attend::ConvStackOptions(/*in*/ 1, /*hidden*/ 64, /*out*/ 1).depth(5).kernel_size(5).activation(torch::kReLU));
  attend::ConvStack with_a_function(
      attend::ConvStackOptions(1, 4, 1).activation([](const torch::Tensor& t) { return t.abs(); }));
  CHECK(with_a_function(torch::randn({1, 1, 8})).sizes() == torch::IntArrayRef{1, 1, 8});

  attend::ShapeDataset data(
      attend::ShapeDatasetOptions().size(100).max_height(50).noise_std(0.3).max_samples(100).seed(7));
  CHECK(data.inputs().sizes() == torch::IntArrayRef{100, 1, 100});
  CHECK(data.targets().sizes() == torch::IntArrayRef{100, 1, 100});
  CHECK(data.size() == 100u);
  CHECK(data.get(3).data.sizes() == torch::IntArrayRef{1, 100});
  CHECK(data.get_batch({3, 5}).data.sizes() == torch::IntArrayRef{2, 1, 100});

  attend::test::TemporaryFolder folder;
  attend::Trainer trainer(
      convs, attend::TrainerOptions().epochs(2).batch_size(32).learning_rate(1e-3).device(torch::kCPU).seed(7));
  std::ostringstream bar;
  attend::History history =
      trainer.fit(data, data, attend::ProgressBar(bar, /*with_bar=*/false), attend::CsvLog(folder.file("history.csv")));
  CHECK(history.train_loss().size() == 2);
  CHECK(history.last_batch_loss().size() == 2);
  CHECK(history.validation_loss().size() == 2);
}
