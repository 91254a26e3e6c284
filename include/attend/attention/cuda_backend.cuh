// SPDX-License-Identifier: MIT
#pragma once

// Attention on a GPU by attend's own kernels. Needs nvcc, LibTorch with CUDA, and the CMake target attend::cuda.

#if !defined(__CUDACC__)
#error \
    "attend/cuda.cuh must be compiled by nvcc; code that is compiled by another compiler takes the object that attend::cuda::backend() makes (docs/cuda.md)"
#endif

#include <attend/attention/attention_backend.h>
#include <attend/attention/backend.h>
#include <attend/attention/detail/device_backend.h>
#include <attend/detail/torch/refused.h>
#include <attend/flex_attention.h>
#include <attend/kernels/attention_params.h>
#include <attend/score/mask_mod.h>
#include <attend/score/score_mod.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/every_kernel.cuh>
#include <attend/kernels/cuda/launch_backward.cuh>
#include <attend/kernels/cuda/launch_forward.cuh>

#include <c10/core/Device.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

namespace detail {

/// Launches attend's kernels on the current stream of a GPU; see DeviceBackend.
template <class Kernels>
class CudaDevice {
 public:
  static bool can_use(c10::Device device, std::string* reason) {
    if (!device.is_cuda())
      return refused(reason, "attend::cuda::backend runs on a CUDA device only; the tensors are on ", device.type(),
                     ".");
    int major = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index_of(device)));
    if (major < 8)
      return refused(reason, "attend::cuda::backend needs a GPU of compute capability 8.0 or newer; this one has ",
                     major, ".x.");
    return true;
  }

  explicit CudaDevice(c10::Device device) : guard_(device) {}

  static std::int64_t forward_workspace_bytes(const cuda::Call& call) {
    return cuda::forward_workspace_bytes<Kernels>(call);
  }

  template <class Score, class Mask>
  void forward(const cuda::Call& call, const Score& score_mod, const Mask& mask_mod, void* workspace) const {
    C10_CUDA_CHECK(cuda::attention_forward<Kernels>(call, score_mod, mask_mod, workspace, stream()));
  }

  static std::int64_t backward_workspace_bytes(const cuda::Call& call, const AttentionGradients& gradients) {
    const char* const reason = cuda::backward_why_not(call, gradients);
    TORCH_CHECK_NOT_IMPLEMENTED(reason == nullptr, "attend::cuda::backend: no backward pass: ", reason);
    return cuda::backward_workspace_bytes(call, gradients);
  }

  template <class Score, class Mask, class Marked>
  void backward(const cuda::Call& call, const AttentionGradients& gradients, const Score& score_mod,
                const Mask& mask_mod, const Marked& marked, void* workspace) const {
    C10_CUDA_CHECK(
        cuda::attention_backward<Kernels>(call, gradients, score_mod, mask_mod, marked, workspace, stream()));
  }

 private:
  static int index_of(c10::Device device) { return device.has_index() ? device.index() : c10::cuda::current_device(); }

  static cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

  c10::cuda::CUDAGuard guard_;
};

}  // namespace detail

namespace cuda {

/// A backend object that computes attention() and flex_attention() with attend's own CUDA kernels, with gradients. The
/// kernels are compiled for one pair of structs.
///
/// A .cu file makes the object. Files that another compiler compiles, and therefore all layers, take it: as the option
/// `.backend(object)` or by `attend::BackendGuard guard(object)`.
///
/// - The default, Unchanged and EveryKey, computes attention(). All other pairs compute flex_attention() with exactly
///   these types. For another call the object throws c10::NotImplementedError.
/// - A struct must have the same name in all files. So it must not be in an unnamed namespace.
/// - All options of attention() are supported, with their gradients. Exception: block_table has no backward pass.
/// - float16, bfloat16, float32 and float64. GPUs of compute capability 8.0 or newer.
/// - float32 is computed without tensor cores, unless Kernels has a member Float32. Then it is computed in tf32, with
///   relative errors of about 4e-4 of the output and 5e-4 of the gradients, where float32 has 4e-7 and 6e-7, and
///   bfloat16 has 2e-3. docs/cuda.md says how they are measured.
/// - It waits for nothing, allocates with LibTorch's allocator and runs on the current stream of the tensors' device. A
///   CUDA graph can capture it after one call outside of the capture.
/// - Gradients are the same in every run: all sums have a fixed order.
///
/// On a GPU a struct that reads outside of a TensorView gets NaN, and outside of an IntegerView 0. No error is thrown.
///
/// These kernels have never run on a GPU: see docs/cuda.md.
///
/// @tparam Score A struct as ScoreMod describes. Default: Unchanged.
/// @tparam Mask A struct as MaskMod describes. Default: EveryKey.
/// @tparam Kernels The kernels on tensor cores that are compiled, as cuda::EveryKernel, which is the default. A class
/// with fewer widths compiles faster.
/// @return The object, as the value of an option. It holds no memory of a GPU, and threads may share it.
///
/// @code
/// // kernels.cu
/// attend::BackendChoice tilted_on_cuda() { return attend::cuda::backend<Tilted, attend::Causal>(); }
/// @endcode
template <class Score = Unchanged, class Mask = EveryKey, class Kernels = EveryKernel>
BackendChoice backend() {
  static_assert(attend::detail::check_variant<Score, Mask>());
  using Object = attend::detail::DeviceBackend<Score, Mask, attend::detail::CudaDevice<Kernels>>;
  return std::shared_ptr<const attend::detail::AttentionBackend>(std::make_shared<const Object>());
}

}  // namespace cuda
}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
