// SPDX-License-Identifier: MIT
#pragma once

#include <c10/util/Exception.h>
#include <torch/optim/optimizer.h>
#include <torch/types.h>

#include <utility>

namespace attend {

namespace detail {

/// The loss of a batch. Anything but a 0-d tensor is refused: it would be summed, or broadcast, into a wrong figure.
template <class Model, class Loss>
torch::Tensor loss_of(Model& model, Loss& loss, const torch::Tensor& inputs, const torch::Tensor& targets) {
  torch::Tensor value = loss(model->forward(inputs), targets);
  TORCH_CHECK_VALUE(value.dim() == 0, "attend::TrainingStep: the loss must be a 0-d tensor, got ", value.sizes());
  return value;
}

}  // namespace detail

/// One training step: zero the gradients, forward, loss, backward, update.
///
/// A function on device tensors that reads no host value that changes and waits for nothing, provided that the model,
/// the loss and the optimizer do neither (attend::Adam does not). So a plain loop, accumulation, autocast and a CUDA
/// graph can all wrap it. It comes in two halves, for what happens between gradients and update, such as clipping.
///
/// Model: `model->forward(inputs)` gives the outputs. Loss: `loss(outputs, targets)` gives a 0-d tensor.
/// Throws c10::ValueError for a loss that is not 0-d.
///
/// Example:
///   attend::TrainingStep step(model, attend::MeanSquaredError(), optimizer);
///   torch::Tensor loss = step(inputs, targets);
template <class Model, class Loss>
class TrainingStep {
 public:
  /// The optimizer must outlive the step.
  TrainingStep(Model model, Loss loss, torch::optim::Optimizer& optimizer)
      : model_(std::move(model)), loss_(std::move(loss)), optimizer_(&optimizer) {}

  /// Fresh gradients of the loss, which is returned detached: a 0-d tensor.
  torch::Tensor backward(const torch::Tensor& inputs, const torch::Tensor& targets) {
    optimizer_->zero_grad();
    const torch::Tensor loss = detail::loss_of(model_, loss_, inputs, targets);
    loss.backward();
    return loss.detach();
  }

  /// Moves the parameters by their gradients.
  void update() { optimizer_->step(); }

  torch::Tensor operator()(const torch::Tensor& inputs, const torch::Tensor& targets) {
    torch::Tensor loss = backward(inputs, targets);
    update();
    return loss;
  }

 private:
  Model model_;
  Loss loss_;
  torch::optim::Optimizer* optimizer_;
};

}  // namespace attend
