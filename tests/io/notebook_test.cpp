// SPDX-License-Identifier: MIT

// Tests that the weights of the notebook "Attention intuition" give its outputs in the nets of the experiment.

#include <attend/io/rename.h>
#include <attend/io/safetensors.h>
#include <attend/io/state_dict.h>
#include <attend/io/torch_file.h>

#include "../examples/support/shape_net.h"
#include "support/reference_data.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <map>
#include <string>
#include <vector>

namespace {

using attend::LoadOptions, attend::LoadReport, attend::Rename, attend::StateDict;

/// From the names of the notebook to those of ShapeNet.
std::vector<Rename> notebook_names(bool has_attention) {
  if (!has_attention) return {Rename::pattern("^", "before.")};
  return {Rename::pattern("^[02]\\.", "before.$&"),
          Rename::pattern("^4\\.conv_Q", "attention.query"),
          Rename::pattern("^4\\.conv_K", "attention.key"),
          Rename::pattern("^4\\.conv_V", "attention.value"),
          Rename::pattern("^5\\.", "after.0."),
          Rename::pattern("^7\\.", "after.2.")};
}

double error(const torch::Tensor& value, const torch::Tensor& exact) {
  return (value.to(torch::kDouble) - exact).abs().max().item<double>();
}

}  // namespace

TEST_CASE(
    "load_state_dict: the weights of the notebook, of torch.save and of safetensors, give the notebook's outputs") {
  const torch::NoGradGuard no_grad;
  const std::map<std::string, torch::Tensor> notebook = attend::test::reference_data("state_dicts/notebook");
  const torch::Tensor signal = notebook.at("signal");  // (3, 1, 100)
  for (const bool has_attention : {false, true}) {
    const std::string name = has_attention ? "attention" : "convolution";
    const torch::Tensor exact = notebook.at(name + "_float64"), python = notebook.at(name + "_float32");
    const std::string path = attend::test::reference_file("state_dicts/notebook_" + name);
    for (const StateDict& dict :
         {attend::load_torch_file(path + ".pt"), attend::load_safetensors(path + ".safetensors")}) {
      ShapeNet net(ShapeNetOptions().attention(has_attention));
      const LoadReport report =
          attend::load_state_dict(*net, dict, LoadOptions().strict(false).rules(notebook_names(has_attention)));
      // The notebook does not standardize, which is what mean 0 and deviation 1 do.
      CHECK(report.missing == std::vector<std::string>{"standardize.mean", "standardize.deviation"});
      CHECK(report.unexpected.empty());
      CHECK(error(net(signal), exact) <= 2 * error(python, exact) + 1e-6);
      net->to(torch::kDouble);
      CHECK(error(net(signal.to(torch::kDouble)), exact) <= 1e-12);
    }
  }
}

TEST_CASE("load_state_dict: attend::SelfAttention1d loads the attention layer of the notebook with prefix and rules") {
  const StateDict dict = attend::load_torch_file(attend::test::reference_file("state_dicts/notebook_attention.pt"));
  attend::SelfAttention1d layer(64, 64, 64);
  attend::load_state_dict(*layer, dict,
                          LoadOptions().prefix("4.").rules({Rename::exact("conv_Q.weight", "query.weight"),
                                                            Rename::exact("conv_K.weight", "key.weight"),
                                                            Rename::exact("conv_V.weight", "value.weight")}));
  CHECK(layer->query->weight.equal(dict["4.conv_Q.weight"]));
  CHECK(layer->key->weight.equal(dict["4.conv_K.weight"]));
  CHECK(layer->value->weight.equal(dict["4.conv_V.weight"]));
}
