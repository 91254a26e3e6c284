// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/ops/square.h>
#include <torch/enum.h>
#include <torch/types.h>

#include <c10/util/Exception.h>

#include <concepts>
#include <functional>
#include <ostream>
#include <string>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The type of attend::kGELUTanh.
struct GELUTanh {};

/// GELU in its tanh form, as `torch.nn.GELU(approximate="tanh")`; `torch::kGELU` is the exact one.
inline constexpr GELUTanh kGELUTanh;

/// The type of kSiLU.
struct SiLU {};

/// x · sigmoid(x). Use it in place of `torch::kSiLU`, which LibTorch 2.11 declares but does not define.
inline constexpr SiLU kSiLU;

/// The type of kReLUSquared.
struct ReLUSquared {};

/// The square of max(x, 0). Source: So et al., "Primer", 2021.
inline constexpr ReLUSquared kReLUSquared;

/// An activation: torch::kReLU, torch::kGELU, attend::kGELUTanh, attend::kSiLU, attend::kReLUSquared, torch::kTanh, or
/// any function from tensor to tensor. All of them convert to an Activation.
///
/// @code
/// attend::Activation leaky([](const torch::Tensor& x) { return torch::leaky_relu(x, 0.1); });
/// @endcode
class Activation {
 public:
  /// x where x > 0, else 0: `torch::kReLU`.
  Activation(torch::enumtype::kReLU) : name_("ReLU"), function_([](const torch::Tensor& x) { return at::relu(x); }) {}
  /// The exact GELU: `torch::kGELU`.
  Activation(torch::enumtype::kGELU) : name_("GELU"), function_([](const torch::Tensor& x) { return at::gelu(x); }) {}
  /// GELU in its tanh form: `attend::kGELUTanh`.
  Activation(GELUTanh) : name_("GELUTanh"), function_([](const torch::Tensor& x) { return at::gelu(x, "tanh"); }) {}
  /// x · sigmoid(x): `attend::kSiLU`.
  Activation(SiLU) : name_("SiLU"), function_([](const torch::Tensor& x) { return at::silu(x); }) {}
  /// The square of max(x, 0): `attend::kReLUSquared`.
  Activation(ReLUSquared)
      : name_("ReLUSquared"), function_([](const torch::Tensor& x) { return at::square(at::relu(x)); }) {}
  /// tanh(x): `torch::kTanh`.
  Activation(torch::enumtype::kTanh) : name_("Tanh"), function_([](const torch::Tensor& x) { return at::tanh(x); }) {}

  /// Any function from tensor to tensor, or a module without parameters.
  ///
  /// @param function A function that is called with x and returns a tensor of the same shape. A copy of it is kept.
  /// @throws c10::ValueError for an empty function, and for a module with parameters, which would not be trained.
  template <class F>
  requires(!std::same_as<std::remove_cvref_t<F>, Activation> &&
           std::is_invocable_r_v<torch::Tensor, F&, const torch::Tensor&>) Activation(F&& function)
      : name_("a function"), function_(function) {
    TORCH_CHECK_VALUE(function_, "attend::Activation: the function must not be empty");
    if constexpr (requires { function->parameters(); })
      TORCH_CHECK_VALUE(function->parameters().empty(), "attend::Activation: the module (", function->name(),
                        ") must have no parameters, because they would neither be trained nor moved; register it in a "
                        "module of your own");
  }

  /// Applies the activation.
  ///
  /// @param x Of any shape.
  /// @return A tensor of the same shape.
  torch::Tensor operator()(const torch::Tensor& x) const { return function_(x); }

  /// Whether it is torch::kReLU.
  bool is_relu() const { return name_ == "ReLU"; }

  /// Whether it is torch::kGELU.
  bool is_gelu() const { return name_ == "GELU"; }

  /// Writes the name, for example "ReLU", or "a function".
  friend std::ostream& operator<<(std::ostream& stream, const Activation& activation) {
    return stream << activation.name_;
  }

 private:
  std::string name_;
  std::function<torch::Tensor(const torch::Tensor&)> function_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
