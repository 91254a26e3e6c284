// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/philox.h>
#include <attend/detail/torch/const_data.h>
#include <attend/version.h>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

// Dropout of attention weights. The random number of entry (n, h, i, j) is word j mod 4 of philox(seed; j / 4, i, h,
// n), with four 32-bit counters. The entry is kept if its random number is at least dropout · 2³². So the result
// depends only on the seed of the call and on the coordinates. It is the same in every backend and for every number of
// threads.

/// One random number from the device's generator, left on the device: reading it would stall a GPU.
inline at::Tensor draw_dropout_seed(const at::Tensor& query) {
  return at::empty({1}, query.options().dtype(at::kLong)).random_();
}

/// Philox on whole tensors, for devices whose memory the CPU cannot read: (N, H, L, S rounded up to 4) words as int64.
inline at::Tensor philox_words(const at::Tensor& seed, at::IntArrayRef sizes) {
  constexpr std::int64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr std::int64_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85, kWord = 0xFFFFFFFF;
  const auto counter = [&](std::int64_t count, at::IntArrayRef shape) {
    return at::arange(count, seed.options()).view(shape);
  };
  at::Tensor words[4] = {counter((sizes[3] + 3) / 4, {1, 1, 1, -1}), counter(sizes[2], {1, 1, -1, 1}),
                         counter(sizes[1], {1, -1, 1, 1}), counter(sizes[0], {-1, 1, 1, 1})};
  at::Tensor key0 = seed & kWord, key1 = at::bitwise_right_shift(seed, 32) & kWord;
  const auto low = [&](const at::Tensor& product) { return product & kWord; };
  const auto high = [&](const at::Tensor& product) { return at::bitwise_right_shift(product, 32) & kWord; };
  for (int round = 0; round < 10; ++round) {
    const at::Tensor product0 = words[0] * kMultiplier0, product1 = words[2] * kMultiplier1;
    words[0] = high(product1) ^ words[1] ^ key0;
    words[1] = low(product1);
    words[2] = high(product0) ^ words[3] ^ key1;
    words[3] = low(product0);
    key0 = (key0 + kWeyl0) & kWord;
    key1 = (key1 + kWeyl1) & kWord;
  }
  for (at::Tensor& word : words) word = word.expand({sizes[0], sizes[1], sizes[2], -1});
  return at::stack(words, 4).flatten(3);
}

/// Which weights dropout keeps: bool (N, H, L, S).
inline at::Tensor dropout_keep(const at::Tensor& seed, double dropout, at::IntArrayRef sizes) {
  const std::uint64_t threshold = dropout_threshold(dropout);
  if (!seed.is_cpu()) return philox_words(seed, sizes).slice(3, 0, sizes[3]).ge(static_cast<std::int64_t>(threshold));
  at::Tensor keep = at::empty(sizes, seed.options().dtype(at::kBool));
  bool* entry = keep.mutable_data_ptr<bool>();
  const auto seed_value = static_cast<std::uint64_t>(*const_data<std::int64_t>(seed));
  const auto counter = [](std::int64_t high, std::int64_t low) { return static_cast<std::uint64_t>(high << 32 | low); };
  for (std::int64_t n = 0; n < sizes[0]; ++n)
    for (std::int64_t h = 0; h < sizes[1]; ++h)
      for (std::int64_t i = 0; i < sizes[2]; ++i)
        for (std::int64_t j = 0; j < sizes[3]; j += 4) {
          const PhiloxBlock block = philox(seed_value, counter(i, j / 4), counter(n, h));
          for (std::int64_t word = 0; word < 4 && j + word < sizes[3]; ++word)
            *entry++ = block.words[word] >= threshold;
        }
  return keep;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
