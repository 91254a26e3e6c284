// SPDX-License-Identifier: MIT
#include <attend/training/cuda_graph.h>

#include <attend/data/shape_dataset.h>
#include <attend/layers/conv_stack.h>
#include <attend/layers/self_attention1d.h>
#include <attend/training.h>

#include "support/errors.h"
#include "training/support.h"

#include <doctest/doctest.h>
#include <torch/cuda.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/utils.h>

#include <cstddef>
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

using attend::Trainer;
using attend::TrainerOptions;
using attend::test::linear_model;
using attend::test::linear_samples;
using attend::test::message_of;

namespace {

bool has_gpu() {
  const bool has = torch::cuda::is_available();
  if (!has) std::cout << "this machine has no GPU" << std::endl;
  return has;
}

struct Fitted {
  std::vector<double> losses;
  torch::Tensor weight;
  std::string explanation;
};

template <class... Callbacks>
Fitted fitted(const TrainerOptions& options, Callbacks&&... callbacks) {
  torch::nn::Linear model = linear_model();
  Trainer trainer(model, TrainerOptions(options).device(torch::kCUDA).epochs(3).batch_size(4));
  const attend::History history = trainer.fit(linear_samples(42), linear_samples(8, 3), callbacks...);
  return {history.train_loss(), model->weight.detach().cpu(), trainer.explain()};
}

/// Makes every wait for the device an error while a batch runs.
struct NoWaiting {
  ~NoWaiting() { set(false); }  // also after a fit that threw, because other tests wait
  void on_epoch_begin(attend::TrainingState& state) { set(state.epoch > 0); }  // the first epoch captures, which waits
  void on_batch_end(attend::TrainingState& state) { set(state.epoch > 0 && state.batch + 1 < state.batches); }
  static void set(bool is_error) {
    c10::cuda::warning_state().set_sync_debug_mode(is_error ? c10::cuda::SyncDebugMode::L_ERROR
                                                            : c10::cuda::SyncDebugMode::L_DISABLED);
  }
};

struct Clip {
  void on_before_step(attend::TrainingState& state) {
    for (torch::Tensor& gradient : state.gradients()) gradient.clamp_(-0.5, 0.5);
  }
};

}  // namespace

TEST_CASE("cuda_graphs: a captured fit equals the plain loop, also with hooks and accumulation_steps") {
  if (!has_gpu()) return;
  const auto captured = TrainerOptions().capture(attend::cuda_graphs());
  const auto equal = [](const Fitted& plain, const Fitted& graph) {
    CHECK(graph.explanation.find("CUDA graph") != std::string::npos);
    CHECK(torch::allclose(plain.weight, graph.weight, 0, 1e-12));
    for (std::size_t i = 0; i < 3; ++i)
      CHECK(plain.losses[i] == doctest::Approx(graph.losses[i]).epsilon(1e-12).scale(0));
  };
  equal(fitted(TrainerOptions()), fitted(captured));
  equal(fitted(TrainerOptions(), Clip()), fitted(captured, Clip()));
  equal(fitted(TrainerOptions().accumulation_steps(2)), fitted(TrainerOptions(captured).accumulation_steps(2)));
}

TEST_CASE("cuda_graphs: the experiment's nets learn as in the plain loop, in float32 and bfloat16, in two fits") {
  if (!has_gpu()) return;
  const attend::ShapeDataset data(attend::ShapeDatasetOptions().max_samples(100).size(40));
  const auto losses = [&](bool has_attention, bool is_bfloat16, bool is_captured) {
    torch::manual_seed(1);
    torch::nn::Sequential model(attend::ConvStack(attend::ConvStackOptions(1, 16, 16).depth(2)));
    if (has_attention) model->push_back(attend::SelfAttention1d(attend::SelfAttention1dOptions(16, 16, 16)));
    model->push_back(attend::ConvStack(attend::ConvStackOptions(16, 16, 1).depth(2)));
    auto options = TrainerOptions().device(torch::kCUDA).epochs(2).batch_size(8);
    if (is_bfloat16) options.autocast(torch::kBFloat16);
    if (is_captured) options.capture(attend::cuda_graphs());
    Trainer trainer(model, options);
    trainer.fit(data);
    trainer.fit(data);
    CHECK((trainer.explain().find("CUDA graph of the whole step") != std::string::npos) == is_captured);
    return trainer.history().train_loss();
  };
  for (const bool has_attention : {false, true}) {
    for (const bool is_bfloat16 : {false, true}) {
      const std::vector<double> plain = losses(has_attention, is_bfloat16, false),
                                captured = losses(has_attention, is_bfloat16, true);
      for (std::size_t i = 0; i < plain.size(); ++i)
        CHECK(captured[i] == doctest::Approx(plain[i]).epsilon(is_bfloat16 ? 0.02 : 1e-3).scale(0));
    }
  }
}

TEST_CASE("cuda_graphs: a layer with its first gradient in the second epoch trains to finite numbers") {
  if (!has_gpu()) return;
  struct Unfreeze {
    void on_epoch_begin(attend::TrainingState& state) {
      state.model.named_parameters()["bias"].requires_grad_(state.epoch > 0);
    }
  };
  for (const std::int64_t batches : {3, 10}) {
    for (const bool is_split : {false, true}) {
      const auto weight = [&](const TrainerOptions& given) {
        torch::nn::Linear model = linear_model();
        Trainer trainer(model, TrainerOptions(given).device(torch::kCUDA).epochs(3).batch_size(4));
        if (is_split)
          trainer.fit(linear_samples(4 * batches), Unfreeze(), Clip());
        else
          trainer.fit(linear_samples(4 * batches), Unfreeze());
        return torch::cat({model->weight.detach().view(-1), model->bias.detach()}).cpu();
      };
      CHECK(
          torch::allclose(weight(TrainerOptions()), weight(TrainerOptions().capture(attend::cuda_graphs())), 0, 1e-12));
    }
  }
}

TEST_CASE("cuda_graphs: steps do not synchronize with the GPU") {
  if (!has_gpu()) return;
  {
    const NoWaiting end_of_scope;
    NoWaiting::set(true);
    CHECK_THROWS(torch::ones({}, torch::kCUDA).item<double>());  // otherwise the fits below would test nothing
  }
  fitted(TrainerOptions(), NoWaiting());
  fitted(TrainerOptions().capture(attend::cuda_graphs()), NoWaiting());
}

TEST_CASE("cuda_graphs: the plain loop is used for a loss that reads a number, and dropout works afterwards") {
  if (!has_gpu()) return;
  torch::nn::Sequential model(torch::nn::Linear(3, 8), torch::nn::Dropout(0.5), torch::nn::Linear(8, 1));
  model->to(torch::kDouble);
  const auto reads = [](const torch::Tensor& outputs, const torch::Tensor& targets) {
    const torch::Tensor loss = (outputs - targets).square().mean();
    return loss.item<double>() < 0 ? -loss : loss;
  };
  Trainer trainer(model, TrainerOptions().device(torch::kCUDA).epochs(2).batch_size(4).capture(attend::cuda_graphs()),
                  reads);
  CHECK(trainer.fit(linear_samples(42)).epochs().size() == 2);
  CHECK(trainer.explain().find("plain loop: the step could not be captured: ") != std::string::npos);
}

TEST_CASE("cuda_graphs: if capture is not possible, why_not() gives the reason and a capture throws") {
  const auto graphs = attend::cuda_graphs();
  CHECK(graphs->why_not(torch::kCPU) == "the device is cpu");
  CHECK(message_of<c10::ValueError>([&] { graphs->enter(torch::kCPU); }) ==
        "attend::CudaGraphs: cannot capture a step: the device is cpu");
  if (has_gpu()) return;
  CHECK(graphs->why_not(torch::kCUDA) == "this machine has no CUDA device");
  CHECK(message_of<c10::ValueError>([&] { graphs->capture([] {}); }) ==
        "attend::CudaGraphs: this machine must have a CUDA device");
  CHECK(Trainer(linear_model(), TrainerOptions().capture(graphs)).explain() ==
        "Double parameters; plain loop: the device is cpu");
}
