// SPDX-License-Identifier: MIT

// A convolution net and an attention net learn to redraw every triangle and every rectangle of a signal at the mean
// height of its kind. Shapes of one kind are far apart: convolutions of width 5 cannot relate them, but one attention
// layer can.
//
// Source: the notebook "Attention intuition", after F. Fleuret, Deep Learning course, handout 13.2.

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
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr int kPicturedSamples = 4;

struct Settings {
  std::int64_t epochs = 50;
  std::int64_t batch_size = 32;
  double learning_rate = 1e-3;
  std::int64_t samples = 10000;
  std::int64_t held_out_samples = 2000;
  std::int64_t size = 100;
  std::int64_t max_height = 50;
  double noise_std = 0.3;
  std::uint64_t seed = 7;
  std::string device = "auto";
  std::string dtype = "float32";
  int threads = 0;
  std::string output = "conv_vs_attention_output";
  support::Checkpoints checkpoints;

  /// The settings that determine the numbers of a run, except its length and the machine. A run may only continue a run
  /// with the same fingerprint.
  std::string fingerprint() const {
    std::ostringstream text;
    text << "seed " << seed << ", " << samples << " training and " << held_out_samples << " held-out samples of size "
         << size << ", heights below " << max_height << ", noise " << noise_std << ", batches of " << batch_size
         << ", learning rate " << learning_rate << ", " << dtype;
    return text.str();
  }
};

/// One of the two nets, with the records of its training.
struct Net {
  std::string name;
  ShapeNet model;
  attend::CsvLog log;
  attend::History history = {};
};

/// A callback that prints what the notebook prints: the loss of the last batch, every ten epochs.
struct NotebookLines {
  void on_epoch_end(attend::TrainingState& state) {
    if (state.epoch % 10 == 0)
      std::cout << "Epoch: " << state.epoch << ", Loss: " << state.history.epochs().back().last_batch_loss << std::endl;
  }
};

/// The first samples of a data set.
struct FirstSamples {
  const attend::ShapeDataset& data;
  std::int64_t count;
  torch::Tensor inputs() const { return data.inputs().slice(0, 0, count); }
  torch::Tensor targets() const { return data.targets().slice(0, 0, count); }
};

/// The data. Invalid options become an error of the command line.
attend::ShapeDataset data_of(const attend::ShapeDatasetOptions& options) {
  try {
    return attend::ShapeDataset(options);
  } catch (const c10::ValueError& error) {
    throw CLI::ValidationError(error.what_without_backtrace());
  }
}

attend::TrainerOptions trainer_options(const Settings& settings, torch::Device device) {
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
  return options;
}

/// Estimated seconds of an epoch: ten batches on a copy of the net, the fastest of three runs.
double estimated_epoch_seconds(const Net& net, const attend::ShapeDataset& data, const Settings& settings,
                               torch::Device device) {
  const std::int64_t count = std::min(settings.samples, 10 * settings.batch_size);
  const auto copy = std::dynamic_pointer_cast<ShapeNetImpl>(net.model->clone());
  attend::Trainer trainer(copy, trainer_options(settings, device).epochs(3));
  const std::vector<double> seconds = trainer.fit(FirstSamples{data, count}).seconds();
  return *std::min_element(seconds.begin(), seconds.end()) * static_cast<double>(settings.samples) /
         static_cast<double>(count);
}

/// Writes the outputs of the nets for the first held-out signals, one line for each position.
void write_samples(const std::filesystem::path& folder, const std::vector<Net>& nets,
                   const attend::ShapeDataset& held_out, torch::Device device) {
  // The same shapes without noise or normalization, so that plot.py can distinguish triangles from rectangles.
  const attend::ShapeDataset clean(attend::ShapeDatasetOptions(held_out.options())
                                       .noise_std(0.0)
                                       .normalize(attend::Normalization::kNone)
                                       .max_samples(kPicturedSamples));
  const torch::Tensor inputs = held_out.inputs().slice(0, 0, kPicturedSamples);  // (samples, 1, size)
  std::vector<torch::Tensor> columns{clean.inputs(), inputs, held_out.targets().slice(0, 0, kPicturedSamples)};
  std::ofstream file = support::open(folder / "samples.csv");
  file << "sample,position,height,input,target";
  for (const Net& net : nets) {
    file << ',' << net.name;
    columns.push_back(net.model.ptr()->forward(inputs.to(device)).cpu());
  }
  file << '\n';
  for (std::int64_t sample = 0; sample < kPicturedSamples; ++sample) {
    for (std::int64_t position = 0; position < inputs.size(2); ++position) {
      file << sample << ',' << position;
      for (const torch::Tensor& column : columns) file << ',' << column[sample][0][position].item<float>();
      file << '\n';
    }
  }
  support::close(file, folder / "samples.csv");
}

std::filesystem::path map_file(const std::filesystem::path& folder, std::int64_t sample) {
  return folder / ("map_" + std::to_string(sample) + ".csv");
}

/// Writes the attention maps for the first held-out signals, one file for each.
void write_maps(const std::filesystem::path& folder, const Net& net, const attend::ShapeDataset& held_out,
                torch::Device device) {
  const torch::Tensor inputs = held_out.inputs().slice(0, 0, kPicturedSamples).to(device);  // (samples, 1, size)
  const torch::Tensor maps = net.model.ptr()->attention_map(inputs).cpu();                  // (samples, 1, size, size)
  for (std::int64_t sample = 0; sample < kPicturedSamples; ++sample)
    support::write_map(map_file(folder / net.name, sample), maps[sample][0]);
}

/// Removes the results of an earlier run, so that results of two runs are never mixed.
void remove_results(const std::filesystem::path& folder) {
  std::filesystem::remove(folder / "samples.csv");
  for (int i = 0; i < kPicturedSamples; ++i) std::filesystem::remove(map_file(folder / "attention", i));
}

void print_table(const std::vector<Net>& nets) {
  std::cout << "\nnet           parameters   training loss   held-out loss   s / epoch\n" << std::fixed;
  for (const Net& net : nets) {
    std::cout << std::left << std::setw(12) << net.name << std::right << std::setw(12)
              << support::with_thousands(support::parameter_count(*net.model)) << std::setprecision(5) << std::setw(16)
              << net.history.train_loss().back() << std::setw(16) << net.history.validation_loss().back()
              << std::setprecision(1) << std::setw(12) << support::median(net.history.seconds()) << '\n';
  }
  std::cout << std::defaultfloat;
}

int run(const Settings& settings, torch::Device device) {
  if (settings.threads > 0) torch::set_num_threads(settings.threads);
  const std::filesystem::path folder = settings.output;
  const auto data_options =
      attend::ShapeDatasetOptions().size(settings.size).max_height(settings.max_height).noise_std(settings.noise_std);
  attend::ShapeDataset train_set =
      data_of(attend::ShapeDatasetOptions(data_options).max_samples(settings.samples).seed(settings.seed));
  attend::ShapeDataset held_out =
      data_of(attend::ShapeDatasetOptions(data_options).max_samples(settings.held_out_samples).seed(settings.seed + 1));

  torch::manual_seed(settings.seed);
  std::map<std::string, std::optional<attend::CheckpointData>> newest;
  for (const char* name : {"convolution", "attention"})
    newest[name] = settings.checkpoints.newest(name, settings.fingerprint());
  remove_results(folder);
  std::vector<Net> nets;
  for (const auto& [name, model] :
       {std::pair("convolution", ShapeNet(ShapeNetOptions().attention(false))), std::pair("attention", ShapeNet())}) {
    std::filesystem::create_directories(folder / name);
    nets.push_back({name, model, attend::CsvLog((folder / name / "history.csv").string())});
  }
  double seconds = 0;
  for (const Net& net : nets)
    seconds += static_cast<double>(settings.epochs) * estimated_epoch_seconds(net, train_set, settings, device);
  std::cout << "Two nets, " << support::with_thousands(support::parameter_count(*nets[0].model)) << " and "
            << support::with_thousands(support::parameter_count(*nets[1].model)) << " parameters; " << settings.epochs
            << " epochs of " << support::with_thousands(settings.samples) << " samples each on " << device
            << (device.is_cpu() ? ", " + std::to_string(torch::get_num_threads()) + " threads" : "")
            << (settings.dtype == "bfloat16" ? ", in bfloat16" : "") << ": about " << support::duration(seconds)
            << ". Ctrl-C stops early and keeps the results so far.\n"
            << "The lines with \"Epoch:\" have the format of the notebook: they count from 0 and show the loss of "
               "the last batch.\n";

  attend::StopOnInterrupt interrupt;
  for (std::size_t i = 0; i < nets.size(); ++i) {
    Net& net = nets[i];
    std::cout << "\nTraining with " << net.name << " model" << std::endl;
    attend::Trainer trainer(net.model, trainer_options(settings, device));
    const auto fit = [&](auto&&... checkpoint) {
      const std::size_t trained = trainer.history().epochs().size();
      if (trained > 0) std::cout << trained << " epochs trained before" << std::endl;
      return trainer.fit(train_set, held_out, attend::ProgressBar(), NotebookLines(), net.log, interrupt,
                         checkpoint...);
    };
    net.history =
        settings.checkpoints.train(trainer, net.name, settings.fingerprint(), std::move(newest[net.name]), fit);
    net.model->eval();
    if (!device.is_cpu()) std::cout << "Steps: " << trainer.explain() << '\n';
    if (interrupt.happened()) nets.erase(nets.begin() + static_cast<std::ptrdiff_t>(i) + 1, nets.end());
  }

  const torch::NoGradGuard no_grad;
  write_samples(folder, nets, held_out, device);
  if (nets.back().name == "attention") write_maps(folder, nets.back(), held_out, device);
  print_table(nets);
  const bool is_complete = nets.back().name == "attention" && !interrupt.happened();
  std::cout << (is_complete ? "\nThe results are in " : "\nStopped by a signal. The results so far are in ") << folder
            << ". To draw the figures (the preset \"example\" does it next):\n  " << ATTEND_PLOT_COMMAND << ' '
            << folder << '\n';
  return is_complete ? 0 : 130;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  CLI::App app(
      "Trains a convolution net and an attention net to redraw every triangle and every rectangle of a signal at the\n"
      "mean height of its kind. Writes losses, predictions and attention maps, which plot.py draws.\n");
  app.option_defaults()->always_capture_default();
  const auto number = [&app](const char* name, auto& value, const CLI::Validator& rule, const char* meaning) {
    app.add_option(name, value, meaning)->type_name("N")->check(rule);
  };
  using support::rule;
  using support::whole;
  number("--epochs", settings.epochs, whole<1>(), "number of epochs for each net");
  number("--batch", settings.batch_size, whole<1>(), "samples in one training step");
  number("--rate", settings.learning_rate, rule<double>("a number above 0", [](double rate) { return rate > 0; }),
         "learning rate of Adam");
  number("--samples", settings.samples, whole<1>(), "training samples");
  number("--held-out", settings.held_out_samples, whole<kPicturedSamples>(),
         "samples for evaluation, not used in training");
  number("--size", settings.size, whole<18>(), "length of a signal in positions, at least 18");
  number("--height", settings.max_height, whole<6>(), "heights are integers from 5 to N - 1");
  number("--noise", settings.noise_std, rule<double>("a number of at least 0", [](double noise) { return noise >= 0; }),
         "standard deviation of the noise, in units of height");
  number("--seed", settings.seed, whole<0>(), "seed of data, weights and order of the samples");
  number("--threads", settings.threads, whole<0, 1024>(), "CPU threads; 0: LibTorch chooses");
  app.add_option("--dtype", settings.dtype,
                 "dtype of the training, bfloat16 by autocast; results are written in float32")
      ->type_name("")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  app.add_option("--device", settings.device, "auto (a GPU if available), cpu, cuda or cuda:N")->type_name("");
  app.add_option("--output", settings.output, "folder for the results; created if it does not exist")->type_name("");
  settings.checkpoints.add_options(app);
  return support::run(app, argc, argv, "conv_vs_attention", [&] {
    const torch::Device device = support::device_of(settings.device);
    support::make_output_folder(settings.output);
    return run(settings, device);
  });
}
