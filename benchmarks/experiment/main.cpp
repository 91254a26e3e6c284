// SPDX-License-Identifier: MIT

// The notebook "Attention intuition" with attend: two nets learn to redraw every shape of a signal at the mean height
// of its kind. notebook.py is the same program in Python. By default the program trains both nets and prints the total
// time. With --drive it reads requests of measure.py, one in each line, and answers each with a line of JSON:
//
//   epoch NET        trains convolution or attention for one epoch: seconds, training_loss (the mean), last_batch_loss
//   held_out COUNT   makes held-out samples: seconds
//   evaluate NET     held_out_loss
//   rate             throughput of matrix products on this machine, in the dtype of the training: gflops
//   memory           peak memory of the process in MiB: peak_mib, and on a GPU device_mib
//   steps            how the training steps ran: steps
//   quit             ends the program

#include <attend/data/shape_dataset.h>
#include <attend/layers/conv_stack.h>
#include <attend/layers/self_attention1d.h>
#include <attend/training/trainer.h>
#ifdef EXPERIMENT_WITH_CUDA_GRAPHS
#include <attend/training/cuda_graph.h>
#endif

#include "support/program.h"

#include <ATen/ops/mm.h>
#include <ATen/ops/rand.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/cuda.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/utils.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <limits>
#include <map>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

using benchmark::kCompiler;
using benchmark::positive;

namespace {

constexpr const char* kUsage =
    "usage: experiment [options]\n"
    "  --epochs N      epochs of each net (default: 50)\n"
    "  --samples N     training samples (default: 10000)\n"
    "  --device D      cpu or cuda (default: cpu)\n"
    "  --dtype D       float32, or bfloat16 by the trainer's autocast (default: float32)\n"
    "  --threads N     threads (default: chosen by LibTorch)\n"
    "  --seed N        seed of data, weights and order of the samples (default: 7)\n"
    "  --drive         read requests from standard input, for measure.py\n";

struct Settings {
  std::int64_t epochs = 50;
  std::int64_t samples = 10000;
  std::string device = "cpu";
  std::string dtype = "float32";
  std::int64_t threads = 0;
  std::int64_t seed = 7;
  bool is_driven = false;
  bool is_help_wanted = false;
};

std::string one_of(const std::string& text, const std::vector<std::string>& allowed) {
  if (std::find(allowed.begin(), allowed.end(), text) == allowed.end())
    throw std::invalid_argument("invalid value " + text);
  return text;
}

Settings settings_from(const std::vector<std::string>& arguments) {
  Settings settings;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& name = arguments[i];
    const auto value = [&]() -> const std::string& {
      if (++i == arguments.size()) throw std::invalid_argument(name + " needs a value");
      return arguments[i];
    };
    if (name == "--epochs") {
      settings.epochs = positive(value());
    } else if (name == "--samples") {
      settings.samples = positive(value());
    } else if (name == "--device") {
      settings.device = one_of(value(), {"cpu", "cuda"});
    } else if (name == "--dtype") {
      settings.dtype = one_of(value(), {"float32", "bfloat16"});
    } else if (name == "--threads") {
      settings.threads = positive(value());
    } else if (name == "--seed") {
      settings.seed = positive(value());
    } else if (name == "--drive") {
      settings.is_driven = true;
    } else if (name == "--help") {
      settings.is_help_wanted = true;
    } else {
      throw std::invalid_argument("unknown option " + name);
    }
  }
  return settings;
}

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

torch::nn::Sequential convolution_net() {
  return torch::nn::Sequential(attend::ConvStack(attend::ConvStackOptions(1, 64, 1).depth(5)));
}

torch::nn::Sequential attention_net() {
  return torch::nn::Sequential(
      attend::ConvStack(attend::ConvStackOptions(1, 64, 64).depth(2).activation_after_last(true)),
      attend::SelfAttention1d(attend::SelfAttention1dOptions(64, 64, 64)),
      attend::ConvStack(attend::ConvStackOptions(64, 64, 1).depth(2)));
}

/// A JSON object of numbers and of texts that need no escapes.
class Answer {
 public:
  Answer& add(const char* name, double value) {
    std::ostringstream stream;
    stream.precision(9);
    stream << value;
    return add_as_written(name, stream.str());
  }

  Answer& add(const char* name, const std::string& value) { return add_as_written(name, '"' + value + '"'); }

  void print() const { std::cout << '{' << text_ << '}' << std::endl; }

 private:
  Answer& add_as_written(const char* name, const std::string& value) {
    text_.append(text_.empty() ? "\"" : ", \"").append(name).append("\": ").append(value);
    return *this;
  }

  std::string text_;
};

class Experiment {
 public:
  explicit Experiment(const Settings& settings)
      : settings_(settings),
        device_(settings.device == "cuda" ? torch::kCUDA : torch::kCPU),
        dtype_(settings.dtype == "bfloat16" ? torch::kBFloat16 : torch::kFloat),
        train_set_(made(/*samples=*/1, settings.seed)) {  // creating the first tensors starts LibTorch up
    const auto begin = Clock::now();
    train_set_ = made(settings.samples, settings.seed);
    data_seconds_ = seconds_since(begin);
    torch::manual_seed(static_cast<std::uint64_t>(settings.seed));
    auto options = attend::TrainerOptions().epochs(1).batch_size(32).learning_rate(1e-3).device(device_).seed(
        static_cast<std::uint64_t>(settings.seed));
    if (dtype_ == torch::kBFloat16) options.autocast(torch::kBFloat16);
#ifdef EXPERIMENT_WITH_CUDA_GRAPHS
    if (device_.is_cuda()) options.capture(attend::cuda_graphs());
#endif
    trainers_.emplace("convolution", Trainer(convolution_net(), options));
    trainers_.emplace("attention", Trainer(attention_net(), options));
  }

  /// Continues after the last epoch of the net. fit() reads the loss at its end, which waits for the GPU.
  Answer epoch(const std::string& net) {
    Trainer& trainer = named(net);
    const auto begin = Clock::now();
    trainer.fit(train_set_);
    const double seconds = seconds_since(begin);
    const attend::EpochRecord& record = trainer.history().epochs().back();
    return Answer()
        .add("seconds", seconds)
        .add("training_loss", record.train_loss)
        .add("last_batch_loss", record.last_batch_loss);
  }

  /// Makes the held-out samples, with another seed than the training set.
  Answer hold_out(std::int64_t count) {
    const auto begin = Clock::now();
    held_out_ = made(count, settings_.seed + 1);
    return Answer().add("seconds", seconds_since(begin));
  }

  Answer evaluate(const std::string& net) { return Answer().add("held_out_loss", named(net).evaluate(*held_out_)); }

  /// The best throughput of several matrix products of size 1,024².
  Answer rate() const {
    constexpr std::int64_t kSize = 1024;
    constexpr int kProducts = 4;
    const at::Tensor a = at::rand({kSize, kSize}, at::device(device_)).to(dtype_), b = at::rand_like(a);
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < 10; ++i) {
      const auto begin = Clock::now();
      at::Tensor product;
      for (int j = 0; j < kProducts; ++j) product = at::mm(a, b);
      if (device_.is_cuda()) torch::cuda::synchronize();
      best = std::min(best, seconds_since(begin) / kProducts);
    }
    return Answer().add("gflops", 2e-9 * kSize * kSize * kSize / best);
  }

  Answer memory() const {
    Answer answer;
    std::ifstream status("/proc/self/status");  // exists on Linux only
    for (std::string word; status >> word;) {
      double kibibytes = 0.0;
      if (word == "VmHWM:" && status >> kibibytes) answer.add("peak_mib", kibibytes / 1024);
    }
    if (device_.is_cuda()) {
      const auto stats = c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(0);
      answer.add("device_mib",
                 static_cast<double>(stats.allocated_bytes[0].peak) / (1 << 20));  // index 0: blocks of all sizes
    }
    return answer;
  }

  Answer steps() const {
    return Answer().add("steps", "convolution net: " + trainers_.at("convolution").explain() +
                                     "; attention net: " + trainers_.at("attention").explain());
  }

  Answer ready() const {
    return Answer()
        .add("torch", std::string(TORCH_VERSION))
        .add("compiler", std::string(kCompiler))
        .add("threads", torch::get_num_threads())
        .add("data_seconds", data_seconds_);
  }

 private:
  using Trainer = attend::Trainer<torch::nn::Sequential>;

  static attend::ShapeDataset made(std::int64_t samples, std::int64_t seed) {
    return attend::ShapeDataset(
        attend::ShapeDatasetOptions().max_samples(samples).seed(static_cast<std::uint64_t>(seed)));
  }

  Trainer& named(const std::string& net) {
    const auto found = trainers_.find(net);
    if (found == trainers_.end()) throw std::invalid_argument("unknown net " + net);
    return found->second;
  }

  Settings settings_;
  torch::Device device_;
  torch::ScalarType dtype_;
  attend::ShapeDataset train_set_;
  double data_seconds_ = 0.0;
  std::optional<attend::ShapeDataset> held_out_;
  std::map<std::string, Trainer> trainers_;
};

void serve(Experiment& experiment) {
  for (std::string command, net; std::cin >> command && command != "quit";) {
    if (command == "epoch" && std::cin >> net) {
      experiment.epoch(net).print();
    } else if (command == "evaluate" && std::cin >> net) {
      experiment.evaluate(net).print();
    } else if (std::int64_t count = 0; command == "held_out" && std::cin >> count) {
      experiment.hold_out(count).print();
    } else if (command == "rate") {
      experiment.rate().print();
    } else if (command == "memory") {
      experiment.memory().print();
    } else if (command == "steps") {
      experiment.steps().print();
    } else {
      throw std::invalid_argument("invalid request " + command);
    }
  }
}

void run(const Settings& settings) {
  const auto begin = Clock::now();
  if (settings.threads > 0) torch::set_num_threads(static_cast<int>(settings.threads));
  Experiment experiment(settings);
  if (settings.is_driven) {
    experiment.ready().print();
    serve(experiment);
    return;
  }
  for (const char* net : {"convolution", "attention"}) {
    std::cout << "Training with " << net << " model" << std::endl;
    for (std::int64_t epoch = 0; epoch < settings.epochs; ++epoch) {
      const Answer answer = experiment.epoch(net);
      if (epoch % 10 == 0) answer.print();
    }
  }
  std::cout << seconds_since(begin) << " s" << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Settings settings = settings_from({argv + 1, argv + argc});
    if (settings.is_help_wanted)
      std::cout << kUsage;
    else
      run(settings);
  } catch (const std::invalid_argument& error) {
    std::cerr << "experiment: " << error.what() << '\n' << kUsage;
    return 2;
  } catch (const c10::Error& error) {
    std::cerr << "experiment: " << error.what_without_backtrace() << '\n';
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "experiment: " << error.what() << '\n';
    return 1;
  }
}
