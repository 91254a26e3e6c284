// SPDX-License-Identifier: MIT
#include <attend/positions/rotary.h>
#include <attend/positions/token_positions.h>

#include "support/accuracy.h"
#include "support/errors.h"
#include "support/reference_data.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/serialize.h>

#include <cstdint>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

using attend::DynamicRotaryScaling;
using attend::LinearRotaryScaling;
using attend::Llama3RotaryScaling;
using attend::rotate;
using attend::RotaryEmbedding;
using attend::RotaryEmbeddingOptions;
using attend::RotaryLayout;
using attend::RotaryTables;
using attend::YarnRotaryScaling;
using attend::test::check_equal_in_float64;
using attend::test::max_difference;
using attend::test::message_of;
using attend::test::reference_data;
using attend::test::Refused;

namespace rotary_test {
namespace {

/// The cases of tests/python/rotary_reference.py.
const std::map<std::string, RotaryEmbeddingOptions>& cases() {
  using Options = RotaryEmbeddingOptions;
  static const std::map<std::string, RotaryEmbeddingOptions> cases{
      {"default", Options(16)},
      {"theta", Options(16).theta(500000)},
      {"interleaved", Options(16).layout(RotaryLayout::kInterleaved)},
      {"partial", Options(20).rotary_dim(8)},
      {"partial_interleaved", Options(20).rotary_dim(8).layout(RotaryLayout::kInterleaved)},
      {"linear", Options(16).scaling(LinearRotaryScaling(4))},
      {"dynamic", Options(16).scaling(DynamicRotaryScaling(2, 8))},
      {"dynamic_short", Options(16).scaling(DynamicRotaryScaling(2, 16))},
      {"yarn", Options(64).scaling(YarnRotaryScaling(4, 2048))},
      {"yarn_options", Options(64).scaling(YarnRotaryScaling(8, 4096)
                                               .beta_fast(16)
                                               .beta_slow(2)
                                               .mscale(0.7)
                                               .mscale_all_dim(0.4)
                                               .truncate(false))},
      {"yarn_factor", Options(64).scaling(YarnRotaryScaling(8, 4096).attention_factor(1.25))},
      {"llama3", Options(128).theta(500000).scaling(Llama3RotaryScaling(8))},
      {"llama3_options",
       Options(64).scaling(
           Llama3RotaryScaling(4).low_freq_factor(2).high_freq_factor(16).original_max_length(1024))},
  };
  return cases;
}

}  // namespace

TEST_CASE("RotaryEmbedding: outputs and gradients equal Hugging Face's formulas for every scaling and layout") {
  const std::map<std::string, torch::Tensor> data = reference_data("rotary");
  for (const auto& [name, options] : cases()) {
    CAPTURE(name);
    RotaryEmbedding rotary(options);
    const torch::Tensor x = data.at(name + "/x");
    check_equal_in_float64(rotary(x), data.at(name + "/output"));
    // Explicit positions give the same. The default ones are kept in a table, these are not.
    check_equal_in_float64(rotary(x, torch::arange(13)), data.at(name + "/output"));
    check_equal_in_float64(rotary(x, torch::arange(13, torch::kDouble).unsqueeze(0)), data.at(name + "/output"));
    if (data.count(name + "/positions") == 0) continue;
    const torch::Tensor leaf = x.clone().requires_grad_();
    const torch::Tensor y = rotary(leaf, data.at(name + "/positions"));
    check_equal_in_float64(y, data.at(name + "/output_at_positions"));
    y.backward(data.at(name + "/weight"));
    check_equal_in_float64(leaf.grad(), data.at(name + "/gradient"));
  }
}

TEST_CASE("RotaryEmbedding: with two axes each has half of the pairs, as in Qwen2-VL") {
  const std::map<std::string, torch::Tensor> data = reference_data("rotary");
  const torch::Tensor grid = attend::grid_positions({3, 4});
  for (const auto& [name, layout] : {std::pair("axes", RotaryLayout::kHalfSplit),
                                     std::pair("axes_interleaved", RotaryLayout::kInterleaved)}) {
    RotaryEmbedding rotary(RotaryEmbeddingOptions(16).axes(2).layout(layout));
    const torch::Tensor x = data.at(std::string(name) + "/x");
    check_equal_in_float64(rotary(x, grid), data.at(std::string(name) + "/output"));
    check_equal_in_float64(rotary(x, grid.expand({2, 12, 2})), data.at(std::string(name) + "/output"));
  }
}
}  // namespace rotary_test
