// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/problem.h>
#include <attend/detail/torch/const_data.h>
#include <attend/kernels/attention_params.h>
#include <attend/version.h>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The type that the kernels compute in: float64 for float64, and float32 otherwise.
inline at::ScalarType compute_dtype(const Problem& problem) {
  return problem.query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline ConstTensorView4d view_to_read(const at::Tensor& tensor) {
  ConstTensorView4d view{tensor.const_data_ptr(), {}};
  std::copy_n(tensor.strides().begin(), 4, view.strides);
  return view;
}

inline TensorView4d view_to_write(const at::Tensor& tensor) {
  TensorView4d view{tensor.mutable_data_ptr(), {}};
  std::copy_n(tensor.strides().begin(), 4, view.strides);
  return view;
}

/// Tables with the same strides, whose columns are neighbours.
inline RotaryView rotary_view(const at::Tensor& cos, const at::Tensor& sin) {
  return {cos.const_data_ptr(), sin.const_data_ptr(), {cos.size(0) > 1 ? cos.stride(0) : 0, cos.stride(1)}};
}

/// A problem as plain numbers and pointers, and the tensors that were made for it. The problem must outlive it.
struct ProblemParams {
  AttentionParams params;
  at::Tensor alibi_slopes;
};

/// The problem as the kernels take it. The pointers are to memory of the tensors' device. The mask must not be float16.
inline ProblemParams attention_params(const Problem& problem) {
  ProblemParams result;
  AttentionParams& params = result.params;
  const at::ScalarType dtype = problem.query.scalar_type();
  params.dtype = dtype == at::kDouble     ? NumberType::kFloat64
                 : dtype == at::kBFloat16 ? NumberType::kBFloat16
                 : dtype == at::kHalf     ? NumberType::kFloat16
                                          : NumberType::kFloat32;
  params.batch_size = problem.batch_size();
  params.num_heads = problem.num_heads();
  params.num_kv_heads = problem.num_kv_heads();
  params.query_length = problem.query_length();
  params.key_length = problem.key_length();
  params.head_dim = problem.head_dim();
  params.value_dim = problem.value_dim();
  params.query = view_to_read(problem.query);
  params.key = view_to_read(problem.key);
  params.value = view_to_read(problem.value);
  if (problem.has_rotary()) {
    params.rotary_dim = problem.rotary_dim();
    params.rotary_layout = problem.rotary_layout;
    params.query_rotary = rotary_view(problem.query_cos, problem.query_sin);
    params.key_rotary = rotary_view(problem.key_cos, problem.key_sin);
  }
  params.scale = problem.scale;
  params.softcap = problem.softcap;
  if (problem.alibi_slopes.defined()) {
    result.alibi_slopes = problem.alibi_slopes.to(compute_dtype(problem)).contiguous();  // (1 or N, H)
    params.alibi_slopes = result.alibi_slopes.const_data_ptr();
    params.alibi_strides[0] = result.alibi_slopes.size(0) > 1 ? problem.num_heads() : 0;
  }
  if (const at::Tensor& mask = problem.attn_mask; mask.defined()) {
    params.mask_type = mask.scalar_type() == at::kBool       ? MaskType::kBool
                       : mask.scalar_type() == at::kBFloat16 ? MaskType::kAddedBFloat16
                                                             : MaskType::kAdded;
    params.attn_mask = view_to_read(mask);
    for (int i = 0; i < 4; ++i)
      if (mask.size(i) == 1) params.attn_mask.strides[i] = 0;
  }
  params.window_left = problem.window.left;
  params.window_right = problem.window.right;
  if (problem.is_packed()) {
    params.query_offsets = const_data<std::int32_t>(problem.query_offsets);
    params.key_offsets = const_data<std::int32_t>(problem.key_offsets);
    params.num_sequences = problem.query_offsets.size(0) - 1;
  }
  if (problem.key_lengths.defined()) params.key_lengths = const_data<std::int32_t>(problem.key_lengths);
  if (problem.has_pages()) {
    params.block_table = const_data<std::int32_t>(problem.block_table);
    params.block_table_stride = problem.block_table.stride(0);
    params.page_size = problem.key.size(2);
    params.num_pages = problem.key.size(0);
  }
  params.dropout = problem.dropout;
  if (problem.dropout > 0) {
    const std::int64_t* const seed = const_data<std::int64_t>(problem.dropout_seed);
    if (problem.dropout_seed.is_cpu())
      params.dropout_seed = static_cast<std::uint64_t>(*seed);
    else
      params.dropout_seed_data = seed;
  }
  return result;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
