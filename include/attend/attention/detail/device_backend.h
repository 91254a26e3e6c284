// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/attention_node.h>
#include <attend/attention/backend.h>
#include <attend/attention/binder.h>
#include <attend/attention/detail/kernel_limits.h>
#include <attend/attention/detail/kernel_tensors.h>
#include <attend/attention/detail/params.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/variant.h>
#include <attend/detail/torch/expanded.h>
#include <attend/detail/torch/refused.h>
#include <attend/kernels/attention_params.h>
#include <attend/score/mask_mod.h>
#include <attend/score/score_mod.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>
#include <attend/kernels/cuda/call.cuh>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>
#include <c10/util/Type.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// A backend object with attend's CUDA kernels, compiled for one pair of structs. The passes of `Device` launch them:
/// on a GPU (attention/cuda_backend.cuh), or on the host in a test. This class needs neither nvcc nor CUDA's headers.
///
/// `Device` has these members. All pointers in a Call are to memory of the device.
/// - static bool can_use(c10::Device, std::string* reason)
/// - explicit Device(c10::Device): makes it the current device while the object lives
/// - static std::int64_t forward_workspace_bytes(call)
/// - void forward(call, score_mod, mask_mod, void* workspace)
/// - static std::int64_t backward_workspace_bytes(call, gradients)
/// - void backward(call, gradients, score_mod, mask_mod, marked, void* workspace). marked(k, reads) is a score_mod
///   whose tensor k has these TensorReads.
template <class Score, class Mask, class Device>
class DeviceBackend final : public KernelBackend {
 public:
  Backend name() const override { return Backend::kGiven; }

  bool can_run(const Problem& problem, std::string* reason = nullptr) const override {
    if (!Device::can_use(problem.query.device(), reason)) return false;
    if (problem.variant == nullptr && !kIsPlain)
      return refused(reason, kName, " was compiled for ", structs(), ", but attention() passes no structs.");
    if (problem.variant != nullptr && typed(problem) == nullptr)
      return refused(reason, kName, " was compiled for ", structs(), ", but the call has other structs.");
    for (const at::Tensor& tensor : problem.variant_tensors)
      if (tensor.numel() == 0)
        return refused(reason, kName, " does not support a score_mod or mask_mod with an empty tensor.");
    return fits_kernels(kName, problem, reason);
  }

  std::string copies(const Problem& problem) const override {
    return has_half_mask(problem) ? "It converts the float16 attn_mask to float32." : "";
  }

  /// Without tensor cores, each key would be rotated again for every 16 queries.
  bool rotates(const Problem& problem) const override {
    return c10::elementSize(problem.query.scalar_type()) == 2 && problem.rotary_dim() % 16 == 0;
  }

  std::string how(const Problem&) const override {
    return c10::str(kName, " runs attend's own CUDA kernels, compiled for ", structs(), ".");
  }

  Problem readable(const Problem& given) const override {
    Problem problem = given;
    if (has_half_mask(given)) problem.attn_mask = ExpandedCast::apply_to(given.attn_mask, at::kFloat);
    for (at::Tensor* table : {&problem.query_cos, &problem.query_sin, &problem.key_cos, &problem.key_sin})
      if (table->defined()) *table = with_aligned_rows(*table);
    return problem;
  }

  KernelResult forward(const Problem& problem, bool with_backward) const override {
    Device device(problem.query.device());
    const ProblemParams params = attention_params(problem);
    const KernelResult result = empty_result(problem, with_backward ? cuda::saved_bytes(params.params) : 0);
    const cuda::Call call = cuda::call_of(params.params, outputs_of(result));
    const at::Tensor workspace = bytes(Device::forward_workspace_bytes(call), problem);
    const Structs structs(problem);
    device.forward(call, structs.score_mod(), structs.mask_mod(), workspace.mutable_data_ptr());
    return result;
  }

  AttentionTensors backward(const Problem& problem, const KernelResult& result,
                            const AttentionResult& given) const override {
    Device device(problem.query.device());
    const ProblemParams params = attention_params(problem);
    const Structs structs(problem);
    AttentionResult read = given;  // the gradient of y.sum() is expanded, which the kernels on tensor cores cannot read
    if (read.output.defined() && read.output.stride(3) != 1) read.output = read.output.contiguous();
    GradientTensors tensors(problem, params, result, read, structs.score_tensors());
    const cuda::Call call = cuda::call_of(params.params, outputs_of(result));
    const AttentionGradients& gradients = tensors.gradients();
    const at::Tensor workspace = bytes(Device::backward_workspace_bytes(call, gradients), problem);
    const auto marked = [&structs](int k, TensorReads* reads) { return structs.marked(k, reads); };
    device.backward(call, gradients, structs.score_mod(), structs.mask_mod(), marked, workspace.mutable_data_ptr());
    return std::move(tensors).results();
  }

 private:
  static constexpr const char* kName = "attend::cuda::backend";
  static constexpr bool kIsPlain = std::is_same_v<Score, Unchanged> && std::is_same_v<Mask, EveryKey>;
  using Typed = TypedVariant<Score, Mask>;

  static const Typed* typed(const Problem& problem) { return dynamic_cast<const Typed*>(problem.variant.get()); }

  static std::string structs() { return c10::str(c10::demangle_type<Score>(), " and ", c10::demangle_type<Mask>()); }

  static bool has_half_mask(const Problem& problem) {
    return problem.attn_mask.defined() && problem.attn_mask.scalar_type() == at::kHalf;
  }

  /// A table as the kernels on tensor cores read it, in float32. cos and sin then have the same strides.
  static at::Tensor with_aligned_rows(const at::Tensor& given) {
    const at::Tensor table = given.to(at::kFloat).contiguous();
    return reinterpret_cast<std::uintptr_t>(table.const_data_ptr()) % 16 == 0 ? table : table.clone();
  }

  static at::Tensor bytes(std::int64_t count, const Problem& problem) {
    return at::empty({count}, problem.query.options().dtype(at::kByte));
  }

  /// The structs of a call, bound to tensors on its device, which this object holds.
  class Structs {
   public:
    explicit Structs(const Problem& problem)
        : variant_(typed(problem)),
          sizes_{problem.batch_size(), problem.num_heads(), problem.query_length(), problem.key_length()} {
      if (variant_ != nullptr)
        tensors_ = variant_->as_bound(problem.variant_tensors, compute_dtype(problem), problem.query.device());
    }

    std::size_t score_tensors() const { return variant_ == nullptr ? 0 : variant_->score_tensors(); }

    Bound<Score> score_mod() const { return marked(/*k=*/-1, nullptr); }

    Bound<Score> marked(int k, TensorReads* reads) const {
      if constexpr (kIsPlain) {
        return {};
      } else {
        ViewPurpose purpose;
        purpose.differentiated[0] = k;
        purpose.reads[0] = reads;
        Binder binder(sizes_, tensors_, purpose);
        return bound(variant_->score_mod(), binder);
      }
    }

    Bound<Mask> mask_mod() const {
      if constexpr (kIsPlain) {
        return {};
      } else {
        Binder binder(sizes_, tensors_);
        bound(variant_->score_mod(), binder);  // the tensors of the mask_mod come after those of the score_mod
        return bound(variant_->mask_mod(), binder);
      }
    }

   private:
    const Typed* variant_;  // null for attention()
    AttentionSizes sizes_;
    std::vector<at::Tensor> tensors_;
  };
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
