// SPDX-License-Identifier: MIT
#include <attend/io/rename.h>

#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/activation.h>
#include <torch/types.h>

#include <string>
#include <vector>

namespace {

using attend::Rename, attend::StateDict, attend::renamed;
using attend::test::message_of;

/// A state dict of vectors of one element: the position of the name.
StateDict dict_of(const std::vector<std::string>& names) {
  StateDict dict;
  for (std::size_t i = 0; i < names.size(); ++i) dict.insert(names[i], torch::full({1}, static_cast<double>(i)));
  return dict;
}

std::string error_of(const StateDict& dict, const std::vector<Rename>& rules) {
  return message_of<c10::ValueError>([&] { renamed(dict, rules); });
}

}  // namespace

TEST_CASE("renamed: exact names and patterns, each rule applied to the result of the one before") {
  const StateDict dict = dict_of({"module.conv_Q.weight", "module.conv_K.weight", "other"});
  const StateDict result =
      renamed(dict, {Rename::pattern("^module\\.", ""), Rename::exact("conv_Q.weight", "query.weight"),
                     Rename::pattern("^conv_(.)\\.", "attention.$1."), Rename::drop("^oth")});
  CHECK(result.keys() == std::vector<std::string>{"query.weight", "attention.K.weight"});
  CHECK(result["attention.K.weight"].is_same(dict["module.conv_K.weight"]));
  CHECK(dict.size() == 3);
  CHECK(renamed(dict, {Rename::pattern("^", "model.")}).keys()[2] == "model.other");
  CHECK(renamed(dict, {}).keys() == dict.keys());
}

TEST_CASE("renamed: split and merge are inverse, and give the projections of torch::nn::MultiheadAttention") {
  // With kdim, torch has a weight for each of query, key and value instead of a packed one.
  torch::nn::MultiheadAttention packed(torch::nn::MultiheadAttentionOptions(6, 2));
  StateDict dict;
  for (const std::string layer : {"layers.0.", "layers.1."})
    for (const auto& parameter : packed->named_parameters())
      dict.insert(layer + parameter.key(), torch::randn_like(parameter.value()));
  const Rename split = Rename::split("in_proj_(weight|bias)$", {"q_proj.$1", "k_proj.$1", "v_proj.$1"});
  const Rename merge =
      Rename::merge({"q_proj\\.(weight|bias)$", "k_proj\\.(weight|bias)$", "v_proj\\.(weight|bias)$"}, "in_proj_$1");
  const StateDict apart = renamed(dict, {split}), together = renamed(apart, {merge});
  CHECK(apart.size() == 2 * (3 + 3 + 2));
  const auto chunks = dict["layers.1.in_proj_weight"].chunk(3);
  CHECK(apart["layers.1.q_proj.weight"].equal(chunks[0]));
  CHECK(apart["layers.1.k_proj.weight"].equal(chunks[1]));
  CHECK(apart["layers.1.v_proj.weight"].equal(chunks[2]));
  CHECK(together.keys() == dict.keys());
  for (const auto& item : dict) CHECK(together[item.key()].equal(item.value()));
}

TEST_CASE("renamed: split into parts of given sizes, as of fewer key and value heads") {
  StateDict dict;
  dict.insert("qkv", torch::arange(8).view({8, 1}));
  const StateDict result = renamed(dict, {Rename::split("qkv", {"q", "k", "v"}, {4, 2, 2})});
  CHECK(result["q"].equal(torch::arange(4).view({4, 1})));
  CHECK(result["k"].equal(torch::arange(4, 6).view({2, 1})));
  CHECK(result["v"].equal(torch::arange(6, 8).view({2, 1})));
}

TEST_CASE("renamed: transpose and split of GPT-2's Conv1D give a linear layer of the same outputs") {
  // transformers' Conv1D computes x · weight + bias with a weight (in, out).
  StateDict dict;
  dict.insert("h.0.attn.c_attn.weight", torch::randn({4, 12}, torch::kDouble));
  dict.insert("h.0.attn.c_attn.bias", torch::randn({12}, torch::kDouble));
  const StateDict result = renamed(dict, {Rename::transpose("c_attn\\.weight$"),
                                          Rename::split("c_attn\\.(weight|bias)$", {"q.$1", "k.$1", "v.$1"})});
  const torch::Tensor x = torch::randn({3, 4}, torch::kDouble);
  const torch::Tensor expected = x.matmul(dict["h.0.attn.c_attn.weight"]) + dict["h.0.attn.c_attn.bias"];
  const torch::Tensor keys = torch::linear(x, result["h.0.attn.k.weight"], result["h.0.attn.k.bias"]);
  CHECK(keys.allclose(expected.chunk(3, 1)[1], 1e-12, 1e-12));
}

TEST_CASE("renamed: a rule that matches nothing, does not fit a tensor, or gives two tensors one name is an error") {
  const StateDict dict = dict_of({"a.q.weight", "a.k.weight", "b.q.weight"});
  StateDict matrices;
  matrices.insert("q", torch::zeros({3, 2}));
  matrices.insert("k", torch::zeros({3, 4}));
  matrices.insert("scalar", torch::zeros({}));
  StateDict long_name;
  long_name.insert(std::string(1001, 'x'), torch::zeros({}));
  struct Case {
    std::string message, expected;
  };
  const Case cases[] = {
      {error_of(dict, {Rename::exact("a.Q.weight", "x")}),
       "attend::Rename::exact(\"a.Q.weight\"): no tensor has this name. Nearest: \"a.q.weight\""},
      {error_of(dict, {Rename::pattern("conv", "x")}), "attend::Rename::pattern(\"conv\"): no name matches"},
      {error_of(dict, {Rename::transpose("conv")}), "attend::Rename::transpose(\"conv\"): no name matches"},
      {error_of(dict, {Rename::pattern("^..", "")}),
       "attend::Rename::pattern(\"^..\"): two tensors would be named q.weight"},
      {error_of(dict, {Rename::merge({"\\.q\\.", "\\.k\\."}, ".qk.")}),
       "attend::Rename::merge({\"\\\\.q\\\\.\", \"\\\\.k\\\\.\"}): b.qk.weight lacks a part"},
      {error_of(dict, {Rename::merge({"^..q", "k"}, "qk")}), "two tensors are part 0 of qk.weight"},
      {error_of(matrices, {Rename::merge({"^q$", "^k$"}, "qk")}),
       "the parts of qk differ: float [3, 2] and float [3, 4]"},
      {error_of(matrices, {Rename::split("q", {"a", "b"})}),
       "attend::Rename::split(\"q\"): cannot split q [3, 2] into parts of sizes [1, 1]"},
      {error_of(matrices, {Rename::split("scalar", {"a", "b"})}), "cannot split scalar [] into parts"},
      {error_of(matrices, {Rename::split("q", {"a", "b"}, {1, 1})}),
       "cannot split q [3, 2] into parts of sizes [1, 1]"},
      {message_of<c10::ValueError>([] {
         Rename::split("q", {"a", "b"}, {4, -1});
       }),
       "attend::Rename::split: expected sizes from 0, got [4, -1]"},
      {error_of(matrices, {Rename::transpose("scalar")}),
       "attend::Rename::transpose(\"scalar\"): scalar [] is not a matrix"},
      {error_of(long_name, {Rename::pattern("a", "b")}), "expected names of at most 1000 bytes, found one of 1001"},
      {message_of<c10::ValueError>([] { Rename::pattern("(", ""); }),
       "attend::Rename::pattern: invalid pattern \"(\": "},
      {message_of<c10::ValueError>([] {
         Rename::split("a", {"b"}, {1, 2});
       }),
       "attend::Rename::split: expected a size for each of 1 replacements, got 2"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.message);
    CHECK(c.message.find(c.expected) != std::string::npos);
  }
}
