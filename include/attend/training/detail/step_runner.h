// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/step_capture.h>
#include <attend/version.h>

#include <ATen/ops/_foreach_zero.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The settings that are the same for all steps of a fit.
struct StepPlan {
  StepCapture* capture = nullptr;  ///< null: the plain loop
  torch::Device device = torch::kCPU;
  bool accumulates = false;  ///< several batches share an update
  bool is_split = false;     ///< something happens between gradients and update
  bool keeps_loss = false;   ///< a callback sees the loss of a batch, and may keep it longer than the batch
};

/// Runs the training steps of one fit: one by one, or captured and replayed if a StepCapture can do that.
///
/// 1. The first kWarmUp full batches are plain steps, in which state and caches are created.
/// 2. The next full batch that begins an update is captured, as a whole, or in two parts if the step is split.
/// 3. After that, full batches are replays, and smaller batches are plain steps.
///
/// A replay writes the gradients to the tensors of the captured step. A plain step creates new gradients. Before the
/// next replay the captured ones are put back, so that a parameter always has the gradient of the last batch.
///
/// A recording contains addresses only. The tensors at these addresses are kept alive as long as the recording. At the
/// beginning of each epoch and before a capture, they are compared with the tensors in use.
template <class Step>
class StepRunner {
 public:
  static constexpr int kWarmUp = 3;

  /// how: the text for explain(), kept up to date.
  StepRunner(Step& step, torch::nn::Module& model, torch::optim::Optimizer& optimizer, const StepPlan& plan,
             std::string& how)
      : step_(step), model_(model), optimizer_(optimizer), plan_(plan), how_(how) {
    loss_sum_ = at::zeros({}, at::device(plan.device).dtype(torch::kDouble));
    if (plan.accumulates) weight_ = at::empty({}, loss_sum_.options());
  }

  void begin_epoch() {
    loss_sum_.zero_();
    if (plan_.capture == nullptr) return;
    forget_if_changed();
  }

  /// Computes the gradients of a batch. If several batches share an update, adds them to the gradients of the update.
  /// Returns the loss of the batch.
  ///
  /// is_full: the batch has batch_size samples. begins: it is the first batch of its update. weight: the fraction of
  /// the samples of its update that are in this batch.
  torch::Tensor backward(const torch::Tensor& inputs, const torch::Tensor& targets, bool is_full, bool begins,
                         double weight) {
    set_weight(weight);
    is_updated_ = false;
    if (backward_.replay && gradients().tensors.size() != captured_gradients_.tensors.size()) forget();
    if (plan_.capture != nullptr && is_full) {
      if (!backward_.replay && begins && warm_batches_ >= kWarmUp) {
        forget_if_changed();
        if (warm_batches_ > 0) capture(inputs, targets);
      }
      if (backward_.replay) return replay(begins);
      ++warm_batches_;
    }
    if (begins) step_.zero_gradients();
    const torch::Tensor loss = gradients_and_sum(inputs, targets);
    loss_options_ = loss.options();
    return loss;
  }

  void update() {
    if (is_updated_) return;
    // If a callback has replaced a gradient, the captured update would read the old one.
    if (update_.replay && gradients() == captured_gradients_) {
      before_replay();
      update_.replay();
    } else {
      step_.update();
      // The optimizer creates its state in the first steps.
      if (plan_.capture != nullptr && !backward_.replay) set_signature();
    }
  }

  /// The sum of the losses of all samples of the epoch so far. Waits for the device.
  double loss_sum() const { return loss_sum_.template item<double>(); }

  /// Continues an epoch after batches with this sum.
  void set_loss_sum(double sum) { loss_sum_.fill_(sum); }

 private:
  /// The gradient of each parameter. operator== compares tensor objects, not elements.
  struct Gradients {
    std::vector<torch::Tensor> tensors;
    friend bool operator==(const Gradients& a, const Gradients& b) {
      return std::equal(a.tensors.begin(), a.tensors.end(), b.tensors.begin(), b.tensors.end(),
                        [](const torch::Tensor& x, const torch::Tensor& y) { return x.is_same(y); });
    }
    std::vector<bool> defined() const {
      std::vector<bool> defined;
      for (const torch::Tensor& tensor : tensors) defined.push_back(tensor.defined());
      return defined;
    }
  };

  struct Capturing {
    explicit Capturing(CapturableOptimizer& captured) : optimizer(captured) { optimizer.set_capturing(true); }
    ~Capturing() { optimizer.set_capturing(false); }
    Capturing(const Capturing&) = delete;
    Capturing& operator=(const Capturing&) = delete;
    CapturableOptimizer& optimizer;
  };

  torch::Tensor gradients_and_sum(const torch::Tensor& inputs, const torch::Tensor& targets) {
    torch::Tensor loss =
        plan_.accumulates ? step_.accumulate(inputs, targets, weight_) : step_.backward(inputs, targets);
    loss_sum_.add_(loss, inputs.size(0));  // in float64, whatever the loss is
    return loss;
  }

  void capture(const torch::Tensor& inputs, const torch::Tensor& targets) {
    captured_gradients_ = gradients();
    expected_gradients_ = captured_gradients_.defined();
    loss_ = at::empty({}, loss_options_);
    before_replay();
    // With accumulation, gradients are added to and must exist. Otherwise the recording creates them.
    if (plan_.accumulates) zero_captured_gradients();
    const Capturing capturing(optimizer());
    backward_ = plan_.capture->capture([this, inputs, targets] {
      loss_.copy_(gradients_and_sum(inputs, targets));
      if (!plan_.is_split) step_.update();
    });
    if (backward_.replay && plan_.is_split) update_ = plan_.capture->capture([this] { step_.update(); });
    is_first_replay_ = true;
    if (!backward_.replay || (plan_.is_split && !update_.replay)) {
      const std::string error = backward_.replay ? update_.error : backward_.error;
      give_up("the step could not be captured: " + error);
      return;
    }
    how_ = plan_.capture->name() + (plan_.is_split ? "s of gradients and update" : " of the whole step") +
           ", replayed for full batches after the first " + std::to_string(kWarmUp);
  }

  torch::Tensor replay(bool begins) {
    if (begins && !is_first_replay_) {
      set_gradients(captured_gradients_);
      if (plan_.accumulates) zero_captured_gradients();
    }
    before_replay();
    backward_.replay();
    is_updated_ = !plan_.is_split;
    const torch::Tensor loss = plan_.keeps_loss ? loss_.clone() : loss_;
    if (is_first_replay_) {
      is_first_replay_ = false;
      captured_gradients_ = gradients();
      // A recording updates the same parameters in each replay.
      if (captured_gradients_.defined() != expected_gradients_)
        give_up("parameters have a gradient in some batches only");
    }
    return loss;
  }

  /// Continues with the plain loop.
  void give_up(const std::string& reason) {
    forget();
    plan_.capture = nullptr;
    how_ = "plain loop: " + reason;
  }

  void forget_if_changed() {
    if (signature() == signature_) return;
    forget();
    set_signature();
  }

  void forget() {
    backward_ = update_ = {};
    captured_gradients_ = {};
    warm_batches_ = 0;
  }

  CapturableOptimizer& optimizer() const { return dynamic_cast<CapturableOptimizer&>(optimizer_); }

  void before_replay() { optimizer().before_replay(); }

  void set_weight(double weight) {
    if (!plan_.accumulates || weight == written_weight_) return;
    weight_.fill_(weight);
    written_weight_ = weight;
  }

  void zero_captured_gradients() {
    std::vector<torch::Tensor> defined;
    for (const torch::Tensor& gradient : captured_gradients_.tensors) {
      if (gradient.defined()) defined.push_back(gradient);
    }
    at::_foreach_zero_(defined);
  }

  Gradients gradients() const {
    Gradients gradients;
    for (const auto& group : optimizer_.param_groups()) {
      for (const torch::Tensor& parameter : group.params()) gradients.tensors.push_back(parameter.grad());
    }
    return gradients;
  }

  void set_gradients(const Gradients& gradients) {
    std::size_t i = 0;
    for (const auto& group : optimizer_.param_groups()) {
      for (const torch::Tensor& parameter : group.params()) parameter.mutable_grad() = gradients.tensors[i++];
    }
  }

  /// The state that a recording depends on and a callback may change: modes, frozen parameters, tensors.
  std::vector<std::uintptr_t> signature() const {
    std::vector<std::uintptr_t> signature;
    for (const auto& module : model_.modules()) signature.push_back(module->is_training());
    for (const auto& group : optimizer_.param_groups()) {
      for (const torch::Tensor& parameter : group.params()) signature.push_back(parameter.requires_grad());
    }
    for (const torch::Tensor& tensor : tensors()) {
      signature.push_back(reinterpret_cast<std::uintptr_t>(tensor.data_ptr()));
    }
    return signature;
  }

  void set_signature() {
    signature_ = signature();
    in_use_ = tensors();
  }

  /// The tensors of the optimizer and the model, each as a new handle that keeps the memory alive.
  std::vector<torch::Tensor> tensors() const {
    std::vector<torch::Tensor> tensors = optimizer().state_tensors();
    for (const auto& group : optimizer_.param_groups())
      tensors.insert(tensors.end(), group.params().begin(), group.params().end());
    for (const auto& more : {model_.parameters(), model_.buffers()})
      tensors.insert(tensors.end(), more.begin(), more.end());
    for (torch::Tensor& tensor : tensors) tensor = tensor.detach();
    return tensors;
  }

  Step& step_;
  torch::nn::Module& model_;
  torch::optim::Optimizer& optimizer_;
  StepPlan plan_;
  std::string& how_;

  torch::Tensor loss_sum_;
  torch::Tensor weight_;
  double written_weight_ = -1.0;
  int warm_batches_ = 0;
  bool is_updated_ = false;

  StepCapture::Recording backward_, update_;
  bool is_first_replay_ = false;
  torch::Tensor loss_;
  torch::TensorOptions loss_options_;
  Gradients captured_gradients_;
  std::vector<bool> expected_gradients_;
  std::vector<std::uintptr_t> signature_;  // as of the last update by a plain step, or of the beginning of an epoch
  std::vector<torch::Tensor> in_use_;      // kept for the recording, even if callbacks replace them
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
