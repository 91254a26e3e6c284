// SPDX-License-Identifier: MIT
#pragma once

#include <attend/training/step_capture.h>

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

namespace attend::detail {

/// What a fit fixes for all its steps.
struct StepPlan {
  StepCapture* capture = nullptr;  ///< null: the plain loop
  torch::Device device = torch::kCPU;
  bool accumulates = false;  ///< several batches share an update
  bool is_split = false;     ///< something happens between gradients and update
  bool keeps_loss = false;   ///< somebody sees a batch's loss, and may hold it beyond the batch
};

/// Runs the training steps of one fit, one by one, or captured and replayed where a StepCapture can do that.
///
///   the first kWarmUp full batches: plain steps, in which everything that is made once is made
///   the next full batch that begins an update: the step is captured, as a whole or in two parts if it is split
///   from there: full batches are replays, smaller ones plain steps
///
/// A replay writes the gradients where the captured step left them. A plain step makes new ones; they are put aside
/// before the next replay, so that whoever looks at a parameter's gradient sees that of the last batch.
template <class Step>
class StepRunner {
 public:
  static constexpr int kWarmUp = 3;

  /// how: what explain() says, kept up to date.
  StepRunner(Step& step, torch::nn::Module& model, torch::optim::Optimizer& optimizer, const StepPlan& plan,
             std::string& how)
      : step_(step), model_(model), optimizer_(optimizer), plan_(plan), how_(how) {
    loss_sum_ = at::zeros({}, at::device(plan.device).dtype(torch::kDouble));
    if (plan.accumulates) weight_ = at::empty({}, loss_sum_.options());
  }

  void begin_epoch() {
    loss_sum_.zero_();
    if (backward_.replay && signature() != captured_signature_) forget();
  }

  /// The gradients of a batch, or its share of them. Returns its loss.
  ///
  /// is_full: it has as many samples as a batch can have. begins: it is the first of its update. weight: its share of
  /// the samples of its update.
  torch::Tensor backward(const torch::Tensor& inputs, const torch::Tensor& targets, bool is_full, bool begins,
                         double weight) {
    set_weight(weight);
    is_updated_ = false;
    if (plan_.capture != nullptr && is_full) {
      if (!backward_.replay && begins && warm_batches_ >= kWarmUp) capture(inputs, targets);
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
    // What a callback has put in a gradient's place is not what the captured update reads.
    if (update_.replay && gradients() == captured_gradients_) {
      before_replay();
      update_.replay();
    } else {
      step_.update();
    }
  }

  /// Over the epoch so far, of all samples. Waits for the device.
  double loss_sum() const { return loss_sum_.template item<double>(); }

 private:
  /// A gradient of each parameter, compared by identity.
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

  torch::Tensor gradients_and_sum(const torch::Tensor& inputs, const torch::Tensor& targets) {
    torch::Tensor loss =
        plan_.accumulates ? step_.accumulate(inputs, targets, weight_) : step_.backward(inputs, targets);
    loss_sum_ += loss * inputs.size(0);
    return loss;
  }

  void capture(const torch::Tensor& inputs, const torch::Tensor& targets) {
    captured_signature_ = signature();
    captured_gradients_ = gradients();
    expected_gradients_ = captured_gradients_.defined();
    loss_ = at::empty({}, loss_options_);
    before_replay();
    // Gradients that are added to must be there; those that are written belong to the recording.
    if (plan_.accumulates) zero_captured_gradients();
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
      // The state of a parameter that never had a gradient was made while capturing: each replay would make it anew.
      if (captured_gradients_.defined() != expected_gradients_)
        give_up("parameters have a gradient in some batches only");
    }
    return loss;
  }

  /// The plain loop from here on.
  void give_up(const std::string& reason) {
    forget();
    plan_.capture = nullptr;
    how_ = "plain loop: " + reason;
  }

  void forget() {
    backward_ = update_ = {};
    captured_gradients_ = {};
    warm_batches_ = 0;
  }

  void before_replay() { dynamic_cast<CapturableOptimizer&>(optimizer_).before_replay(); }

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

  /// What a recording takes for granted and a callback may change between epochs: modes, frozen parameters, tensors.
  std::vector<std::uintptr_t> signature() const {
    std::vector<std::uintptr_t> signature;
    for (const auto& module : model_.modules()) signature.push_back(module->is_training());
    for (const auto& group : optimizer_.param_groups()) {
      for (const torch::Tensor& parameter : group.params()) {
        signature.push_back(reinterpret_cast<std::uintptr_t>(parameter.data_ptr()));
        signature.push_back(parameter.requires_grad());
      }
    }
    return signature;
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
  std::vector<std::uintptr_t> captured_signature_;
};

}  // namespace attend::detail
