// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <torch/nn/module.h>

#include <cstddef>
#include <memory>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Puts a model in evaluation mode until the end of the scope, then restores the mode of each submodule.
class EvaluationMode {
 public:
  explicit EvaluationMode(torch::nn::Module& model) : modules_(model.modules()) {
    for (const auto& each : modules_) was_training_.push_back(each->is_training());
    model.eval();
  }
  ~EvaluationMode() {
    // train() also sets the mode of the children. They come after their parents here, so their own mode is set last.
    for (std::size_t i = 0; i < modules_.size(); ++i) modules_[i]->train(was_training_[i]);
  }
  EvaluationMode(const EvaluationMode&) = delete;
  EvaluationMode& operator=(const EvaluationMode&) = delete;

 private:
  std::vector<std::shared_ptr<torch::nn::Module>> modules_;
  std::vector<bool> was_training_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
