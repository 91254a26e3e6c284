// SPDX-License-Identifier: MIT
#pragma once

#include "support/accuracy.h"

#include <doctest/doctest.h>
#include <torch/nn/module.h>
#include <torch/types.h>

#include <map>
#include <string>

namespace attend::test {

/// Copies the parameters stored under prefix + name into a module. Each one must exist and have the right shape.
inline void copy_parameters(const std::map<std::string, torch::Tensor>& data, const std::string& prefix,
                            torch::nn::Module& module) {
  const torch::NoGradGuard no_grad;
  for (auto& parameter : module.named_parameters()) {
    CAPTURE(parameter.key());
    REQUIRE(data.count(prefix + parameter.key()) == 1);
    const torch::Tensor& stored = data.at(prefix + parameter.key());
    REQUIRE(stored.sizes() == parameter->sizes());
    parameter->copy_(stored);
  }
}

/// Compares the gradients with those stored under prefix + name + "_gradient", to 1e-12.
inline void check_gradients(const std::map<std::string, torch::Tensor>& data, const std::string& prefix,
                            const torch::nn::Module& module) {
  for (const auto& parameter : module.named_parameters()) {
    CAPTURE(parameter.key());
    CHECK(max_difference(parameter->grad(), data.at(prefix + parameter.key() + "_gradient")) < 1e-12);
  }
}

}  // namespace attend::test
