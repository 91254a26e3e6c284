// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/attention/options.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/nn/module.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A learned number for each head and each pair of a query's and a key's position, which attention adds to the score.
///
/// A class that implements it is also a module: it derives from torch::nn::Cloneable and from PositionBias. Attention
/// layers take it as an option, and register a copy of it. attend has T5PositionBias and RelativePositionBias.
///
/// @code
/// class MyBiasImpl : public torch::nn::Cloneable<MyBiasImpl>, public attend::PositionBias {};
/// @endcode
class PositionBias {
 public:
  virtual ~PositionBias() = default;

  /// The number of query heads H that it has numbers for.
  virtual std::int64_t num_heads() const = 0;

  /// attention() with the bias added to the scores, after the options softcap, alibi_slopes and a floating-point
  /// attn_mask. Gradients reach the parameters.
  ///
  /// @param query (N, H, L, D), as in attention().
  /// @param key (N, G, S, D), as in attention().
  /// @param value (N, G, S, Dv), as in attention().
  /// @param options As in attention().
  /// @return (N, H, L, Dv)
  virtual torch::Tensor attention(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
                                  const AttentionOptions& options) = 0;

  /// Says which backend attention() uses for these arguments, and why not a faster one. Computes nothing.
  ///
  /// @param query As in attention().
  /// @param key As in attention().
  /// @param value As in attention().
  /// @param options As in attention().
  /// @return The backend and the reasons, as attend::explain() returns them.
  virtual Explanation explain(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
                              const AttentionOptions& options) = 0;

  /// The bias as a tensor, to look at, or to compute weights with. Differentiable. The last query is at the last key.
  ///
  /// @param query_length The number of queries L.
  /// @param key_length The number of keys S.
  /// @return (H, L, S)
  virtual torch::Tensor dense(std::int64_t query_length, std::int64_t key_length) = 0;
};

namespace detail {

/// The bias as a module, which a layer registers.
inline std::shared_ptr<torch::nn::Module> module_of(const std::shared_ptr<PositionBias>& bias) {
  auto as_module = std::dynamic_pointer_cast<torch::nn::Module>(bias);
  TORCH_CHECK_VALUE(as_module != nullptr, "attend::PositionBias: the bias must also be a torch::nn::Module");
  return as_module;
}

/// A copy with parameters of its own.
inline std::shared_ptr<PositionBias> clone_of(const std::shared_ptr<PositionBias>& bias) {
  return std::dynamic_pointer_cast<PositionBias>(module_of(bias)->clone());
}

}  // namespace detail

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
