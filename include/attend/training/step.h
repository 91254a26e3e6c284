// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/detail/autocast_scope.h>
#include <attend/training/detail/trainable.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/optim/optimizer.h>
#include <torch/types.h>

#include <optional>
#include <string>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

namespace detail {

/// The loss of a batch. Anything but a 0-d tensor is refused: it would be summed, or broadcast, into a wrong figure.
/// What model and loss throw passes, with a hint if the inputs do not fit the parameters.
template <class Model, class Loss>
torch::Tensor loss_of(Model& model, Loss& loss, const torch::Tensor& inputs, const torch::Tensor& targets,
                      const torch::optim::Optimizer& optimizer) {
  torch::Tensor value;
  try {
    value = loss(model->forward(inputs), targets);
  } catch (c10::Error& error) {
    if (const std::string hint = why_inputs_do_not_fit(inputs, optimizer); !hint.empty()) error.add_context(hint);
    throw;
  }
  TORCH_CHECK_VALUE(value.dim() == 0, "attend::TrainingStep: the loss must be a 0-d tensor, got ", value.sizes());
  return value;
}

}  // namespace detail

/// One training step: zero the gradients, forward, loss, backward, update.
///
/// A step reads no host value that changes, and waits for nothing, if the model, the loss and the optimizer do neither.
/// (attend::Adam does not.) So a plain loop, accumulation, autocast and a CUDA graph can all wrap it. backward() and
/// update() are its two halves, for what happens between gradients and update, such as clipping.
///
/// Only forward and loss run under autocast. backward follows the dtypes that they used, as PyTorch advises.
///
/// @tparam Model `model->forward(inputs)` gives the outputs.
/// @tparam Loss `loss(outputs, targets)` gives a 0-d tensor.
/// @throws c10::ValueError for a loss that is not 0-d, and for a loss without a gradient. The message has the reason:
/// NoGradGuard or InferenceMode, frozen parameters, or a loss that does not depend on a parameter.
///
/// @code
/// attend::TrainingStep step(model, attend::MeanSquaredError(), optimizer);
/// torch::Tensor loss = step(inputs, targets);
/// @endcode
template <class Model, class Loss>
class TrainingStep {
 public:
  /// @param model A module holder or shared_ptr of a module. It is shared, not copied.
  /// @param loss The loss function.
  /// @param optimizer It must outlive the step.
  /// @param autocast As TrainerOptions::autocast. Default: none.
  TrainingStep(Model model, Loss loss, torch::optim::Optimizer& optimizer,
               std::optional<at::ScalarType> autocast = std::nullopt)
      : model_(std::move(model)), loss_(std::move(loss)), optimizer_(&optimizer), autocast_(autocast) {}

  /// Replaces the gradients by those of this loss.
  ///
  /// @param inputs The inputs of the model, on its device.
  /// @param targets What the loss compares the outputs with.
  /// @return The loss, detached: a 0-d tensor.
  torch::Tensor backward(const torch::Tensor& inputs, const torch::Tensor& targets) {
    zero_gradients();
    const torch::Tensor loss = loss_of(inputs, targets);
    loss.backward();
    return loss.detach();
  }

  /// Adds the gradient of weight · loss to the gradients, for updates that several batches share.
  ///
  /// @param inputs The inputs of the model, on its device.
  /// @param targets What the loss compares the outputs with.
  /// @param weight 0-d, on the device of the loss. It is a tensor, so that the call reads no number from the host.
  /// @return The loss itself, detached: a 0-d tensor.
  torch::Tensor accumulate(const torch::Tensor& inputs, const torch::Tensor& targets, const torch::Tensor& weight) {
    const torch::Tensor loss = loss_of(inputs, targets);
    loss.backward(weight.to(loss.scalar_type()));
    return loss.detach();
  }

  /// Forgets all gradients.
  void zero_gradients() { optimizer_->zero_grad(); }

  /// Moves the parameters by their gradients.
  void update() { optimizer_->step(); }

  /// backward() and update().
  ///
  /// @param inputs The inputs of the model, on its device.
  /// @param targets What the loss compares the outputs with.
  /// @return The loss before the update, detached: a 0-d tensor.
  torch::Tensor operator()(const torch::Tensor& inputs, const torch::Tensor& targets) {
    torch::Tensor loss = backward(inputs, targets);
    update();
    return loss;
  }

 private:
  torch::Tensor loss_of(const torch::Tensor& inputs, const torch::Tensor& targets) {
    const detail::AutocastScope autocast(autocast_, inputs.device().type());
    const torch::Tensor loss = detail::loss_of(model_, loss_, inputs, targets, *optimizer_);
    if (!loss.requires_grad()) detail::refuse_loss("attend::TrainingStep", *optimizer_);
    return loss;
  }

  Model model_;
  Loss loss_;
  torch::optim::Optimizer* optimizer_;
  std::optional<at::ScalarType> autocast_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
