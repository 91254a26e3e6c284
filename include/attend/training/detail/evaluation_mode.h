// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <torch/nn/module.h>

#include <cstddef>
#include <memory>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Evaluation mode until the end of the scope; then each submodule's own mode again.
class EvaluationMode {
 public:
  explicit EvaluationMode(torch::nn::Module& model) : modules_(model.modules()) {
    for (const auto& each : modules_) was_training_.push_back(each->is_training());
    model.eval();
  }
  ~EvaluationMode() {
    // train() reaches down to the children, which come after their parents here and so have the last word.
    for (std::size_t i = 0; i < modules_.size(); ++i) modules_[i]->train(was_training_[i]);
  }
  EvaluationMode(const EvaluationMode&) = delete;
  EvaluationMode& operator=(const EvaluationMode&) = delete;

 private:
  std::vector<std::shared_ptr<torch::nn::Module>> modules_;
  std::vector<bool> was_training_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
