// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/const_data.h>
#include <attend/detail/torch/in_memory.h>
#include <attend/training/detail/adam_on_cpu.h>
#include <attend/training/detail/trainable.h>
#include <attend/training/step_capture.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/optim/optimizer.h>
#include <torch/serialize/archive.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The common part of attend::Adam and attend::AdamW: everything except the kernel.
///
/// Traits: torch's classes Optimizer, Options and State; kName; kIsDecayDecoupled; update(…), the fused call, which
/// takes the learning rate as a tensor. float32 parameters on the CPU are updated by adam_on_cpu.h instead.
template <class Traits>
class FusedAdam : public Traits::Optimizer, public CapturableOptimizer {
 public:
  using TorchOptimizer = typename Traits::Optimizer;
  using TorchOptions = typename Traits::Options;
  using TorchState = typename Traits::State;
  using LossClosure = torch::optim::Optimizer::LossClosure;

  explicit FusedAdam(const std::vector<torch::optim::OptimizerParamGroup>& groups, TorchOptions defaults = {})
      : TorchOptimizer(groups, std::move(defaults)) {
    // Options are replaced here, so that references that users take later stay valid. Groups without options copy the
    // defaults.
    this->defaults_ = std::make_unique<Options>(static_cast<const TorchOptions&>(*this->defaults_));
    for (auto& group : this->param_groups_) options_of(group);
    keep_each_once();
  }

  explicit FusedAdam(std::vector<torch::Tensor> parameters, TorchOptions defaults = {})
      : FusedAdam(std::vector{torch::optim::OptimizerParamGroup(std::move(parameters))}, std::move(defaults)) {}

  torch::Tensor step(LossClosure closure = nullptr) override {
    torch::Tensor loss;
    if (closure) {
      const at::AutoGradMode with_gradients(true);
      loss = closure();
    }
    const c10::NoGradGuard no_grad;
    keep_each_once();
    // A fused call takes one device and one dtype. All groups are checked before any parameter is updated.
    using Kind = std::tuple<c10::DeviceType, c10::DeviceIndex, c10::ScalarType>;
    std::vector<std::map<Kind, Tensors>> groups;
    for (auto& group : this->param_groups_) {
      const Options& options = options_of(group);
      auto& kinds = groups.emplace_back();
      for (const torch::Tensor& parameter : group.params()) {
        if (!parameter.grad().defined()) continue;
        kinds[{parameter.device().type(), parameter.device().index(), parameter.scalar_type()}].add(
            parameter, state_of(parameter, options), options.amsgrad());
      }
    }
    if (std::all_of(groups.begin(), groups.end(), [](const auto& kinds) { return kinds.empty(); }))
      check_trains_something(Traits::kName, *this);
    for (std::size_t i = 0; i < groups.size(); ++i) {
      Options& options = options_of(this->param_groups_[i]);
      for (auto& [kind, tensors] : groups[i]) {
        count_step(tensors.steps);
        if (tensors.can_update_on_cpu()) {
          tensors.update_on_cpu({options.lr(), std::get<0>(options.betas()), std::get<1>(options.betas()),
                                 options.eps(), options.weight_decay(), Traits::kIsDecayDecoupled});
          continue;
        }
        Traits::update(
            tensors.parameters, tensors.gradients, tensors.exp_avgs, tensors.exp_avg_sqs, tensors.max_exp_avg_sqs,
            tensors.steps, learning_rate_on(tensors.parameters[0].device(), options), std::get<0>(options.betas()),
            std::get<1>(options.betas()), options.weight_decay(), options.eps(), options.amsgrad(), /*maximize=*/false);
      }
    }
    return loss;
  }

  std::vector<torch::Tensor> state_tensors() const override {
    std::vector<torch::Tensor> tensors;
    for (const auto& group : this->param_groups_) {
      if (const auto* const options = dynamic_cast<const Options*>(&group.options())) {
        for (const auto& [device, rate] : options->learning_rates) tensors.push_back(rate);
      }
      for (const torch::Tensor& parameter : group.params()) {
        const auto found = this->state_.find(parameter.unsafeGetTensorImpl());
        const auto* const state = found == this->state_.end() ? nullptr : dynamic_cast<State*>(found->second.get());
        if (state == nullptr) continue;
        const torch::Tensor of_state[] = {state->device_step, state->exp_avg(), state->exp_avg_sq(),
                                          state->max_exp_avg_sq()};
        for (const torch::Tensor& tensor : of_state) {
          if (tensor.defined()) tensors.push_back(tensor);
        }
      }
    }
    return tensors;
  }

  void set_capturing(bool is_capturing) override { is_capturing_ = is_capturing; }

  /// Copies a learning rate to the device if lr(rate) of the options has changed it on the host only. lr() is not
  /// virtual, so it cannot make the copy itself.
  void before_replay() override {
    for (auto& group : this->param_groups_) options_of(group).refresh_rate();
  }

  /// Writes the same archive as torch's class.
  void save(torch::serialize::OutputArchive& archive) const override {
    for (const auto& entry : this->state_) {
      auto* const state = dynamic_cast<State*>(entry.second.get());
      if (state != nullptr) state->step(state->device_step.template item<std::int64_t>());
    }
    TorchOptimizer::save(archive);
  }

 private:
  /// torch's options, and the learning rate as a 0-d tensor on each device.
  struct Options : TorchOptions {
    explicit Options(const TorchOptions& options) : TorchOptions(options) {}

    std::unique_ptr<torch::optim::OptimizerOptions> clone() const override {
      return std::make_unique<Options>(static_cast<const TorchOptions&>(*this));
    }

    void set_lr(const double rate) override {
      TorchOptions::set_lr(rate);
      write_rate();
    }

    /// Writes the rate if it was changed by lr(rate) or by an archive, which bypass set_lr().
    void refresh_rate() {
      if (this->lr() != written_rate) write_rate();
    }

    void write_rate() {
      for (auto& [device, tensor] : learning_rates) tensor.fill_(this->lr());
      written_rate = this->lr();
    }

    double written_rate = this->lr();
    std::unordered_map<c10::Device, torch::Tensor> learning_rates;
  };

  /// torch's state, with the number of steps as a 0-d tensor. torch's own `step` is up to date only in an archive.
  struct State : TorchState {
    State() = default;
    explicit State(const TorchState& state) : TorchState(state) {
      device_step = at::full({}, static_cast<double>(this->step()), this->exp_avg().options().dtype(at::kFloat));
    }

    std::unique_ptr<torch::optim::OptimizerParamState> clone() const override {
      auto copy = std::make_unique<State>(*this);
      copy->device_step = device_step.clone();
      return copy;
    }

    torch::Tensor device_step;
  };

  /// The arguments of the fused call.
  struct Tensors {
    void add(const torch::Tensor& parameter, State& state, bool amsgrad) {
      const torch::Tensor& gradient = parameter.grad();
      TORCH_CHECK_NOT_IMPLEMENTED(!gradient.is_sparse(), Traits::kName, ": sparse gradients are not supported");
      for (const torch::Tensor& each : {gradient, state.exp_avg(), state.exp_avg_sq(), state.max_exp_avg_sq()}) {
        TORCH_CHECK_VALUE(
            !each.defined() || (each.sizes() == parameter.sizes() && each.scalar_type() == parameter.scalar_type()),
            Traits::kName, ": the ", each.is_same(gradient) ? "gradient" : "state",
            " of a parameter must have its dtype and sizes, ", parameter.scalar_type(), " ", parameter.sizes(),
            ", got ", each.scalar_type(), " ", each.sizes());
      }
      TORCH_CHECK_NOT_IMPLEMENTED(parameter.is_non_overlapping_and_dense(), Traits::kName,
                                  ": a parameter must be dense in memory, got sizes ", parameter.sizes(),
                                  " with strides ", parameter.strides());
      parameters.push_back(parameter);
      gradients.push_back(laid_out_as(parameter, in_memory(gradient)));  // the fused call writes to its inputs
      // The layout of the state differs if the parameter has a new layout, or had another one when it was saved.
      state.exp_avg(laid_out_as(parameter, state.exp_avg()));
      state.exp_avg_sq(laid_out_as(parameter, state.exp_avg_sq()));
      exp_avgs.push_back(state.exp_avg());
      exp_avg_sqs.push_back(state.exp_avg_sq());
      if (amsgrad) {
        state.max_exp_avg_sq(laid_out_as(parameter, state.max_exp_avg_sq()));
        max_exp_avg_sqs.push_back(state.max_exp_avg_sq());
      }
      steps.push_back(state.device_step);
    }

    /// The tensor with the strides of the parameter, a copy if necessary: the kernel reads all tensors in memory order.
    static at::Tensor laid_out_as(const at::Tensor& parameter, const at::Tensor& tensor) {
      return tensor.strides() == parameter.strides() ? tensor : at::empty_like(parameter).copy_(tensor);
    }

    bool can_update_on_cpu() const {
      for (const auto* each : {&parameters, &gradients, &exp_avgs, &exp_avg_sqs, &max_exp_avg_sqs})
        if (!std::all_of(each->begin(), each->end(), AdamOnCpu::can_update)) return false;
      return true;
    }

    void update_on_cpu(const AdamOnCpu::Settings& settings) const {
      std::vector<AdamOnCpu> updates;
      for (std::size_t i = 0; i < parameters.size(); ++i)
        updates.emplace_back(settings, *const_data<float>(steps[i]), parameters[i], gradients[i], exp_avgs[i],
                             exp_avg_sqs[i], max_exp_avg_sqs.empty() ? at::Tensor() : max_exp_avg_sqs[i]);
      AdamOnCpu::run(updates);
    }

    std::vector<at::Tensor> parameters, gradients, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps;
  };

  /// Removes repeated parameters, so that a parameter that is listed twice takes one step and has one place in an
  /// archive. With two places, torch::load() would fill the first and set the state of the parameter to null for the
  /// second.
  void keep_each_once() {
    std::unordered_set<const at::TensorImpl*> seen;
    for (auto& group : this->param_groups_)
      std::erase_if(group.params(), [&](const torch::Tensor& parameter) {
        return !seen.insert(parameter.unsafeGetTensorImpl()).second;
      });
  }

  /// Adds 1 to each step. On the CPU an addition by _foreach_add_ takes as long as the update of a small parameter.
  static void count_step(const std::vector<at::Tensor>& steps) {
    if (!steps[0].is_cpu()) return at::_foreach_add_(steps, 1);
    for (const at::Tensor& step : steps) *step.mutable_data_ptr<float>() += 1.0f;
  }

  State& state_of(const torch::Tensor& parameter, const Options& options) {
    const auto found = this->state_.find(parameter.unsafeGetTensorImpl());
    auto* known = found == this->state_.end() ? nullptr : dynamic_cast<State*>(found->second.get());
    if (known == nullptr || (options.amsgrad() && !known->max_exp_avg_sq().defined())) check_may_make("state");
    if (known == nullptr) {
      std::unique_ptr<State> made;
      if (found != this->state_.end()) {  // from an archive
        made = std::make_unique<State>(static_cast<const TorchState&>(*found->second));
      } else {
        made = std::make_unique<State>();
        made->exp_avg(at::zeros_like(parameter));
        made->exp_avg_sq(at::zeros_like(parameter));
        made->device_step = at::zeros({}, parameter.options().dtype(at::kFloat));
      }
      known = made.get();
      this->state_[parameter.unsafeGetTensorImpl()] = std::move(made);
    }
    State& state = *known;
    TORCH_CHECK_VALUE(state.device_step.device() == parameter.device(), Traits::kName, ": the state (",
                      state.device_step.device(), ") must be on the device of its parameter (", parameter.device(),
                      "); move the model before the optimizer's first step, and pass the device to torch::load");
    if (options.amsgrad() && !state.max_exp_avg_sq().defined()) state.max_exp_avg_sq(at::zeros_like(parameter));
    return state;
  }

  /// The learning rate as a tensor: float64 on the CPU, float32 elsewhere, because the CUDA kernel reads float32.
  const torch::Tensor& learning_rate_on(c10::Device device, Options& options) const {
    options.refresh_rate();
    torch::Tensor& tensor = options.learning_rates[device];
    if (!tensor.defined()) {
      check_may_make("learning rate");
      tensor = at::full({}, options.lr(), at::device(device).dtype(device.is_cpu() ? at::kDouble : at::kFloat));
    }
    return tensor;
  }

  /// Throws within a capture: a tensor that is created there has no valid contents before a replay.
  void check_may_make(const char* what) const {
    TORCH_CHECK(!is_capturing_, Traits::kName, ": a ", what,
                " must exist before a step is captured; first run one step in which every parameter has a gradient");
  }

  /// The options of the group. Options of torch's class are replaced by Options.
  static Options& options_of(torch::optim::OptimizerParamGroup& group) {
    if (dynamic_cast<Options*>(&group.options()) == nullptr)
      group.set_options(std::make_unique<Options>(static_cast<const TorchOptions&>(group.options())));
    return static_cast<Options&>(group.options());
  }

  bool is_capturing_ = false;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
