// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/binder.h>
#include <attend/attention/detail/instruction_set.h>
#include <attend/attention/variant.h>
#include <attend/kernels/cpu/typed_variant.h>
#include <attend/kernels/cpu/variant.h>
#include <attend/score/score_mod.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

#include <memory>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Makes the caller's score_mod and mask_mod, whose types only the caller's code knows, ready for the CPU kernels.
class CpuVariantMaker {
 public:
  virtual ~CpuVariantMaker() = default;

  /// The tensors must be as Variant::on_cpu() gives them, and outlive the result.
  virtual std::unique_ptr<cpu::CpuVariant<float>> make(const AttentionSizes& sizes,
                                                       const std::vector<at::Tensor>& tensors, float) const = 0;
  virtual std::unique_ptr<cpu::CpuVariant<double>> make(const AttentionSizes& sizes,
                                                        const std::vector<at::Tensor>& tensors, double) const = 0;
};

template <class ScoreMod, class MaskMod>
class TypedCpuVariantMaker final : public CpuVariantMaker {
 public:
  explicit TypedCpuVariantMaker(std::shared_ptr<const TypedVariant<ScoreMod, MaskMod>> variant)
      : variant_(std::move(variant)) {}

  std::unique_ptr<cpu::CpuVariant<float>> make(const AttentionSizes& sizes, const std::vector<at::Tensor>& tensors,
                                               float) const override {
    return make_in<float>(sizes, tensors);
  }
  std::unique_ptr<cpu::CpuVariant<double>> make(const AttentionSizes& sizes, const std::vector<at::Tensor>& tensors,
                                                double) const override {
    return make_in<double>(sizes, tensors);
  }

 private:
  template <class T>
  std::unique_ptr<cpu::CpuVariant<T>> make_in(const AttentionSizes& sizes,
                                              const std::vector<at::Tensor>& tensors) const {
    ViewPurpose purpose;
    purpose.seen_outside = variant_->seen_outside();
    Binder binder(sizes, tensors, purpose);
    const auto score_mod = bound(variant_->score_mod(), binder);
    const auto mask_mod = bound(variant_->mask_mod(), binder);
    const auto bind_by = [variant = variant_, sizes, tensors](int k, TensorReads* reads) -> Bound<ScoreMod> {
      ViewPurpose by_tensor;
      by_tensor.differentiated[0] = k;
      by_tensor.reads[0] = reads;
      Binder binder_by_tensor(sizes, tensors, by_tensor);
      return bound(variant->score_mod(), binder_by_tensor);
    };
    return std::make_unique<cpu::TypedCpuVariant<T, Bound<ScoreMod>, Bound<MaskMod>>>(
        score_mod, mask_mod, static_cast<int>(variant_->score_tensors()), bind_by, available_instruction_set());
  }

  std::shared_ptr<const TypedVariant<ScoreMod, MaskMod>> variant_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
