// SPDX-License-Identifier: MIT
#pragma once

#include "memory.h"

#include <attend/kernels/attention_params.h>
#include <attend/score/rotary_layout.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <ostream>
#include <vector>

namespace attend::test {

/// A call with its memory.
struct CallMemory {
  AttentionParams params;
  Tensor query, key, value, mask, slopes, output_gradient, log_sum_exp_gradient;
  Tensor query_cos, query_sin, key_cos, key_sin;  // of a rotary embedding: (N, 1, L or S, R/2)

  CallMemory() = default;
  // The views point into the tensors.
  CallMemory(const CallMemory&) = delete;
  CallMemory& operator=(const CallMemory&) = delete;

  Element number() const { return element_of(params.dtype); }
  Element computed() const { return params.dtype == NumberType::kFloat64 ? Element::kFloat64 : Element::kFloat32; }

  /// How many numbers the gradient of the mask has, and where entry (n, h, i, j) is in it.
  std::int64_t mask_gradient_size() const {
    std::int64_t size = 1;
    for (std::size_t d = 0; d < 4; ++d) size *= params.attn_mask.strides[d] == 0 ? 1 : mask.sizes()[d];
    return size;
  }
  std::int64_t mask_place(std::int64_t n, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const std::int64_t indices[4] = {n, h, i, j};
    std::int64_t place = 0;
    for (std::size_t d = 0; d < 4; ++d)
      if (params.attn_mask.strides[d] != 0) place = place * mask.sizes()[d] + indices[d];
    return place;
  }
};

/// What a random call must be like.
struct Wishes {
  std::int64_t most_products = 3'000'000;  ///< N · H · L · S · (D + Dv)
  std::optional<NumberType> dtype = {};
  std::vector<std::int64_t> widths = {};  ///< D and Dv; empty: any
  bool has_whole_rows = false;            ///< rows of neighbours, aligned to 16 bytes if the widths are multiples of 8
  bool has_rotary = false;                ///< a rotary embedding
  bool is_decoding = false;               ///< few queries, many keys, and no packed batch
};

/// A random call. Number n is the same call everywhere.
struct Configuration : CallMemory {
  int structs = 0;  // which user structs; 0: none
  int threads = 1;
  bool has_large_scores = false;  // most queries attend to few keys
  std::vector<std::int32_t> query_offsets, key_offsets, key_lengths, document;
  std::vector<double> bias, gates;

  explicit Configuration(std::uint64_t number, const Wishes& wishes = {}) : wishes_(wishes), random_(number) {
    choose_sizes();
    choose_structs();
    choose_options();
    const auto [N, H, G, L, S, D, Dv] = all_sizes();
    query = random_tensor({N, H, L, D}, /*may_broadcast=*/true);
    key = random_tensor({N, G, S, D}, /*may_broadcast=*/true);
    value = random_tensor({N, G, S, Dv}, /*may_broadcast=*/true);
    output_gradient = random_tensor({N, H, L, Dv}, /*may_broadcast=*/true);
    has_large_scores = random_.chance(15);
    const double scale = has_large_scores ? 4 : 1;
    for (Tensor* tensor : {&query, &key}) tensor->fill([&] { return scale * random_.normal(); });
    for (Tensor* tensor : {&value, &output_gradient}) tensor->fill([&] { return random_.normal(); });
    log_sum_exp_gradient = Tensor(computed(), {N, H, L, 1});
    log_sum_exp_gradient.fill([&] { return random_.normal(); });
    choose_mask();
    choose_packed();
    choose_key_lengths();
    if (wishes_.has_rotary) choose_rotary();
    params.query = query.view();
    params.key = key.view();
    params.value = value.view();
  }

  /// A tensor in a random layout that may be written.
  Tensor output_tensor(const Sizes& sizes) { return random_tensor(sizes, /*may_broadcast=*/false); }

  friend std::ostream& operator<<(std::ostream& stream, const Configuration& c) {
    const AttentionParams& p = c.params;
    const char* const types[] = {"float32", "bfloat16", "float64", "float16"};
    const char* const masks[] = {"no mask", "bool mask", "added mask", "added bfloat16 mask"};
    stream << types[static_cast<int>(p.dtype)] << ", N " << p.batch_size << ", H " << p.num_heads << ", G "
           << p.num_kv_heads << ", L " << p.query_length << ", S " << p.key_length << ", D " << p.head_dim << ", Dv "
           << p.value_dim << ", " << masks[static_cast<int>(p.mask_type)] << ", window " << p.window_left << " "
           << p.window_right << ", softcap " << p.softcap << ", dropout " << p.dropout << ", structs " << c.structs
           << ", threads " << c.threads;
    if (p.rotary_dim > 0)
      stream << ", rotary " << p.rotary_dim << " " << p.rotary_layout << ", table strides " << p.query_rotary.strides[0]
             << " " << p.query_rotary.strides[1];
    if (p.scale) stream << ", scale " << *p.scale;
    if (p.alibi_slopes != nullptr) stream << ", ALiBi";
    for (const std::int32_t offset : c.query_offsets) stream << (offset == 0 ? ", queries at " : " ") << offset;
    for (const std::int32_t offset : c.key_offsets) stream << (offset == 0 ? ", keys at " : " ") << offset;
    if (!c.key_lengths.empty()) stream << ", key lengths";
    for (const std::int32_t length : c.key_lengths) stream << " " << length;
    return stream;
  }

 private:
  struct AllSizes {
    std::int64_t N, H, G, L, S, D, Dv;
  };
  AllSizes all_sizes() const {
    return {params.batch_size, params.num_heads, params.num_kv_heads, params.query_length,
            params.key_length, params.head_dim,  params.value_dim};
  }

  void choose_sizes() {
    params.dtype =
        random_.one_of({NumberType::kFloat32, NumberType::kFloat32, NumberType::kBFloat16, NumberType::kFloat64});
    if (wishes_.dtype) params.dtype = *wishes_.dtype;
    threads = static_cast<int>(random_.from_to(1, 4));
    params.num_kv_heads = random_.from_to(1, 3);
    params.num_heads = params.num_kv_heads * random_.from_to(1, 6 / params.num_kv_heads);
    params.batch_size = random_.from_to(1, 3);
    const auto length = [this] {
      const std::int64_t most = random_.one_of({8, 70, 130, 200});
      return random_.from_to(1, most);
    };
    params.query_length = length();
    const bool is_decoding = params.query_length <= 8 && random_.chance(40);
    params.key_length = is_decoding          ? random_.from_to(300, 1500)
                        : random_.chance(25) ? random_.from_to(129, 460)
                        : random_.chance(30) ? params.query_length
                                             : length();
    if (wishes_.is_decoding) {
      params.query_length = random_.from_to(1, 8);
      params.key_length = random_.from_to(130, 900);
    }
    const auto width = [this]() -> std::int64_t {
      if (!wishes_.widths.empty())
        return wishes_
            .widths[static_cast<std::size_t>(random_.from_to(0, static_cast<std::int64_t>(wishes_.widths.size()) - 1))];
      return random_.chance(40) ? random_.one_of({16, 32, 64, 128}) : random_.from_to(1, 80);
    };
    params.head_dim = width();
    params.value_dim = random_.chance(50) ? params.head_dim : width();
    // The naive loop takes as long as there are products.
    const auto products = [this] {
      return params.batch_size * params.num_heads * params.query_length * params.key_length *
             (params.head_dim + params.value_dim);
    };
    while (products() > wishes_.most_products && params.batch_size > 1) --params.batch_size;
    while (products() > wishes_.most_products && params.num_heads > params.num_kv_heads)
      params.num_heads -= params.num_kv_heads;
    while (products() > wishes_.most_products && params.query_length > 1)
      params.query_length = (params.query_length + 1) / 2;
  }

  void choose_structs() {
    structs = random_.chance(45) ? static_cast<int>(random_.from_to(1, 7)) : 0;
    const std::int64_t positions = std::max(params.query_length, params.key_length);
    for (std::int32_t now = 0; static_cast<std::int64_t>(document.size()) < positions; now += random_.chance(5))
      document.push_back(now);
    for (int i = 0; i < 96; ++i) bias.push_back(static_cast<double>(static_cast<float>(random_.normal())));
    for (int i = 0; i < 6; ++i) gates.push_back(static_cast<double>(static_cast<float>(1 + 0.2 * random_.normal())));
  }

  void choose_options() {
    if (random_.chance(20)) params.scale = random_.one_of({0.1, 0.3, -0.2, 1.0 / 3});
    if (random_.chance(20)) params.softcap = random_.one_of({2.0, 5.0, 30.0});
    if (random_.chance(35)) params.window_right = random_.chance(60) ? 0 : random_.from_to(0, 60);
    if (random_.chance(20)) params.window_left = random_.from_to(0, 60);
    if (random_.chance(20)) {
      params.dropout = random_.one_of({0.1, 0.5, 0.9});
      params.dropout_seed = static_cast<std::uint64_t>(random_.from_to(0, 1'000'000'000)) << 13;
    }
    if (random_.chance(25)) {
      slopes = Tensor(computed(), {params.batch_size, params.num_heads, 1, 1});
      const bool is_broadcast = random_.chance(50);
      if (is_broadcast) slopes.broadcast(0);
      slopes.fill([this] { return 0.2 * random_.uniform(); });
      params.alibi_slopes = slopes.view().data;
      params.alibi_strides[0] = is_broadcast ? 0 : params.num_heads;
    }
  }

  void choose_mask() {
    if (!random_.chance(45)) return;
    const MaskType wide = params.dtype == NumberType::kFloat64 ? MaskType::kAdded : MaskType::kAddedBFloat16;
    params.mask_type = random_.one_of({MaskType::kBool, MaskType::kAdded, wide});
    const Element element = params.mask_type == MaskType::kBool    ? Element::kBool
                            : params.mask_type == MaskType::kAdded ? computed()
                                                                   : Element::kBFloat16;
    mask = Tensor(element, {params.batch_size, params.num_heads, params.query_length, params.key_length},
                  random_order(), random_padding(), 1);
    for (std::size_t d = 0; d < 4; ++d)
      if (random_.chance(35)) mask.broadcast(d);
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const bool may_be_infinite = structs != 1 && structs != 6;  // these make NaN of −∞
    const int percent = random_.one_of({2, 20, 60});
    if (params.mask_type == MaskType::kBool)
      mask.fill([&] { return random_.chance(100 - percent); });
    else
      mask.fill([&] { return may_be_infinite && random_.chance(percent / 2) ? -kInfinity : random_.normal(); });
    params.attn_mask = mask.view();
    if (random_.chance(15)) mask_a_key_that_is_not_finite();
  }

  /// A key that no query may see, and that holds NaN or ∞.
  void mask_a_key_that_is_not_finite() {
    const bool is_broadcast = key.view().strides[2] == 0 || value.view().strides[2] == 0;
    if (params.mask_type != MaskType::kBool || is_broadcast) return;
    const std::int64_t j = random_.from_to(0, params.key_length - 1);
    const bool is_nan = random_.chance(50);
    const double number = is_nan ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
    Tensor::for_each(mask.sizes(), [&](auto n, auto h, auto i, auto key) {
      if (key == j) mask.set(n, h, i, key, 0);
    });
    for (Tensor* tensor : {&key, &value})
      Tensor::for_each(tensor->sizes(), [&](auto n, auto g, auto key, auto d) {
        if (key == j) tensor->set(n, g, key, d, number);
      });
  }

  void choose_packed() {
    if (!random_.chance(20) || wishes_.is_decoding) return;
    params.num_sequences = random_.from_to(1, 4);
    const auto offsets = [this](std::int64_t end) {
      std::vector<std::int32_t> cuts{0, static_cast<std::int32_t>(end)};
      while (static_cast<std::int64_t>(cuts.size()) <= params.num_sequences)
        cuts.push_back(static_cast<std::int32_t>(random_.from_to(0, end)));
      std::sort(cuts.begin(), cuts.end());
      return cuts;
    };
    query_offsets = offsets(params.query_length);
    key_offsets =
        params.query_length == params.key_length && random_.chance(50) ? query_offsets : offsets(params.key_length);
    params.query_offsets = query_offsets.data();
    params.key_offsets = key_offsets.data();
  }

  void choose_key_lengths() {
    if (params.num_sequences > 0 || !random_.chance(30)) return;
    for (std::int64_t n = 0; n < params.batch_size; ++n)
      key_lengths.push_back(static_cast<std::int32_t>(
          random_.chance(70) ? random_.from_to(params.key_length / 2, params.key_length)
                             : random_.from_to(0, std::min<std::int64_t>(params.key_length, 20))));
    params.key_lengths = key_lengths.data();
  }

  void choose_rotary() {
    const std::int64_t multiple = wishes_.has_whole_rows ? 16 : 2, most = params.head_dim / multiple;
    if (most == 0) return;
    params.rotary_dim = multiple * (random_.chance(50) ? most : random_.from_to(1, most));
    params.rotary_layout = random_.one_of({RotaryLayout::kHalfSplit, RotaryLayout::kInterleaved});
    const bool is_broadcast = random_.chance(50);
    const auto make = [&](std::int64_t rows, Tensor& cos, Tensor& sin) -> RotaryView {
      const Sizes padding{0, 0, 0, random_.chance(50) ? 0 : wishes_.has_whole_rows ? 4 : 3};
      for (Tensor* table : {&cos, &sin}) {
        *table = Tensor(computed(), {params.batch_size, 1, rows, params.rotary_dim / 2}, kByHead, padding, 1);
        if (is_broadcast) table->broadcast(0);
      }
      Tensor::for_each(cos.sizes(), [&](auto n, auto, auto i, auto k) {
        const double angle = 6.283185307179586 * random_.uniform();
        cos.set(n, 0, i, k, std::cos(angle));
        sin.set(n, 0, i, k, std::sin(angle));
      });
      const TensorView4d view = cos.view();
      return {view.data, sin.view().data, {view.strides[0], view.strides[2]}};
    };
    params.query_rotary = make(params.query_length, query_cos, query_sin);
    params.key_rotary = make(params.key_length, key_cos, key_sin);
  }

  std::array<int, 4> random_order() {
    return random_.one_of<std::array<int, 4>>({{0, 1, 2, 3}, {0, 1, 2, 3}, {0, 2, 1, 3}, {2, 0, 1, 3}, {0, 1, 3, 2}});
  }
  Sizes random_padding() {
    Sizes padding{};
    for (std::int64_t& each : padding) each = random_.chance(30) ? random_.from_to(1, 3) : 0;
    return padding;
  }

  Tensor random_tensor(const Sizes& sizes, bool may_broadcast) {
    if (random_.chance(30)) return Tensor(number(), sizes);
    Tensor tensor = wishes_.has_whole_rows
                        ? Tensor(number(), sizes, random_.chance(50) ? kByRow : kByHead, {}, 1)
                        : Tensor(number(), sizes, random_order(), random_padding(), random_.one_of({1, 1, 1, 2, -1}));
    for (std::size_t d = 0; d < (wishes_.has_whole_rows ? 3 : 4) && may_broadcast; ++d)
      if (random_.chance(4)) tensor.broadcast(d);
    return tensor;
  }

  static constexpr std::array<int, 4> kByHead{0, 1, 2, 3}, kByRow{0, 2, 1, 3};

  Wishes wishes_;
  Random random_;
};

}  // namespace attend::test
