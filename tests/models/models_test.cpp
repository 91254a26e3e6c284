// SPDX-License-Identifier: MIT

// Models built from attend's layers give the hidden states of Hugging Face's transformers with the same weights, which
// tests/python/make_model_reference.py writes.

#include "models/bert.h"
#include "models/gemma2.h"
#include "models/gpt2.h"
#include "models/llama.h"
#include "models/t5_encoder.h"
#include "models/vit.h"

#include <attend/attention/key_value_cache.h>
#include <attend/io/safetensors.h>
#include <attend/io/state_dict.h>

#include "support/accuracy.h"
#include "support/reference_data.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

using attend::StateDict;
using attend::test::States;

namespace models_test {
namespace {

std::string folder_of(const std::string& model) { return attend::test::reference_file("models/" + model) + "/"; }

/// The states of Hugging Face's model, each with the number that its error may be divided by.
struct Expected {
  StateDict tensors;
  torch::Dtype dtype;

  Expected(const std::string& model, torch::Dtype kind)
      : tensors(attend::load_safetensors(folder_of(model) + "reference.safetensors")), dtype(kind) {}

  const torch::Tensor& state(std::size_t i) const {
    return tensors[(dtype == torch::kDouble ? "float64." : "float32.") + std::to_string(i)];
  }

  /// An error of 1e-5 in float32 and of 1e-11 in float64, of the largest number where it is above 1.
  void check(std::size_t i, const torch::Tensor& found, const torch::Tensor& wanted) const {
    CAPTURE(i);
    CHECK((found.scalar_type() == dtype));
    const double limit = dtype == torch::kDouble ? 1e-11 : 1e-5;
    CHECK(attend::test::max_difference(found, wanted) <= limit * attend::test::size_of(state(i)));
  }

  void check(const States& states) const {
    CHECK_FALSE(tensors.contains((dtype == torch::kDouble ? "float64." : "float32.") + std::to_string(states.size())));
    for (std::size_t i = 0; i < states.size(); ++i) check(i, states[i], state(i));
  }
};

constexpr torch::Dtype kDtypes[] = {torch::kFloat, torch::kDouble};

/// A causal model: all tokens at once, then one at a time and in pieces with each kind of cache.
template <class Model>
void check_causal(const std::string& name, Model& model, torch::Dtype dtype, std::int64_t layers,
                  std::int64_t num_kv_heads, std::int64_t head_dim) {
  CAPTURE(name);
  const torch::NoGradGuard no_grad;
  const Expected expected(name, dtype);
  const torch::Tensor ids = expected.tensors["input_ids"];
  expected.check(model->forward(ids));
  for (const std::int64_t page_size : {0, 4}) {
    for (const std::vector<std::int64_t>& pieces : {std::vector<std::int64_t>(11, 1), {5, 1, 1, 4}, {11}}) {
      CAPTURE(page_size);
      CAPTURE(pieces.size());
      attend::KeyValueCache cache(attend::KeyValueCacheOptions(layers, ids.size(0), num_kv_heads, head_dim, 16)
                                      .dtype(dtype)
                                      .page_size(page_size));
      std::int64_t begin = 0;
      for (const std::int64_t length : pieces) {
        const States states =
            model->forward(ids.narrow(1, begin, length), attend::MultiheadAttentionCall().cache(&cache));
        for (std::size_t i = 0; i < states.size(); ++i)
          expected.check(i, states[i], expected.state(i).narrow(1, begin, length));
        begin += length;
      }
      CHECK(begin == ids.size(1));
    }
  }
}

}  // namespace

TEST_CASE("models: Llama has the hidden states of Hugging Face's LlamaModel, also token by token with a cache") {
  const attend::Llama3RotaryScaling scaling = attend::Llama3RotaryScaling(4).original_max_length(16);
  const attend::RotaryEmbeddingOptions plain(8);
  for (const auto dtype : kDtypes) {
    for (const auto& [name, rotary] :
         {std::pair("llama", plain), std::pair("llama3", attend::RotaryEmbeddingOptions(8).scaling(scaling))}) {
      attend::test::Llama model(attend::test::LlamaOptions{60, 32, 3, 4, 2, 48, rotary});
      model->to(dtype);
      attend::test::load_hugging_face(*model, folder_of(name) + "model.safetensors", attend::test::LlamaImpl::rules());
      check_causal(name, model, dtype, 3, 2, 8);
    }
  }
}

TEST_CASE("models: GPT-2 has the hidden states of Hugging Face's GPT2Model, also token by token with a cache") {
  for (const auto dtype : kDtypes) {
    attend::test::Gpt2 model(attend::test::Gpt2Options{60, 16, 32, 3, 4});
    model->to(dtype);
    attend::test::load_hugging_face(*model, folder_of("gpt2") + "model.safetensors", attend::test::Gpt2Impl::rules());
    check_causal("gpt2", model, dtype, 3, 4, 8);
  }
}

TEST_CASE("models: Gemma 2 has the hidden states of Hugging Face's Gemma2Model, also token by token with a cache") {
  for (const auto dtype : kDtypes) {
    attend::test::Gemma2 model(attend::test::Gemma2Options{60, 32, 4, 4, 2, 12, 48, 20.0, 3.0, 4});
    model->to(dtype);
    attend::test::load_hugging_face(*model, folder_of("gemma2") + "model.safetensors",
                                    attend::test::Gemma2Impl::rules());
    model->add_one_to_norms();
    check_causal("gemma2", model, dtype, 4, 2, 12);
  }
}

TEST_CASE("models: BERT has the hidden states of Hugging Face's BertModel, with padding") {
  for (const auto dtype : kDtypes) {
    const Expected expected("bert", dtype);
    attend::test::Bert model(attend::test::BertOptions{60, 16, 2, 32, 3, 4, 48});
    model->to(dtype);
    attend::test::load_hugging_face(*model, folder_of("bert") + "model.safetensors", attend::test::BertImpl::rules());
    expected.check(model->forward(expected.tensors["input_ids"], expected.tensors["token_type_ids"],
                                  expected.tensors["attention_mask"].eq(0)));
  }
}

TEST_CASE("models: ViT has the hidden states of Hugging Face's ViTModel") {
  for (const auto dtype : kDtypes) {
    const Expected expected("vit", dtype);
    attend::test::Vit model(attend::test::VitOptions{12, 4, 3, 32, 3, 4, 48});
    model->to(dtype);
    attend::test::load_hugging_face(*model, folder_of("vit") + "model.safetensors", attend::test::VitImpl::rules());
    expected.check(model->forward(expected.tensors["pixel_values"].to(dtype)));
  }
}

TEST_CASE("models: the T5 encoder has the hidden states of Hugging Face's T5EncoderModel, with padding") {
  for (const auto dtype : kDtypes) {
    for (const bool gated : {false, true}) {
      const std::string name = gated ? "t5_encoder_gated" : "t5_encoder";
      CAPTURE(name);
      const Expected expected(name, dtype);
      attend::test::T5Encoder model(attend::test::T5EncoderOptions{60, 32, 3, 4, 10, 48, 8, 10, gated});
      model->to(dtype);
      attend::test::load_hugging_face(*model, folder_of(name) + "model.safetensors",
                                      attend::test::T5EncoderImpl::rules(gated));
      expected.check(model->forward(expected.tensors["input_ids"], expected.tensors["attention_mask"].eq(0)));
    }
  }
}

}  // namespace models_test
