// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/cpu/product.h>
#include <attend/attention/cpu/ruled_out.h>
#include <attend/attention/cpu/softmax.h>
#include <attend/attention/cpu/standard_operations.h>
#include <attend/attention/cpu/transpose.h>
#include <attend/version.h>

#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// What the kernels do to tiles, compiled for one instruction set. Each function is described where its struct is.
template <class T>
struct TileOperations {
  InstructionSet set;
  void (*product)(Strided<T> a, const T* b, std::int64_t b_row, T* c, std::int64_t c_row, int rows, int columns,
                  int depth, bool add);
  void (*read_transposed)(Rows<T> rows, std::int64_t first, int count, int columns, int width, T factor, T* to);
  void (*write_transposed)(Rows<T> rows, std::int64_t first, int count, int width, T factor, const T* from);
  void (*softmax_step)(T* scores, int keys, int columns, T* largest, T* sum, T* rescale);
  void (*softmax_again)(T* scores, const T* gradients, int keys, int columns, const T* log_sum_exp, const T* rest,
                        T* weight_sum, T* gradient_sum);
  void (*add_excess)(const T* weights, const T* gradients, int keys, int columns, const T* delta, T* sum);
  void (*softmax_gradient)(const T* weights, T* gradients, int keys, int columns, const T* delta, const T* rest);
  void (*scale_columns)(T* values, int rows, int columns, const T* factors);
  void (*divide_columns)(T* values, int rows, int columns, const T* divisors);
  void (*multiply)(T* values, const T* factors, int rows);
  void (*softcap)(T* scores, T* derivatives, int keys, int columns, T softcap);
  void (*add_alibi)(T* scores, int keys, int columns, T slope, std::int32_t first_distance);
  void (*keep_band)(T* scores, int keys, int columns, std::int32_t begin, std::int32_t end);
  void (*dropout_factors)(Coordinate first, int keys, int columns, std::uint64_t seed, std::uint64_t threshold, T kept,
                          T* factors);
  bool (*is_finite)(const T* values, std::int64_t row, int rows, int columns);
  void (*add_columns_of_nonzeros)(Strided<T> a, const T* tile, T* c, int rows, int columns, int keys);
  void (*add_rows_of_nonzeros)(const T* tile, const T* b, T* c, std::int64_t row, int keys, int columns, int queries);
  void (*spread_nans)(T* values, const T* scores, int keys, int columns, const T* nans);
  void (*clear_gradients)(const T* weights, T* gradients, int keys, int columns, T ruled_out);
};

template <class T, class Set>
inline constexpr TileOperations<T> kTileOperations{Set::kSet,
                                                   &On<Set, Product<T>>::call,
                                                   &On<Set, ReadTransposed<T>>::call,
                                                   &On<Set, WriteTransposed<T>>::call,
                                                   &On<Set, SoftmaxStep<T>>::call,
                                                   &On<Set, SoftmaxAgain<T>>::call,
                                                   &On<Set, AddExcess<T>>::call,
                                                   &On<Set, SoftmaxGradient<T>>::call,
                                                   &On<Set, ScaleColumns<T>>::call,
                                                   &On<Set, DivideColumns<T>>::call,
                                                   &On<Set, Multiply<T>>::call,
                                                   &On<Set, SoftcapScores<T>>::call,
                                                   &On<Set, AddAlibi<T>>::call,
                                                   &On<Set, KeepBand<T>>::call,
                                                   &On<Set, DropoutFactors<T>>::call,
                                                   &On<Set, IsFinite<T>>::call,
                                                   &On<Set, AddColumnsOfNonzeros<T>>::call,
                                                   &On<Set, AddRowsOfNonzeros<T>>::call,
                                                   &On<Set, SpreadNans<T>>::call,
                                                   &On<Set, ClearGradients<T>>::call};

/// The instruction set that is used of what a processor has. float64 is for checking: the baseline serves it.
template <class T>
constexpr InstructionSet supported([[maybe_unused]] InstructionSet available) {
#if defined(__x86_64__)
  return std::is_same_v<T, float> ? available : InstructionSet::kBaseline;
#else
  return InstructionSet::kBaseline;
#endif
}

template <class T>
const TileOperations<T>& tile_operations(InstructionSet available) {
  if constexpr (supported<T>(InstructionSet::kAvx512) == InstructionSet::kAvx512) {
    if (available >= InstructionSet::kAvx512) return kTileOperations<T, Avx512>;
    if (available == InstructionSet::kAvx2) return kTileOperations<T, Avx2>;
  }
  return kTileOperations<T, Baseline>;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
