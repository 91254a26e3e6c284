// SPDX-License-Identifier: MIT

// A model that turns a text into a vector: the mean of BERT's vectors of the tokens, scaled to length 1. The cosine of
// two texts is then the product of their vectors.
//
// Source: N. Reimers and I. Gurevych, Sentence-BERT (2019), https://arxiv.org/abs/1908.10084.
#pragma once

#include "bert.h"
#include "tokenizer.h"

#include <attend/io/detail/json.h>
#include <attend/io/detail/mapped_file.h>

#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

class Embedder {
 public:
  /// Loads config.json, vocab.txt and model.safetensors from a folder.
  explicit Embedder(const std::filesystem::path& folder, std::int64_t max_tokens)
      : tokenizer_((folder / "vocab.txt").string()),
        options_(read_options((folder / "config.json").string())),
        model_(options_) {
    if (max_tokens > options_.max_position_embeddings)
      throw std::runtime_error("the model reads at most " + std::to_string(options_.max_position_embeddings) +
                               " tokens");
    max_tokens_ = static_cast<std::size_t>(max_tokens);
    attend::load_state_dict(*model_, attend::SafetensorsFile((folder / "model.safetensors").string()),
                            attend::LoadOptions().rules(bert_names()));
    model_->eval();
  }

  /// The vectors of texts (N, E), in their order. `progress(texts, all)` is called after each batch.
  template <class Progress>
  torch::Tensor operator()(const std::vector<std::string>& texts, const Progress& progress) {
    const torch::NoGradGuard no_grad;
    std::vector<std::vector<std::int64_t>> tokens;
    tokens.reserve(texts.size());
    for (const std::string& text : texts) tokens.push_back(tokenizer_(text, max_tokens_));
    // Texts of similar length share a batch, so that its parts take equally long.
    std::vector<std::size_t> order(texts.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, {}, [&](std::size_t i) { return tokens[i].size(); });
    torch::Tensor vectors = torch::empty({static_cast<std::int64_t>(texts.size()), options_.hidden_size});
    for (std::size_t begin = 0, end = 0; begin < order.size(); begin = end) {
      std::vector<std::int64_t> ids, positions, rows;
      std::vector<std::int32_t> offsets{0};
      for (; end < order.size() && (end == begin || ids.size() + tokens[order[end]].size() <= kTokensOfBatch); ++end) {
        const std::vector<std::int64_t>& text = tokens[order[end]];
        ids.insert(ids.end(), text.begin(), text.end());
        positions.resize(ids.size());
        std::iota(positions.end() - static_cast<std::ptrdiff_t>(text.size()), positions.end(), 0);
        offsets.push_back(static_cast<std::int32_t>(ids.size()));
        rows.push_back(static_cast<std::int64_t>(order[end]));
      }
      const PackedTexts packed{torch::tensor(ids), torch::tensor(positions), torch::tensor(offsets, torch::kInt)};
      vectors.index_copy_(0, torch::tensor(rows), embedded(packed));
      progress(end, order.size());
    }
    return vectors;
  }

 private:
  static constexpr std::size_t kTokensOfBatch = 2048;

  torch::Tensor embedded(const PackedTexts& texts) {
    const torch::Tensor lengths = texts.offsets.diff().to(torch::kLong);                         // (N)
    const torch::Tensor means = torch::segment_reduce(model_->forward(texts), "mean", lengths);  // (N, E)
    return means / means.norm(2, 1, /*keepdim=*/true);
  }

  static BertOptions read_options(const std::string& path) {
    BertOptions options;
    const attend::detail::MappedFile file(path, "Embedder");
    attend::detail::JsonReader json(file.bytes(), "Embedder", path);
    const std::map<std::string, std::int64_t BertOptions::*> sizes = {
        {"vocab_size", &BertOptions::vocab_size},
        {"max_position_embeddings", &BertOptions::max_position_embeddings},
        {"type_vocab_size", &BertOptions::type_vocab_size},
        {"hidden_size", &BertOptions::hidden_size},
        {"num_hidden_layers", &BertOptions::num_hidden_layers},
        {"num_attention_heads", &BertOptions::num_attention_heads},
        {"intermediate_size", &BertOptions::intermediate_size},
    };
    json.object([&](const std::string& name) {
      if (const auto size = sizes.find(name); size != sizes.end())
        options.*size->second = json.integer();
      else if (name == "layer_norm_eps")
        options.layer_norm_eps = json.number();
      else if (name != "hidden_act")
        json.skip();
      else if (json.string() != "gelu")
        json.fail("hidden_act must be gelu");
    });
    json.end();
    return options;
  }

  Tokenizer tokenizer_;
  BertOptions options_;
  Bert model_;
  std::size_t max_tokens_;
};
