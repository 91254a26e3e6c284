// SPDX-License-Identifier: MIT
#include <attend/io/state_dict.h>
#include <attend/layers/multihead_attention.h>
#include <attend/layers/self_attention1d.h>

#include "support/errors.h"
#include "support/temporary_folder.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>

#include <limits>
#include <memory>
#include <string>
#include <vector>

namespace {

using attend::LoadOptions, attend::LoadReport, attend::Rename, attend::StateDict, attend::load_state_dict,
    attend::state_dict;
using attend::test::message_of;
using Names = std::vector<std::string>;

/// The names and sizes of a module, with other values.
StateDict others(const torch::nn::Module& module) {
  StateDict dict;
  for (const auto& item : state_dict(module)) dict.insert(item.key(), (item.value() + 2).to(item.value().dtype()));
  return dict;
}

/// A state dict with one tensor replaced, or without it if `tensor` is undefined.
StateDict with(const StateDict& dict, const std::string& name, const torch::Tensor& tensor = {}) {
  StateDict result;
  for (const auto& item : dict)
    if (item.key() != name) result.insert(item.key(), item.value());
  if (tensor.defined()) result.insert(name, tensor);
  return result;
}

void check_equal(const StateDict& a, const StateDict& b) {
  CHECK(a.keys() == b.keys());
  for (const auto& item : a) CHECK(item.value().equal(b[item.key()]));
}

/// The message of load_state_dict(), which must leave the module unchanged.
std::string refusal(torch::nn::Module& module, const StateDict& dict, const LoadOptions& options = {}) {
  StateDict before;
  for (const auto& item : state_dict(module)) before.insert(item.key(), item.value().clone());
  const std::string message = message_of<c10::ValueError>([&] { load_state_dict(module, dict, options); });
  check_equal(state_dict(module), before);
  return message;
}

torch::nn::Sequential net() {
  return torch::nn::Sequential(torch::nn::Conv1d(1, 4, 3), torch::nn::BatchNorm1d(4), torch::nn::Conv1d(4, 2, 3));
}

/// One weight in two modules, as in a language model.
struct TiedImpl : torch::nn::Module {
  torch::nn::Embedding embedding = register_module("embedding", torch::nn::Embedding(5, 4));
  struct Output : torch::nn::Module {
    explicit Output(const torch::Tensor& weight) { register_parameter("weight", weight); }
  };
  std::shared_ptr<Output> output = register_module("output", std::make_shared<Output>(embedding->weight));
};
TORCH_MODULE(Tied);

}  // namespace

TEST_CASE("state_dict: names in Python's order, tensors that share the memory and need no gradient") {
  const torch::nn::Sequential model = net();
  const StateDict dict = state_dict(*model);
  // The order of torch.nn.Module.state_dict: module by module.
  CHECK(dict.keys() == Names{"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var",
                             "1.num_batches_tracked", "2.weight", "2.bias"});
  CHECK(dict["0.weight"].is_alias_of(model->parameters()[0]));
  CHECK(!dict["0.weight"].requires_grad());
  CHECK(state_dict(*Tied()).keys() == Names{"embedding.weight", "output.weight"});
}

TEST_CASE("load_state_dict: a SafetensorsFile gives what its state dict gives, with rules and conversion too") {
  const attend::test::TemporaryFolder folder;
  const std::string path = folder.file("model.safetensors");
  torch::nn::Sequential from = net(), to = net();
  attend::save_safetensors(state_dict(*from), path);
  load_state_dict(*to, attend::SafetensorsFile(path));
  check_equal(state_dict(*to), state_dict(*from));

  torch::nn::Linear large(200, 300), wide(200, 300);  // larger than the tensors that are copied at once
  const torch::Tensor before = large->weight;
  attend::save_safetensors(with(state_dict(*large), "weight", torch::randn({200, 300})), path);
  const auto transposed = LoadOptions().rules({Rename::transpose("weight")});
  load_state_dict(*large, attend::SafetensorsFile(path), transposed);
  CHECK(large->weight.is_same(before));
  CHECK(large->weight.equal(attend::load_safetensors(path)["weight"].t()));
  attend::save_safetensors(state_dict(*large), path);
  const auto version = wide->weight._version();
  load_state_dict(*wide, attend::SafetensorsFile(path));
  check_equal(state_dict(*wide), state_dict(*large));
  CHECK(wide->weight._version() > version);
  wide->to(torch::kDouble);
  load_state_dict(*wide, attend::SafetensorsFile(path), LoadOptions().convert_dtype(true));
  CHECK(wide->weight.equal(large->weight.to(torch::kDouble)));
  CHECK(message_of<c10::ValueError>([&] {
          load_state_dict(*net(), attend::SafetensorsFile(path));
        }).find("the state dict does not fit the module") != std::string::npos);
}

TEST_CASE("load_state_dict: an expanded buffer cannot be written, so the state dict must have its elements") {
  struct Expanded : torch::nn::Module {
    Expanded() {
      register_parameter("weight", torch::zeros({2}));
      register_buffer("mask", torch::ones({1, 1}).expand({8, 8}));
    }
  } module;
  StateDict dict;
  dict.insert("weight", torch::ones({2}));
  dict.insert("mask", torch::zeros({8, 8}));
  CHECK(refusal(module, dict).find("\"mask\": expected the elements that the module has") != std::string::npos);
  dict["mask"].fill_(1);
  load_state_dict(module, dict);
  CHECK(module.parameters()[0].equal(torch::ones({2})));
}

TEST_CASE("load_state_dict: parameters and buffers are copied, gradients and identity of the tensors stay") {
  torch::nn::Sequential from = net(), to = net();
  from->forward(torch::randn({2, 1, 9}));
  const torch::Tensor weight = to->parameters()[0];
  const LoadReport report = load_state_dict(*to, state_dict(*from));
  CHECK(report.missing.empty());
  CHECK(report.unexpected.empty());
  check_equal(state_dict(*to), state_dict(*from));
  CHECK(to->parameters()[0].is_same(weight));
  CHECK(weight.requires_grad());
  CHECK(!weight.is_alias_of(from->parameters()[0]));
}

TEST_CASE("load_state_dict: the error lists missing, unexpected and wrong tensors with the nearest names") {
  torch::nn::Sequential model = net();
  const StateDict dict = others(*model);
  const auto renamed = [&](const char* from, const char* to) {
    return attend::renamed(dict, {Rename::pattern(from, to)});
  };
  struct Case {
    StateDict dict;
    Names expected;
  };
  const Case cases[] = {
      {renamed("^0.weight", "0.weigth"),
       {"missing \"0.weight\" [4, 1, 3]; the state dict has \"0.weigth\" [4, 1, 3]",
        "unexpected \"0.weigth\" [4, 1, 3]; the module has \"0.weight\" [4, 1, 3]"}},
      {renamed("running_", "moving_"),
       {"missing \"1.running_mean\" [4]; the state dict has \"1.moving_mean\" [4]",
        "missing \"1.running_var\" [4]; the state dict has \"1.moving_var\" [4]"}},
      {with(dict, "0.bias"), {"missing \"0.bias\" [4]"}},
      {with(dict, "very_different", torch::zeros({2})), {"unexpected \"very_different\" [2]"}},
      {with(dict, "2.bias", torch::zeros({3})), {"\"2.bias\": expected sizes [2], found [3]"}},
      {with(dict, "2.bias", torch::zeros({2}, torch::kDouble)),
       {"\"2.bias\": expected dtype Float, found Double. Pass LoadOptions().convert_dtype(true) to convert it"}},
      {with(dict, "1.num_batches_tracked", torch::zeros({})),
       {"\"1.num_batches_tracked\": expected dtype Long, found Float"}},
      {with(dict, "2.bias", torch::empty({2}, torch::kMeta)),
       {"\"2.bias\": expected a tensor with data, found one on the device meta"}},
      {with(dict, "2.bias", torch::zeros({2}).to_sparse()),
       {"\"2.bias\": expected a dense tensor, found a sparse one"}},
      {renamed("^", "module."),
       {"missing \"0.weight\" [4, 1, 3]; the state dict has \"module.0.weight\" [4, 1, 3]",
        "the names in the state dict begin with \"module.\": pass LoadOptions().prefix(\"module.\")"}},
  };
  for (const Case& c : cases) {
    const std::string message = refusal(*model, c.dict);
    CAPTURE(message);
    CHECK(message.starts_with("attend::load_state_dict: the state dict does not fit the module:\n- "));
    for (const std::string& expected : c.expected) CHECK(message.find("\n- " + expected) != std::string::npos);
  }

  torch::nn::Module outer;
  outer.register_module("net", net());
  CHECK(refusal(outer, dict)
            .find("the names in the module begin with \"net.\": pass "
                  "LoadOptions().rules({attend::Rename::pattern(\"^\", \"net.\")})") != std::string::npos);

  torch::nn::Linear linear(3, 5);
  StateDict transposed = others(*linear);
  transposed["weight"] = torch::zeros({3, 5});
  CHECK(refusal(*linear, transposed)
            .find("expected sizes [5, 3], found [3, 5]. attend::Rename::transpose() would make "
                  "them equal") != std::string::npos);
}

TEST_CASE("load_state_dict: the error lists at most ten names of each kind, and the number of others") {
  StateDict dict;
  for (int i = 0; i < 2000; ++i) dict.insert("layers." + std::to_string(i) + ".weight", torch::zeros({1}));
  torch::nn::Linear linear(1, 1);
  const std::string message = refusal(*linear, dict);
  CHECK(message.find("and 1990 more unexpected names") != std::string::npos);
  CHECK(message.size() < 3000);
}

TEST_CASE("load_state_dict: strict(false) returns missing and unexpected names, but refuses wrong sizes and no names") {
  torch::nn::Sequential model = net();
  const StateDict dict = with(with(others(*model), "0.bias"), "more", torch::zeros({1}));
  const LoadOptions options = LoadOptions().strict(false);
  const LoadReport report = load_state_dict(*model, dict, options);
  CHECK(report.missing == Names{"0.bias"});
  CHECK(report.unexpected == Names{"more"});
  CHECK(model->parameters()[0].equal(dict["0.weight"]));

  CHECK(refusal(*model, with(dict, "2.bias", torch::zeros({3})), options).find("expected sizes [2], found [3]") !=
        std::string::npos);
  StateDict none;
  none.insert("x", torch::zeros({1}));
  CHECK(refusal(*model, none, options).find("unexpected \"x\" [1]") != std::string::npos);
}

TEST_CASE("load_state_dict: prefix selects names and is taken away, rules follow") {
  torch::nn::Sequential model = net();
  const StateDict dict = others(*model);
  StateDict larger = attend::renamed(dict, {Rename::pattern("^", "encoder."), Rename::pattern("running", "moving")});
  larger.insert("decoder.weight", torch::zeros({1}));
  load_state_dict(*model, larger, LoadOptions().prefix("encoder.").rules({Rename::pattern("moving", "running")}));
  check_equal(state_dict(*model), dict);
  CHECK(refusal(*model, larger, LoadOptions().prefix("enc_")) ==
        "attend::load_state_dict: no name begins with the prefix \"enc_\". The first name is \"encoder.0.weight\"");
}

TEST_CASE("load_state_dict: convert_dtype converts to more general dtypes and to lower precision, and to no others") {
  torch::nn::Linear model(2, 2);
  const LoadOptions options = LoadOptions().convert_dtype(true);
  StateDict dict;
  dict.insert("weight", torch::tensor({{0.1, 2.5}, {-1.0, 0.0}}, torch::kDouble));
  dict.insert("bias", torch::tensor({3, -4}));
  load_state_dict(*model, dict, options);
  CHECK(model->weight.equal(dict["weight"].to(torch::kFloat)));
  CHECK(model->bias.equal(torch::tensor({3.0f, -4.0f})));
  model->to(torch::kBFloat16);
  load_state_dict(*model, dict, options);
  CHECK(model->weight.equal(dict["weight"].to(torch::kBFloat16)));
  const StateDict complex = with(dict, "bias", torch::zeros({2}, torch::kComplexFloat));
  CHECK(refusal(*model, complex, options).find("expected dtype BFloat16, found ComplexFloat") != std::string::npos);
}

TEST_CASE("load_state_dict: tied weights need one name; two names must have equal elements") {
  Tied from, to;
  const StateDict both = others(*from);
  for (const std::string name : {"embedding.weight", "output.weight"}) {
    to = Tied();
    const LoadReport report = load_state_dict(*to, with(both, name));
    CHECK(report.missing.empty());
    CHECK(to->embedding->weight.equal(both["embedding.weight"]));
  }
  to = Tied();
  load_state_dict(*to, both);
  CHECK(to->embedding->weight.equal(both["embedding.weight"]));
  CHECK(
      refusal(*to, with(both, "output.weight", torch::zeros({5, 4})))
          .find(
              "\"embedding.weight\" and \"output.weight\": expected equal elements, because they are one tensor in the "
              "module, found different ones") != std::string::npos);
  const torch::Tensor nan = torch::full({5, 4}, std::numeric_limits<float>::quiet_NaN());
  load_state_dict(*to, with(with(both, "embedding.weight", nan), "output.weight", nan.clone()));
  CHECK(to->embedding->weight.isnan().all().item<bool>());
}

TEST_CASE("load_state_dict: a state dict of the module itself with exchanged names") {
  torch::nn::Sequential model(torch::nn::Linear(3, 3), torch::nn::Linear(3, 3));
  const torch::Tensor first = model->parameters()[0].clone(), second = model->parameters()[2].clone();
  load_state_dict(
      *model, state_dict(*model),
      LoadOptions().rules({Rename::pattern("^0", "x"), Rename::pattern("^1", "0"), Rename::pattern("^x", "1")}));
  CHECK(model->parameters()[0].equal(second));
  CHECK(model->parameters()[2].equal(first));
}

TEST_CASE("load_state_dict: a module on the device meta is refused, and one without tensors loads nothing") {
  torch::nn::Module model;
  model.register_parameter("weight", torch::empty({2, 2}, torch::kMeta));
  StateDict dict;
  dict.insert("weight", torch::zeros({2, 2}));
  const std::string message = message_of<c10::ValueError>([&] { load_state_dict(model, dict); });
  CHECK(message.find("\"weight\": expected a tensor with data, found one on the device meta") != std::string::npos);
  torch::nn::ReLU empty;
  CHECK(load_state_dict(*empty, StateDict()).missing.empty());
}

TEST_CASE("load_state_dict: torch::nn::MultiheadAttention and attend::MultiheadAttention exchange state dicts") {
  for (const bool has_bias_kv : {false, true}) {
    torch::nn::MultiheadAttention torchs(torch::nn::MultiheadAttentionOptions(8, 2).add_bias_kv(has_bias_kv));
    attend::MultiheadAttention ours(attend::MultiheadAttentionOptions(8, 2).add_bias_kv(has_bias_kv));
    load_state_dict(*ours, others(*torchs));
    load_state_dict(*torchs, state_dict(*ours));
    check_equal(state_dict(*ours), state_dict(*torchs));
  }
}
