// SPDX-License-Identifier: MIT
#pragma once

#include "layers.h"

#include <attend/data/shape_dataset.h>
#include <attend/training.h>

#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/serialize.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace conformance {

/// Takes steps of both optimizers with the same gradients. The parameters must stay equal, also after one optimizer has
/// read the other's archive.
template <class Ours, class Theirs, class Options>
void require_optimizer(const std::string& name, const Options& options) {
  torch::manual_seed(3);
  Tensors ours, theirs, loaded;
  for (const std::vector<std::int64_t>& sizes : std::vector<std::vector<std::int64_t>>{{3, 4}, {5}, {2, 3, 2}, {}}) {
    ours.push_back(torch::randn(sizes, torch::kDouble).requires_grad_());
    for (Tensors* copies : {&theirs, &loaded}) copies->push_back(ours.back().detach().clone().requires_grad_());
  }
  Ours our_optimizer(ours, options), loaded_optimizer(loaded, options);
  Theirs their_optimizer(theirs, options);
  for (int step = 0; step < 20; ++step) {
    if (step == 10) {
      std::stringstream file;
      torch::save(their_optimizer, file);
      torch::load(loaded_optimizer, file);
      const torch::NoGradGuard no_grad;
      for (std::size_t i = 0; i < theirs.size(); ++i) loaded[i].copy_(theirs[i]);
    }
    for (std::size_t i = 0; i < ours.size(); ++i) {
      const torch::Tensor gradient = torch::randn_like(ours[i].detach()) / (1 + step);
      for (const torch::Tensor& parameter : {ours[i], theirs[i], loaded[i]})
        parameter.mutable_grad() = gradient.clone();
    }
    our_optimizer.step();
    their_optimizer.step();
    if (step >= 10) loaded_optimizer.step();
  }
  for (std::size_t i = 0; i < ours.size(); ++i) {
    require_equal(c10::str(name, ": parameter ", i), ours[i].detach(), theirs[i].detach());
    require_equal(c10::str(name, ": parameter ", i, " with a loaded state"), loaded[i].detach(), theirs[i].detach());
  }
}

inline attend::ConvStack small_net(std::uint64_t seed) {
  torch::manual_seed(seed);
  return attend::ConvStack(attend::ConvStackOptions(1, 8, 1).depth(2));
}

/// The losses of a short fit of a small net.
inline std::vector<double> losses_of(std::uint64_t seed, std::int64_t epochs = 3,
                                     std::optional<at::ScalarType> autocast = std::nullopt) {
  const attend::ShapeDataset data(attend::ShapeDatasetOptions().max_samples(96).seed(1));
  attend::Trainer trainer(
      small_net(1),
      attend::TrainerOptions().epochs(epochs).batch_size(16).seed(seed).learning_rate(1e-2).autocast(autocast));
  return trainer.fit(data, data).validation_loss();
}

inline void training_checks(Checks& checks) {
  using attend::ShapeDatasetOptions;
  checks.check("ShapeDataset: the bits are the same on every machine", [] {
    const attend::ShapeDataset notebook(ShapeDatasetOptions().max_samples(1000).seed(7));
    require(hash_of(notebook.inputs()) == 10463862153472878844u, "the notebook's inputs differ");
    require(hash_of(notebook.targets()) == 18009845325878920402u, "the notebook's targets differ");
    const attend::ShapeDataset handout(
        ShapeDatasetOptions().generator(attend::ShapeGenerator::kHandout).max_samples(1000).seed(7));
    require(hash_of(handout.inputs()) == 13781196172308212997u, "the handout's inputs differ");
    require(hash_of(handout.targets()) == 13455683901996438491u, "the handout's targets differ");
  });
  checks.check("ShapeDataset: an index out of range and a size below the minimum are refused", [] {
    const attend::ShapeDataset data(ShapeDatasetOptions().max_samples(3));
    require_throws<c10::IndexError>("index 3", "index 3 must be below", [&] { data.get(3); });
    require_throws<c10::ValueError>("size 5", "must be at least 18",
                                    [] { attend::ShapeDataset small(ShapeDatasetOptions().size(5)); });
  });
  checks.check("Standardize: data get mean 0 and deviation 1, and inverse() restores them", [] {
    const torch::Tensor data = torch::randn({50, 1, 20}) * 3.0 + 5.0;
    attend::Standardize standardize(data);
    const torch::Tensor y = standardize(data);
    require(std::abs(y.mean().item<double>()) < 1e-5 && std::abs(y.std().item<double>() - 1.0) < 1e-5,
            "forward is wrong");
    require(difference(standardize->inverse(y), data) < 1e-5, "inverse is wrong");
  });

  checks.check("Adam: equal to torch::optim::Adam, and reads its archive", [] {
    using Options = torch::optim::AdamOptions;
    require_optimizer<attend::Adam, torch::optim::Adam>("default", Options());
    require_optimizer<attend::Adam, torch::optim::Adam>(
        "all options", Options(0.02).betas({0.8, 0.95}).eps(1e-3).weight_decay(0.1).amsgrad(true));
  });
  checks.check("AdamW: equal to torch::optim::AdamW, and reads its archive", [] {
    using Options = torch::optim::AdamWOptions;
    require_optimizer<attend::AdamW, torch::optim::AdamW>("default", Options());
    require_optimizer<attend::AdamW, torch::optim::AdamW>(
        "all options", Options(0.02).betas({0.8, 0.95}).eps(1e-3).weight_decay(0.1).amsgrad(true));
  });
  checks.check("Trainer: fit() lowers the loss", [] {
    const std::vector<double> losses = losses_of(1, 8);
    require(losses.size() == 8 && losses.back() < 0.5 * losses.front(),
            c10::str("the loss goes from ", losses.front(), " to ", losses.back()));
  });
  checks.check("Trainer: the seed determines the order of the samples, and the same seed gives the same bits", [] {
    require(losses_of(1) == losses_of(1), "the same seed gives other losses");
    require(losses_of(1) != losses_of(2), "another seed gives the same losses");
  });
  checks.check("Trainer: with one batch per epoch, equal to a hand-written loop with torch::optim::Adam", [] {
    const torch::Tensor x = torch::randn({8, 1, 20}, torch::kDouble), y = torch::randn({8, 1, 20}, torch::kDouble);
    attend::ConvStack ours = small_net(4), theirs = small_net(4);
    ours->to(torch::kDouble);
    theirs->to(torch::kDouble);
    struct Data {
      torch::Tensor x, y;
      const torch::Tensor& inputs() const { return x; }
      const torch::Tensor& targets() const { return y; }
    };
    attend::Trainer trainer(ours, attend::TrainerOptions().epochs(10).batch_size(8).learning_rate(1e-2));
    trainer.fit(Data{x, y});
    torch::optim::Adam optimizer(theirs->parameters(), torch::optim::AdamOptions(1e-2));
    for (int epoch = 0; epoch < 10; ++epoch) {
      optimizer.zero_grad();
      at::mse_loss(convolved_by_torch(x, theirs->parameters(), false), y).backward();
      optimizer.step();
    }
    for (std::size_t i = 0; i < theirs->parameters().size(); ++i)
      require(difference(ours->parameters()[i], theirs->parameters()[i]) < 1e-10,
              c10::str("parameter ", i, " differs"));
  });
  checks.check("Trainer: a callback stops the fit", [] {
    const attend::ShapeDataset data(ShapeDatasetOptions().max_samples(32));
    struct StopAfterTwo {
      bool on_epoch_end(attend::TrainingState& state) { return state.epoch == 1; }
    };
    attend::Trainer trainer(small_net(1), attend::TrainerOptions().epochs(9));
    require(trainer.fit(data, StopAfterTwo()).epochs().size() == 2, "other than two epochs are recorded");
  });
  checks.check("Trainer: fit() with autocast to bfloat16 lowers the loss", [] {
    const std::vector<double> losses = losses_of(1, 8, at::kBFloat16);
    require(losses.back() < 0.6 * losses.front(),
            c10::str("the loss goes from ", losses.front(), " to ", losses.back()));
  });
  checks.check("Trainer: epochs(0) is refused", [] {
    require_throws<c10::ValueError>("epochs 0", "epochs (0) must be at least 1",
                                    [] { attend::Trainer trainer(small_net(1), attend::TrainerOptions().epochs(0)); });
  });
}

}  // namespace conformance
