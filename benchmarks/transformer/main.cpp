// SPDX-License-Identifier: MIT

// How fast is attend::TransformerEncoder, compared with torch::nn::TransformerEncoder? 4 layers, 8 heads, float32, on
// the CPU.
//
// Both have the same weights and the same input. Their results are compared, without dropout, before anything is timed.
// They run in turn in every round. Prints CSV: the medians of the rounds in milliseconds, and the median of the ratios
// of the rounds. measure.py writes a page from it.

#include <attend/layers/transformer_encoder.h>

#include "support/program.h"

#include <torch/nn/modules/transformercoder.h>
#include <torch/utils.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <exception>
#include <functional>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

using benchmark::kCompiler;
using benchmark::positive;

namespace {

constexpr const char* kUsage =
    "usage: transformer [options]\n"
    "  --rounds N         rounds; the result is their median (default: 7)\n"
    "  --threads N        threads (default: chosen by LibTorch)\n"
    "  --only PASS        training, dropout, inference or padded: only these rows\n"
    "  --quick            one round\n";

constexpr std::int64_t kLayers = 4, kHeads = 8;

struct Shape {
  std::int64_t width, hidden, length, batch;
};

constexpr Shape kShapes[] = {{256, 1024, 512, 8}, {256, 2048, 512, 8}, {256, 1024, 2048, 2}, {512, 2048, 128, 16}};

/// What is timed.
struct Pass {
  const char* name;
  bool with_backward;
  double dropout;
  bool has_padding;
};

constexpr Pass kPasses[] = {{"training", true, 0.0, false},
                            {"dropout", true, 0.1, false},
                            {"inference", false, 0.0, false},
                            {"padded", false, 0.0, true}};

struct Settings {
  std::int64_t rounds = 7, threads = 0;
  std::string only;
  bool is_help_wanted = false;
};

Settings settings_from(const std::vector<std::string>& arguments) {
  Settings settings;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& name = arguments[i];
    const auto value = [&]() -> const std::string& {
      if (++i == arguments.size()) throw std::invalid_argument(name + " needs a value");
      return arguments[i];
    };
    if (name == "--rounds") {
      settings.rounds = positive(value());
    } else if (name == "--threads") {
      settings.threads = positive(value());
    } else if (name == "--only") {
      settings.only = value();
    } else if (name == "--quick") {
      settings.rounds = 1;
    } else if (name == "--help") {
      settings.is_help_wanted = true;
    } else {
      throw std::invalid_argument("unknown option " + name);
    }
  }
  return settings;
}

/// One of the two implementations.
struct Peer {
  std::function<torch::Tensor(const torch::Tensor&, const torch::Tensor&)> forward;  // (N, L, E), padding (N, L)
  std::vector<torch::Tensor> parameters;
  std::function<void(bool)> train;
};

/// attend, then torch::nn, which takes (L, N, E).
std::vector<Peer> peers(const Shape& shape, double dropout) {
  attend::TransformerEncoder ours(
      attend::TransformerEncoderOptions(attend::TransformerEncoderLayerOptions(shape.width, kHeads)
                                            .dim_feedforward(shape.hidden)
                                            .dropout(dropout)
                                            .batch_first(true),
                                        kLayers));
  torch::nn::TransformerEncoder stock(torch::nn::TransformerEncoderOptions(
      torch::nn::TransformerEncoderLayerOptions(shape.width, kHeads).dim_feedforward(shape.hidden).dropout(dropout),
      kLayers));
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : stock->named_parameters()) {
      if (parameter.value().dim() == 1) parameter.value().uniform_(-0.1, 1.0);  // they begin at 0 and 1
      ours->named_parameters()[parameter.key()].copy_(parameter.value());
    }
  }
  return {{[ours](const torch::Tensor& x, const torch::Tensor& padding) mutable {
             return ours(x, torch::Tensor(), padding);
           },
           ours->parameters(), [ours](bool is_training) mutable { ours->train(is_training); }},
          {[stock](const torch::Tensor& x, const torch::Tensor& padding) mutable {
             return stock(x.transpose(0, 1), torch::Tensor(), padding).transpose(0, 1);
           },
           stock->parameters(), [stock](bool is_training) mutable { stock->train(is_training); }}};
}

std::vector<torch::Tensor> run(const Pass& pass, const Peer& peer, const torch::Tensor& x, const torch::Tensor& padding,
                               const torch::Tensor& gradient) {
  const torch::AutoGradMode mode(pass.with_backward);
  const torch::Tensor y = peer.forward(x, padding);
  if (!pass.with_backward) return {y};
  std::vector<torch::Tensor> inputs = peer.parameters;
  inputs.push_back(x);
  std::vector<torch::Tensor> results = torch::autograd::grad({y}, inputs, {gradient});
  results.push_back(y);
  return results;
}

/// The largest difference of any result, relative to that result, in the Euclidean norm. A maximum would not do: a
/// hidden number near 0 may be positive in one library and negative in the other, which changes single gradients.
double difference(const std::vector<torch::Tensor>& results, const std::vector<torch::Tensor>& expected,
                  const torch::Tensor& padding) {
  double largest = 0.0;
  for (std::size_t i = 0; i < results.size(); ++i) {
    torch::Tensor change = results[i] - expected[i];
    if (padding.defined()) change = change.masked_fill(padding.unsqueeze(2), 0.0);  // padded rows hold anything
    const double share = (change.norm() / expected[i].norm()).item<double>();
    if (!std::isfinite(share)) return std::numeric_limits<double>::infinity();
    largest = std::max(largest, share);
  }
  return largest;
}

double milliseconds(const std::function<void()>& call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;
  return elapsed.count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

void measure(const Pass& pass, const Shape& shape, std::int64_t rounds) {
  constexpr double kTolerance = 1e-3;  // float32 gradients through four layers
  torch::manual_seed(1);
  const torch::Tensor x = torch::randn({shape.batch, shape.length, shape.width}).requires_grad_(pass.with_backward);
  const torch::Tensor gradient = torch::randn_like(x).detach();
  // Lengths from a quarter of the longest to the longest: 37.5 % of the positions are padding.
  torch::Tensor padding;
  if (pass.has_padding) {
    const torch::Tensor lengths =
        torch::linspace(0.25 * static_cast<double>(shape.length), shape.length, shape.batch).to(torch::kLong);
    padding = torch::arange(shape.length).unsqueeze(0) >= lengths.unsqueeze(1);
  }

  const std::vector<Peer> all = peers(shape, pass.dropout);
  for (const Peer& peer : all) peer.train(false);
  const std::vector<torch::Tensor> expected = run(pass, all[1], x, padding, gradient);
  const double found = difference(run(pass, all[0], x, padding, gradient), expected, padding);
  if (!(found <= kTolerance)) throw std::runtime_error("the results differ by a share of " + std::to_string(found));
  for (const Peer& peer : all) peer.train(pass.with_backward);

  std::vector<double> times[2], ratios;
  for (const Peer& peer : all) run(pass, peer, x, padding, gradient);  // warm-up
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (int turn = 0; turn < 2; ++turn) {
      const int who = static_cast<int>((round + turn) % 2);
      times[who].push_back(milliseconds([&] { run(pass, all[static_cast<std::size_t>(who)], x, padding, gradient); }));
    }
    ratios.push_back(times[1].back() / times[0].back());
  }
  std::cout << pass.name << ',' << shape.width << ',' << shape.hidden << ',' << shape.length << ',' << shape.batch
            << ',' << median(times[0]) << ',' << median(times[1]) << ',' << median(ratios) << std::endl;
}

void run(const Settings& settings) {
  if (settings.threads > 0) torch::set_num_threads(static_cast<int>(settings.threads));
  std::cout << "# LibTorch " << TORCH_VERSION << "; compiler: " << kCompiler
            << "; threads: " << torch::get_num_threads() << "; rounds: " << settings.rounds
            << "\npass,width,hidden,length,batch,attend_ms,torch_ms,torch_over_attend" << std::endl;
  for (const Pass& pass : kPasses)
    if (settings.only.empty() || settings.only == pass.name)
      for (const Shape& shape : kShapes) measure(pass, shape, settings.rounds);
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
    std::cerr << "transformer: " << error.what() << '\n' << kUsage;
    return 2;
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << '\n';
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "transformer: " << error.what() << '\n';
    return 1;
  }
}
