// SPDX-License-Identifier: MIT

// Tests files that tests/python/make_state_dicts.py wrote with torch.save.

#include <attend/io/file_error.h>
#include <attend/io/state_dict.h>
#include <attend/io/torch_file.h>
#include <attend/layers/multihead_attention.h>

#include "support/errors.h"
#include "support/reference_data.h"

#include <c10/core/ScalarType.h>
#include <doctest/doctest.h>
#include <torch/nn/modules/linear.h>
#include <torch/serialize.h>
#include <torch/types.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace {

using attend::FileError, attend::StateDict, attend::load_torch_file;
using attend::test::message_of, attend::test::reference_file;

std::string file(const std::string& kind) { return reference_file("state_dicts/" + kind + ".pt"); }

std::string error_of(const std::string& kind, const std::string& key = "") {
  return message_of<FileError>([&] { load_torch_file(file(kind), key); });
}

/// "[2, 3]" for {2, 3}, as Python prints a list.
std::string printed(torch::IntArrayRef values) {
  std::ostringstream text;
  text << values;
  return text.str();
}

}  // namespace

TEST_CASE("load_torch_file: names, dtypes, sizes, strides and bytes of every kind of state dict are those of Python") {
  std::map<std::string, StateDict> loaded;
  std::map<std::string, std::size_t> counts;
  for (const auto& [entry, bytes] : attend::test::reference_data("state_dicts/expected")) {
    CAPTURE(entry);
    std::vector<std::string> fields;  // KIND|TENSOR|DTYPE|SIZES|STRIDES
    std::istringstream text(entry);
    for (std::string field; std::getline(text, field, '|');) fields.push_back(field);
    REQUIRE(fields.size() == 5);
    const std::string& kind = fields[0];
    if (loaded.count(kind) == 0) loaded.emplace(kind, load_torch_file(file(kind), kind == "checkpoint" ? "model" : ""));
    ++counts[kind];
    const torch::Tensor* tensor = loaded.at(kind).find(fields[1]);
    REQUIRE(tensor != nullptr);
    CHECK("torch." + std::string(c10::getDtypeNames(tensor->scalar_type()).first) == fields[2]);
    CHECK(printed(tensor->sizes()) == fields[3]);
    CHECK(printed(tensor->strides()) == fields[4]);
    CHECK(tensor->clone(torch::MemoryFormat::Contiguous).flatten().view(torch::kByte).equal(bytes));
  }
  CHECK(counts.size() > 14);
  for (const auto& [kind, count] : counts) CHECK(loaded.at(kind).size() == count);
  CHECK(load_torch_file(file("no_parameters")).is_empty());
}

TEST_CASE("load_torch_file: tensors share memory as in Python, and a change stays in memory") {
  StateDict views = load_torch_file(file("views"));
  views["whole"][12] = -1;
  CHECK(views["offset"][5].item<float>() == -1);         // storage[7:19]
  CHECK(views["transposed"][2][1].item<float>() == -1);  // storage.view(6, 10).t()
  CHECK(load_torch_file(file("views"))["whole"][12].item<float>() == 12);
  const StateDict tied = load_torch_file(file("tied"));
  CHECK(tied["embedding.weight"].is_alias_of(tied["output.weight"]));
}

TEST_CASE("load_torch_file: tensors outlive the dict, and also the file if it is removed") {
  const std::string path = file("removed");
  std::ofstream(path, std::ios::binary) << std::ifstream(file("linear"), std::ios::binary).rdbuf();
  const torch::Tensor weight = load_torch_file(path)["weight"];
  std::remove(path.c_str());
  CHECK(weight.equal(load_torch_file(file("linear"))["weight"]));
}

TEST_CASE("load_torch_file: the order of the names is that of the file") {
  CHECK(load_torch_file(file("multihead_attention")).keys() ==
        std::vector<std::string>{"q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "bias_k", "bias_v",
                                 "out_proj.weight", "out_proj.bias"});
}

TEST_CASE("load_torch_file: attend::MultiheadAttention loads the state dict of Python's layer") {
  attend::MultiheadAttention layer(attend::MultiheadAttentionOptions(8, 2).kdim(5).add_bias_kv(true));
  const StateDict dict = load_torch_file(file("multihead_attention"));
  attend::load_state_dict(*layer, dict);
  CHECK(layer->k_proj_weight.equal(dict["k_proj_weight"]));
  CHECK(layer->out_proj->bias.equal(dict["out_proj.bias"]));
}

TEST_CASE("load_torch_file: a file that is no state dict is one error, and nothing of it is executed") {
  struct Case {
    std::string kind, expected;
  };
  const std::string expected_values = "expected only tensors, numbers, strings, lists, tuples and dicts, found ";
  const Case cases[] = {
      {"command", expected_values + "\"posix.system\", which attend does not call"},
      {"whole_module", expected_values + "\"torch.nn.modules.linear.Linear\", which attend does not call"},
      {"sparse", expected_values + "\"torch._utils._rebuild_sparse_tensor\""},
      {"quantized", expected_values + "\"torch._utils._rebuild_qtensor\""},
      {"meta", expected_values + "\"torch._utils._rebuild_meta_tensor_no_storage\""},
      {"conjugate", "tensor \"a\": expected no flags conj and neg, found some; in Python save tensor.resolve_conj()"},
      {"negative", "tensor \"a\": expected no flags conj and neg, found some; in Python save tensor.resolve_conj()"},
      {"many_dimensions", "expected at most as many dimensions of tensors as bytes of data.pkl, found more"},
      {"old_format",
       "expected a zip archive, found the format of torch.save before PyTorch 1.6. Load and save the file "
       "in Python"},
      {"torchscript", "expected what torch.save of Python writes, found a TorchScript archive"},
      {"compressed", "file \"small/data.pkl\": expected plain bytes, found bytes compressed by method 8"},
      {"big_endian", "expected byteorder \"little\", found \"big\""},
      {"tensor", "expected a dict of tensors, found a tensor"},
      {"list", "expected a dict of tensors, found a list of 1 element"},
      {"number_as_name", "expected names of tensors, found the key the int 0"},
      {"no_storage", "tensor \"bias\": expected its elements in the file \"data/1\", found none"},
      {"short_storage", "tensor \"bias\": expected a storage of 2 elements, found 1"},
      {"wrong_bool", "tensor \"a\": expected bools, found other bytes"},
      {"checkpoint",
       "\"epoch\": expected a tensor, found the int 3. Pass the key of the state dict. Entries that are "
       "dicts: \"model\", \"optimizer\""},
      {"absent", "cannot open it: No such file or directory"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.kind);
    const std::string message = error_of(c.kind);
    CAPTURE(message);
    CHECK(message.starts_with("attend::load_torch_file: " + file(c.kind) + ": "));
    CHECK(message.find(c.expected) != std::string::npos);
  }
  CHECK(!std::ifstream(reference_file("state_dicts/executed")).is_open());
  CHECK(error_of("checkpoint", "net").find("expected the key \"net\", found \"epoch\", \"model\"") !=
        std::string::npos);
}

TEST_CASE("load_torch_file: a module that torch::save of C++ wrote is refused with the function that loads it") {
  torch::nn::Linear linear(2, 2);
  const std::string path = file("cpp_module");
  torch::save(linear, path);
  CHECK(error_of("cpp_module").find("Load it with torch::load") != std::string::npos);
}

TEST_CASE("load_torch_file: archives that other programs rewrote, whose tensors are not aligned") {
  const StateDict rewritten = load_torch_file(file("rewritten")), small = load_torch_file(file("small"));
  CHECK(rewritten.keys() == small.keys());
  for (const auto& item : small) CHECK(rewritten[item.key()].equal(item.value()));
}
