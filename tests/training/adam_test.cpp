// SPDX-License-Identifier: MIT
#include <attend/training/adam.h>

#include "support/errors.h"
#include "support/reference_data.h"
#include "training/support.h"

#include <ATen/ops/_efficientzerotensor.h>
#include <doctest/doctest.h>
#include <torch/nn/modules/embedding.h>
#include <torch/optim/schedulers/step_lr.h>
#include <torch/serialize.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

using attend::test::message_of;
using attend::test::normal;
using torch::optim::OptimizerParamGroup;
using Tensors = std::vector<torch::Tensor>;

namespace adam_test {
namespace {

struct OfAdam {
  using Ours = attend::Adam;
  using Theirs = torch::optim::Adam;
  using Options = torch::optim::AdamOptions;
  static inline const std::string kName = "attend::Adam";
  static inline const std::string kReference = "adam";
};

struct OfAdamW {
  using Ours = attend::AdamW;
  using Theirs = torch::optim::AdamW;
  using Options = torch::optim::AdamWOptions;
  static inline const std::string kName = "attend::AdamW";
  static inline const std::string kReference = "adamw";
};

template <class Kind>
using Ours = typename Kind::Ours;
template <class Kind>
using Theirs = typename Kind::Theirs;
template <class Kind>
using Options = typename Kind::Options;

template <class Kind>
struct NamedOptions {
  std::string name;
  Options<Kind> options;
};

template <class Kind>
const std::vector<NamedOptions<Kind>> kOptions = {
    {"default", Options<Kind>()},
    {"betas", Options<Kind>(0.01).betas({0.5, 0.9})},
    {"eps", Options<Kind>(0.01).eps(0.1)},
    {"weight_decay", Options<Kind>(0.01).weight_decay(0.2)},
    {"amsgrad", Options<Kind>(0.01).amsgrad(true)},
    {"all", Options<Kind>(0.02).betas({0.8, 0.95}).eps(1e-3).weight_decay(0.1).amsgrad(true)},
};

/// Parameters of several ranks.
Tensors parameters(torch::ScalarType dtype = torch::kDouble) {
  Tensors result;
  for (const std::vector<std::int64_t>& sizes : std::vector<std::vector<std::int64_t>>{{3, 4}, {5}, {2, 3, 2, 2}, {}})
    result.push_back(normal(sizes, 100 + result.size()).to(dtype).requires_grad_());
  return result;
}

/// Other tensors with the same values and strides.
Tensors copies(const Tensors& tensors) {
  Tensors result;
  for (const torch::Tensor& tensor : tensors) {
    auto copy = torch::empty_strided(tensor.sizes(), tensor.strides(), tensor.options());
    result.push_back(copy.copy_(tensor.detach()).requires_grad_());
  }
  return result;
}

/// Sets the gradient of each parameter for a step. It is the same for every optimizer and becomes smaller with time, so
/// that amsgrad has an effect.
void set_gradients(const Tensors& parameters, int step) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const torch::Tensor& parameter = parameters[i];
    const torch::Tensor gradient = normal(parameter.sizes().vec(), 1000 * step + i) / (1 + 0.1 * step);
    parameter.mutable_grad() = torch::empty_like(parameter).copy_(gradient).detach();
  }
}

using SetGradients = std::function<void(const Tensors&, int step)>;

/// Takes the steps first … last − 1.
void run(torch::optim::Optimizer& optimizer, const Tensors& parameters, int first, int last,
         const SetGradients& set = set_gradients) {
  for (int step = first; step < last; ++step) {
    set(parameters, step);
    optimizer.step();
  }
}

double largest_difference(const Tensors& a, const Tensors& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const torch::Tensor difference = (a[i].detach().to(torch::kDouble) - b[i].detach().to(torch::kDouble)).abs();
    REQUIRE(difference.isfinite().all().item<bool>());
    largest = std::max(largest, difference.max().item<double>());
  }
  return largest;
}

constexpr double kEqual = 1e-12;

/// The largest difference between our optimizer and torch's after 50 equal steps from copies of these parameters.
template <class Kind>
double difference_from_torch(const Tensors& initial, const Options<Kind>& options,
                             const SetGradients& set = set_gradients) {
  const Tensors ours = copies(initial), theirs = copies(initial);
  Ours<Kind> our_optimizer(ours, options);
  Theirs<Kind> their_optimizer(theirs, options);
  run(our_optimizer, ours, 0, 50, set);
  run(their_optimizer, theirs, 0, 50, set);
  CHECK(largest_difference(ours, initial) > 0.01);
  return largest_difference(ours, theirs);
}

template <class From, class To>
void copy_by_archive(const From& from, To& to) {
  std::stringstream stream;
  torch::save(from, stream);
  torch::load(to, stream);
}

}  // namespace

TEST_CASE_TEMPLATE("Adam, AdamW: fifty steps in float64 equal those of torch's optimizer, with every option", Kind,
                   OfAdam, OfAdamW) {
  for (const NamedOptions<Kind>& row : kOptions<Kind>) {
    CAPTURE(row.name);
    CHECK(difference_from_torch<Kind>(parameters(), row.options) <= kEqual);
  }
}

TEST_CASE_TEMPLATE("Adam, AdamW: fifty steps in float32 are as close to float64 as those of torch's optimizer", Kind,
                   OfAdam, OfAdamW) {
  for (const NamedOptions<Kind>& row : kOptions<Kind>) {
    CAPTURE(row.name);
    const Tensors initial = parameters(torch::kFloat);
    Tensors in_double;
    for (const torch::Tensor& tensor : initial)
      in_double.push_back(tensor.detach().to(torch::kDouble).requires_grad_());
    const Tensors ours = copies(initial), theirs = copies(initial);
    Ours<Kind> our_optimizer(ours, row.options);
    Theirs<Kind> their_optimizer(theirs, row.options), double_optimizer(in_double, row.options);
    // All three optimizers get gradients that float32 can represent.
    const SetGradients set = [](const Tensors& tensors, int step) {
      set_gradients(tensors, step);
      for (const torch::Tensor& tensor : tensors)
        tensor.mutable_grad() = tensor.grad().to(torch::kFloat).to(tensor.scalar_type());
    };
    run(our_optimizer, ours, 0, 50, set);
    run(their_optimizer, theirs, 0, 50, set);
    run(double_optimizer, in_double, 0, 50, set);
    CHECK(largest_difference(ours, in_double) <= 2 * largest_difference(theirs, in_double) + 1e-6);
  }
}

TEST_CASE_TEMPLATE("betas: with beta1 = 0 a small gradient after a large one counts in full, also in float32", Kind,
                   OfAdam, OfAdamW) {
  const Options<Kind> options = Options<Kind>(0.1).betas({0.0, 0.0});
  const Tensors ours{torch::ones({7}).requires_grad_()}, theirs{torch::ones({7}, torch::kDouble).requires_grad_()};
  Ours<Kind> our_optimizer(ours, options);
  Theirs<Kind> their_optimizer(theirs, options);
  const SetGradients set = [](const Tensors& tensors, int step) {
    tensors[0].mutable_grad() = torch::full_like(tensors[0], step == 0 ? 1e3f : 1e-6f);
  };
  run(our_optimizer, ours, 0, 4, set);
  run(their_optimizer, theirs, 0, 4, set);
  CHECK(largest_difference(ours, theirs) < 1e-6);
}

TEST_CASE_TEMPLATE("Adam, AdamW: twenty steps in float64 equal those of Python's optimizer", Kind, OfAdam, OfAdamW) {
  const std::map<std::string, torch::Tensor> reference = attend::test::reference_data(Kind::kReference);
  const std::vector<std::string> names = {"weight", "bias", "kernel", "scalar"};
  for (const std::string name : {"default", "all"}) {
    CAPTURE(name);
    Tensors ours, gradients, theirs;
    for (const std::string& parameter : names) {
      ours.push_back(reference.at("initial." + parameter).clone().requires_grad_());
      gradients.push_back(reference.at("gradients." + parameter));
      theirs.push_back(reference.at(name + "." + parameter));
    }
    const auto row = std::find_if(kOptions<Kind>.begin(), kOptions<Kind>.end(),
                                  [&](const NamedOptions<Kind>& row) { return row.name == name; });
    Ours<Kind> optimizer(ours, row->options);
    run(optimizer, ours, 0, static_cast<int>(gradients[0].size(0)), [&](const Tensors& parameters, int step) {
      for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].mutable_grad() = gradients[i][step].clone();
    });
    CHECK(largest_difference(ours, theirs) <= kEqual);
  }
}

TEST_CASE_TEMPLATE("Adam, AdamW: each parameter group has its own options", Kind, OfAdam, OfAdamW) {
  const auto groups = [](const Tensors& tensors) {
    std::vector<OptimizerParamGroup> groups;
    groups.emplace_back(Tensors{tensors[0], tensors[1]}, std::make_unique<Options<Kind>>(Options<Kind>(0.1).eps(0.01)));
    groups.emplace_back(Tensors{tensors[2]}, std::make_unique<Options<Kind>>(Options<Kind>(0.001).weight_decay(0.5)));
    groups.emplace_back(Tensors{tensors[3]});  // the defaults
    return groups;
  };
  const Tensors ours = parameters(), theirs = parameters();
  Ours<Kind> our_optimizer(groups(ours), Options<Kind>(0.02));
  Theirs<Kind> their_optimizer(groups(theirs), Options<Kind>(0.02));
  run(our_optimizer, ours, 0, 50);
  run(their_optimizer, theirs, 0, 50);
  CHECK(largest_difference(ours, theirs) <= kEqual);
}

TEST_CASE_TEMPLATE("Adam, AdamW: a parameter that is listed twice, in one group or in two, takes one step", Kind,
                   OfAdam, OfAdamW) {
  const Tensors once = parameters(), twice = copies(once), in_two_groups = copies(once);
  Ours<Kind> expected(once, Options<Kind>(0.1));
  Tensors listed = twice;
  listed.push_back(twice[1]);
  Ours<Kind> optimizer(listed, Options<Kind>(0.1));
  Ours<Kind> of_groups(
      std::vector<torch::optim::OptimizerParamGroup>{torch::optim::OptimizerParamGroup(in_two_groups),
                                                     torch::optim::OptimizerParamGroup({in_two_groups[0]})},
      Options<Kind>(0.1));
  run(expected, once, 0, 3);
  run(optimizer, twice, 0, 3);
  run(of_groups, in_two_groups, 0, 3);
  CHECK(largest_difference(twice, once) == 0);
  CHECK(largest_difference(in_two_groups, once) == 0);

  // The same for a group added later, and after an archive.
  const Tensors later = copies(once);
  Ours<Kind> with_later_group(later, Options<Kind>(0.1));
  with_later_group.add_param_group(OptimizerParamGroup({later[2]}, std::make_unique<Options<Kind>>(0.1)));
  Ours<Kind> loaded(listed, Options<Kind>(0.1));
  std::stringstream archive;
  torch::save(optimizer, archive);
  torch::load(loaded, archive);
  run(expected, once, 3, 6);
  run(loaded, twice, 3, 6);
  CHECK(largest_difference(twice, once) == 0);

  const Tensors now = copies(later);
  Ours<Kind> alone(now, Options<Kind>(0.1));
  run(with_later_group, later, 0, 3);
  run(alone, now, 0, 3);
  CHECK(largest_difference(later, now) == 0);
}

TEST_CASE_TEMPLATE("Adam, AdamW: a gradient may have torch's negative bit", Kind, OfAdam, OfAdamW) {
  const SetGradients set_negatives = [](const Tensors& tensors, int step) {
    set_gradients(tensors, step);
    for (const torch::Tensor& tensor : tensors) tensor.mutable_grad() = torch::_neg_view(tensor.grad());
  };
  CHECK(difference_from_torch<Kind>(parameters(), Options<Kind>(0.1), set_negatives) <= kEqual);
}

TEST_CASE_TEMPLATE("Adam, AdamW: a gradient may be a zero tensor without memory, as some of torch's derivatives are",
                   Kind, OfAdam, OfAdamW) {
  const torch::Tensor parameter = torch::ones({3}).requires_grad_(), before = parameter.detach().clone();
  Ours<Kind> optimizer({parameter}, Options<Kind>(0.1).weight_decay(0));
  parameter.mutable_grad() = at::_efficientzerotensor({3});
  optimizer.step();
  CHECK(parameter.equal(before));
}

TEST_CASE_TEMPLATE("Adam, AdamW: an infinite parameter stays infinite without weight decay", Kind, OfAdam, OfAdamW) {
  const double infinity = std::numeric_limits<double>::infinity();
  const torch::Tensor parameter = torch::tensor({-infinity, 1.0, 2.0, 3.0, infinity}, torch::kFloat).requires_grad_();
  Ours<Kind> optimizer({parameter}, Options<Kind>(0.1).weight_decay(0));
  parameter.mutable_grad() = torch::tensor({0.0, 1.0, 1.0, 1.0, 0.0}, torch::kFloat);
  for (int step = 0; step < 2; ++step) optimizer.step();
  CHECK(parameter.isneginf()[0].item<bool>());
  CHECK(parameter.isposinf()[4].item<bool>());
  CHECK_FALSE(parameter.isnan().any().item<bool>());
}

TEST_CASE_TEMPLATE("Adam, AdamW: a step is refused if all parameters are frozen, but not if only some are", Kind,
                   OfAdam, OfAdamW) {
  const torch::Tensor first = torch::ones({2}), second = torch::ones({2});
  Ours<Kind> optimizer({first, second}, Options<Kind>(0.1));
  CHECK(message_of<c10::ValueError>([&] { optimizer.step(); }) ==
        Kind::kName + ": all parameters are frozen; call requires_grad_() on the parameters to train");
  second.set_requires_grad(true);
  CHECK_NOTHROW(optimizer.step());
  second.mul(2.0).sum().backward();
  optimizer.step();
  CHECK(first.eq(1.0).all().item<bool>());
  CHECK(second.lt(1.0).all().item<bool>());
}

TEST_CASE_TEMPLATE("Adam, AdamW: a parameter without a gradient is unchanged and has its own step count", Kind, OfAdam,
                   OfAdamW) {
  const SetGradients with_holes = [](const Tensors& tensors, int step) {
    set_gradients(tensors, step);
    if (step % 3 == 0) tensors[1].mutable_grad() = torch::Tensor();
    if (step < 40) tensors[2].mutable_grad() = torch::Tensor();
    tensors[3].mutable_grad() = torch::Tensor();
  };
  for (const NamedOptions<Kind>& row : kOptions<Kind>) {
    CAPTURE(row.name);
    CHECK(difference_from_torch<Kind>(parameters(), row.options, with_holes) <= kEqual);
  }
  const Tensors tensors = parameters();
  Ours<Kind> optimizer(tensors);
  run(optimizer, tensors, 0, 10, with_holes);
  CHECK(torch::equal(tensors[2], parameters()[2]));
  CHECK(torch::equal(tensors[3], parameters()[3]));
}

TEST_CASE_TEMPLATE("Adam, AdamW: parameters and gradients may have any strides without gaps, each its own", Kind,
                   OfAdam, OfAdamW) {
  const auto layouts = [](const torch::Tensor& tensor) {  // (2, 3, 2, 2), the same values in different orders of memory
    return Tensors{tensor.contiguous(), tensor.contiguous(torch::MemoryFormat::ChannelsLast),
                   tensor.transpose(0, 3).contiguous().transpose(0, 3)};
  };
  const torch::Tensor values = normal({2, 3, 2, 2}, 5);
  for (std::size_t of_parameter = 0; of_parameter < 3; ++of_parameter) {
    for (std::size_t of_gradient = 0; of_gradient < 3; ++of_gradient) {
      CAPTURE(of_parameter);
      CAPTURE(of_gradient);
      const Tensors initial = {layouts(values)[of_parameter]};
      const auto set = [&](const Tensors& tensors, int step) {
        tensors[0].mutable_grad() = layouts(normal({2, 3, 2, 2}, 50 + step))[of_gradient];
      };
      CHECK(difference_from_torch<Kind>(initial, Options<Kind>(0.01).amsgrad(true), set) <= kEqual);
    }
  }
}

TEST_CASE_TEMPLATE("Adam, AdamW: a gradient of any strides is read and never written", Kind, OfAdam, OfAdamW) {
  const torch::Tensor parameter = normal({3, 4}, 1).requires_grad_();
  for (const torch::Tensor& gradient : {normal({3, 4}, 2), normal({4, 3}, 3).t(), normal({1, 4}, 4).expand({3, 4}),
                                        normal({3, 8}, 5).slice(1, 0, 8, 2)}) {
    CAPTURE(gradient.strides());
    const torch::Tensor before = gradient.clone();
    const torch::Tensor theirs = parameter.detach().clone().requires_grad_();
    const torch::Tensor ours = parameter.detach().clone().requires_grad_();
    ours.mutable_grad() = gradient;
    theirs.mutable_grad() = before;
    const Options<Kind> options = Options<Kind>(0.1).weight_decay(0.3);
    Ours<Kind>(Tensors{ours}, options).step();
    Theirs<Kind>(Tensors{theirs}, options).step();
    CHECK(largest_difference({ours}, {theirs}) <= kEqual);
    CHECK(torch::equal(gradient, before));
  }
}

TEST_CASE_TEMPLATE("Adam, AdamW: parameters whose strides change between steps continue as in torch's optimizer", Kind,
                   OfAdam, OfAdamW) {
  const torch::Tensor ours = normal({2, 3, 2, 2}, 5).requires_grad_(), theirs = ours.detach().clone().requires_grad_();
  Ours<Kind> our_optimizer(Tensors{ours}, Options<Kind>(0.01).amsgrad(true));
  Theirs<Kind> their_optimizer(Tensors{theirs}, Options<Kind>(0.01).amsgrad(true));
  run(our_optimizer, {ours}, 0, 10);
  run(their_optimizer, {theirs}, 0, 10);
  ours.set_data(ours.detach().contiguous(torch::MemoryFormat::ChannelsLast));
  run(our_optimizer, {ours}, 10, 20);
  run(their_optimizer, {theirs}, 10, 20);
  CHECK(largest_difference({ours}, {theirs}) <= kEqual);
}

TEST_CASE_TEMPLATE("Adam, AdamW: one group may hold parameters of several dtypes", Kind, OfAdam, OfAdamW) {
  const Tensors both = {normal({4}, 1).requires_grad_(), normal({4}, 2).to(torch::kFloat).requires_grad_(),
                        normal({2, 2}, 3).requires_grad_(), normal({3}, 4).to(torch::kFloat).requires_grad_()};
  const Tensors ours = copies(both), theirs = copies(both);
  Ours<Kind> our_optimizer(ours, Options<Kind>(0.01));
  Theirs<Kind> their_optimizer(theirs, Options<Kind>(0.01));
  run(our_optimizer, ours, 0, 50);
  run(their_optimizer, theirs, 0, 50);
  CHECK(largest_difference({ours[0], ours[2]}, {theirs[0], theirs[2]}) <= kEqual);
  CHECK(largest_difference({ours[1], ours[3]}, {theirs[1], theirs[3]}) <= 1e-6);
}

TEST_CASE_TEMPLATE(
    "Adam, AdamW: a parameter with gaps in memory and a sparse gradient are refused, and nothing has changed", Kind,
    OfAdam, OfAdamW) {
  const torch::Tensor gaps = torch::ones({4, 4}).slice(1, 0, 2).detach().requires_grad_();
  gaps.mutable_grad() = torch::ones({4, 2});
  Ours<Kind> optimizer(Tensors{gaps});
  CHECK(message_of<c10::NotImplementedError>([&] { optimizer.step(); }) ==
        Kind::kName + ": a parameter must be dense in memory, got sizes [4, 2] with strides [4, 1]");
  CHECK(torch::equal(gaps, torch::ones({4, 2})));

  torch::nn::Embedding embedding(torch::nn::EmbeddingOptions(5, 2).sparse(true));
  const torch::Tensor before = embedding->weight.detach().clone();
  embedding->forward(torch::tensor({1, 3})).sum().backward();
  REQUIRE(embedding->weight.grad().is_sparse());
  Ours<Kind> of_embedding(embedding->parameters());
  CHECK(message_of<c10::NotImplementedError>([&] { of_embedding.step(); }) ==
        Kind::kName + ": sparse gradients are not supported");
  CHECK(torch::equal(embedding->weight, before));
}

TEST_CASE_TEMPLATE("Adam, AdamW: gradients and states of other sizes or dtypes are refused, and nothing has changed",
                   Kind, OfAdam, OfAdamW) {
  const Tensors tensors = {normal({2}, 1).requires_grad_(), normal({3}, 2).requires_grad_()};
  const Tensors before = {tensors[0].detach().clone(), tensors[1].detach().clone()};
  std::vector<OptimizerParamGroup> groups;
  for (const torch::Tensor& tensor : tensors) groups.emplace_back(Tensors{tensor});
  Ours<Kind> optimizer(groups, Options<Kind>());
  tensors[0].mutable_grad() = torch::ones({2}, torch::kDouble);
  const std::string rule = " of a parameter must have its dtype and sizes, Double [3], got ";
  for (const torch::Tensor& gradient : {torch::ones({4}, torch::kDouble), torch::ones({1}, torch::kDouble)}) {
    tensors[1].mutable_grad() = gradient;
    CHECK(message_of<c10::ValueError>([&] { optimizer.step(); }) ==
          Kind::kName + ": the gradient" + rule + "Double [" + std::to_string(gradient.size(0)) + "]");
  }
  tensors[1].mutable_grad() = torch::ones({3});
  CHECK(message_of<c10::ValueError>([&] { optimizer.step(); }) == Kind::kName + ": the gradient" + rule + "Float [3]");
  for (std::size_t i = 0; i < 2; ++i) CHECK(torch::equal(tensors[i], before[i]));

  const Tensors smaller = {normal({2}, 1).requires_grad_()}, larger = {normal({3}, 1).requires_grad_()};
  Ours<Kind> of_smaller(smaller), of_larger(larger);
  run(of_smaller, smaller, 0, 2);
  copy_by_archive(of_smaller, of_larger);
  larger[0].mutable_grad() = torch::ones({3}, torch::kDouble);
  CHECK(message_of<c10::ValueError>([&] { of_larger.step(); }) == Kind::kName + ": the state" + rule + "Double [2]");
}

TEST_CASE_TEMPLATE("Adam, AdamW: training continues after an archive that could not be read to its end", Kind, OfAdam,
                   OfAdamW) {
  const auto optimizer_of = [](const Tensors& tensors, std::size_t first_group) {
    std::vector<OptimizerParamGroup> groups;
    groups.emplace_back(Tensors(tensors.begin(), tensors.begin() + first_group));
    groups.emplace_back(Tensors(tensors.begin() + first_group, tensors.end()));
    return std::make_unique<Ours<Kind>>(groups, Options<Kind>());
  };
  const Tensors theirs = parameters(), ours = parameters();
  const auto other = optimizer_of(theirs, 2), optimizer = optimizer_of(ours, 2);
  other->add_param_group(OptimizerParamGroup({normal({1}, 1).requires_grad_()}));
  run(*other, theirs, 0, 3);
  run(*optimizer, ours, 0, 3);
  CHECK_THROWS_AS(copy_by_archive(*other, *optimizer), c10::Error);
  run(*other, theirs, 3, 6);
  run(*optimizer, ours, 3, 6);
  for (std::size_t i = 0; i < ours.size(); ++i) CHECK(torch::equal(ours[i], theirs[i]));
}

TEST_CASE_TEMPLATE("Adam, AdamW: no state is created while a step is captured", Kind, OfAdam, OfAdamW) {
  const Tensors tensors = parameters();
  Ours<Kind> optimizer(tensors);
  optimizer.set_capturing(true);
  CHECK(
      message_of<c10::Error>([&] { run(optimizer, tensors, 0, 1); }) ==
      Kind::kName +
          ": a state must exist before a step is captured; first run one step in which every parameter has a gradient");
  CHECK(optimizer.state_tensors().empty());
  optimizer.set_capturing(false);
  run(optimizer, tensors, 0, 1);
  CHECK(optimizer.state_tensors().size() == 3 * tensors.size() + 1);
  optimizer.set_capturing(true);
  run(optimizer, tensors, 1, 2);
}

TEST_CASE_TEMPLATE("Adam, AdamW: options out of range are refused, as in torch's optimizer", Kind, OfAdam, OfAdamW) {
  const std::vector<std::pair<Options<Kind>, std::string>> refused = {
      {Options<Kind>(-1), "Invalid learning rate: -1"},
      {Options<Kind>().eps(-1), "Invalid epsilon value: -1"},
      {Options<Kind>().betas({1, 0.9}), "Invalid beta parameter at index 0: 1"},
      {Options<Kind>().betas({0.9, -0.1}), "Invalid beta parameter at index 1: -0.1"},
      {Options<Kind>().weight_decay(-1), "Invalid weight_decay value: -1"},
  };
  for (const auto& row : refused)
    CHECK(message_of<c10::Error>([&] { Ours<Kind>(parameters(), row.first); }) == row.second);
}

TEST_CASE_TEMPLATE("lr: a learning-rate schedule of torch::optim takes effect, for each group from its own rate", Kind,
                   OfAdam, OfAdamW) {
  const auto groups = [](const Tensors& tensors) {
    std::vector<OptimizerParamGroup> groups;
    groups.emplace_back(Tensors{tensors[0], tensors[1]}, std::make_unique<Options<Kind>>(0.1));
    groups.emplace_back(Tensors{tensors[2], tensors[3]}, std::make_unique<Options<Kind>>(0.01));
    return groups;
  };
  const Tensors ours = parameters(), theirs = parameters();
  Ours<Kind> our_optimizer(groups(ours));
  Theirs<Kind> their_optimizer(groups(theirs));
  torch::optim::StepLR our_schedule(our_optimizer, 2, 0.25), their_schedule(their_optimizer, 2, 0.25);
  for (int step = 0; step < 7; ++step) {
    run(our_optimizer, ours, step, step + 1);
    run(their_optimizer, theirs, step, step + 1);
    our_schedule.step();
    their_schedule.step();
    CAPTURE(step);
    CHECK(largest_difference(ours, theirs) <= kEqual);
  }
  CHECK(our_optimizer.param_groups()[0].options().get_lr() == 0.1 / 64);
  CHECK(our_optimizer.param_groups()[1].options().get_lr() == 0.01 / 64);
}

TEST_CASE_TEMPLATE("Adam, AdamW: a learning rate set before the first step takes effect", Kind, OfAdam, OfAdamW) {
  const Tensors ours = parameters(), theirs = parameters();
  Ours<Kind> our_optimizer(ours, Options<Kind>(0.5));
  Theirs<Kind> their_optimizer(theirs, Options<Kind>(0.125));
  our_optimizer.param_groups()[0].options().set_lr(0.125);
  run(our_optimizer, ours, 0, 3);
  run(their_optimizer, theirs, 0, 3);
  CHECK(largest_difference(ours, theirs) <= kEqual);
}

TEST_CASE_TEMPLATE(
    "Adam, AdamW: a learning rate set between steps takes effect, also by an earlier reference to the options", Kind,
    OfAdam, OfAdamW) {
  const Tensors ours = parameters(), theirs = parameters();
  Ours<Kind> our_optimizer(ours, Options<Kind>(0.5));
  Theirs<Kind> their_optimizer(theirs, Options<Kind>(0.5));
  auto& our_options = static_cast<Options<Kind>&>(our_optimizer.param_groups()[0].options());
  auto& their_options = static_cast<Options<Kind>&>(their_optimizer.param_groups()[0].options());
  for (int step = 0; step < 4; ++step) {
    run(our_optimizer, ours, step, step + 1);
    run(their_optimizer, theirs, step, step + 1);
    CHECK(largest_difference(ours, theirs) <= kEqual);
    our_options.lr(0.25 / (step + 1));
    their_options.lr(0.25 / (step + 1));
  }
  CHECK(&our_options == &our_optimizer.param_groups()[0].options());
}

TEST_CASE_TEMPLATE("Adam, AdamW: references to the options of a group stay valid, also after loading an archive", Kind,
                   OfAdam, OfAdamW) {
  const Tensors tensors = parameters();
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(Tensors{tensors[0]}, std::make_unique<Options<Kind>>(0.1));
  groups.emplace_back(Tensors{tensors[1]});
  Ours<Kind> optimizer(groups), written(groups);
  optimizer.add_param_group(OptimizerParamGroup({tensors[2]}));
  written.add_param_group(OptimizerParamGroup({tensors[2]}));
  std::vector<torch::optim::OptimizerOptions*> before;
  for (auto& group : optimizer.param_groups()) before.push_back(&group.options());
  run(optimizer, {tensors[0], tensors[1], tensors[2]}, 0, 2);
  copy_by_archive(written, optimizer);
  for (std::size_t i = 0; i < before.size(); ++i) CHECK(&optimizer.param_groups()[i].options() == before[i]);
}

TEST_CASE_TEMPLATE("Adam, AdamW: a state on another device than its parameter is refused", Kind, OfAdam, OfAdamW) {
  const Tensors here = {normal({3}, 1).requires_grad_()};
  Ours<Kind> optimizer(here);
  run(optimizer, here, 0, 1);
  // Moves the parameter to another device and not its state, as model->to(device) does.
  const torch::Tensor there = torch::empty({3}, torch::device(torch::kMeta).dtype(torch::kDouble)).requires_grad_();
  there.mutable_grad() = torch::empty_like(there).detach();
  optimizer.param_groups()[0].params() = {there};
  auto& state = optimizer.state();
  auto moved = std::move(state.at(here[0].unsafeGetTensorImpl()));
  state[there.unsafeGetTensorImpl()] = std::move(moved);
  CHECK(message_of<c10::ValueError>([&] {
          optimizer.step();
        }).find(Kind::kName + ": the state (cpu) must be on the device of its parameter (meta); ") == 0);
}

TEST_CASE_TEMPLATE("Adam, AdamW: an optimizer read from its archive continues with the same bits", Kind, OfAdam,
                   OfAdamW) {
  for (const NamedOptions<Kind>& row : kOptions<Kind>) {
    CAPTURE(row.name);
    const Tensors whole = parameters();
    Ours<Kind> uninterrupted(whole, row.options);
    run(uninterrupted, whole, 0, 10);
    uninterrupted.param_groups()[0].options().set_lr(0.0625);

    const Tensors resumed = copies(whole);
    Ours<Kind> optimizer(resumed, Options<Kind>(0.75));  // the archive's options replace these
    // The archive replaces the state of these steps.
    run(optimizer, resumed, 90, 93);
    for (std::size_t i = 0; i < whole.size(); ++i) resumed[i].set_data(whole[i].detach().clone());
    copy_by_archive(uninterrupted, optimizer);
    CHECK(optimizer.param_groups()[0].options().get_lr() == 0.0625);

    run(uninterrupted, whole, 10, 20);
    run(optimizer, resumed, 10, 20);
    for (std::size_t i = 0; i < whole.size(); ++i) CHECK(torch::equal(whole[i], resumed[i]));
  }
}

TEST_CASE_TEMPLATE("Adam, AdamW: archives are exchanged with torch's optimizer, both ways", Kind, OfAdam, OfAdamW) {
  for (const NamedOptions<Kind>& row : kOptions<Kind>) {
    CAPTURE(row.name);
    const Tensors ours = parameters(), theirs = parameters();
    Ours<Kind> our_optimizer(ours, row.options);
    Theirs<Kind> their_optimizer(theirs, row.options);
    run(our_optimizer, ours, 0, 10);
    run(their_optimizer, theirs, 0, 10);

    const Tensors ours_from_theirs = copies(theirs), theirs_from_ours = copies(ours);
    Ours<Kind> our_heir(ours_from_theirs);
    Theirs<Kind> their_heir(theirs_from_ours);
    copy_by_archive(their_optimizer, our_heir);
    copy_by_archive(our_optimizer, their_heir);

    run(their_optimizer, theirs, 10, 20);
    run(our_heir, ours_from_theirs, 10, 20);
    run(their_heir, theirs_from_ours, 10, 20);
    CHECK(largest_difference(ours_from_theirs, theirs) <= kEqual);
    CHECK(largest_difference(theirs_from_ours, theirs) <= kEqual);
  }
}

TEST_CASE_TEMPLATE("Adam, AdamW: an archive written before the first step is read", Kind, OfAdam, OfAdamW) {
  const Tensors ours = parameters(), theirs = parameters();
  Ours<Kind> written(parameters(), Options<Kind>(0.03)), read(ours);
  Theirs<Kind> expected(theirs, Options<Kind>(0.03));
  copy_by_archive(written, read);
  run(read, ours, 0, 5);
  run(expected, theirs, 0, 5);
  CHECK(largest_difference(ours, theirs) <= kEqual);
}

TEST_CASE_TEMPLATE("Adam, AdamW: a parameter that is missing in an archive keeps its state, as in torch's optimizer",
                   Kind, OfAdam, OfAdamW) {
  const auto without_second = [](const Tensors& tensors, int step) {
    set_gradients(tensors, step);
    tensors[1].mutable_grad() = torch::Tensor();
  };
  const auto resumed = [&]<class Optimizer>(const Tensors& tensors) {
    const Tensors others = parameters();
    Optimizer written(others);
    run(written, others, 0, 4, without_second);
    Optimizer read(tensors);
    run(read, tensors, 0, 7);
    copy_by_archive(written, read);
    run(read, tensors, 7, 10);
  };
  const Tensors ours = parameters(), theirs = parameters();
  resumed.template operator()<Ours<Kind>>(ours);
  resumed.template operator()<Theirs<Kind>>(theirs);
  CHECK(largest_difference(ours, theirs) <= kEqual);
}

TEST_CASE_TEMPLATE("Adam, AdamW: an archive of contiguous parameters is read for channels-last ones", Kind, OfAdam,
                   OfAdamW) {
  const Tensors contiguous = {normal({2, 3, 2, 2}, 5).requires_grad_()};
  Ours<Kind> optimizer(contiguous, Options<Kind>(0.01).amsgrad(true));
  run(optimizer, contiguous, 0, 10);
  const Tensors channels_last = {contiguous[0].detach().contiguous(torch::MemoryFormat::ChannelsLast).requires_grad_()};
  Ours<Kind> heir(channels_last);
  copy_by_archive(optimizer, heir);
  run(optimizer, contiguous, 10, 20);
  run(heir, channels_last, 10, 20);
  CHECK(largest_difference(contiguous, channels_last) <= kEqual);
}

TEST_CASE_TEMPLATE("Adam, AdamW: a group that is added later starts with step 0", Kind, OfAdam, OfAdamW) {
  const auto trained = [&]<class Optimizer>(const Tensors& tensors) {
    Optimizer optimizer(Tensors{tensors[0], tensors[1]}, Options<Kind>(0.02));
    run(optimizer, tensors, 0, 5);
    optimizer.add_param_group(OptimizerParamGroup({tensors[2]}));
    optimizer.add_param_group(OptimizerParamGroup({tensors[3]}, std::make_unique<Options<Kind>>(0.1)));
    run(optimizer, tensors, 5, 10);
  };
  const Tensors ours = parameters(), theirs = parameters();
  trained.template operator()<Ours<Kind>>(ours);
  trained.template operator()<Theirs<Kind>>(theirs);
  CHECK(largest_difference(ours, theirs) <= kEqual);
}

TEST_CASE_TEMPLATE("amsgrad: it may be switched on and off between steps; the maximum counts from the switch on", Kind,
                   OfAdam, OfAdamW) {
  const Tensors ours = {torch::zeros({1}, torch::kDouble).requires_grad_()};
  Ours<Kind> optimizer(ours, Options<Kind>(1.0).betas({0.0, 0.5}).eps(0).weight_decay(0));
  const auto gradient = [](double value) {
    return
        [value](const Tensors& tensors, int) { tensors[0].mutable_grad() = torch::full({1}, value, torch::kDouble); };
  };
  run(optimizer, ours, 0, 1, gradient(1));  // v = 1/2, v̂ = 1: p = −1
  CHECK(ours[0].item<double>() == doctest::Approx(-1).epsilon(1e-12));
  static_cast<Options<Kind>&>(optimizer.param_groups()[0].options()).amsgrad(true);
  run(optimizer, ours, 1, 2, gradient(1));  // v = 3/4, v̂ = 1: p = −2
  CHECK(ours[0].item<double>() == doctest::Approx(-2).epsilon(1e-12));
  run(optimizer, ours, 2, 3, gradient(0.5));  // v = 1/2, the maximum stays 3/4: p = −2 − 0.5 / √(6/7)
  const double third = -2 - 0.5 / std::sqrt(6.0 / 7.0);
  CHECK(ours[0].item<double>() == doctest::Approx(third).epsilon(1e-12));
  static_cast<Options<Kind>&>(optimizer.param_groups()[0].options()).amsgrad(false);
  run(optimizer, ours, 3, 4, gradient(0.5));  // v = 3/8, v̂ = 2/5
  CHECK(ours[0].item<double>() == doctest::Approx(third - 0.5 / std::sqrt(0.4)).epsilon(1e-12));
}

TEST_CASE_TEMPLATE("Adam, AdamW: step() calls a closure once, with gradients enabled, and returns its loss", Kind,
                   OfAdam, OfAdamW) {
  const torch::Tensor parameter = torch::full({}, 2.0, torch::kDouble).requires_grad_();
  Ours<Kind> optimizer(Tensors{parameter}, Options<Kind>(0.5).eps(0).weight_decay(0));
  const torch::NoGradGuard no_grad;
  int calls = 0;
  const torch::Tensor loss = optimizer.step([&] {
    ++calls;
    torch::Tensor square = parameter * parameter;
    square.backward();
    return square;
  });
  CHECK(calls == 1);
  CHECK(loss.item<double>() == 4);
  CHECK(parameter.item<double>() == doctest::Approx(1.5).epsilon(1e-12));  // Adam's first step is the rate
  CHECK_FALSE(optimizer.step().defined());
}

}  // namespace adam_test
