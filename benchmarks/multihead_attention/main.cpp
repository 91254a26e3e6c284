// SPDX-License-Identifier: MIT

// How fast is attend::MultiheadAttention, compared with torch::nn::MultiheadAttention and with
// scaled_dot_product_attention and projections written by hand? Self-attention, no weights returned, float32, on the
// CPU.
//
// All three have the same weights and the same input. Their results are compared before anything is timed. They run in
// turn in every round, and each round starts with the next of the three. Prints CSV: the medians of the rounds in
// milliseconds, and the medians of the ratios of the rounds. measure.py writes a page and a figure from it.

#include <attend/layers/multihead_attention.h>

#include "support/program.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/nn/modules/activation.h>
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
#include <vector>

using benchmark::kCompiler;
using benchmark::positive;

namespace {

constexpr const char* kUsage =
    "usage: multihead_attention [options]\n"
    "  --lengths L,L,…    lengths of the sequences (default: 128,256,512,1024,2048,4096)\n"
    "  --rounds N         rounds; the result is their median (default: 15)\n"
    "  --embed-dim E      width of the layer (default: 256)\n"
    "  --heads H          number of heads (default: 8)\n"
    "  --threads N        threads (default: chosen by LibTorch)\n"
    "  --quick            lengths 128, 512 and 2048, three rounds; takes less than a minute\n";

struct Settings {
  std::vector<std::int64_t> lengths{128, 256, 512, 1024, 2048, 4096};
  std::int64_t rounds = 15;
  std::int64_t embed_dim = 256;
  std::int64_t heads = 8;
  std::int64_t threads = 0;
  bool is_help_wanted = false;
};

std::vector<std::int64_t> positive_list(std::string_view text) {
  std::vector<std::int64_t> values;
  while (true) {
    const std::size_t comma = text.find(',');
    values.push_back(positive(text.substr(0, comma)));
    if (comma == std::string_view::npos) return values;
    text.remove_prefix(comma + 1);
  }
}

Settings settings_from(const std::vector<std::string>& arguments) {
  Settings settings;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& name = arguments[i];
    const auto value = [&]() -> const std::string& {
      if (++i == arguments.size()) throw std::invalid_argument(name + " needs a value");
      return arguments[i];
    };
    if (name == "--lengths") {
      settings.lengths = positive_list(value());
    } else if (name == "--rounds") {
      settings.rounds = positive(value());
    } else if (name == "--embed-dim") {
      settings.embed_dim = positive(value());
    } else if (name == "--heads") {
      settings.heads = positive(value());
    } else if (name == "--threads") {
      settings.threads = positive(value());
    } else if (name == "--quick") {
      settings.lengths = {128, 512, 2048};
      settings.rounds = 3;
    } else if (name == "--help") {
      settings.is_help_wanted = true;
    } else {
      throw std::invalid_argument("unknown option " + name);
    }
  }
  return settings;
}

/// One of the three implementations.
struct Peer {
  const char* name;
  std::function<torch::Tensor(const torch::Tensor&)> forward;  // (L, N, E) → (L, N, E)
  std::vector<torch::Tensor>
      parameters;  // in the same order for all: in_proj weight and bias, out_proj weight and bias
};

/// The implementations. attend is the first, because the others are compared with it.
std::vector<Peer> peers(const Settings& settings) {
  torch::manual_seed(1);
  attend::MultiheadAttention ours(attend::MultiheadAttentionOptions(settings.embed_dim, settings.heads));
  torch::nn::MultiheadAttention stock(torch::nn::MultiheadAttentionOptions(settings.embed_dim, settings.heads));
  std::vector<torch::Tensor> by_hand;
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : stock->named_parameters()) {
      if (parameter.value().dim() == 1) parameter.value().uniform_(-0.1, 0.1);  // they begin at 0
      ours->named_parameters()[parameter.key()].copy_(parameter.value());
    }
    const auto parameters = stock->named_parameters();
    for (const char* name : {"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"})
      by_hand.push_back(parameters[name].clone().requires_grad_());
  }
  const auto in_order = [](const auto& module) {
    return std::vector{module->in_proj_weight, module->in_proj_bias, module->out_proj->weight, module->out_proj->bias};
  };
  const auto without_weights = [](auto module) {
    return [module](const torch::Tensor& x) mutable {
      return std::get<0>(module->forward(x, x, x, /*key_padding_mask=*/{}, /*need_weights=*/false));
    };
  };
  const auto sdpa = [by_hand, heads = settings.heads](const torch::Tensor& x) {
    const auto by_heads = [heads](const torch::Tensor& rows) {  // (L, N, E) to (N, H, L, D)
      return rows.unflatten(-1, {heads, -1}).permute({1, 2, 0, 3});
    };
    const std::vector<torch::Tensor> parts = at::linear(x, by_hand[0], by_hand[1]).chunk(3, -1);
    const torch::Tensor y =
        at::scaled_dot_product_attention(by_heads(parts[0]), by_heads(parts[1]), by_heads(parts[2]));
    return at::linear(y.permute({2, 0, 1, 3}).flatten(2), by_hand[2], by_hand[3]);
  };
  return {{"attend", without_weights(ours), in_order(ours)},
          {"torch", without_weights(stock), in_order(stock)},
          {"sdpa", sdpa, by_hand}};
}

/// A timed pass: forward only, as in inference, or with the gradients of the input and of all parameters.
struct Pass {
  const char* name;
  bool with_backward;

  std::vector<torch::Tensor> run(const Peer& peer, const torch::Tensor& x, const torch::Tensor& gradient) const {
    const torch::AutoGradMode mode(with_backward);
    const torch::Tensor y = peer.forward(x);
    if (!with_backward) return {y};
    std::vector<torch::Tensor> inputs = peer.parameters;
    inputs.push_back(x);
    std::vector<torch::Tensor> results = torch::autograd::grad({y}, inputs, {gradient});
    results.push_back(y);
    return results;
  }
};

constexpr Pass kPasses[] = {{"forward", false}, {"forward_backward", true}};

/// The largest difference of any result, relative to the largest absolute value of that result.
double difference(const std::vector<torch::Tensor>& results, const std::vector<torch::Tensor>& expected) {
  double largest = 0.0;
  for (std::size_t i = 0; i < results.size(); ++i) {
    const double share = ((results[i] - expected[i]).abs().max() / expected[i].abs().max()).item<double>();
    if (!std::isfinite(share)) return std::numeric_limits<double>::infinity();
    largest = std::max(largest, share);
  }
  return largest;
}

double milliseconds(std::int64_t calls, const std::function<void()>& call) {
  const auto begin = std::chrono::steady_clock::now();
  for (std::int64_t i = 0; i < calls; ++i) call();
  const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;
  return elapsed.count() / static_cast<double>(calls);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

void measure(const Pass& pass, std::int64_t length, const std::vector<Peer>& peers, const Settings& settings) {
  constexpr double kTolerance = 1e-4;     // float32 sums over thousands of positions
  constexpr double kMilliseconds = 50.0;  // the approximate least duration of one measurement
  const std::int64_t batch = std::max<std::int64_t>(1, 1024 / length);
  const torch::Tensor x = torch::randn({length, batch, settings.embed_dim}).requires_grad_(pass.with_backward);
  const torch::Tensor gradient = torch::randn_like(x).detach();

  // Also the warm-up: every implementation runs once before it is timed.
  const std::vector<torch::Tensor> expected = pass.run(peers[0], x, gradient);
  for (const Peer& peer : peers) {
    const double found = difference(pass.run(peer, x, gradient), expected);
    if (!(found <= kTolerance))
      throw std::runtime_error(std::string(peer.name) + " and attend differ by " + std::to_string(found) +
                               " of the largest value, at length " + std::to_string(length));
  }

  const double one_call = milliseconds(1, [&] { pass.run(peers[0], x, gradient); });
  const auto calls = std::max<std::int64_t>(1, std::llround(kMilliseconds / one_call));
  std::vector<std::vector<double>> times(peers.size());
  for (std::int64_t round = 0; round < settings.rounds; ++round) {
    for (std::size_t turn = 0; turn < peers.size(); ++turn) {
      const std::size_t who = (static_cast<std::size_t>(round) + turn) % peers.size();
      times[who].push_back(milliseconds(calls, [&] { pass.run(peers[who], x, gradient); }));
    }
  }

  std::cout << pass.name << ',' << length << ',' << batch;
  for (const std::vector<double>& rounds : times) std::cout << ',' << median(rounds);
  for (std::size_t who = 1; who < peers.size(); ++who) {
    std::vector<double> ratios;
    for (std::size_t round = 0; round < times[who].size(); ++round)
      ratios.push_back(times[who][round] / times[0][round]);
    std::cout << ',' << median(ratios);
  }
  std::cout << std::endl;  // flushed, because the next row may take a minute
}

void run(const Settings& settings) {
  if (settings.threads > 0) torch::set_num_threads(static_cast<int>(settings.threads));
  const std::vector<Peer> all = peers(settings);
  std::cout << "# LibTorch " << TORCH_VERSION << "; compiler: " << kCompiler
            << "; threads: " << torch::get_num_threads() << "; embed_dim: " << settings.embed_dim
            << "; heads: " << settings.heads << "; rounds: " << settings.rounds
            << "\npass,length,batch,attend_ms,torch_ms,sdpa_ms,torch_over_attend,sdpa_over_attend" << std::endl;
  for (const Pass& pass : kPasses)
    for (const std::int64_t length : settings.lengths) measure(pass, length, all, settings);
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
    std::cerr << "multihead_attention: " << error.what() << '\n' << kUsage;
    return 2;
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << '\n';
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "multihead_attention: " << error.what() << '\n';
    return 1;
  }
}
