// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/kernels/check_params.h>
#include <attend/kernels/cpu/checked_call.h>
#include <attend/kernels/cpu/typed_variant.h>
#include <attend/kernels/cpu/variant.h>
#include <attend/kernels/executor.h>
#include <attend/score/mask_mod.h>
#include <attend/score/mask_operators.h>
#include <attend/score/neighborhood_mask.h>
#include <attend/score/score_mod.h>
#include <attend/score/shifted_window_mask.h>
#include <attend/score/tensor_view.h>
#include <attend/simd/dispatch.h>
#include <attend/version.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE {
namespace detail {

/// A score_mod and a mask_mod without LibTorch's tensors.
template <class Score, class Mask>
class PlainVariant {
 public:
  PlainVariant(const Score& score, const Mask& mask) : score_(score), mask_(mask) {}

  template <class T>
  std::unique_ptr<cpu::CpuVariant<T>> make(simd::InstructionSet set = simd::best_instruction_set()) const {
    const auto by_tensor = [score = score_](int k, TensorReads* reads) {
      Score differentiated = score;
      for_each_tensor(differentiated, [&](int i, TensorView& view) {
        if (i == k) view.differentiate(reads);
      });
      return differentiated;
    };
    return std::make_unique<cpu::TypedCpuVariant<T, Score, Mask>>(score_, mask_, kTensors, by_tensor, set);
  }

  void check(const AttentionParams& params) const {
    Score score = score_;
    for_each_tensor(score, [&](int, const TensorView& view) {
      if (view.number_size() != static_cast<int>(compute_size(params)))
        throw_invalid("a TensorView of the score_mod's tensors() must be of %s, got %s",
                      is_float64(params) ? "double in a float64 call" : "float in a float32 or bfloat16 call",
                      view.number_size() == 0   ? "an unset view"
                      : view.number_size() == 8 ? "double"
                                                : "float");
    });
  }

  void check_gradients(const AttentionGradients& gradients) const {
    const std::size_t given = gradients.score_tensors.size();
    if (given == 0) return;
    if (given != kTensors)
      throw_invalid(
          "AttentionGradients::score_tensors must be empty, or one for each of the score_mod's tensors() (%d), "
          "got %zu gradients",
          kTensors, given);
    Score score = score_;
    for_each_tensor(score, [&](int k, const TensorView& view) {
      const std::string member = "AttentionGradients::score_tensors[" + std::to_string(k) + "]";
      check_sum(member.c_str(), gradients.score_tensors[static_cast<std::size_t>(k)], view.sizes(), kNoZeros, 4);
    });
  }

 private:
  static constexpr int kTensors = std::tuple_size_v<decltype(tensors_of(std::declval<Score&>()))>;
  static constexpr std::int64_t kNoZeros[4] = {1, 1, 1, 1};

  template <class Action>
  static void for_each_tensor(Score& score, const Action& action) {
    int i = 0;
    std::apply([&](auto&... views) { (action(i++, views), ...); }, tensors_of(score));
  }

  Score score_;
  Mask mask_;
};

/// One sentence for each way in which a type can fail to be a score_mod or mask_mod.
template <class Score, class Mask>
constexpr bool check_plain_variant() {
  constexpr bool kIsScore = std::is_trivially_copyable_v<Score> && ScoreFunction<Score>;
  constexpr bool kIsMask = std::is_trivially_copyable_v<Mask> && MaskFunction<Mask>;
  static_assert(kIsScore,
                "attend::kernels: a score_mod must be trivially copyable and have `template <class T> T operator()(T "
                "score, attend::Coordinate at) const` (see attend/score/score_mod.h)");
  static_assert(kIsMask,
                "attend::kernels: a mask_mod must be trivially copyable and have `bool operator()(attend::Coordinate "
                "at) const` (see attend/score/mask_mod.h)");
  return kIsScore && kIsMask;
}

}  // namespace detail

namespace kernels {

/// The size of the memory that flex_attention_forward() saves for flex_attention_backward().
///
/// @tparam T As in flex_attention_forward().
/// @param params The call.
/// @param score_mod As in flex_attention_forward().
/// @param mask_mod As in flex_attention_forward().
/// @return The size of AttentionOutputs::saved, in bytes; 0 if nothing is saved.
/// @throws std::invalid_argument as flex_attention_forward().
template <class T = float, class Score, class Mask>
std::int64_t flex_saved_bytes(const AttentionParams& params, const Score& score_mod, const Mask& mask_mod) {
  if constexpr (detail::check_plain_variant<Score, Mask>())
    return cpu::checked_call<T>(params, detail::PlainVariant(score_mod, mask_mod)).saved_bytes();
}

/// attention_forward() with a score_mod, a struct that changes each score, and a mask_mod, a struct that says which
/// keys a query may attend to.
///
/// output = softmax(mask_mod(score_mod(score))) v. `score` is scale · q·k, after softcap, alibi_slopes and an added
/// attn_mask. Both structs are compiled into the kernel, with the derivative of the score.
///
/// @tparam T The type in which the kernels compute: float for float32 and bfloat16, double for float64. Default: float.
/// @param params The call.
/// @param score_mod A struct as ScoreMod describes, or attend::Unchanged. It may hold raw pointers and TensorViews.
/// @param mask_mod A struct as MaskMod describes, or attend::EveryKey.
/// @param outputs Pointers to the memory for the results. It must not overlap the inputs.
/// @param executor The threads. Default: one for each processor. Several threads may call a struct at the same time.
/// @throws std::invalid_argument if a member of a struct breaks its rule.
///
/// If a struct does not fit ScoreMod or MaskMod, the program does not compile. The error message says in one sentence
/// why.
///
/// Differs from attend::flex_attention():
/// - A struct holds no tensors of LibTorch.
/// - A read outside of a TensorView or an IntegerView does not throw: see these classes.
///
/// Source: Dong et al., "Flex Attention", 2024.
///
/// @code
/// attend::AttentionParams params;  // both set as for attention_forward()
/// attend::AttentionOutputs outputs;
/// attend::kernels::flex_attention_forward(params, attend::Softcap{30}, attend::SlidingWindow(256, 0), outputs);
/// @endcode
template <class T = float, class Score, class Mask>
void flex_attention_forward(const AttentionParams& params, const Score& score_mod, const Mask& mask_mod,
                            const AttentionOutputs& outputs, Executor& executor = default_executor()) {
  if constexpr (detail::check_plain_variant<Score, Mask>())
    cpu::checked_call<T>(params, detail::PlainVariant(score_mod, mask_mod)).forward(outputs, executor);
}

/// Computes the gradients of flex_attention_forward().
///
/// To get gradients of numbers that a score_mod reads, read them through TensorViews, and list the views in a member
/// function `auto tensors()`. AttentionGradients::score_tensors has one gradient for each view, in this order.
///
/// @tparam T As in the forward pass.
/// @param params The call, as in the forward pass. The memory must have the same contents.
/// @param score_mod As in the forward pass.
/// @param mask_mod As in the forward pass.
/// @param outputs The outputs of the forward pass, `saved` included.
/// @param gradients The gradients that are read, and those that are written.
/// @param executor The threads. Default: one for each processor.
/// @throws std::invalid_argument as flex_attention_forward().
///
/// @code
/// struct DistanceBias {
///   attend::TensorView bias;  // (H, 64): learned, by head and distance
///   template <class T>
///   T operator()(T score, attend::Coordinate at) const {
///     return score + bias.read<T>(at.head, at.query > at.key ? at.query - at.key : 0);
///   }
///   auto tensors() { return std::tie(bias); }
/// };
/// @endcode
template <class T = float, class Score, class Mask>
void flex_attention_backward(const AttentionParams& params, const Score& score_mod, const Mask& mask_mod,
                             const AttentionOutputs& outputs, const AttentionGradients& gradients,
                             Executor& executor = default_executor()) {
  if constexpr (detail::check_plain_variant<Score, Mask>())
    cpu::checked_call<T>(params, detail::PlainVariant(score_mod, mask_mod)).backward(outputs, gradients, executor);
}

}  // namespace kernels
}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
