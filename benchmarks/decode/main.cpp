// SPDX-License-Identifier: MIT

// How fast is one step of decoding with a KeyValueCache? For each cache, attention of one query, ATen's
// scaled_dot_product_attention and a plain sum over the same bytes run in turn, for several rounds. Each round starts
// with the next of the three.
//
// As in a model, each call reads the next layer, so that no keys and values are in the processor's caches from the call
// before. Prints CSV: the medians of the rounds in milliseconds, and medians of ratios. measure.py writes a page from
// it.

#include <attend/attention.h>
#include <attend/attention/key_value_cache.h>

#include "support/program.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/utils.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

using benchmark::kCompiler;
using benchmark::positive;

namespace {

constexpr const char* kUsage =
    "usage: decode [options]\n"
    "  --rounds N    rounds; the result is their median (default: 15)\n"
    "  --threads N   threads (default: chosen by LibTorch)\n"
    "  --quick       short caches, three rounds\n";

struct Case {
  std::int64_t batch, heads, kv_heads, keys, width;
  at::ScalarType dtype = at::kFloat;
  std::int64_t page_size = 0;
  bool has_lengths = false;  // from 1/8 of the keys to all of them
};

std::vector<Case> cases(bool is_quick) {
  const std::int64_t S = is_quick ? 256 : 4096;
  std::vector<Case> all;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const std::int64_t kv_heads : {32, 8})
      for (const std::int64_t page_size : {0, 16, 64}) all.push_back({1, 32, kv_heads, S, 128, dtype, page_size});
  all.push_back({1, 32, 8, S / 4, 128});
  all.push_back({1, 32, 32, S, 64});
  all.push_back({8, 32, 8, S / 4, 128});
  for (const std::int64_t page_size : {0, 16, 64}) all.push_back({8, 32, 8, S, 128, at::kFloat, page_size, true});
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

std::atomic<std::uint64_t> total{0};  // so that no sum is left out

/// Adds up the first `bytes` of a tensor as whole numbers, on all threads.
void sum_bytes(const at::Tensor& tensor, std::int64_t bytes) {
  using Vector [[gnu::vector_size(64), gnu::aligned(8)]] = std::uint64_t;
  constexpr std::int64_t kBlock = 4 * sizeof(Vector);
  const auto* const first = static_cast<const char*>(tensor.const_data_ptr());
  at::parallel_for(0, bytes / kBlock, 1, [&](std::int64_t begin, std::int64_t end) {
    Vector sums[4] = {};
    for (std::int64_t block = begin; block < end; ++block) {
      const auto* const from = reinterpret_cast<const Vector*>(first + block * kBlock);
      for (int i = 0; i < 4; ++i) sums[i] += from[i];
    }
    const Vector sum = sums[0] + sums[1] + sums[2] + sums[3];
    std::uint64_t lanes = 0;
    for (int i = 0; i < 8; ++i) lanes += sum[i];
    total += lanes;
  });
}

void measure(const Case& shape, int rounds) {
  constexpr std::int64_t kWorkingSet = 256 << 20;  // more than the caches of a processor
  const std::int64_t layer_bytes = 2 * shape.batch * shape.kv_heads * shape.keys * shape.width *
                                   static_cast<std::int64_t>(c10::elementSize(shape.dtype));
  const std::int64_t layers = std::max<std::int64_t>(2, (kWorkingSet + layer_bytes - 1) / layer_bytes);
  attend::KeyValueCache cache(attend::KeyValueCacheOptions(layers, shape.batch, shape.kv_heads, shape.width, shape.keys)
                                  .dtype(shape.dtype)
                                  .page_size(shape.page_size));
  const at::Tensor lengths =
      shape.has_lengths ? at::linspace(shape.keys / 8, shape.keys, shape.batch).to(at::kLong) : at::Tensor();
  std::vector<at::Tensor> keys, values;  // contiguous, for ATen
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const auto random = [&] {
      return at::randn({shape.batch, shape.kv_heads, shape.keys, shape.width}, at::kFloat).to(shape.dtype);
    };
    keys.push_back(random());
    values.push_back(random());
    cache.append(layer, keys.back(), values.back(), lengths);
  }
  const at::Tensor query = at::randn({shape.batch, shape.heads, 1, shape.width}, at::kFloat).to(shape.dtype);
  std::optional<at::Tensor> mask;  // the last lengths[n] keys, as a user of ATen pads them
  if (shape.has_lengths)
    mask = (at::arange(shape.keys) >= shape.keys - lengths.unsqueeze(1)).view({shape.batch, 1, 1, shape.keys});
  const std::int64_t used_bytes =
      shape.has_lengths ? layer_bytes * lengths.sum().item<std::int64_t>() / (shape.batch * shape.keys) : layer_bytes;

  std::int64_t now = 0;
  const auto next_layer = [&] { return now = (now + 1) % layers; };
  const std::array<std::function<void()>, 3> calls = {
      [&] { cache.attention(next_layer(), query); },
      [&] {
        const auto layer = static_cast<std::size_t>(next_layer());
        at::scaled_dot_product_attention(query, keys[layer], values[layer], mask, /*dropout_p=*/0.0,
                                         /*is_causal=*/false, /*scale=*/std::nullopt, shape.heads != shape.kv_heads);
      },
      [&] {
        const auto layer = static_cast<std::size_t>(next_layer());
        sum_bytes(keys[layer], used_bytes / 2);
        sum_bytes(values[layer], used_bytes / 2);
      },
  };
  std::array<int, 3> repeats{};
  for (std::size_t i = 0; i < calls.size(); ++i) {
    calls[i]();
    repeats[i] = std::clamp(static_cast<int>(30.0 / milliseconds(calls[i], 1)), 2, 1000);
  }
  std::array<std::vector<double>, 3> times;
  std::vector<double> over_attend, shares;
  for (int round = 0; round < rounds; ++round) {
    std::array<double, 3> time{};
    for (std::size_t i = 0; i < calls.size(); ++i) {
      const std::size_t next = (i + static_cast<std::size_t>(round)) % calls.size();
      time[next] = milliseconds(calls[next], repeats[next]);
      times[next].push_back(time[next]);
    }
    over_attend.push_back(time[1] / time[0]);
    shares.push_back(time[2] / time[0]);
  }
  const attend::CachedKeys cached = cache.arguments(0, 1);
  std::cout << shape.dtype << ',' << shape.batch << ',' << shape.heads << ',' << shape.kv_heads << ',' << shape.keys
            << ',' << shape.width << ',' << shape.page_size << ',' << (shape.has_lengths ? "different" : "equal") << ','
            << attend::explain(query, cached.key, cached.value, cached.options).backend << ','
            << static_cast<double>(used_bytes) / 1e6 << ',' << median(times[0]) << ',' << median(times[1]) << ','
            << median(times[2]) << ',' << median(over_attend) << ',' << median(shares) << std::endl;
}

}  // namespace

int main(int count, char** arguments) try {
  if (count == 2 && std::string(arguments[1]) == "--help") {
    std::cout << kUsage;
    return 0;
  }
  int rounds = 0, threads = 0;
  bool is_quick = false;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    const auto number = [&] { return static_cast<int>(positive(i + 1 < count ? arguments[++i] : "")); };
    if (name == "--rounds")
      rounds = number();
    else if (name == "--threads")
      threads = number();
    else if (name == "--quick")
      is_quick = true;
    else
      throw std::invalid_argument("unknown option " + name);
  }
  if (rounds == 0) rounds = is_quick ? 3 : 15;
  if (threads > 0) at::set_num_threads(threads);
  at::manual_seed(0);
  const c10::AutoGradMode no_grad(false);
  const at::Tensor x = at::randn({1, 1, 16, 64});
  std::cout << "# threads " << at::get_num_threads() << "\n# compiler " << kCompiler << "\n# libtorch LibTorch "
            << TORCH_VERSION << "\n# instructions "
            << attend::explain(x, x, x, attend::AttentionOptions().backend(attend::Backend::kCpu)).how
            << "\ndtype,N,H,G,S,D,page_size,lengths,backend,megabytes,attend_ms,aten_ms,sum_ms,aten_over_attend,share"
            << std::endl;
  for (const Case& shape : cases(is_quick)) measure(shape, rounds);
  return 0;
} catch (const std::exception& error) {
  std::cerr << "decode: " << error.what() << "\n\n" << kUsage;
  return 2;
}
