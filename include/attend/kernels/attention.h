// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/kernels/cpu/checked_call.h>
#include <attend/kernels/executor.h>
#include <attend/simd/dispatch.h>
#include <attend/version.h>

#include <cstdint>

/// The attention kernels on raw memory, for programs without LibTorch.
namespace attend::inline ATTEND_VERSION_NAMESPACE::kernels {

/// The name of the instruction set that the kernels use on this processor.
///
/// @return "AVX-512 with bfloat16", "AVX-512", "AVX2", "NEON with bfloat16", "NEON" or "portable".
inline const char* instruction_set() {
  switch (simd::best_instruction_set()) {
    case simd::InstructionSet::kNeon:
      return "NEON";
    case simd::InstructionSet::kNeonBf16:
      return "NEON with bfloat16";
    case simd::InstructionSet::kAvx2:
      return "AVX2";
    case simd::InstructionSet::kAvx512:
      return "AVX-512";
    case simd::InstructionSet::kAvx512Bf16:
      return "AVX-512 with bfloat16";
    case simd::InstructionSet::kPortable:
      break;
  }
  return "portable";
}

/// The size of the memory that a forward pass saves for its backward pass.
///
/// @tparam T As in attention_forward().
/// @param params The call.
/// @return The size of AttentionOutputs::saved, in bytes; 0 if nothing is saved.
/// @throws std::invalid_argument if a member of params breaks its rule.
template <class T = float>
std::int64_t saved_bytes(const AttentionParams& params) {
  return cpu::checked_call<T>(params, cpu::NoVariant{}).saved_bytes();
}

/// Computes attention: softmax(scale · q kᵀ) v, with the options of AttentionParams.
///
/// No (L, S) tensor is allocated. Exception: with S ≤ 128, and without softcap and dropout, the weights are saved for
/// the backward pass, unless they have more than 8 times as many numbers as query and key together.
///
/// @tparam T The type in which the kernels compute: float for float32 and bfloat16, double for float64. Only kernels of
/// this type are compiled. Default: float.
/// @param params The call.
/// @param outputs Pointers to the memory for the results. It must not overlap the inputs.
/// @param executor The threads. Default: one for each processor.
/// @throws std::invalid_argument if a member of a struct breaks its rule. The message names the member, the rule and
/// the value. Nothing has been written then.
///
/// Differs from attend::attention():
/// - Causal attention is window_right = 0.
/// - The caller chooses the dropout seed.
/// - Inputs are not converted.
///
/// The results are those of attend::attention() with the backend kCpu.
///
/// Source: Dao et al., "FlashAttention", 2022.
///
/// @code
/// std::vector<float> q(8 * 512 * 64, 1.0f), k = q, v = q, y(q.size());  // (N, H, L, D) = (1, 8, 512, 64)
/// attend::AttentionParams params;
/// params.num_heads = params.num_kv_heads = 8;
/// params.query_length = params.key_length = 512;
/// params.head_dim = params.value_dim = 64;
/// params.query = attend::contiguous(q.data(), 8, 512, 64);
/// params.key = attend::contiguous(k.data(), 8, 512, 64);
/// params.value = attend::contiguous(v.data(), 8, 512, 64);
/// params.window_right = 0;  // causal
/// attend::kernels::attention_forward(params, {.output = attend::contiguous(y.data(), 8, 512, 64)});
/// @endcode
template <class T = float>
void attention_forward(const AttentionParams& params, const AttentionOutputs& outputs,
                       Executor& executor = default_executor()) {
  cpu::checked_call<T>(params, cpu::NoVariant{}).forward(outputs, executor);
}

/// Computes the gradients of attention_forward().
///
/// @tparam T As in the forward pass.
/// @param params The call, as in the forward pass. The memory must have the same contents.
/// @param outputs The outputs of the forward pass, `saved` included.
/// @param gradients The gradients that are read, and those that are written.
/// @param executor The threads. Default: one for each processor.
/// @throws std::invalid_argument as attention_forward().
template <class T = float>
void attention_backward(const AttentionParams& params, const AttentionOutputs& outputs,
                        const AttentionGradients& gradients, Executor& executor = default_executor()) {
  cpu::checked_call<T>(params, cpu::NoVariant{}).backward(outputs, gradients, executor);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::kernels
