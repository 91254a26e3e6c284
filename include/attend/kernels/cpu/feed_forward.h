// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cpu/feed_forward_activation.h>
#include <attend/kernels/cpu/flat_dropout.h>
#include <attend/kernels/cpu/head_view.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/kernels/cpu/tile_operations.h>
#include <attend/macros.h>
#include <attend/simd/dispatch.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <algorithm>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

// A feed-forward network: y = W₂ · dropout(activation(W₁ x + b₁)) + b₂ for each row x. A block of rows goes through the
// whole network while it is in the L2 cache, so the hidden numbers are written once for the backward pass, and not at
// all without one. Their gradients never leave the cache.
//
// Matrices that a product reads as B are packed in panels of 64 columns, (columns / 64, rows, 64). Otherwise rows whose
// length in bytes is a power of two would share a few lines of the L1 cache.

inline constexpr int kBlockRows = 128;  // rows of x that go through the network together

/// Sizes; width, hidden and out must be multiples of 16.
struct FeedForwardSizes {
  std::int64_t rows, width, hidden, out;

  std::int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
  int rows_of(std::int64_t block) const {
    return static_cast<int>(std::min<std::int64_t>(kBlockRows, rows - block * kBlockRows));
  }
  static std::int64_t panels(std::int64_t columns) { return (columns + kPanel - 1) / kPanel; }
  static int columns_of(std::int64_t panel, std::int64_t columns) {
    return static_cast<int>(std::min<std::int64_t>(kPanel, columns - panel * kPanel));
  }
  /// The size of a packed matrix with these rows and columns, in numbers.
  static std::int64_t packed(std::int64_t rows, std::int64_t columns) { return panels(columns) * kPanel * rows; }
  /// The size of the hidden layer, packed block by block, in numbers.
  std::int64_t hidden_numbers() const { return packed(rows, hidden); }
  /// The panel of a block.
  float* hidden_panel(float* numbers, std::int64_t block, std::int64_t panel) const {
    return numbers + block * kBlockRows * panels(hidden) * kPanel + panel * rows_of(block) * kPanel;
  }
};

/// Packs a panel of a matrix (rows, columns): rows lie `row` numbers apart.
inline void pack_panel(const float* from, std::int64_t row, std::int64_t rows, std::int64_t columns, std::int64_t panel,
                       float* packed) {
  const int count = FeedForwardSizes::columns_of(panel, columns);
  float* const to = packed + panel * rows * kPanel;
  for (std::int64_t i = 0; i < rows; ++i) std::copy_n(from + i * row + panel * kPanel, count, to + i * kPanel);
}

/// The operations, compiled for one instruction set.
struct FeedForwardOperations {
  void (*activate)(const float* from, float* to, std::int64_t first, int rows, int columns, HiddenActivation activation,
                   const FlatDropout* dropout, std::int64_t panel);
  void (*activation_gradient)(float* gradients, const float* saved, float* results, std::int64_t first, int rows,
                              int columns, HiddenActivation activation, const FlatDropout* dropout, std::int64_t panel,
                              float* sums);
  void (*add_rows)(const float* numbers, int rows, std::int64_t columns, std::int64_t row, float* sums);
};

template <class Isa>
inline constexpr FeedForwardOperations kFeedForwardOperations{&CompiledFor<Isa, ActivatePanel>::call,
                                                              &CompiledFor<Isa, ActivationGradient>::call,
                                                              &CompiledFor<Isa, AddRows>::call};

/// All functions that the network needs.
struct FeedForwardTables {
  const TileOperations<float>& tiles;
  const FeedForwardOperations& network;
};

inline FeedForwardTables feed_forward_tables(InstructionSet set) {
  return for_isa(set, [](auto isa) -> FeedForwardTables {
    return {kTileOperations<float, decltype(isa)>, kFeedForwardOperations<decltype(isa)>};
  });
}

/// The forward pass of blocks. All matrices are contiguous.
struct FeedForwardForward {
  FeedForwardSizes sizes;
  const float *x, *weight1, *bias1, *weight2, *bias2;  // biases may be null
  float* output;                                       // (rows, out)
  float* hidden;             // hidden_numbers(), what ActivationGradient reads in the backward pass; null: not wanted
  float *packed1, *packed2;  // memory: packed(width, hidden), packed(hidden, out)
  HiddenActivation activation;
  FlatDropout dropout;
  FeedForwardTables tables;

  /// How many calls of pack() prepare the weights.
  std::int64_t packs() const { return FeedForwardSizes::panels(sizes.hidden) + FeedForwardSizes::panels(sizes.out); }
  void pack(std::int64_t i) const {
    const std::int64_t first = FeedForwardSizes::panels(sizes.hidden);
    if (i < first)
      pack_transposed(weight1, sizes.hidden, sizes.width, i, packed1);
    else
      pack_transposed(weight2, sizes.out, sizes.hidden, i - first, packed2);
  }

  /// The size of the memory of a thread, in numbers.
  static constexpr std::int64_t kMemory = kBlockRows * kPanel;

  void compute(std::int64_t block, float* memory) const {
    const std::int64_t first = block * kBlockRows, panels = FeedForwardSizes::panels(sizes.hidden);
    const int rows = sizes.rows_of(block), width = static_cast<int>(sizes.width);
    const float* const from = x + first * sizes.width;
    float* const to = output + first * sizes.out;
    write_bias(bias2, rows, static_cast<int>(sizes.out), sizes.out, to);
    for (std::int64_t p = 0; p < panels; ++p) {
      const int columns = FeedForwardSizes::columns_of(p, sizes.hidden);
      float* const numbers = hidden == nullptr ? memory : sizes.hidden_panel(hidden, block, p);
      float* const results = activation == HiddenActivation::kGELU ? memory : numbers;
      write_bias(bias1 == nullptr ? nullptr : bias1 + p * kPanel, rows, columns, kPanel, numbers);
      tables.tiles.product({from, sizes.width, 1}, packed1 + p * sizes.width * kPanel, kPanel, numbers, kPanel, rows,
                           columns, width, /*add=*/true);
      tables.network.activate(numbers, results, first, rows, columns, activation, &dropout, p);
      for (std::int64_t n = 0; n < FeedForwardSizes::panels(sizes.out); ++n)
        tables.tiles.product({results, kPanel, 1}, packed2 + (n * sizes.hidden + p * kPanel) * kPanel, kPanel,
                             to + n * kPanel, sizes.out, rows, FeedForwardSizes::columns_of(n, sizes.out), columns,
                             /*add=*/true);
    }
  }

 private:
  /// Packs a panel of the transposed matrix: `from` is (columns, rows).
  void pack_transposed(const float* from, std::int64_t columns, std::int64_t rows, std::int64_t panel,
                       float* packed) const {
    const int count = FeedForwardSizes::columns_of(panel, columns);
    const HeadView<float> view{reinterpret_cast<char*>(const_cast<float*>(from)), rows, 1, false};
    tables.tiles.read_transposed(view, panel * kPanel, count, count, static_cast<int>(rows), 1.0f,
                                 packed + panel * rows * kPanel);
  }

  static void write_bias(const float* bias, int rows, int columns, std::int64_t row, float* to) {
    for (int i = 0; i < rows; ++i)
      if (bias == nullptr)
        std::fill_n(to + i * row, columns, 0.0f);
      else
        std::copy_n(bias, columns, to + i * row);
  }
};

/// The gradients. Each thread sums those of the parameters over its blocks, one after the other.
struct FeedForwardBackward {
  FeedForwardSizes sizes;
  const float *x, *weight1, *weight2, *output_gradient;
  float* hidden;             // as the forward pass wrote it; only read
  float* x_gradient;         // (rows, width), or null: not wanted
  float *packed1, *packed2;  // memory: packed(hidden, width), packed(out, hidden)
  HiddenActivation activation;
  FlatDropout dropout;
  FeedForwardTables tables;

  /// How many calls of pack() prepare the weights.
  std::int64_t packs() const { return FeedForwardSizes::panels(sizes.width) + FeedForwardSizes::panels(sizes.hidden); }
  void pack(std::int64_t i) const {
    const std::int64_t first = FeedForwardSizes::panels(sizes.width);
    if (i < first)
      pack_panel(weight1, sizes.width, sizes.hidden, sizes.width, i, packed1);
    else
      pack_panel(weight2, sizes.hidden, sizes.out, sizes.hidden, i - first, packed2);
  }

  /// The sums of a thread.
  struct Sums {
    float *weight1, *bias1, *weight2, *bias2;  // weight2 is packed: packed(out, hidden)

    static std::int64_t numbers(const FeedForwardSizes& sizes) {
      return sizes.hidden * sizes.width + sizes.hidden + FeedForwardSizes::packed(sizes.out, sizes.hidden) + sizes.out;
    }
    Sums(const FeedForwardSizes& sizes, float* memory)
        : weight1(memory),
          bias1(weight1 + sizes.hidden * sizes.width),
          weight2(bias1 + sizes.hidden),
          bias2(weight2 + FeedForwardSizes::packed(sizes.out, sizes.hidden)) {}
  };

  /// The size of the memory of a thread, in numbers.
  std::int64_t memory() const { return 2 * kBlockRows * kPanel + FeedForwardSizes::packed(kBlockRows, sizes.width); }

  void compute(std::int64_t block, bool is_first_of_thread, float* memory, const Sums& sums) const {
    const std::int64_t first = block * kBlockRows, width = sizes.width, out = sizes.out;
    const int rows = sizes.rows_of(block);
    const bool add = !is_first_of_thread;
    float *const gradients = memory, *const computed = gradients + kBlockRows * kPanel,
                 *const packed_x = computed + kBlockRows * kPanel;
    for (std::int64_t n = 0; n < FeedForwardSizes::panels(width); ++n)
      pack_panel(x + first * width, width, rows, width, n, packed_x);
    const Strided<float> given{output_gradient + first * out, out, 1};
    if (!add) {
      std::fill_n(sums.bias1, sizes.hidden, 0.0f);
      std::fill_n(sums.bias2, out, 0.0f);
    }
    tables.network.add_rows(given.data, rows, out, out, sums.bias2);
    for (std::int64_t p = 0; p < FeedForwardSizes::panels(sizes.hidden); ++p) {
      const int columns = FeedForwardSizes::columns_of(p, sizes.hidden);
      const float* const saved = sizes.hidden_panel(hidden, block, p);
      const float* const results = activation == HiddenActivation::kGELU ? computed : saved;
      tables.tiles.product(given, packed2 + p * out * kPanel, kPanel, gradients, kPanel, rows, columns,
                           static_cast<int>(out), /*add=*/false);
      tables.network.activation_gradient(gradients, saved, computed, first, rows, columns, activation, &dropout, p,
                                         sums.bias1 + p * kPanel);
      tables.tiles.product(given.transposed(), results, kPanel, sums.weight2 + p * out * kPanel, kPanel,
                           static_cast<int>(out), columns, rows, add);
      for (std::int64_t n = 0; n < FeedForwardSizes::panels(width); ++n) {
        const int some = FeedForwardSizes::columns_of(n, width);
        tables.tiles.product({gradients, 1, kPanel}, packed_x + n * rows * kPanel, kPanel,
                             sums.weight1 + p * kPanel * width + n * kPanel, width, columns, some, rows, add);
        if (x_gradient != nullptr)
          tables.tiles.product({gradients, kPanel, 1}, packed1 + (n * sizes.hidden + p * kPanel) * kPanel, kPanel,
                               x_gradient + first * width + n * kPanel, width, rows, some, columns, /*add=*/p > 0);
      }
    }
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
