// SPDX-License-Identifier: MIT
#pragma once

// Training steps as CUDA graphs. Needs LibTorch 2.9 or newer, CUDA's runtime headers and libtorch_cuda: the CMake
// target attend::cuda.

#include <attend/training/step_capture.h>
#include <attend/version.h>

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>
#include <torch/cuda.h>

#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

namespace detail {

/// LibTorch's graph, with a clean-up after a failed capture. After a failure CUDAGraph::capture_end() throws before it
/// is done. The allocators then still use the graph's pool, and the generator still waits for the end of the capture
/// (LibTorch 2.11).
class AbandonableGraph : public at::cuda::CUDAGraph {
 public:
  /// Cleans up after a failed capture. CUDAGraph's destructor does the rest.
  void abandon() noexcept {
    attempt([&] { capture_end(); });
    cudaGetLastError();  // the error has been reported and must not be taken for the error of a later call
    if (capture_ended_ || capture_dev_ < 0) return;
    auto* const pinned = at::getHostAllocator(at::kCUDA);
    attempt([&] { c10::cuda::CUDACachingAllocator::endAllocateToPool(capture_dev_, mempool_id_); });
    attempt([&] { end_allocate_to_pool(pinned, mempool_id_); });
    attempt([&] { c10::cuda::CUDACachingAllocator::releasePool(capture_dev_, mempool_id_); });
    attempt([&] { release_pool(pinned, mempool_id_); });
    for (auto& entry : captured_generator_states_) stop_waiting(*entry.first);
  }

 private:
  // Templates, because not every LibTorch has these members. LibTorch 2.9 has no pools of pinned memory. In
  // LibTorch 2.13 and newer the generator needs nothing here: CUDAGraph's destructor tells it that the capture is over.
  template <class Allocator>
  static void end_allocate_to_pool(Allocator* pinned, const at::cuda::MempoolId_t& pool) {
    if constexpr (requires { pinned->end_allocate_to_pool(pool); }) pinned->end_allocate_to_pool(pool);
  }

  template <class Allocator>
  static void release_pool(Allocator* pinned, const at::cuda::MempoolId_t& pool) {
    if constexpr (requires { pinned->release_pool(pool); }) pinned->release_pool(pool);
  }

  template <class State>
  static void stop_waiting(State& generator) {
    if constexpr (requires { generator.capturing_; }) generator.capturing_ = false;
  }

  template <class Action>
  static void attempt(const Action& action) noexcept {
    try {
      action();
    } catch (const std::exception&) {  // this state was not reached, so there is nothing to undo
    }
  }
};

/// Switches to another stream until the end of the scope. The other stream waits for the earlier work of the current
/// stream. At the end of the scope the current stream waits for the work of the other stream.
class SideStream {
 public:
  explicit SideStream(c10::cuda::CUDAStream side)
      : before_(c10::cuda::getCurrentCUDAStream(side.device_index())), side_(side) {
    wait(side_, before_);
    guard_.emplace(side_);
  }
  ~SideStream() {
    guard_.reset();
    try {
      wait(before_, side_);
    } catch (const std::exception&) {  // the device has failed; the next call on it will report that
    }
  }
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;

 private:
  static void wait(const c10::cuda::CUDAStream& waiting, const c10::cuda::CUDAStream& other) {
    at::cuda::CUDAEvent event;
    event.record(other);
    event.block(waiting);
  }

  c10::cuda::CUDAStream before_, side_;
  std::optional<c10::cuda::CUDAStreamGuard> guard_;
};

}  // namespace detail

/// Captures training steps as CUDA graphs, which need one launch for a whole step. This makes models with many small
/// kernels faster, because their launches take longer than the kernels.
///
/// - Memory: the memory of a captured step stays allocated until the fit ends, in addition to the memory of plain
///   steps.
/// - Random numbers: each replay draws new ones from torch's generator.
/// - Restriction: a model that reads a number from the device (`.item()`, a mask as an index) cannot be captured. The
///   trainer then continues with the plain loop.
/// - Threads: no other thread of the program may use CUDA during a capture, as in torch.cuda.graph.
/// - Number of captures: one in a fit, or two if gradients and update are captured separately. The trainer captures
///   again if the training modes, the frozen parameters or the tensors have changed at the beginning of an epoch.
class CudaGraphs : public StepCapture {
 public:
  std::string name() const override { return "CUDA graph"; }

  std::optional<std::string> why_not(c10::Device device) const override {
    if (!device.is_cuda()) return "the device is " + device.str();
    if (torch::cuda::device_count() == 0) return "this machine has no CUDA device";
    return std::nullopt;
  }

  /// @throws c10::ValueError if why_not() gives a reason.
  std::shared_ptr<void> enter(c10::Device device) override {
    const std::optional<std::string> reason = why_not(device);
    TORCH_CHECK_VALUE(!reason, "attend::CudaGraphs: cannot capture a step: ", *reason);
    const c10::DeviceIndex index = device.has_index() ? device.index() : c10::cuda::current_device();
    const auto [stream, is_new] = streams_.try_emplace(index, c10::cuda::getStreamFromPool(false, index));
    return std::make_shared<detail::SideStream>(stream->second);
  }

  /// @throws c10::ValueError without a CUDA device; for the rest see StepCapture.
  Recording capture(const std::function<void()>& body) override {
    TORCH_CHECK_VALUE(torch::cuda::device_count() > 0, "attend::CudaGraphs: this machine must have a CUDA device");
    c10::cuda::device_synchronize();
    c10::cuda::CUDACachingAllocator::emptyCache();  // the pool of a graph does not reuse the memory of plain steps
    const auto graph = std::make_shared<detail::AbandonableGraph>();
    try {
      graph->capture_begin();
      body();
      graph->capture_end();
    } catch (const std::exception& error) {
      graph->abandon();
      return {{}, first_line_of(error)};
    } catch (...) {
      graph->abandon();
      return {{}, "it threw something that is not a std::exception"};
    }
    return {[graph] { graph->replay(); }, {}};
  }

 private:
  static std::string first_line_of(const std::exception& error) {
    const auto* const torch_error = dynamic_cast<const c10::Error*>(&error);
    std::istringstream text(torch_error != nullptr ? torch_error->what_without_backtrace() : error.what());
    std::string line;
    std::getline(text, line);
    return line;
  }

  // All fits share these streams, because cuBLAS keeps a workspace for each stream that it has ever used.
  std::map<c10::DeviceIndex, c10::cuda::CUDAStream> streams_;
};

/// Makes a CudaGraphs for TrainerOptions::capture.
///
/// @return A new object.
///
/// @code
/// attend::Trainer trainer(model, attend::TrainerOptions().device(torch::kCUDA).capture(attend::cuda_graphs()));
/// @endcode
inline std::shared_ptr<CudaGraphs> cuda_graphs() { return std::make_shared<CudaGraphs>(); }

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
