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

/// The loss of a batch, or another number that `name` names. Throws unless it is a 0-d tensor, because any other shape
/// would silently give a wrong sum. Exceptions of model and loss are passed on, with a hint if the inputs do not fit
/// the parameters.
template <class Model, class Loss>
torch::Tensor loss_of(Model& model, Loss& loss, const torch::Tensor& inputs, const torch::Tensor& targets,
                      const torch::optim::Optimizer& optimizer, const char* name = "attend::TrainingStep: the loss") {
  torch::Tensor value;
  try {
    value = loss(model->forward(inputs), targets);
  } catch (c10::Error& error) {
    if (const std::string hint = why_inputs_do_not_fit(inputs, optimizer); !hint.empty()) error.add_context(hint);
    throw;
  }
  TORCH_CHECK_VALUE(value.dim() == 0, name, " must be a 0-d tensor, got ", value.sizes());
  return value;
}

}  // namespace detail

/// One training step: set the gradients to zero, compute forward pass, loss and backward pass, update the parameters.
///
/// backward() and update() are the two halves of a step. Call them in place of operator() to change gradients before
/// the update, for example to clip them.
///
/// A step can be captured in a CUDA graph if model, loss and optimizer do not wait for the device, and do not read host
/// numbers that change between steps. attend::Adam and attend::AdamW satisfy both conditions.
///
/// Autocast applies to the forward pass and the loss. The backward pass uses the dtypes of the forward pass.
///
/// @tparam Model A module holder or a shared_ptr of a module. `model->forward(inputs)` returns the outputs.
/// @tparam Loss `loss(outputs, targets)` returns a 0-d tensor.
/// @throws c10::ValueError for a loss that is not 0-d, and for a loss that requires no gradient. The message has the
/// reason: NoGradGuard or InferenceMode, frozen parameters, or a loss that does not depend on a parameter.
///
/// @code
/// attend::TrainingStep step(model, attend::MeanSquaredError(), optimizer);
/// torch::Tensor loss = step(inputs, targets);
/// @endcode
template <class Model, class Loss>
class TrainingStep {
 public:
  /// A step of this model, loss and optimizer.
  ///
  /// @param model A module holder or shared_ptr of a module. It is shared, not copied.
  /// @param loss The loss function.
  /// @param optimizer It must outlive the step.
  /// @param autocast As TrainerOptions::autocast. Default: none.
  TrainingStep(Model model, Loss loss, torch::optim::Optimizer& optimizer,
               std::optional<at::ScalarType> autocast = std::nullopt)
      : model_(std::move(model)), loss_(std::move(loss)), optimizer_(&optimizer), autocast_(autocast) {}

  /// Computes the loss of a batch, and replaces the gradients of the parameters by the gradients of this loss.
  ///
  /// @param inputs The inputs of the model, on its device.
  /// @param targets The targets of the loss.
  /// @return The loss, detached: a 0-d tensor.
  torch::Tensor backward(const torch::Tensor& inputs, const torch::Tensor& targets) {
    zero_gradients();
    const torch::Tensor loss = loss_of(inputs, targets);
    loss.backward();
    return loss.detach();
  }

  /// Computes the loss of a batch, and adds the gradients of weight · loss to the gradients of the parameters. Use it
  /// if several batches share one update.
  ///
  /// @param inputs The inputs of the model, on its device.
  /// @param targets The targets of the loss.
  /// @param weight The factor of the loss, a 0-d tensor on the device of the loss. It is a tensor so that its value can
  /// change between replays of a captured step.
  /// @return The loss without the factor, detached: a 0-d tensor.
  torch::Tensor accumulate(const torch::Tensor& inputs, const torch::Tensor& targets, const torch::Tensor& weight) {
    const torch::Tensor loss = loss_of(inputs, targets);
    loss.backward(weight.to(loss.scalar_type()));
    return loss.detach();
  }

  /// Resets the gradients of all parameters, as `optimizer.zero_grad()` does.
  void zero_gradients() { optimizer_->zero_grad(); }

  /// Updates the parameters by their gradients, as `optimizer.step()` does.
  void update() { optimizer_->step(); }

  /// The whole step: backward(), then update().
  ///
  /// @param inputs The inputs of the model, on its device.
  /// @param targets The targets of the loss.
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
