// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cpu/flat_dropout.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/macros.h>
#include <attend/simd/dispatch.h>
#include <attend/simd/vector.h>
#include <attend/version.h>

#include <cmath>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// Layer normalization of the rows of a matrix (rows, width), after a residual connection if there is a branch:
///   sum = x + dropout(branch), output = (sum − mean) · rstd · weight + bias with rstd = 1 / √(variance + eps).
/// All matrices are contiguous.
struct LayerNormParams {
  const float *x, *branch;     // branch may be null; then sum is x
  const float *weight, *bias;  // (width); each may be null
  float *sum, *output;         // sum is written if there is a branch
  float *mean, *rstd;          // (rows)
  std::int64_t width;
  float eps;
  FlatDropout dropout;
};

/// The gradients of LayerNormParams. Gradients of weight and bias are added to what is there.
struct LayerNormGradients {
  const float *output_gradient, *sum_gradient;  // each may be null, for zeros
  const float *sum, *weight, *mean, *rstd;      // of the forward pass
  float *x_gradient, *branch_gradient;          // branch_gradient may be null: not wanted
  float *weight_gradient, *bias_gradient;       // (width); each may be null: not wanted
  std::int64_t width;
  FlatDropout dropout;
};

/// A loop over the columns of a row: whole vectors, then single numbers. step(j, lanes) gets the first column, and a
/// type that loads and stores its Vector: a vector or a number.
template <class Isa>
struct RowLoop {
  using Vec = simd::Vec<float, Isa>;

  struct Single {
    using Vector = float;
    static ATTEND_ALWAYS_INLINE void load(float& to, const float* from) { to = *from; }
    static ATTEND_ALWAYS_INLINE void store(float* to, const float& from) { *to = from; }
  };

  template <class Step>
  static ATTEND_ALWAYS_INLINE void each(std::int64_t width, const Step& step) {
    std::int64_t j = 0;
    for (; j + Vec::kLanes <= width; j += Vec::kLanes) step(j, Vec{});
    for (; j < width; ++j) step(j, Single{});
  }

  /// A sum over the columns: one partial sum for each lane.
  struct Sum {
    typename Vec::Vector lanes{};
    float rest = 0.0f;

    ATTEND_ALWAYS_INLINE void add(const typename Vec::Vector& numbers) { lanes += numbers; }
    ATTEND_ALWAYS_INLINE void add(const float& number) { rest += number; }
    ATTEND_ALWAYS_INLINE float total() const {
      float sum = rest;
      ATTEND_UNROLL for (int lane = 0; lane < Vec::kLanes; ++lane) sum += lanes[lane];
      return sum;
    }
  };
};

/// The rows first … end − 1.
struct LayerNormRows {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const LayerNormParams* params, std::int64_t first, std::int64_t end) {
    for (std::int64_t i = first; i < end; ++i) row<Isa>(*params, i);
  }

 private:
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void row(const LayerNormParams& p, std::int64_t i) {
    using Loop = RowLoop<Isa>;
    const std::int64_t begin = i * p.width;
    typename Loop::Sum sum;
    if (p.branch != nullptr) add_branch<Isa>(p, i);
    const float* const row = (p.branch != nullptr ? p.sum : p.x) + begin;
    Loop::each(p.width, [&](std::int64_t j, auto lanes) {
      typename decltype(lanes)::Vector a;
      lanes.load(a, row + j);
      sum.add(a);
    });
    const auto width = static_cast<float>(p.width);
    const float mean = sum.total() / width;
    typename Loop::Sum squares;
    Loop::each(p.width, [&](std::int64_t j, auto lanes) {
      using Vector = typename decltype(lanes)::Vector;
      Vector a;
      lanes.load(a, row + j);
      a -= mean - Vector{};
      squares.add(a * a);
    });
    const float rstd = 1.0f / std::sqrt(squares.total() / width + p.eps);
    p.mean[i] = mean;
    p.rstd[i] = rstd;
    Loop::each(p.width, [&](std::int64_t j, auto lanes) {
      using Vector = typename decltype(lanes)::Vector;
      Vector a, parameter;
      lanes.load(a, row + j);
      a = (a - (mean - Vector{})) * (rstd - Vector{});
      if (p.weight != nullptr) {
        lanes.load(parameter, p.weight + j);
        a *= parameter;
      }
      if (p.bias != nullptr) {
        lanes.load(parameter, p.bias + j);
        a += parameter;
      }
      lanes.store(p.output + begin + j, a);
    });
  }

  template <class Isa>
  static ATTEND_ALWAYS_INLINE void add_branch(const LayerNormParams& p, std::int64_t i) {
    constexpr int kGroup = FlatDropout::kGroup;
    alignas(64) float factors[kGroup];
    for (std::int64_t group = 0; group * kGroup < p.width; ++group) {
      const std::int64_t begin = i * p.width + group * kGroup, left = p.width - group * kGroup;
      const bool is_active = p.dropout.is_active();
      if (is_active) FlatDropoutFactors::run<Isa>(p.dropout, i, group, factors);
      RowLoop<Isa>::each(left < kGroup ? left : kGroup, [&](std::int64_t j, auto lanes) {
        typename decltype(lanes)::Vector a, b, factor;
        lanes.load(a, p.x + begin + j);
        lanes.load(b, p.branch + begin + j);
        if (is_active) {
          lanes.load(factor, factors + j);
          b *= factor;
        }
        a += b;
        lanes.store(p.sum + begin + j, a);
      });
    }
  }
};

/// The gradients of the rows first … end − 1. With g = output_gradient · weight and x̂ = (sum − mean) · rstd, the
/// gradient of the sum is rstd · (g − mean of g − x̂ · mean of g · x̂) + sum_gradient.
struct LayerNormGradientRows {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const LayerNormGradients* gradients, std::int64_t first, std::int64_t end) {
    for (std::int64_t i = first; i < end; ++i) {
      if (gradients->output_gradient != nullptr)
        of_output<Isa>(*gradients, i);
      else
        of_sum<Isa>(*gradients, i);
      if (gradients->branch_gradient != nullptr) of_branch<Isa>(*gradients, i);
    }
  }

 private:
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void of_output(const LayerNormGradients& p, std::int64_t i) {
    using Loop = RowLoop<Isa>;
    const std::int64_t begin = i * p.width;
    const float mean = p.mean[i], rstd = p.rstd[i];
    typename Loop::Sum sum_of_g, sum_of_gx;
    Loop::each(p.width, [&](std::int64_t j, auto lanes) {
      using Vector = typename decltype(lanes)::Vector;
      Vector normed, g, other;
      lanes.load(normed, p.sum + begin + j);
      lanes.load(g, p.output_gradient + begin + j);
      normed = (normed - (mean - Vector{})) * (rstd - Vector{});
      if (p.weight_gradient != nullptr) {
        lanes.load(other, p.weight_gradient + j);
        other += g * normed;
        lanes.store(p.weight_gradient + j, other);
      }
      if (p.bias_gradient != nullptr) {
        lanes.load(other, p.bias_gradient + j);
        other += g;
        lanes.store(p.bias_gradient + j, other);
      }
      if (p.weight != nullptr) {
        lanes.load(other, p.weight + j);
        g *= other;
      }
      sum_of_g.add(g);
      sum_of_gx.add(g * normed);
    });
    const auto width = static_cast<float>(p.width);
    const float mean_of_g = sum_of_g.total() / width, mean_of_gx = sum_of_gx.total() / width;
    Loop::each(p.width, [&](std::int64_t j, auto lanes) {
      using Vector = typename decltype(lanes)::Vector;
      Vector normed, g, other;
      lanes.load(normed, p.sum + begin + j);
      lanes.load(g, p.output_gradient + begin + j);
      normed = (normed - (mean - Vector{})) * (rstd - Vector{});
      if (p.weight != nullptr) {
        lanes.load(other, p.weight + j);
        g *= other;
      }
      g = (rstd - Vector{}) * (g - (mean_of_g - Vector{}) - normed * (mean_of_gx - Vector{}));
      if (p.sum_gradient != nullptr) {
        lanes.load(other, p.sum_gradient + begin + j);
        g += other;
      }
      lanes.store(p.x_gradient + begin + j, g);
    });
  }

  template <class Isa>
  static ATTEND_ALWAYS_INLINE void of_sum(const LayerNormGradients& p, std::int64_t i) {
    for (std::int64_t j = i * p.width; j < (i + 1) * p.width; ++j) p.x_gradient[j] = p.sum_gradient[j];
  }

  template <class Isa>
  static ATTEND_ALWAYS_INLINE void of_branch(const LayerNormGradients& p, std::int64_t i) {
    constexpr int kGroup = FlatDropout::kGroup;
    alignas(64) float factors[kGroup];
    for (std::int64_t group = 0; group * kGroup < p.width; ++group) {
      const std::int64_t begin = i * p.width + group * kGroup, left = p.width - group * kGroup;
      FlatDropoutFactors::run<Isa>(p.dropout, i, group, factors);
      RowLoop<Isa>::each(left < kGroup ? left : kGroup, [&](std::int64_t j, auto lanes) {
        typename decltype(lanes)::Vector gradient, factor;
        lanes.load(gradient, p.x_gradient + begin + j);
        lanes.load(factor, factors + j);
        gradient *= factor;
        lanes.store(p.branch_gradient + begin + j, gradient);
      });
    }
  }
};

/// The operations, compiled for one instruction set.
struct LayerNormOperations {
  void (*forward)(const LayerNormParams* params, std::int64_t first, std::int64_t end);
  void (*backward)(const LayerNormGradients* gradients, std::int64_t first, std::int64_t end);
};

template <class Isa>
inline constexpr LayerNormOperations kLayerNormOperations{&CompiledFor<Isa, LayerNormRows>::call,
                                                          &CompiledFor<Isa, LayerNormGradientRows>::call};

inline const LayerNormOperations& layer_norm_operations(InstructionSet set) {
  return for_isa(set, [](auto isa) -> const LayerNormOperations& { return kLayerNormOperations<decltype(isa)>; });
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
