// SPDX-License-Identifier: MIT

// Does kAuto use the fastest backend? For each shape, attention() with kAuto, attention() with kCpu and ATen's
// scaled_dot_product_attention run in turn, for several rounds. Each round starts with the next of the three.
//
// Prints CSV: the medians of the rounds in milliseconds, and the median of the ratios ATen / kAuto of the rounds. Below
// 1, kAuto is slower. measure.py writes a page from it.

#include <attend/attention.h>

#include "support/program.h"

#include <ATen/Parallel.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/utils.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iostream>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

using benchmark::kCompiler;
using benchmark::positive;

namespace {

constexpr const char* kUsage =
    "usage: backends [options]\n"
    "  --rounds N    rounds; the result is their median (default: 7)\n"
    "  --threads N   threads (default: chosen by LibTorch)\n"
    "  --few         only shapes with few queries\n"
    "  --quick       every fourth shape, three rounds\n";

struct Settings {
  int rounds = 0;   // 0: not given
  int threads = 0;  // 0: chosen by LibTorch
  bool only_few = false, is_quick = false;
};

struct Case {
  std::int64_t batch, heads, kv_heads, queries, keys, width;
  bool is_causal;
  at::ScalarType dtype;
  bool with_backward;
};

/// One query, few queries, short and long sequences; narrow and wide heads; grouped heads.
std::vector<Case> cases(const Settings& settings) {
  std::vector<Case> shapes;
  const auto add = [&](std::int64_t batch, std::int64_t heads, std::int64_t kv_heads, std::int64_t queries,
                       std::int64_t keys, std::int64_t width, bool is_causal) {
    shapes.push_back({batch, heads, kv_heads, queries, keys, width, is_causal, at::kFloat, false});
  };
  for (const std::int64_t queries : {1, 2, 4, 8, 12, 16, 32}) {
    for (const bool is_causal : {false, true}) {
      add(1, 32, 32, queries, 4096, 128, is_causal);
      add(1, 32, 8, queries, 4096, 128, is_causal);
      add(16, 8, 8, queries, 512, 64, is_causal);
      add(1, 8, 8, queries, 256, 64, is_causal);
      add(64, 8, 8, queries, 64, 32, is_causal);
    }
    if (queries > 1) add(256, 8, 8, queries, queries, 32, false);  // many short sequences
  }
  if (!settings.only_few) {
    for (const bool is_causal : {false, true}) {
      add(64, 8, 8, 64, 64, 64, is_causal);
      add(32, 1, 1, 100, 100, 64, is_causal);
      add(128, 8, 8, 81, 81, 32, is_causal);
      add(8, 12, 12, 197, 197, 64, is_causal);
      add(4, 8, 8, 1024, 1024, 32, is_causal);
      add(1, 32, 8, 1024, 1024, 128, is_causal);
      add(1, 4, 4, 1024, 1024, 256, is_causal);
      add(1, 8, 8, 4096, 4096, 64, is_causal);
    }
    add(4, 8, 8, 1024, 77, 40, false);
  }
  std::vector<Case> all;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    for (const bool with_backward : {false, true}) {
      for (Case shape : shapes) {
        if (with_backward && shape.keys == 4096 && shape.width == 128) continue;  // decoding has no backward pass
        // float64 and float16 are used for checks, not for speed: only shapes with few queries, forward.
        if ((dtype == at::kDouble || dtype == at::kHalf) && (shape.queries > 32 || with_backward)) continue;
        shape.dtype = dtype;
        shape.with_backward = with_backward;
        all.push_back(shape);
      }
    }
  }
  if (settings.is_quick) {
    std::vector<Case> some;
    for (std::size_t i = 0; i < all.size(); i += 4) some.push_back(all[i]);
    return some;
  }
  return all;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double milliseconds(const std::function<void()>& call, int calls) {
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < calls; ++i) call();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count() / calls;
}

void measure(const Case& shape, int rounds) {
  const c10::AutoGradMode grad_mode(shape.with_backward);
  const auto options = at::TensorOptions(shape.dtype);
  const auto input = [&](std::int64_t heads, std::int64_t length) {
    return at::randn({shape.batch, heads, length, shape.width}, options).requires_grad_(shape.with_backward);
  };
  const at::Tensor q = input(shape.heads, shape.queries), k = input(shape.kv_heads, shape.keys),
                   v = input(shape.kv_heads, shape.keys);
  const at::Tensor gradient = at::randn(q.sizes(), options);
  const auto finish = [&](const at::Tensor& output) {
    if (shape.with_backward) torch::autograd::grad({output}, {q, k, v}, {gradient});
  };
  const auto ours = [&](attend::Backend backend) {
    return [&, backend] {
      finish(attend::attention(q, k, v, attend::AttentionOptions().is_causal(shape.is_causal).backend(backend)));
    };
  };
  // ATen counts the causal diagonal from the first key. For unequal lengths it needs a mask, which is made in advance.
  std::optional<at::Tensor> mask;
  const bool is_square = shape.queries == shape.keys;
  if (shape.is_causal && !is_square && shape.queries > 1)
    mask = at::full({shape.queries, shape.keys}, -std::numeric_limits<double>::infinity(), options)
               .triu(shape.keys - shape.queries + 1);
  const auto aten = [&] {
    finish(at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0, shape.is_causal && is_square,
                                            /*scale=*/std::nullopt, shape.heads != shape.kv_heads));
  };

  const attend::Backend chosen =
      attend::explain(q, k, v, attend::AttentionOptions().is_causal(shape.is_causal)).backend;
  const std::array<std::function<void()>, 3> calls = {ours(attend::Backend::kAuto), ours(attend::Backend::kCpu), aten};
  std::array<int, 3> repeats{};
  for (std::size_t i = 0; i < calls.size(); ++i) {
    calls[i]();
    repeats[i] = std::clamp(static_cast<int>(20.0 / milliseconds(calls[i], 1)), 1, 1000);
  }
  std::array<std::vector<double>, 3> times;
  std::vector<double> ratios;
  for (int round = 0; round < rounds; ++round) {
    std::array<double, 3> time{};
    for (std::size_t i = 0; i < calls.size(); ++i) {
      const std::size_t next = (i + static_cast<std::size_t>(round)) % calls.size();
      time[next] = milliseconds(calls[next], repeats[next]);
      times[next].push_back(time[next]);
    }
    ratios.push_back(time[2] / time[0]);
  }
  std::cout << shape.dtype << ',' << (shape.with_backward ? "forward + backward" : "forward") << ',' << shape.batch
            << ',' << shape.heads << ',' << shape.kv_heads << ',' << shape.queries << ',' << shape.keys << ','
            << shape.width << ',' << (shape.is_causal ? "causal" : "dense") << ',' << chosen << ',' << median(times[0])
            << ',' << median(times[1]) << ',' << median(times[2]) << ',' << median(ratios) << std::endl;
}

Settings settings_from(int count, char** arguments) {
  Settings settings;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    const auto number = [&] { return static_cast<int>(positive(i + 1 < count ? arguments[++i] : "")); };
    if (name == "--rounds") {
      settings.rounds = number();
    } else if (name == "--threads") {
      settings.threads = number();
    } else if (name == "--few") {
      settings.only_few = true;
    } else if (name == "--quick") {
      settings.is_quick = true;
    } else {
      throw std::invalid_argument("unknown option " + name);
    }
  }
  if (settings.rounds == 0) settings.rounds = settings.is_quick ? 3 : 7;
  return settings;
}

}  // namespace

int main(int count, char** arguments) try {
  if (count == 2 && std::string(arguments[1]) == "--help") {
    std::cout << kUsage;
    return 0;
  }
  const Settings settings = settings_from(count, arguments);
  if (settings.threads > 0) at::set_num_threads(settings.threads);
  at::manual_seed(0);
  const at::Tensor x = at::randn({1, 1, 16, 64});
  std::cout << "# threads " << at::get_num_threads() << "\n# compiler " << kCompiler << "\n# libtorch LibTorch "
            << TORCH_VERSION << "\n# instructions "
            << attend::explain(x, x, x, attend::AttentionOptions().backend(attend::Backend::kCpu)).how
            << "\ndtype,pass,N,H,G,L,S,D,mask,backend,auto_ms,cpu_ms,aten_ms,aten_over_auto" << std::endl;
  for (const Case& shape : cases(settings)) measure(shape, settings.rounds);
  return 0;
} catch (const std::exception& error) {
  std::cerr << "backends: " << error.what() << "\n\n" << kUsage;
  return 2;
}
