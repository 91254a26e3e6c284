// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/binder.h>
#include <attend/attention/dense_variant.h>
#include <attend/detail/torch/expanded.h>
#include <attend/detail/torch/in_memory.h>
#include <attend/score/coordinate.h>
#include <attend/score/dual.h>
#include <attend/score/mask_mod.h>
#include <attend/score/score_mod.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/aminmax.h>
#include <c10/core/Device.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The tensor in the form that a Binder takes: contiguous on `device`, in `dtype` if it is floating-point, otherwise in
/// int32. An expanded tensor stays expanded unless its gradient is recorded. Throws c10::ValueError for integers that
/// do not fit into int32. They are not checked if `device` is a GPU, because the check would wait for the GPU.
inline at::Tensor as_bound(const at::Tensor& tensor, at::ScalarType dtype, c10::Device device) {
  const bool is_recorded = tensor.requires_grad() && c10::GradMode::is_enabled();
  if (is_expanded(tensor) && !is_recorded) return as_bound(one_copy(tensor), dtype, device).expand(tensor.sizes());
  const at::ScalarType given = tensor.scalar_type();
  const bool may_be_wide = given == at::kLong || given == at::kUInt32 || given == at::kUInt64;
  if (may_be_wide && tensor.numel() > 0 && device.is_cpu()) {
    using Limits = std::numeric_limits<std::int32_t>;
    const auto [smallest, largest] = tensor.to(at::kLong).aminmax();  // uint64 beyond int64 becomes negative
    TORCH_CHECK_VALUE(smallest.item<std::int64_t>() >= (given == at::kLong ? Limits::min() : 0) &&
                          largest.item<std::int64_t>() <= Limits::max(),
                      "attend::Binder: integers must fit into int32, got ", smallest.item<std::int64_t>(), " to ",
                      largest.item<std::int64_t>());
  }
  return in_memory(tensor.to(device, tensor.is_floating_point() ? dtype : at::kInt).contiguous());
}

inline at::Tensor on_cpu(const at::Tensor& tensor, at::ScalarType dtype) { return as_bound(tensor, dtype, at::kCPU); }

/// The interface through which backends call a score_mod and a mask_mod. Only the implementation of this interface is
/// compiled for each pair of types. The code that calls it is compiled once.
///
/// The tensors of both structs are in Problem::variant_tensors, those of the score_mod first.
class Variant {
 public:
  virtual ~Variant() = default;

  /// Applies the score_mod to scores (N, H, L, S) in float32 or float64. The result is differentiable.
  virtual at::Tensor change(const at::Tensor& scores, const std::vector<at::Tensor>& tensors,
                            const KeyLengths& key_lengths) const = 0;

  /// The scores that the mask_mod allows: bool (N, H, L, S).
  virtual at::Tensor mask(const AttentionSizes& sizes, const std::vector<at::Tensor>& tensors,
                          const KeyLengths& key_lengths) const = 0;

  /// The tensors as the kernels of a device need them. Those of the score_mod get the dtype of the computation. Those
  /// of the mask_mod get float32, because a mask_mod has no type parameter.
  std::vector<at::Tensor> as_bound(const std::vector<at::Tensor>& tensors, at::ScalarType dtype,
                                   c10::Device device) const {
    std::vector<at::Tensor> results;
    for (std::size_t k = 0; k < tensors.size(); ++k)
      results.push_back(detail::as_bound(tensors[k], k < score_tensors_ ? dtype : at::kFloat, device));
    return results;
  }

  /// The same on the CPU.
  std::vector<at::Tensor> on_cpu(const std::vector<at::Tensor>& tensors, at::ScalarType dtype) const {
    return as_bound(tensors, dtype, at::kCPU);
  }

  /// Throws c10::ValueError if a struct reads outside of a tensor for a score that both `allows` and the mask_mod
  /// allow. Call it if the output has a NaN, or if an IntegerView was read outside of its tensor.
  virtual void check_reads(const AttentionSizes& sizes, const std::vector<at::Tensor>& tensors,
                           const KeyLengths& key_lengths,
                           const std::function<bool(const Coordinate&)>& allows) const = 0;

  bool has_seen_outside() const { return __atomic_load_n(&seen_outside_, __ATOMIC_RELAXED) != 0; }

  /// The number of tensors of the score_mod, which come first.
  std::size_t score_tensors() const { return score_tensors_; }

  /// The flag that an IntegerView sets if it is read outside of its tensor.
  int* seen_outside() const { return &seen_outside_; }

 protected:
  std::size_t score_tensors_ = 0;  // the number of tensors of the score_mod; the rest belong to the mask_mod
  mutable int seen_outside_ = 0;   // 1 once an IntegerView was read outside of its tensor
};

template <class ScoreMod, class MaskMod>
class TypedVariant final : public Variant {
 public:
  TypedVariant(const ScoreMod& score_mod, const MaskMod& mask_mod) : score_mod_(score_mod), mask_mod_(mask_mod) {}

  /// The tensors that both structs hold, after bind() has checked them.
  std::vector<at::Tensor> tensors(const AttentionSizes& sizes, c10::Device device) {
    Binder binder(sizes, device);
    bound(score_mod_, binder);
    score_tensors_ = binder.tensors().size();
    bound(mask_mod_, binder);
    return binder.tensors();
  }

  at::Tensor change(const at::Tensor& scores, const std::vector<at::Tensor>& tensors,
                    const KeyLengths& key_lengths) const override {
    std::vector<at::Tensor> inputs{scores.cpu()};
    for (std::size_t k = 0; k < score_tensors_; ++k) inputs.push_back(detail::on_cpu(tensors[k], scores.scalar_type()));
    return DenseScores<ScoreMod>::apply_to(score_mod_, inputs, {}, key_lengths).to(scores.device());
  }

  at::Tensor mask(const AttentionSizes& sizes, const std::vector<at::Tensor>& tensors,
                  const KeyLengths& key_lengths) const override {
    std::vector<at::Tensor> inputs;
    for (std::size_t k = score_tensors_; k < tensors.size(); ++k)
      inputs.push_back(detail::on_cpu(tensors[k], at::kFloat));
    return dense_mask(mask_mod_, sizes, inputs, key_lengths);
  }

  void check_reads(const AttentionSizes& sizes, const std::vector<at::Tensor>& tensors, const KeyLengths& key_lengths,
                   const std::function<bool(const Coordinate&)>& allows) const override {
    const c10::AutoGradMode no_grad(false);
    OutsideRead outside;
    ViewPurpose purpose;
    purpose.outside = &outside;
    const std::vector<at::Tensor> inputs = on_cpu(tensors, at::kDouble);
    Binder score_binder(sizes, {inputs.begin(), inputs.begin() + static_cast<std::ptrdiff_t>(score_tensors_)}, purpose);
    Binder mask_binder(sizes, {inputs.begin() + static_cast<std::ptrdiff_t>(score_tensors_), inputs.end()}, purpose);
    const Bound<ScoreMod> score_mod = bound(score_mod_, score_binder);
    const Bound<MaskMod> mask_mod = bound(mask_mod_, mask_binder);
    for_each_score_in_order(sizes, key_lengths, [&](const Coordinate& at) {
      if (!allows(at)) return;
      outside.is_found = false;
      if (!mask_mod(at)) return;
      using Checked = Dual<Dual<double, /*kByTensor=*/true>, /*kByTensor=*/true>;
      [[maybe_unused]] const Checked changed = score_mod(Checked(0), at);
      TORCH_CHECK_VALUE(!outside.is_found,
                        "attend::flex_attention: a score_mod or mask_mod reads outside of its tensor: index ",
                        at::IntArrayRef(outside.index, 4), " of sizes ", at::IntArrayRef(outside.sizes, 4),
                        " (missing sizes are 1), for batch ", at.batch, ", head ", at.head, ", query ", at.query,
                        ", key ", at.key, "; exclude the score with a mask, or keep the index within the tensor");
    });
  }

  const ScoreMod& score_mod() const { return score_mod_; }
  const MaskMod& mask_mod() const { return mask_mod_; }

 private:
  ScoreMod score_mod_;
  MaskMod mask_mod_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
