// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/kernels/check_params.h>
#include <attend/macros.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/forward.cuh>
#include <attend/kernels/cuda/plain_forward.cuh>
#include <attend/kernels/cuda/sequence.cuh>

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdlib>
#include <limits>

// Which kernels a forward pass consists of. The host decides; nothing here needs nvcc.

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

/// The kernels of a forward pass.
enum class ForwardKernel {
  kPlain,        ///< plain_forward_block(): without tensor cores
  kTensorCores,  ///< forward_block()
};

/// A kernel, and why it is used.
struct ForwardChoice {
  ForwardKernel kernel;
  const char* reason;  ///< one sentence, without a full stop
};

namespace detail {

/// Whether each row of a tensor is made of neighbours, and aligned to 16 bytes, for tensors of 16-bit numbers.
inline bool has_aligned_rows(const ConstTensorView4d& tensor) {
  bool is_aligned = reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0 && tensor.strides[3] == 1 &&
                    std::abs(tensor.strides[2]) <= std::numeric_limits<std::int32_t>::max();
  for (int i = 0; i < 3; ++i) is_aligned = is_aligned && tensor.strides[i] % 8 == 0;
  return is_aligned;
}

/// Whether a call uses an option that forward_block() compiles only with kHasOptions.
inline bool has_options(const Call& call) {
  return call.softcap > 0 || call.alibi_slopes != nullptr || call.mask_type != MaskType::kNone || call.has_dropout() ||
         call.block_table != nullptr;
}

/// The forward pass without tensor cores as a kernel.
template <NumberType kType>
struct PlainForward {
  static constexpr int kThreads = kPlainForwardThreads, kSharedBytes = 0;
  static const char* name() { return "plain_forward"; }
  static std::int64_t blocks(const Call& call) { return query_tiles(call, kPlainForwardQueries); }
  template <class Score, class Mask>
  ATTEND_HOST_DEVICE static void run(const Call& call, const Score& score, const Mask& mask) {
    plain_forward_block<kType>(call, score, mask);
  }
};

/// The forward pass on tensor cores as a kernel.
template <NumberType kType, int kWidth, bool kHasOptions>
struct TensorCoreForward {
  using Shape = ForwardShape<kWidth, kHasOptions>;
  static constexpr int kThreads = Shape::kThreads, kSharedBytes = Shape::kSharedBytes;
  static const char* name() { return "forward"; }
  static std::int64_t blocks(const Call& call) { return query_tiles(call, Shape::kQueries); }
  template <class Score, class Mask>
  ATTEND_HOST_DEVICE static void run(const Call& call, const Score& score, const Mask& mask) {
    forward_block<kType, kWidth, kHasOptions>(call, score, mask);
  }
};

/// launch(kernel, call), if the grid is not empty.
///
/// @throws std::invalid_argument if a grid cannot be as large.
template <class Kernel, class Launch>
void launch_checked(const Kernel& kernel, const Call& call, const Launch& launch) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  const std::int64_t blocks = Kernel::blocks(call);
  if (blocks > kMost)
    attend::detail::throw_invalid("N · H · L must be such that a grid has at most %" PRId64 " blocks, got %" PRId64,
                                  kMost, blocks);
  if (blocks > 0) launch(kernel, call);
}

template <NumberType kType, int kWidth, class Launch>
void launch_tensor_cores(const Call& call, const Launch& launch) {
  if (has_options(call))
    launch_checked(TensorCoreForward<kType, kWidth, true>(), call, launch);
  else
    launch_checked(TensorCoreForward<kType, kWidth, false>(), call, launch);
}

/// The kernel for the smallest of the widths that is large enough.
template <NumberType kType, int kWidth, int... kWider, class Launch>
void launch_width(const Call& call, const Launch& launch) {
  if constexpr (sizeof...(kWider) > 0)
    if (std::max(call.head_dim, call.value_dim) > kWidth) return launch_width<kType, kWider...>(call, launch);
  launch_tensor_cores<kType, kWidth>(call, launch);
}

}  // namespace detail

/// The kernel that computes the forward pass of a call.
///
/// @param call The call.
/// @return The kernel, and the reason for it.
inline ForwardChoice forward_kernel_of(const Call& call) {
  if (call.dtype != NumberType::kBFloat16 && call.dtype != NumberType::kFloat16)
    return {ForwardKernel::kPlain, "the tensors are float32 or float64"};
  if (call.head_dim > 256 || call.value_dim > 256) return {ForwardKernel::kPlain, "head_dim or value_dim is above 256"};
  if (call.head_dim % 8 != 0 || call.value_dim % 8 != 0)
    return {ForwardKernel::kPlain, "head_dim or value_dim is not a multiple of 8"};
  for (const ConstTensorView4d& tensor : {call.query, call.key, call.value, ConstTensorView4d(call.output)})
    if (!detail::has_aligned_rows(tensor))
      return {ForwardKernel::kPlain,
              "a tensor has columns that are not neighbours, or rows that are not aligned to 16 bytes"};
  return {ForwardKernel::kTensorCores, "the tensors are of 16-bit numbers with aligned rows"};
}

/// Calls launch(kernel, call) for each kernel of a forward pass, in the order in which they run. A kernel is an object
/// whose class has kThreads, kSharedBytes, blocks(call) (the size of the grid), and run(call, score_mod, mask_mod).
///
/// @tparam kWidths The head widths that kernels on tensor cores are compiled for, in ascending order; the last is 256.
/// @param call The call.
/// @param launch A function that starts a kernel.
/// @throws std::invalid_argument if the call needs a larger grid than a GPU has.
template <int... kWidths, class Launch>
void launch_forward(const Call& call, const Launch& launch) {
  using enum NumberType;
  const bool is_plain = forward_kernel_of(call).kernel == ForwardKernel::kPlain;
  if (call.dtype == kFloat32) detail::launch_checked(detail::PlainForward<kFloat32>(), call, launch);
  if (call.dtype == kFloat64) detail::launch_checked(detail::PlainForward<kFloat64>(), call, launch);
  if (call.dtype == kFloat16)
    is_plain ? detail::launch_checked(detail::PlainForward<kFloat16>(), call, launch)
             : detail::launch_width<kFloat16, kWidths...>(call, launch);
  if (call.dtype == kBFloat16)
    is_plain ? detail::launch_checked(detail::PlainForward<kBFloat16>(), call, launch)
             : detail::launch_width<kBFloat16, kWidths...>(call, launch);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
