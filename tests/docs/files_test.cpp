// SPDX-License-Identifier: MIT

// The C++ of docs/files.md. readme_test.py compares it with the page; this test checks its results.

#include <attend/attend.h>
#include <attend/io.h>

#include "support/reference_data.h"
#include "support/temporary_folder.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>
#include <string>
#include <vector>

// clang-format off: the lines are the page's

namespace {

/// A temporary working folder, with files of tests/python/make_state_dicts.py.
class WorkingFolder {
 public:
  WorkingFolder() : before_(::get_current_dir_name()) {
    for (const auto& [from, to] : std::map<std::string, std::string>{{"layer", "layer"}, {"checkpoint", "run"}, {"notebook_attention", "notebook"}})
      std::ofstream(folder_.file(to + ".pt"), std::ios::binary)
          << std::ifstream(attend::test::reference_file("state_dicts/" + from + ".pt"), std::ios::binary).rdbuf();
    for (const char* name : {"layer.safetensors", "model.safetensors"})
      folder_.file(name);
    REQUIRE(::chdir(folder_.path().c_str()) == 0);
  }
  ~WorkingFolder() {
    CHECK(::chdir(before_) == 0);
    std::free(before_);
  }
  WorkingFolder(const WorkingFolder&) = delete;
  WorkingFolder& operator=(const WorkingFolder&) = delete;

 private:
  attend::test::TemporaryFolder folder_;
  char* before_;
};

}  // namespace

TEST_CASE("docs/files.md: safetensors and torch.save in both directions, and options") {
  const WorkingFolder folder;
  attend::MultiheadAttention layer(64, 4);
  attend::save_safetensors(attend::state_dict(*layer), "layer.safetensors");

  const torch::Tensor saved = layer->in_proj_weight.clone();
  layer->_reset_parameters();
  attend::load_state_dict(*layer, attend::load_safetensors("layer.safetensors"));
  attend::load_state_dict(*layer, attend::load_torch_file("layer.pt"));
  CHECK(layer->in_proj_weight.equal(attend::load_torch_file("layer.pt")["in_proj_weight"]));

  attend::StateDict weights = attend::load_torch_file("run.pt", "model");
  CHECK(weights.keys() == std::vector<std::string>{"weight", "bias"});

  const attend::StateDict larger = attend::renamed(
      attend::load_torch_file("layer.pt"), {attend::Rename::pattern("^", "encoder."), attend::Rename::drop("in_proj_bias")});
  auto options = attend::LoadOptions().prefix("encoder.").convert_dtype(true).strict(false);
  attend::LoadReport report = attend::load_state_dict(*layer, larger, options);
  for (const std::string& name : report.missing) std::cout << name << " keeps its initial values\n";
  CHECK(report.missing == std::vector<std::string>{"in_proj_bias"});

  attend::load_state_dict(*layer, attend::load_safetensors("layer.safetensors"));
  CHECK(layer->in_proj_weight.equal(saved));
}

TEST_CASE("docs/files.md: the safetensors format") {
  const WorkingFolder folder;
  torch::nn::Linear model(3, 2);
  attend::StateDict weights;
  weights.insert("encoder.weight", torch::ones({2, 3}));
  attend::save_safetensors(weights, "model.safetensors");

  weights = attend::load_safetensors("model.safetensors");
  torch::Tensor weight = weights["encoder.weight"];
  CHECK(weight.equal(torch::ones({2, 3})));
  {
    attend::SafetensorsFile file("model.safetensors");
    for (const std::string& name : file.names())
      std::cout << name << ' ' << file.dtype(name) << ' ' << file.sizes(name) << '\n';
    torch::Tensor weight = file.tensor("encoder.weight");  // a view of the file, without copy
    file.read("encoder.weight", model->weight);            // into the memory of a parameter
    CHECK(weight.equal(model->weight));
  }
  std::string path = attend::save_safetensors(weights, "model.safetensors",
                                              attend::SafetensorsOptions()
                                                  .metadata({{"format", "pt"}})   // texts by name
                                                  .max_shard_size(5'000'000'000)  // bytes of one file
                                                  .drop_tied(true));              // see below
  weights = attend::load_safetensors(path);
  CHECK(weights.keys() == std::vector<std::string>{"encoder.weight"});
}

TEST_CASE("docs/files.md: rules for the notebook, for packed projections and for GPT-2") {
  const WorkingFolder folder;
  torch::nn::Sequential net(attend::ConvStack(attend::ConvStackOptions(1, 64, 64).depth(2).activation_after_last(true)),
                            attend::SelfAttention1d(64, 64, 64),
                            attend::ConvStack(attend::ConvStackOptions(64, 64, 1).depth(2)));
  std::vector<attend::Rename> notebook = {
      attend::Rename::pattern("^[02]\\.", "0.$&"),  // $& is the whole match
      attend::Rename::pattern("^4\\.conv_Q", "1.query"),
      attend::Rename::pattern("^4\\.conv_K", "1.key"),
      attend::Rename::pattern("^4\\.conv_V", "1.value"),
      attend::Rename::pattern("^5\\.", "2.0."),
      attend::Rename::pattern("^7\\.", "2.2."),
  };
  attend::load_state_dict(*net, attend::load_torch_file("notebook.pt"), attend::LoadOptions().rules(notebook));

  const std::map<std::string, torch::Tensor> expected = attend::test::reference_data("state_dicts/notebook");
  net->to(torch::kDouble);
  const torch::Tensor y = net->forward(expected.at("signal").to(torch::kDouble));
  CHECK((y - expected.at("attention_float64")).abs().max().item<double>() <= 1e-12);

  auto packed = attend::Rename::merge(
      {"q_proj\\.(weight|bias)$", "k_proj\\.(weight|bias)$", "v_proj\\.(weight|bias)$"}, "in_proj_$1");
  auto separate = attend::Rename::split("in_proj_(weight|bias)$", {"q_proj.$1", "k_proj.$1", "v_proj.$1"});

  const attend::StateDict layer = attend::load_torch_file("layer.pt");
  CHECK(attend::renamed(layer, {separate}).contains("k_proj.bias"));
  CHECK(attend::renamed(layer, {separate, packed})["in_proj_weight"].equal(layer["in_proj_weight"]));

  attend::StateDict saved;  // the names and sizes of a layer of width 4
  saved.insert("h.0.attn.bias", torch::ones({1, 1, 8, 8}, torch::kBool).tril());
  saved.insert("h.0.attn.c_attn.weight", torch::randn({4, 12}));
  saved.insert("h.0.attn.c_attn.bias", torch::randn({12}));
  saved.insert("h.0.attn.c_proj.weight", torch::randn({4, 4}));
  saved.insert("h.0.attn.c_proj.bias", torch::randn({4}));
  attend::MultiheadAttention attention(4, 2);

  std::vector<attend::Rename> gpt2 = {
      attend::Rename::drop("\\.attn\\.bias$"),  // the causal masks
      attend::Rename::transpose("\\.c_(attn|proj|fc)\\.weight$"),
      attend::Rename::pattern("\\.attn\\.c_attn\\.", ".attn.in_proj_"),
      attend::Rename::pattern("\\.attn\\.c_proj\\.", ".attn.out_proj."),
  };
  attend::load_state_dict(*attention, attend::renamed(saved, gpt2), attend::LoadOptions().prefix("h.0.attn."));
  CHECK(attention->in_proj_weight.equal(saved["h.0.attn.c_attn.weight"].t()));
  CHECK(attention->out_proj->weight.equal(saved["h.0.attn.c_proj.weight"].t()));
}

TEST_CASE("docs/files.md: a loop saves checkpoints, and the next run of the program continues") {
  const WorkingFolder work;
  torch::Tensor first_weight;
  for (int run = 0; run < 2; ++run) {
    torch::nn::Linear model(3, 2);
    torch::optim::SGD optimizer(model->parameters(), 0.1);
    attend::CheckpointFolder folder("run");
    std::int64_t epoch = 0;
    if (std::optional<attend::CheckpointData> data = folder.newest()) {
      attend::load_training_state(*data, *model, optimizer);  // model, optimizer, random number generators
      epoch = std::stoll(data->metadata.at("epoch"));
    }
    for (; epoch < 10; ++epoch) {
      // … train for one epoch …
      attend::CheckpointData data;
      attend::add_training_state(data, *model, optimizer);
      data.metadata["epoch"] = std::to_string(epoch + 1);
      folder.save(data, {epoch + 1, 0}, /*keep_last=*/3);
    }
    CHECK(folder.files().size() == 3);
    if (run == 0) first_weight = model->weight;
    CHECK(model->weight.equal(first_weight));  // loaded in the second run
  }
}

// clang-format on
