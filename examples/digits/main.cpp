// SPDX-License-Identifier: MIT

// A small transformer learns to read handwritten digits: classification with the trainer.
//
// An image of 8 × 8 pixels is a sequence of 16 patches of 2 × 2 pixels. Two transformer layers relate the patches, and
// their mean decides the digit.
//
// Source: A. Dosovitskiy et al., An image is worth 16×16 words (2021), https://arxiv.org/abs/2010.11929.

#include "support/command_line.h"

#include <attend/attend.h>
#include <attend/training.h>

#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/linear.h>
#include <CLI/CLI.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <numbers>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr std::int64_t kClasses = 10, kImages = 1797, kSide = 8, kPatch = 2,
                       kPatches = kSide * kSide / (kPatch * kPatch);

/// Images (N, 8, 8) with values from −1 to 1, and their digits (N).
struct Digits {
  torch::Tensor images, labels;

  const torch::Tensor& inputs() const { return images; }
  const torch::Tensor& targets() const { return labels; }
  Digits slice(std::int64_t begin, std::int64_t end) const {
    return {images.slice(0, begin, end), labels.slice(0, begin, end)};
  }
};

/// Reads 64 pixels from 0 to 16 and a digit from each line, and puts the images into a random order: neighbours in the
/// file are by the same writer.
Digits read_digits(const std::string& path, std::uint64_t seed) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path + "; build the target digits_data, or pass --data");
  std::vector<float> numbers;
  for (float number = 0; file >> number; file.ignore()) numbers.push_back(number);
  if (numbers.size() != static_cast<std::size_t>(kImages * (kSide * kSide + 1)))
    throw std::runtime_error(path + " is not digits.csv of scikit-learn: expected " + std::to_string(kImages) +
                             " lines of 65 numbers, got " + std::to_string(numbers.size()) + " numbers");
  const torch::Tensor lines = torch::tensor(numbers).view({-1, kSide * kSide + 1});
  torch::manual_seed(seed);
  const torch::Tensor order = torch::randperm(lines.size(0));
  return {(lines.slice(1, 0, kSide * kSide) / 8 - 1).view({-1, kSide, kSide}).index_select(0, order),
          lines.select(1, kSide * kSide).to(torch::kLong).index_select(0, order)};
}

/// Images that are each moved by at most one pixel, at random: with them the net learns more from few images.
torch::Tensor shifted(const torch::Tensor& images) {
  const std::int64_t count = images.size(0);
  const torch::Tensor windows =
      torch::constant_pad_nd(images, {1, 1, 1, 1}, -1).unfold(1, kSide, 1).unfold(2, kSide, 1).flatten(1, 2);
  return windows.index({torch::arange(count), torch::randint(windows.size(1), {count})});  // one of nine windows
}

/// Scores of the ten digits (N, 10) for images (N, 8, 8).
struct VisionTransformerImpl : torch::nn::Module {
  static constexpr std::int64_t kWidth = 64, kHeads = 4, kLayers = 2;

  VisionTransformerImpl()
      : embed(register_module("embed", torch::nn::Linear(kPatch * kPatch, kWidth))),
        positions(register_parameter("positions", torch::randn({kPatches, kWidth}) * 0.5)),
        head(register_module("head", torch::nn::Linear(kWidth, kClasses))) {
    const auto layer = attend::TransformerEncoderLayerOptions(kWidth, kHeads)
                           .dim_feedforward(2 * kWidth)
                           .activation(torch::kGELU)
                           .norm_first(true)
                           .batch_first(true);
    const torch::nn::AnyModule norm(attend::LayerNorm(attend::LayerNormOptions({kWidth})));
    encoder = register_module("encoder",
                              attend::TransformerEncoder(attend::TransformerEncoderOptions(layer, kLayers).norm(norm)));
  }

  torch::Tensor forward(torch::Tensor images) {
    if (is_training()) images = shifted(images);
    const torch::Tensor patches =
        images.unfold(1, kPatch, kPatch).unfold(2, kPatch, kPatch).reshape({-1, kPatches, kPatch * kPatch});
    return head(encoder(embed(patches) + positions).mean(1));
  }

  torch::nn::Linear embed;
  torch::Tensor positions;  // (patches, width)
  attend::TransformerEncoder encoder{nullptr};
  torch::nn::Linear head;
};
TORCH_MODULE(VisionTransformer);

/// A callback that lets the learning rate fall along a half wave of the cosine.
struct CosineRate {
  double rate;

  void on_epoch_begin(attend::TrainingState& state) const {
    const double share = static_cast<double>(state.epoch) / static_cast<double>(state.epochs);
    state.set_learning_rate(rate * 0.5 * (1 + std::cos(std::numbers::pi * share)));
  }
};

struct Settings {
  std::string data = EXAMPLE_DATA "/digits.csv", output = "digits_output";
  std::int64_t epochs = 100, patience = 25;
  double rate = 3e-3;
  std::uint64_t seed = 7;
  int threads = 0;
};

int run(const Settings& settings) {
  if (settings.threads > 0) torch::set_num_threads(settings.threads);
  const std::filesystem::path folder = settings.output;
  const Digits all = read_digits(settings.data, settings.seed);
  const Digits train_set = all.slice(0, 1350), validation_set = all.slice(1350, 1500), held_out = all.slice(1500, 1797);

  VisionTransformer model;
  std::cout << support::with_thousands(support::parameter_count(*model)) << " parameters, " << train_set.labels.size(0)
            << " images for training, " << validation_set.labels.size(0) << " for the early stop, "
            << held_out.labels.size(0) << " held out\n";
  attend::Trainer trainer(model, attend::TrainerOptions().epochs(settings.epochs).learning_rate(settings.rate),
                          attend::CrossEntropy());
  trainer.fit(train_set, validation_set, attend::ProgressBar(), attend::CsvLog((folder / "history.csv").string()),
              CosineRate{settings.rate}, attend::StopEarly(settings.patience));
  const double accuracy = trainer.evaluate(held_out, attend::Accuracy());
  std::cout << std::fixed << std::setprecision(1) << 100 * accuracy << " % of " << held_out.labels.size(0)
            << " held-out images are read correctly\n";

  model->eval();
  const torch::NoGradGuard no_grad;
  const torch::Tensor answers = model(held_out.images).argmax(1);
  std::ofstream file = support::open(folder / "answers.csv");
  file << "digit,answer\n";
  for (std::int64_t i = 0; i < answers.size(0); ++i)
    file << held_out.labels[i].item<int>() << ',' << answers[i].item<int>() << '\n';
  support::close(file, folder / "answers.csv");
  std::cout << "The results are in " << folder << ". To draw the confusion matrix:\n  " << EXAMPLE_PLOT << ' ' << folder
            << '\n';
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  CLI::App app("Trains a small transformer to read handwritten digits.\n");
  app.option_defaults()->always_capture_default();
  app.add_option("--data", settings.data, "the file digits.csv of the package scikit-learn")->type_name("");
  app.add_option("--output", settings.output, "folder for the results; created if it does not exist")->type_name("");
  const auto number = [&app](const char* name, auto& value, const CLI::Validator& rule, const char* meaning) {
    app.add_option(name, value, meaning)->type_name("N")->check(rule);
  };
  number("--epochs", settings.epochs, support::whole<1>(), "largest number of epochs");
  number("--patience", settings.patience, support::whole<1>(),
         "the training ends after this number of epochs without a lower loss on the validation images");
  number("--rate", settings.rate, support::rule<double>("a number above 0", [](double rate) { return rate > 0; }),
         "learning rate of Adam at the beginning");
  number("--seed", settings.seed, support::whole<0>(), "seed of the split of the images, of the weights and of the order");
  number("--threads", settings.threads, support::whole<0, 1024>(), "CPU threads; 0: LibTorch chooses");
  return support::run(app, argc, argv, "digits", [&] {
    support::make_output_folder(settings.output);
    return run(settings);
  });
}
