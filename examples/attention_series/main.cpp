// SPDX-License-Identifier: MIT

// Five experiments about attention: a convolution net, an attention net, a task by location without and with positional
// encodings, and attention with four heads.
//
// Source: F. Fleuret, Deep Learning course, handout 13.2, and the notebooks that follow it.

#include "experiments.h"
#include "results.h"
#include "support/checkpoints.h"
#include "support/command_line.h"
#include "support/shape_net.h"

#include <attend/attend.h>
#include <attend/data.h>
#include <attend/training.h>
#ifdef EXAMPLE_WITH_CUDA_GRAPHS
#include <attend/training/cuda_graph.h>
#endif

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <limits>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr int kPicturedSamples = 4;
constexpr std::int64_t kMeasuredMaps = 200;

struct Settings {
  std::string experiment = "all";
  bool quick = false;
  std::int64_t epochs = 250;
  std::int64_t batch_size = 100;
  double learning_rate = 1e-3;
  std::int64_t samples = 25000;
  std::int64_t held_out_samples = 1000;
  std::uint64_t seed = 1;
  std::string device = "auto";
  std::string dtype = "float32";
  std::string positions = "binary";
  int threads = 0;
  std::string output = "attention_series_output";
  support::Checkpoints checkpoints;

  /// The settings that determine the numbers of a run, except its length and the machine. A run may only continue a run
  /// with the same fingerprint.
  std::string fingerprint() const {
    std::ostringstream text;
    text << "seed " << seed << ", " << samples << " training and " << held_out_samples
         << " held-out samples, batches of " << batch_size << ", learning rate " << learning_rate << ", " << dtype;
    if (positions != "binary") text << ", " << positions << " positions";
    return text.str();
  }
};

const std::map<std::string, Positions> kPositions{{"linear", Positions::kLinear},
                                                  {"binary", Positions::kBinary},
                                                  {"sinusoidal", Positions::kSinusoidal},
                                                  {"learned", Positions::kLearned}};

attend::ShapeDataset data_of(const Experiment& experiment, std::int64_t samples, std::uint64_t seed) {
  return attend::ShapeDataset(attend::ShapeDatasetOptions()
                                  .generator(attend::ShapeGenerator::kHandout)
                                  .group_by(experiment.group_by)
                                  .max_samples(samples)
                                  .seed(seed));
}

/// Trains one net, or continues its training, and writes the results. Returns whether the training is complete.
bool run_experiment(const Experiment& experiment, const Settings& settings, torch::Device device,
                    attend::StopOnInterrupt& interrupt) {
  const std::filesystem::path folder = std::filesystem::path(settings.output) / experiment.name;
  std::filesystem::create_directories(folder);
  attend::ShapeDataset train_set = data_of(experiment, settings.samples, settings.seed);
  attend::ShapeDataset held_out = data_of(experiment, settings.held_out_samples, settings.seed + 1);

  torch::manual_seed(settings.seed);
  ShapeNet net(ShapeNetOptions(experiment.net).standardize(attend::StandardizeOptions(train_set.inputs())));
  auto options = attend::TrainerOptions()
                     .epochs(settings.epochs)
                     .batch_size(settings.batch_size)
                     .learning_rate(settings.learning_rate)
                     .device(device)
                     .seed(settings.seed);
  if (settings.dtype == "bfloat16") options.autocast(torch::kBFloat16);
#ifdef EXAMPLE_WITH_CUDA_GRAPHS
  if (device.is_cuda()) options.capture(attend::cuda_graphs());
#endif
  std::optional<attend::CheckpointData> newest = settings.checkpoints.newest(experiment.name, settings.fingerprint());
  attend::CsvLog log((folder / "history.csv").string());
  attend::Trainer trainer(net, options);
  const attend::History history = settings.checkpoints.train(
      trainer, experiment.name, settings.fingerprint(), std::move(newest), [&](auto&&... checkpoint) {
        const std::size_t trained = trainer.history().epochs().size();
        std::cout << "\n"
                  << experiment.name << ": " << experiment.title << ", "
                  << support::with_thousands(support::parameter_count(*net)) << " parameters";
        if (trained > 0) std::cout << ", " << trained << " epochs trained before";
        std::cout << std::endl;
        return trainer.fit(train_set, held_out, attend::ProgressBar(), log, interrupt, checkpoint...);
      });
  if (!device.is_cpu()) std::cout << "Steps: " << trainer.explain() << '\n';
  if (history.epochs().empty()) return false;
  write_results(folder, net, held_out, kPicturedSamples, device);

  std::ofstream file = support::open(folder / "results.csv");
  file.precision(std::numeric_limits<double>::max_digits10);
  file << "title,epochs,parameters,train_loss,held_out_loss,own_share,mapped_samples,seconds\n\"" << experiment.title
       << "\"," << history.epochs().size() << ',' << support::parameter_count(*net) << ','
       << history.train_loss().back() << ',' << history.validation_loss().back() << ',';
  if (experiment.net.attention()) {
    const torch::NoGradGuard no_grad;
    const torch::Tensor inputs = held_out.inputs().slice(0, 0, kMeasuredMaps);
    file << own_share(net->attention_map(inputs.to(device)), held_out) << ',' << inputs.size(0);
  } else {
    file << ',';
  }
  file << ',' << support::median(history.seconds()) << '\n';
  support::close(file, folder / "results.csv");
  std::cout << "held-out loss after " << history.epochs().size() << " epochs: " << history.validation_loss().back()
            << std::endl;
  return !interrupt.happened();
}

int run(Settings settings) {
  const torch::Device device = support::device_of(settings.device);
  support::make_output_folder(settings.output);
  if (settings.threads > 0) torch::set_num_threads(settings.threads);
  if (settings.quick) settings.epochs = std::min<std::int64_t>(settings.epochs, 6);
  std::vector<Experiment> chosen;
  for (const Experiment& experiment : series(kPositions.at(settings.positions))) {
    // The tasks by location and the four heads show nothing after a few epochs.
    const bool is_in_all = !settings.quick || experiment.name == "conv" || experiment.name == "attention";
    if (settings.experiment == experiment.name || (settings.experiment == "all" && is_in_all))
      chosen.push_back(experiment);
  }
  std::cout << chosen.size() << (chosen.size() == 1 ? " net, " : " nets, ") << settings.epochs << " epochs of "
            << support::with_thousands(settings.samples) << " samples each on " << device
            << (device.is_cpu() ? ", " + std::to_string(torch::get_num_threads()) + " threads" : "")
            << (settings.dtype == "bfloat16" ? ", in bfloat16" : "") << ". Ctrl-C stops the run"
            << (settings.checkpoints.folder.empty() ? ".\n" : "; the same command with --resume continues.\n");

  attend::StopOnInterrupt interrupt;
  for (const Experiment& experiment : chosen) {
    if (!run_experiment(experiment, settings, device, interrupt)) {
      std::cout << "\nStopped by a signal. The results so far are in " << std::filesystem::path(settings.output)
                << (settings.checkpoints.folder.empty() ? ".\n" : "; --resume continues.\n");
      return 130;
    }
  }
  std::cout << "\nThe results are in " << std::filesystem::path(settings.output)
            << ". To draw the figures and the page:\n  " << ATTEND_PLOT_COMMAND << ' '
            << std::filesystem::path(settings.output) << '\n';
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  CLI::App app(
      "Trains the nets of the series and writes losses, predictions and attention maps, which plot.py draws. The "
      "nets:\n"
      "convolution, attention, attention by location without and with positions, and four heads.\n");
  app.option_defaults()->always_capture_default();
  const auto number = [&app](const char* name, auto& value, const CLI::Validator& rule, const char* meaning) {
    app.add_option(name, value, meaning)->type_name("N")->check(rule);
  };
  std::vector<std::string> names{"all"};
  for (const Experiment& experiment : series()) names.push_back(experiment.name);
  app.add_option("--experiment", settings.experiment, "the experiment to run")
      ->type_name("")
      ->check(CLI::IsMember(names));
  app.add_flag("--quick", settings.quick, "six epochs; `all` then means conv and attention: one to two minutes on two cores");
  using support::whole;
  number("--epochs", settings.epochs, whole<1>(), "number of epochs for each net");
  number("--batch", settings.batch_size, whole<1>(), "samples in one training step");
  number("--rate", settings.learning_rate,
         support::rule<double>("a number above 0", [](double rate) { return rate > 0; }), "learning rate of Adam");
  number("--samples", settings.samples, whole<2>(), "training samples");
  number("--held-out", settings.held_out_samples, whole<kPicturedSamples>(),
         "samples for evaluation, not used in training");
  number("--seed", settings.seed, whole<0>(), "seed of data, weights and order of the samples");
  number("--threads", settings.threads, whole<0, 1024>(), "CPU threads; 0: LibTorch chooses");
  app.add_option("--dtype", settings.dtype,
                 "dtype of the training, bfloat16 by autocast; results are written in float32")
      ->type_name("")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  app.add_option("--positions", settings.positions, "positional encoding of the experiment location_positions")
      ->type_name("")
      ->check(CLI::IsMember(kPositions));
  app.add_option("--device", settings.device, "auto (a GPU if available), cpu, cuda or cuda:N")->type_name("");
  app.add_option("--output", settings.output, "folder for the results; created if it does not exist")->type_name("");
  settings.checkpoints.add_options(app);
  return support::run(app, argc, argv, "attention_series", [&] { return run(settings); });
}
