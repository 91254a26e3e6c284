// SPDX-License-Identifier: MIT
#pragma once

// What the models of Hugging Face's transformers share. Each model is one header: its modules, and the rules that map
// Hugging Face's names to those of attend.

#include <attend/io/rename.h>
#include <attend/io/safetensors.h>
#include <attend/io/state_dict.h>
#include <attend/layers/multihead_attention_call.h>

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace attend::test {

/// The states of a model: the input of each layer, then the output of the model.
using States = std::vector<torch::Tensor>;

/// Applies layers one after the other, then the last norm. The cache, if there is one, has an entry for each layer.
template <class Layer, class Norm>
States states_of_layers(torch::nn::ModuleList& layers, Norm& norm, torch::Tensor x,
                        const MultiheadAttentionCall& given) {
  States states;
  MultiheadAttentionCall call = given;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(layers->size()); ++i) {
    states.push_back(x);
    x = layers->at<Layer>(static_cast<std::size_t>(i)).forward(x, call.cache_layer(i));
  }
  states.push_back(norm->forward(x));
  return states;
}

/// Loads a file with the names of Hugging Face, whose numbers are float32.
inline void load_hugging_face(torch::nn::Module& module, const std::string& path, const std::vector<Rename>& rules) {
  load_state_dict(module, SafetensorsFile(path), LoadOptions().rules(rules).convert_dtype(true));
}

}  // namespace attend::test
