// SPDX-License-Identifier: MIT
#pragma once

// Linear layers without gradients: y = activation(x Wᵀ + b).
//
// The weights are packed first, transposed into panels of kTileQueries outputs, which the product reads in one
// direction. The product of a block of rows and a panel stays in the L1 cache until bias and activation are applied.

#include <attend/kernels/cpu/head_view.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/kernels/cpu/tile_operations.h>
#include <attend/macros.h>
#include <attend/simd/dispatch.h>
#include <attend/simd/instruction_set.h>
#include <attend/simd/product.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <algorithm>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// The function that is applied to x Wᵀ + b. kGelu is x · Φ(x), where Φ is the normal distribution.
enum class LinearActivation { kNone, kGelu };

/// x becomes x · Φ(x) = x · ½ erfc(−x / √2), with an error below 2e-7 · |x|.
///
/// Source: M. Abramowitz and I. Stegun, Handbook of Mathematical Functions, 7.1.26.
template <class Isa>
ATTEND_ALWAYS_INLINE void gelu(typename simd::Vec<float, Isa>::Vector& x) {
  using Vector = typename simd::Vec<float, Isa>::Vector;
  const Vector z = (x < 0.0f ? -x : x) * 0.70710678118654752f;
  const Vector t = 1.0f / (z * 0.3275911f + 1.0f);
  const Vector polynomial =
      ((((t * 1.061405429f - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  Vector power = -z * z;
  simd::Vec<float, Isa>::exp(power);
  const Vector tail = x * (polynomial * power * 0.5f);  // x · ½ erfc(|x| / √2)
  x = x < 0.0f ? tail : z > 20.0f ? x : x - tail;       // infinity stays infinity
}

/// y (rows, columns) = activation(sums + bias). `sums` has rows of kTileQueries numbers, of which those beyond
/// `columns` may be anything. The bias may be null.
struct FinishLinear {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const float* sums, const float* bias, LinearActivation activation, float* y,
                                       std::int64_t y_row, int rows, int columns) {
    using Vec = simd::Vec<float, Isa>;
    typename Vec::Vector values, added;
    float last[Vec::kLanes];
    for (int n = 0; n < columns; n += Vec::kLanes) {
      const int count = std::min(columns - n, Vec::kLanes);
      for (int lane = 0; lane < Vec::kLanes; ++lane) last[lane] = bias && lane < count ? bias[n + lane] : 0.0f;
      Vec::load(added, last);
      for (int i = 0; i < rows; ++i) {
        Vec::load(values, sums + i * kTileQueries + n);
        values += added;
        if (activation == LinearActivation::kGelu) gelu<Isa>(values);
        if (count == Vec::kLanes) {
          Vec::store(y + i * y_row + n, values);
        } else {
          Vec::store(last, values);
          std::copy(last, last + count, y + i * y_row + n);
        }
      }
    }
  }
};

/// The operations of linear layers, compiled for one instruction set.
struct LinearOperations {
  void (*finish)(const float* sums, const float* bias, LinearActivation activation, float* y, std::int64_t y_row,
                 int rows, int columns);
};

template <class Isa>
inline constexpr LinearOperations kLinearOperations{&simd::CompiledFor<Isa, FinishLinear>::call};

inline const LinearOperations& linear_operations(simd::InstructionSet set) {
  return simd::for_isa(set, [](auto isa) -> const LinearOperations& { return kLinearOperations<decltype(isa)>; });
}

/// A linear layer on raw memory.
struct LinearCall {
  const float *x, *weight, *bias;  // (rows, channels), (outputs, channels), and (outputs) or null
  float* y;                        // (rows, outputs)
  std::int64_t rows;
  int channels, outputs;
  LinearActivation activation = LinearActivation::kNone;

  /// The number of panels of the packed weights.
  int panels() const { return (outputs + kTileQueries - 1) / kTileQueries; }

  /// The number of packed weights.
  std::int64_t packed_size() const { return std::int64_t{panels()} * panel_size(); }

  /// Packs the weights of one panel.
  void pack(int panel, float* packed, const TileOperations<float>& tiles) const {
    const HeadView<float> rows_of_weights{reinterpret_cast<char*>(const_cast<float*>(weight)), channels, 1, false};
    tiles.read_transposed(rows_of_weights, panel * kTileQueries, columns_of(panel), kTileQueries, channels, 1.0f,
                          packed + panel * panel_size());
  }

  /// Computes `count` rows of y, from row `first` on. `sums` has memory for count · kTileQueries numbers.
  void compute(std::int64_t first, int count, const float* packed, float* sums, const TileOperations<float>& tiles,
               const LinearOperations& operations) const {
    for (int panel = 0; panel < panels(); ++panel) {
      const int begin = panel * kTileQueries;
      const int whole_vectors = (columns_of(panel) + kMostLanes - 1) / kMostLanes * kMostLanes;
      tiles.product({x + first * channels, channels, 1}, packed + panel * panel_size(), kTileQueries, sums,
                    kTileQueries, count, whole_vectors, channels, /*add=*/false);
      operations.finish(sums, bias ? bias + begin : nullptr, activation, y + first * outputs + begin, outputs, count,
                        columns_of(panel));
    }
  }

 private:
  static constexpr int kMostLanes = 16;  // of all instruction sets

  std::int64_t panel_size() const { return std::int64_t{channels} * kTileQueries; }
  int columns_of(int panel) const { return std::min(outputs - panel * kTileQueries, kTileQueries); }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
