// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cpu/few_query_products.h>
#include <attend/kernels/cpu/head_transpose.h>
#include <attend/kernels/cpu/head_view.h>
#include <attend/kernels/cpu/masked_products.h>
#include <attend/kernels/cpu/option_kernels.h>
#include <attend/kernels/cpu/softmax.h>
#include <attend/kernels/cpu/tile.h>
#include <attend/score/coordinate.h>
#include <attend/simd/dispatch.h>
#include <attend/simd/product.h>
#include <attend/version.h>

#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// The operations on tiles, compiled for one instruction set. Each is described at its struct.
template <class T>
struct TileOperations {
  int vector_bytes;
  void (*product)(Strided<T> a, const T* b, std::int64_t b_row, T* c, std::int64_t c_row, int rows, int columns,
                  int depth, bool add);
  void (*read_transposed)(HeadView<T> rows, std::int64_t first, int count, int columns, int width, T factor, T* to);
  void (*write_transposed)(HeadView<T> rows, std::int64_t first, int count, int width, T factor, const T* from);
  void (*softmax_step)(T* scores, int keys, int columns, T* largest, T* sum, T* rescale);
  void (*recompute_softmax)(T* scores, const T* gradients, int keys, int columns, const T* log_sum_exp,
                            const T* log_sum_exp_lo, T* weight_sum, T* gradient_sum);
  void (*add_delta_residual)(const T* weights, const T* gradients, int keys, int columns, const T* delta, T* sum);
  void (*softmax_gradient)(const T* weights, T* gradients, int keys, int columns, const T* delta, const T* delta_lo);
  void (*scale_columns)(T* values, int rows, int columns, const T* factors);
  void (*divide_columns)(T* values, int rows, int columns, const T* divisors);
  void (*multiply)(T* values, const T* factors, int rows);
  void (*softcap)(T* scores, T* derivatives, int keys, int columns, T softcap);
  void (*add_alibi)(T* scores, int keys, int columns, T slope, std::int32_t first_distance);
  void (*apply_band_mask)(T* scores, int keys, int columns, std::int32_t begin, std::int32_t end);
  void (*dropout_factors)(Coordinate first, int keys, int columns, std::uint64_t seed, std::uint64_t threshold, T kept,
                          T* factors);
  bool (*is_finite)(const T* values, std::int64_t row, int rows, int columns);
  void (*add_columns_of_nonzeros)(Strided<T> a, const T* tile, T* c, int rows, int columns, int keys);
  void (*add_rows_of_nonzeros)(const T* tile, const T* b, T* c, std::int64_t row, int keys, int columns, int queries);
  void (*spread_nans)(T* values, const T* scores, int keys, int columns, const T* nans);
  void (*clear_gradients)(const T* weights, T* gradients, int keys, int columns, T masked);
  void (*few_query_scores)(DenseRows<T> keys, int first, int count, const T* queries, std::int64_t query_row, int rows,
                           int width, T* const* scores);
  void (*few_query_softmax_step)(T* scores, int keys, int queries, T* largest, T* sum, T* rescale);
  void (*add_few_query_values)(DenseRows<T> values, int first, int count, const T* const* weights, int rows, int width,
                               const T* const* factors, T* output, std::int64_t output_row);
};

template <class T, class Isa>
inline constexpr TileOperations<T> kTileOperations{Isa::kVectorBytes,
                                                   &CompiledFor<Isa, Product<T>>::call,
                                                   &CompiledFor<Isa, ReadTransposed<T>>::call,
                                                   &CompiledFor<Isa, WriteTransposed<T>>::call,
                                                   &CompiledFor<Isa, SoftmaxStep<T>>::call,
                                                   &CompiledFor<Isa, RecomputeSoftmax<T>>::call,
                                                   &CompiledFor<Isa, AddDeltaResidual<T>>::call,
                                                   &CompiledFor<Isa, SoftmaxGradient<T>>::call,
                                                   &CompiledFor<Isa, ScaleColumns<T>>::call,
                                                   &CompiledFor<Isa, DivideColumns<T>>::call,
                                                   &CompiledFor<Isa, Multiply<T>>::call,
                                                   &CompiledFor<Isa, SoftcapScores<T>>::call,
                                                   &CompiledFor<Isa, AddAlibi<T>>::call,
                                                   &CompiledFor<Isa, ApplyBandMask<T>>::call,
                                                   &CompiledFor<Isa, DropoutFactors<T>>::call,
                                                   &CompiledFor<Isa, IsFinite<T>>::call,
                                                   &CompiledFor<Isa, AddColumnsOfNonzeros<T>>::call,
                                                   &CompiledFor<Isa, AddRowsOfNonzeros<T>>::call,
                                                   &CompiledFor<Isa, SpreadNans<T>>::call,
                                                   &CompiledFor<Isa, ClearGradients<T>>::call,
                                                   &CompiledFor<Isa, FewQueryScores<T>>::call,
                                                   &CompiledFor<Isa, FewQuerySoftmaxStep<T>>::call,
                                                   &CompiledFor<Isa, AddFewQueryValues<T>>::call};

template <class T>
const TileOperations<T>& tile_operations(InstructionSet set) {
  return for_isa(set, [](auto isa) -> const TileOperations<T>& { return kTileOperations<T, decltype(isa)>; });
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
