// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/kernels/check_params.h>
#include <attend/score/score_mod.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>
#include <attend/kernels/cuda/backward_call.cuh>
#include <attend/kernels/cuda/backward_keys.cuh>
#include <attend/kernels/cuda/backward_queries.cuh>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/every_kernel.cuh>
#include <attend/kernels/cuda/forward_plan.cuh>
#include <attend/kernels/cuda/plain_backward.cuh>
#include <attend/kernels/cuda/rotate.cuh>
#include <attend/kernels/cuda/row_sums.cuh>
#include <attend/kernels/cuda/sums.cuh>
#include <attend/kernels/cuda/tensor_core_sums.cuh>

#include <algorithm>
#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

namespace detail {

/// How many columns the kernels on tensor cores have at most. In tf32, tiles of 256 columns would not fit into the
/// shared memory of all GPUs.
constexpr int most_backward_columns(NumberType type) { return type == NumberType::kFloat32 ? 192 : 256; }

/// One of the sums that a backward pass computes, one after the other. `tensor` is the index of the tensor of the
/// score_mod, or −1 for the mask and the slopes.
struct WantedSum {
  SumJob job;
  int tensor = -1;
};

inline std::vector<WantedSum> wanted_sums(const Call& call, const AttentionGradients& gradients) {
  constexpr std::int64_t kPlainRows = 32, kWarps = 2;  // of the kernels of sums.cuh
  const std::int64_t query_tiles = (call.queries + kPlainRows - 1) / kPlainRows;
  std::vector<WantedSum> sums;
  if (gradients.attn_mask.data != nullptr) {
    SumJob job;
    job.gradient = gradients.attn_mask.data;
    job.size = gradients.attn_mask.size;
    job.has_batch = call.attn_mask.strides[0] != 0;
    job.has_heads = call.attn_mask.strides[1] != 0;
    job.has_queries = call.attn_mask.strides[2] != 0;
    job.has_keys = call.attn_mask.strides[3] != 0;
    job.rows = static_cast<std::int32_t>(job.has_queries ? 0 : query_tiles);
    sums.push_back({job});
  }
  if (gradients.alibi_slopes.data != nullptr) {
    SumJob job;
    job.gradient = gradients.alibi_slopes.data;
    job.size = gradients.alibi_slopes.size;
    job.is_of_slopes = job.has_heads = true;
    job.has_batch = call.alibi_strides[0] != 0;
    job.rows = static_cast<std::int32_t>(query_tiles);
    sums.push_back({job});
  }
  for (std::size_t k = 0; k < gradients.score_tensors.size(); ++k) {
    if (gradients.score_tensors[k].data == nullptr) continue;
    constexpr std::int64_t kMostWorkers = 256, kMostNumbers = std::int64_t{1} << 24;
    SumJob job;
    job.gradient = gradients.score_tensors[k].data;
    job.size = gradients.score_tensors[k].size;
    const std::int64_t most =
        std::clamp(kMostNumbers / (kWarps * std::max<std::int64_t>(job.size, 1)), std::int64_t{1}, kMostWorkers);
    job.workers =
        static_cast<std::int32_t>(std::clamp(cuda::detail::query_tiles(call, kPlainRows), std::int64_t{1}, most));
    job.rows = static_cast<std::int32_t>(job.workers * kWarps);
    sums.push_back({job, static_cast<int>(k)});
  }
  return sums;
}

/// Where the parts of the workspace begin, in bytes.
struct BackwardLayout {
  std::int64_t rows = 0, plain_rows = 0, partials = 0, end = 0;

  BackwardLayout(const Call& call, const AttentionGradients& gradients) {
    const std::int64_t count = std::int64_t{call.batch_size} * call.heads * call.queries;
    const std::int64_t number = call.dtype == NumberType::kFloat64 ? 8 : 4;
    std::int64_t most = 0;
    for (const WantedSum& sum : wanted_sums(call, gradients)) most = std::max(most, sum.job.rows * sum.job.size);
    plain_rows = count * static_cast<std::int64_t>(sizeof(TensorRow));
    partials = plain_rows + up_to_16(count * 3 * number);
    end = partials + most * static_cast<std::int64_t>(sizeof(double));
  }

 private:
  static std::int64_t up_to_16(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }
};

}  // namespace detail

/// The size of the workspace of attention_backward(), in bytes.
///
/// @param call The call of the forward pass.
/// @param gradients As in attention_backward().
/// @return The size of `workspace`.
inline std::int64_t backward_workspace_bytes(const Call& call, const AttentionGradients& gradients) {
  return detail::BackwardLayout(call, gradients).end;
}

/// Why the backward pass of a call uses no tensor cores.
///
/// @param call The call of the forward pass.
/// @param gradients As in attention_backward().
/// @tparam Kernels The kernels that are compiled.
/// @return The reason, or null if it uses tensor cores.
template <class Kernels = EveryKernel>
const char* why_plain_backward(const Call& call, const AttentionGradients& gradients) {
  const char* const reason = detail::why_no_tensor_cores<Kernels>(
      call, {call.query, call.key, call.value, gradients.output, ConstTensorView4d(gradients.query),
             ConstTensorView4d(gradients.key), ConstTensorView4d(gradients.value)});
  if (reason != nullptr) return reason;
  if (std::max(call.head_dim, call.value_dim) > detail::most_backward_columns(call.dtype))
    return "the backward pass in tf32 has at most 192 columns";
  // In tf32 both passes must round alike; see row_sums.cuh.
  if (call.dtype == NumberType::kFloat32 && forward_kernel_of<Kernels>(call).kernel == ForwardKernel::kPlain)
    return "the forward pass is not in tf32";
  const bool has_rest = call.dtype == NumberType::kFloat32 || call.output_rest != nullptr;
  if (call.saved_log_sum_exp == nullptr || !has_rest) return "the forward pass has saved nothing";
  return nullptr;
}

/// Why a call has no backward pass.
///
/// @param call The call of the forward pass.
/// @return The reason, or null if it has one.
inline const char* backward_why_not(const Call& call, const AttentionGradients&) {
  return call.block_table != nullptr ? "keys and values are in pages" : nullptr;
}

namespace detail {

/// The BackwardCall of a call, in this workspace.
inline BackwardCall backward_call_of(const Call& call, const AttentionGradients& gradients, void* workspace,
                                     std::int64_t workspace_bytes) {
  const BackwardLayout layout(call, gradients);
  if (workspace_bytes < layout.end)
    attend::detail::throw_invalid("the workspace of a backward pass must have at least %" PRId64 " bytes, got %" PRId64,
                                  layout.end, workspace_bytes);
  char* const memory = static_cast<char*>(workspace);
  BackwardCall backward{};
  backward.forward = call;
  backward.output_gradient = gradients.output;
  backward.log_sum_exp_gradient = gradients.log_sum_exp;
  backward.query_gradient = gradients.query;
  backward.key_gradient = gradients.key;
  backward.value_gradient = gradients.value;
  backward.rows = memory + layout.rows;
  backward.plain_rows = memory + layout.plain_rows;
  backward.sum.partials = reinterpret_cast<double*>(memory + layout.partials);
  return backward;
}

/// Launches the sums of the mask and the slopes by `kernel`, each with the kernel that adds up its partial sums.
template <class Kernel, class Launch>
void launch_entry_sums(BackwardCall call, const AttentionGradients& gradients, const Kernel& kernel,
                       const Launch& launch) {
  double* const partials = call.sum.partials;
  for (const WantedSum& wanted : wanted_sums(call.forward, gradients)) {
    if (wanted.tensor >= 0) continue;
    call.sum = wanted.job;
    call.sum.partials = partials;
    call.sum.rows = static_cast<std::int32_t>(Kernel::rows(call));
    launch(kernel, call);
    if (!call.sum.has_queries) launch(AddPartials(), call);
  }
}

/// Launches the sums of the tensors of the score_mod, each with the kernel that adds up its partial sums.
template <class T, class Score, class Mask, class Marked, class Launch>
void launch_tensor_sums(BackwardCall call, const AttentionGradients& gradients, const Marked& marked,
                        const Launch& launch) {
  double* const partials = call.sum.partials;
  for (const WantedSum& wanted : wanted_sums(call.forward, gradients)) {
    if (wanted.tensor < 0) continue;
    call.sum = wanted.job;
    call.sum.partials = partials;
    if constexpr (sizeof(Score) >= sizeof(void*)) {  // it can hold a view
      attend::detail::TensorReads reads;
      call.sum.reads = reads_places(marked(wanted.tensor, &reads), &reads);
      launch(TensorSums<T, Score, Mask>(), call);
    }
    launch(AddPartials(), call);
  }
}

/// Calls launch(kernel, call) for each kernel without tensor cores.
template <class T, class Score, class Mask, class Marked, class Launch>
void launch_plain_backward(const BackwardCall& call, const AttentionGradients& gradients, const Marked& marked,
                           const Launch& launch) {
  launch(PlainRowSums<T, Score, Mask>(), call);
  launch(PlainKeys<T, Score, Mask>(), call);
  launch(PlainQueries<T, Score, Mask>(), call);
  launch_entry_sums(call, gradients, EntrySums<T, Score, Mask>(), launch);
  launch_tensor_sums<T, Score, Mask>(call, gradients, marked, launch);
}

/// Calls launch(kernel, call) for the kernels on tensor cores of a call with rows of at most kWidth columns.
template <NumberType kType, int kWidth, class Score, class Mask, class Launch>
void launch_width(const BackwardCall& call, const Launch& launch) {
  launch(TensorCoreRowSums<kType>(), call);
  if constexpr (kWidth <= 128) {
    launch(TensorCoreKeys<kType, kWidth, KeyPart::kBoth, Score, Mask>(), call);
  } else {
    launch(TensorCoreKeys<kType, kWidth, KeyPart::kKeys, Score, Mask>(), call);
    launch(TensorCoreKeys<kType, kWidth, KeyPart::kValues, Score, Mask>(), call);
  }
  launch(TensorCoreQueries<kType, kWidth, Score, Mask>(), call);
}

/// Calls launch(kernel, call) for each kernel of a call in 16-bit numbers.
template <NumberType kType, class Score, class Mask, int... kWidths, class Marked, class Launch>
void launch_rounded_backward(BackwardCall call, const AttentionGradients& gradients, Widths<kWidths...>,
                             const Marked& marked, const Launch& launch) {
  const std::vector<WantedSum> sums = wanted_sums(call.forward, gradients);
  const auto needs_plain_rows = [](const WantedSum& sum) { return sum.tensor >= 0; };
  if (std::none_of(sums.begin(), sums.end(), needs_plain_rows)) call.plain_rows = nullptr;
  [[maybe_unused]] const int width = kernel_width(std::max(call.forward.head_dim, call.forward.value_dim));
  [[maybe_unused]] const auto launch_all = [&]<int kWidth>(Widths<kWidth>) {
    launch_width<kType, kWidth, Score, Mask>(call, launch);
    launch_entry_sums(call, gradients, TensorCoreEntrySums<kType, kWidth, Score, Mask>(), launch);
  };
  ((kWidths == width ? launch_all(Widths<kWidths>()) : void()), ...);
  launch_tensor_sums<float, Score, Mask>(call, gradients, marked, launch);
}

/// Calls launch(kernel, call) for each kernel of a call in tf32. Gradients that are sums over many scores are computed
/// without tensor cores: their terms cancel each other, so a large part of a sum would be errors of tf32.
template <class Score, class Mask, int... kWidths, class Marked, class Launch>
void launch_tf32_backward(const BackwardCall& call, const AttentionGradients& gradients, Widths<kWidths...>,
                          const Marked& marked, const Launch& launch) {
  BackwardCall without_sums = call;
  without_sums.plain_rows = nullptr;
  [[maybe_unused]] const int width = kernel_width(std::max(call.forward.head_dim, call.forward.value_dim));
  [[maybe_unused]] const auto launch_if = [&]<int kWidth>(Widths<kWidth>) {
    if constexpr (kWidth <= most_backward_columns(NumberType::kFloat32))  // or why_plain_backward() has a reason
      if (kWidth == width) launch_width<NumberType::kFloat32, kWidth, Score, Mask>(without_sums, launch);
  };
  (launch_if(Widths<kWidths>()), ...);
  if (wanted_sums(call.forward, gradients).empty()) return;
  launch(PlainRowSums<float, Score, Mask>(), call);
  launch_entry_sums(call, gradients, EntrySums<float, Score, Mask>(), launch);
  launch_tensor_sums<float, Score, Mask>(call, gradients, marked, launch);
}

}  // namespace detail

/// Calls launch(kernel, call) for each kernel of a backward pass, in the order in which they run. A kernel is an object
/// whose class has kThreads, kSharedBytes, blocks(call) and run(call, score_mod, mask_mod).
///
/// @param call The call of the forward pass.
/// @param gradients The gradients that are read, and those that are written.
/// @param marked marked(k, reads) is the score_mod whose tensor k reads through `reads`.
/// @param workspace Memory of the GPU, aligned to 16 bytes.
/// @param workspace_bytes Its size, at least backward_workspace_bytes().
/// @param launch_kernel A function that starts a kernel, which has at least one block.
/// @throws std::invalid_argument if the workspace is too small, or if a kernel has more blocks than a GPU allows.
template <class Score, class Mask, class Kernels = EveryKernel, class Marked, class Launch>
void launch_backward(const Call& call, const AttentionGradients& gradients, const Marked& marked, void* workspace,
                     std::int64_t workspace_bytes, const Launch& launch_kernel) {
  const auto launch = [&](const auto& kernel, const BackwardCall& own) {
    const std::int64_t blocks = kernel.blocks(own), most = std::numeric_limits<std::int32_t>::max();
    if (blocks > most)
      attend::detail::throw_invalid("a kernel of a backward pass must have at most %" PRId64 " blocks, got %" PRId64,
                                    most, blocks);
    if (blocks > 0) launch_kernel(kernel, own);
  };
  const BackwardCall backward = detail::backward_call_of(call, gradients, workspace, workspace_bytes);
  if (call.dtype == NumberType::kFloat64)
    return detail::launch_plain_backward<double, Score, Mask>(backward, gradients, marked, launch);
  if (why_plain_backward<Kernels>(call, gradients) != nullptr)
    return detail::launch_plain_backward<float, Score, Mask>(backward, gradients, marked, launch);
  if (call.dtype == NumberType::kFloat32)
    detail::launch_tf32_backward<Score, Mask>(backward, gradients, detail::widths_of<Kernels, NumberType::kFloat32>(),
                                              marked, launch);
  else if (call.dtype == NumberType::kBFloat16)
    detail::launch_rounded_backward<NumberType::kBFloat16, Score, Mask>(backward, gradients,
                                                                        typename Kernels::BFloat16(), marked, launch);
  else
    detail::launch_rounded_backward<NumberType::kFloat16, Score, Mask>(backward, gradients, typename Kernels::Float16(),
                                                                       marked, launch);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
