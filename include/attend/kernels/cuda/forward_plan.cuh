// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/kernels/check_params.h>
#include <attend/macros.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/combine.cuh>
#include <attend/kernels/cuda/decode.cuh>
#include <attend/kernels/cuda/every_kernel.cuh>
#include <attend/kernels/cuda/forward.cuh>
#include <attend/kernels/cuda/plain_forward.cuh>
#include <attend/kernels/cuda/sequence.cuh>

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <initializer_list>
#include <limits>

// Which kernels a forward pass consists of. The host decides; nothing here needs nvcc.

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

/// The kernels of a forward pass.
enum class ForwardKernel {
  kPlain,        ///< plain_forward_block(): without tensor cores
  kTensorCores,  ///< forward_block()
  kDecode,       ///< decode_block(), then combine_block(): few queries and many keys
};

/// A kernel, and why it is used.
struct ForwardChoice {
  ForwardKernel kernel;
  const char* reason;  ///< one sentence, without a full stop
};

namespace detail {

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
  using Shape = ForwardShape<kType, kWidth, kHasOptions>;
  static constexpr int kThreads = Shape::kThreads, kSharedBytes = Shape::kSharedBytes;
  static const char* name() { return "forward"; }
  static std::int64_t blocks(const Call& call) { return query_tiles(call, Shape::kQueries); }
  template <class Score, class Mask>
  ATTEND_HOST_DEVICE static void run(const Call& call, const Score& score, const Mask& mask) {
    forward_block<kType, kWidth, kHasOptions>(call, score, mask);
  }
};

/// The forward pass of few queries as two kernels.
template <NumberType kType, int kWidth, bool kHasOptions>
struct Decode {
  using Shape = DecodeShape<kType, kWidth>;
  static constexpr int kThreads = Shape::kThreads, kSharedBytes = Shape::kSharedBytes;
  static const char* name() { return "decode"; }
  static std::int64_t blocks(const Call& call) { return decode_blocks<kType, kWidth>(call); }
  template <class Score, class Mask>
  ATTEND_HOST_DEVICE static void run(const Call& call, const Score& score, const Mask& mask) {
    decode_block<kType, kWidth, kHasOptions>(call, score, mask);
  }
};
template <NumberType kType>
struct Combine {
  static constexpr int kThreads = kCombineThreads, kSharedBytes = 0;
  static const char* name() { return "combine"; }
  static std::int64_t blocks(const Call& call) {
    return (call.row(call.batch_size, 0, 0) + kCombineRows - 1) / kCombineRows;
  }
  template <class Score, class Mask>
  ATTEND_HOST_DEVICE static void run(const Call& call, const Score& score, const Mask& mask) {
    combine_block<kType>(call, score, mask);
  }
};

/// Launches a kernel. An empty grid is left out, because CUDA refuses it.
///
/// @throws std::invalid_argument if the grid would be larger than a GPU allows.
template <class Kernel, class Launch>
void launch_checked(const Kernel& kernel, const Call& call, const Launch& launch) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  const std::int64_t blocks = Kernel::blocks(call);
  if (blocks > kMost)
    attend::detail::throw_invalid("N · H · L must be such that a grid has at most %" PRId64 " blocks, got %" PRId64,
                                  kMost, blocks);
  if (blocks > 0) launch(kernel, call);
}

/// The kernel of ForwardKernel::kTensorCores.
template <NumberType kType, int kWidth, class Launch>
void launch_tiles(const Call& call, const Launch& launch) {
  has_options(call) ? launch_checked(TensorCoreForward<kType, kWidth, true>(), call, launch)
                    : launch_checked(TensorCoreForward<kType, kWidth, false>(), call, launch);
}

/// Into how many parts decode_block() splits the keys: at least 128 keys each, and about 2,048 warps in all.
inline std::int32_t decode_splits(const Call& call) {
  constexpr std::int64_t kLeastKeys = 128, kWarps = 2048;
  const std::int64_t warps =
      std::max<std::int64_t>(1, std::int64_t{call.batch_size} * call.kv_heads * decode_row_tiles(call));
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(kWarps / warps, 1, 1 + call.keys / kLeastKeys));
}

/// The kernels of ForwardKernel::kDecode.
template <NumberType kType, int kWidth, class Launch>
void launch_decode(const Call& call, void* workspace, const Launch& launch) {
  Call own = call;
  own.partials = static_cast<float*>(workspace);
  own.splits = decode_splits(call);
  has_options(call) || call.has_rotary() ? launch_checked(Decode<kType, kWidth, true>(), own, launch)
                                         : launch_checked(Decode<kType, kWidth, false>(), own, launch);
  launch_checked(Combine<kType>(), own, launch);
}

template <NumberType kType, int kWidth, class Launch>
void launch_forward_width(const Call& call, ForwardKernel kernel, void* workspace, const Launch& launch) {
  kernel == ForwardKernel::kDecode ? launch_decode<kType, kWidth>(call, workspace, launch)
                                   : launch_tiles<kType, kWidth>(call, launch);
}

/// The kernels on tensor cores of a call.
template <NumberType kType, int... kWidths, class Launch>
void launch_widths(const Call& call, [[maybe_unused]] ForwardKernel kernel, Widths<kWidths...>,
                   [[maybe_unused]] void* workspace, const Launch& launch) {
  [[maybe_unused]] const int width = kernel_width(std::max(call.head_dim, call.value_dim));
  ((width == kWidths ? detail::launch_forward_width<kType, kWidths>(call, kernel, workspace, launch) : void()), ...);
}

/// The kernels of a call of type kType.
template <NumberType kType, class Kernels, class Launch>
void launch_type(const Call& call, ForwardKernel kernel, void* workspace, const Launch& launch) {
  if (kernel == ForwardKernel::kPlain) return launch_checked(PlainForward<kType>(), call, launch);
  launch_widths<kType>(call, kernel, widths_of<Kernels, kType>(), workspace, launch);
}

}  // namespace detail

/// The kernel that computes the forward pass of a call.
///
/// @tparam Kernels The kernels that are compiled.
/// @param call The call.
/// @return The kernel, and the reason for it.
template <class Kernels = EveryKernel>
ForwardChoice forward_kernel_of(const Call& call) {
  constexpr std::int32_t kFewQueries = 8, kManyKeys = 128;
  const char* const reason =
      detail::why_no_tensor_cores<Kernels>(call, {call.query, call.key, call.value, ConstTensorView4d(call.output)});
  if (reason != nullptr) return {ForwardKernel::kPlain, reason};
  if (call.queries <= kFewQueries && call.keys >= kManyKeys && call.num_sequences == 0)
    return {ForwardKernel::kDecode, "there are at most 8 queries, and at least 128 keys"};
  return {ForwardKernel::kTensorCores, call.dtype == NumberType::kFloat32
                                           ? "the tensors are float32 with aligned rows, and tf32 is asked for"
                                           : "the tensors are of 16-bit numbers with aligned rows"};
}

/// The size of the workspace of launch_forward(), in bytes.
template <class Kernels = EveryKernel>
std::int64_t forward_workspace_bytes(const Call& call) {
  if (forward_kernel_of<Kernels>(call).kernel != ForwardKernel::kDecode) return 0;
  return call.row(call.batch_size, 0, 0) * detail::decode_splits(call) * (call.value_dim + 2) *
         static_cast<std::int64_t>(sizeof(float));
}

/// Calls launch(kernel, call) for each kernel of a forward pass, in the order in which they run. A kernel is an object
/// whose class has kThreads, kSharedBytes, blocks(call) (the size of the grid), and run(call, score_mod, mask_mod).
///
/// @tparam Kernels The kernels that are compiled.
/// @param call The call.
/// @param workspace forward_workspace_bytes() bytes of the GPU, aligned to 16 bytes. It need not be cleared.
/// @param launch A function that starts a kernel.
/// @throws std::invalid_argument if a grid would be larger than a GPU allows.
template <class Kernels = EveryKernel, class Launch>
void launch_forward(const Call& call, void* workspace, const Launch& launch) {
  const ForwardKernel kernel = forward_kernel_of<Kernels>(call).kernel;
  switch (call.dtype) {
    case NumberType::kFloat32:
      return detail::launch_type<NumberType::kFloat32, Kernels>(call, kernel, workspace, launch);
    case NumberType::kFloat64:
      return detail::launch_type<NumberType::kFloat64, Kernels>(call, kernel, workspace, launch);
    case NumberType::kFloat16:
      return detail::launch_type<NumberType::kFloat16, Kernels>(call, kernel, workspace, launch);
    case NumberType::kBFloat16:
      return detail::launch_type<NumberType::kBFloat16, Kernels>(call, kernel, workspace, launch);
  }
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
