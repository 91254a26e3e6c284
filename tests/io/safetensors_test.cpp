// SPDX-License-Identifier: MIT
#include <attend/io/safetensors.h>
#include <c10/util/Exception.h>
#include <sys/stat.h>
#include <torch/types.h>
#include <torch/version.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "io/safetensors_files.h"
#include "support/allocator_peak.h"
#include "support/errors.h"
#include "support/temporary_folder.h"

#include <doctest/doctest.h>

namespace {

using attend::FileError;
using attend::load_safetensors;
using attend::SafetensorsFile;
using attend::SafetensorsOptions;
using attend::save_safetensors;
using attend::StateDict;
using attend::test::message_of;
using attend::test::TemporaryFolder;
using attend::test::write_bytes;
using attend::test::bytes_of;

StateDict dict(std::vector<std::pair<std::string, torch::Tensor>> tensors) {
  StateDict result;
  for (auto& [name, tensor] : tensors) result.insert(name, tensor);
  return result;
}

/// Whether dtype, sizes and all bytes are equal.
bool is_same(const torch::Tensor& a, const torch::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         (a.numel() == 0 ||
          std::memcmp(a.contiguous().const_data_ptr(), b.contiguous().const_data_ptr(), a.nbytes()) == 0);
}

std::vector<torch::ScalarType> all_dtypes() {
  return {
    torch::kBool, torch::kUInt8, torch::kInt8, torch::kFloat8_e5m2, torch::kFloat8_e4m3fn, torch::kFloat8_e8m0fnu,
        torch::kFloat8_e4m3fnuz, torch::kFloat8_e5m2fnuz, torch::kInt16, torch::kUInt16, torch::kFloat16,
        torch::kBFloat16, torch::kInt32, torch::kUInt32, torch::kFloat32, torch::kComplexFloat, torch::kFloat64,
        torch::kInt64, torch::kUInt64,
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 8
        torch::ScalarType::Float4_e2m1fn_x2,
#endif
  };
}

/// A tensor whose bytes are all different, or 0 and 1 for bool.
torch::Tensor numbered(std::vector<std::int64_t> sizes, torch::ScalarType dtype) {
  torch::Tensor tensor = at::empty(sizes, dtype);
  auto* const bytes = static_cast<unsigned char*>(tensor.mutable_data_ptr());
  for (std::size_t i = 0; i < tensor.nbytes(); ++i)
    bytes[i] = static_cast<unsigned char>(dtype == torch::kBool ? i % 2 : i);
  return tensor;
}

TEST_CASE("save_safetensors: every dtype, 0-d and empty tensors, and metadata come back") {
  TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  StateDict saved;
  for (const torch::ScalarType dtype : all_dtypes()) {
    const std::string name = c10::toString(dtype);
    saved.insert(name, numbered({2, 3}, dtype));
    saved.insert(name + " empty", numbered({0, 2}, dtype));
    if (name != "Float4_e2m1fn_x2") saved.insert(name + " 0-d", numbered({}, dtype));
  }
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"", "\"é\n"}};
  CHECK(save_safetensors(saved, path, SafetensorsOptions().metadata(metadata)) == path);

  const SafetensorsFile file(path);
  CHECK(file.metadata() == metadata);
  CHECK(file.names().size() == saved.size());
  const StateDict loaded = load_safetensors(path);
  REQUIRE(loaded.size() == saved.size());
  CHECK(loaded.keys() == file.names());
  for (const auto& item : saved) {
    CAPTURE(item.key());
    CHECK(file.contains(item.key()));
    CHECK((file.dtype(item.key()) == item.value().scalar_type()));
    CHECK(file.sizes(item.key()) == item.value().sizes());
    CHECK(is_same(loaded[item.key()], item.value()));
  }
  CHECK_FALSE(file.contains("no"));
}

TEST_CASE("save_safetensors: no tensors, with and without metadata") {
  TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  save_safetensors(StateDict(), path);
  CHECK(load_safetensors(path).is_empty());
  CHECK(bytes_of(path) == std::string("\x08\0\0\0\0\0\0\0{}      ", 16));
  save_safetensors(StateDict(), path, SafetensorsOptions().metadata({{"a", "b"}}));
  CHECK(SafetensorsFile(path).metadata() == std::map<std::string, std::string>{{"a", "b"}});
}

TEST_CASE("save_safetensors: tensors that are not contiguous, conjugated, negated, expanded or need a gradient") {
  TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  const torch::Tensor matrix = at::arange(6, torch::kFloat32).view({2, 3});
  const torch::Tensor z = at::complex(matrix, matrix + 1);
  save_safetensors(dict({{"transposed", matrix.t()},
                         {"conjugated", z.conj()},
                         {"negated", at::imag(z.clone().conj())},
                         {"zero", at::_efficientzerotensor({2}, torch::kFloat32)},
                         {"expanded", at::ones({1, 2}).expand({3, 2})},
                         {"needs a gradient", at::ones({2}).requires_grad_()}}),
                   path);
  const StateDict loaded = load_safetensors(path);
  CHECK(loaded["transposed"].equal(at::arange(6, torch::kFloat32).view({2, 3}).t()));
  CHECK(loaded["conjugated"].equal(at::complex(matrix, -matrix - 1)));
  CHECK(loaded["negated"].equal(-matrix - 1));
  CHECK(loaded["zero"].equal(at::zeros({2})));
  CHECK(loaded["expanded"].equal(at::ones({3, 2})));
  CHECK_FALSE(loaded["needs a gradient"].requires_grad());
}

TEST_CASE(
    "SafetensorsFile::tensor: a large tensor is a view of the file, which outlives the file and does not change it") {
  TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  const torch::Tensor large = at::arange(1 << 20, torch::kInt64);
  save_safetensors(dict({{"large", large}, {"small", at::ones({3})}}), path);
  const std::string before = bytes_of(path);

  torch::Tensor first, second;
  {
    const attend::test::AllocatorPeak memory;
    const SafetensorsFile file(path);
    first = file.tensor("large");
    second = file.tensor("large");
    CHECK(memory.peak() == 0);
    CHECK(file.tensor("small").equal(at::ones({3})));
  }
  CHECK(first.is_contiguous());
  first.fill_(7);
  CHECK(second.equal(large));
  CHECK(bytes_of(path) == before);
  save_safetensors(dict({{"large", at::zeros({1 << 20}, torch::kInt64)}}), path);
  CHECK(second.equal(large));
  CHECK(std::remove(path.c_str()) == 0);
  CHECK(second.equal(large));
  CHECK(first.eq(7).all().item<bool>());
}

TEST_CASE("SafetensorsFile::tensor: a tensor at a position that is not aligned is copied") {
  TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  const torch::Tensor large = at::arange(1 << 15, torch::kFloat64);  // 256 KiB
  const std::string data(static_cast<const char*>(large.const_data_ptr()), large.nbytes());
  for (const char* spaces : {"", " ", "  ", "   ", "    ", "     ", "      ", "       "}) {
    write_bytes(path, attend::test::safetensors_file(
                    R"({"a":{"dtype":"F64","shape":[32768],"data_offsets":[0,262144]}})" + std::string(spaces), data));
    const torch::Tensor tensor = SafetensorsFile(path).tensor("a");
    CHECK(reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % sizeof(double) == 0);
    CHECK(tensor.equal(large));
  }
}

TEST_CASE("SafetensorsFile::read: into tensors of other dtypes, devices and strides") {
  TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  const torch::Tensor large = at::arange(1 << 18, torch::kInt64).view({512, 512}),
                      small = at::arange(3, torch::kFloat32);
  save_safetensors(dict({{"large", large}, {"small", small}, {"mask", at::ones({2}, torch::kBool)}}), path);
  const SafetensorsFile file(path);
  for (const torch::Tensor& target :
       {at::zeros({512, 512}, torch::kInt64), at::zeros({512, 512}, torch::kInt64).t(),
        at::zeros({512, 512}, torch::kFloat64), at::zeros({2, 512, 512}, torch::kInt64)[1]}) {
    const auto version = target._version();
    file.read("large", target);
    CHECK(target.equal(large.to(target.scalar_type())));
    CHECK(target._version() > version);
  }
  const torch::Tensor parameter = at::zeros({3}).requires_grad_();
  file.read("small", parameter);
  CHECK(parameter.detach().equal(small));
  CHECK(parameter.is_leaf());
  const torch::Tensor meta = at::zeros({512, 512}, at::TensorOptions(torch::kInt64).device(torch::kMeta));
  CHECK_NOTHROW(file.read("large", meta));
  CHECK(message_of<c10::ValueError>([&] { file.read("small", at::zeros({4})); }) ==
        "attend::SafetensorsFile: tensor \"small\": expected a target of sizes [3], got [4]");
}

TEST_CASE("load_safetensors: onto another device") {
  TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  save_safetensors(dict({{"a", at::ones({2, 3})}}), path);
  const torch::Tensor tensor = load_safetensors(path, torch::kMeta)["a"];
  CHECK(tensor.is_meta());
  CHECK(tensor.sizes() == std::vector<std::int64_t>{2, 3});
}

TEST_CASE("save_safetensors: max_shard_size writes several files and an index, which loads as one") {
  TemporaryFolder folder;
  const std::string path = folder.file("model.safetensors"), index = folder.file("model.safetensors.index.json");
  const StateDict saved =
      dict({{"c", at::full({2}, 3.)}, {"a", at::full({2}, 1.)}, {"b", at::full({9}, 2.)}, {"d", at::ones({0})}});
  const auto options = SafetensorsOptions().metadata({{"format", "pt"}});

  CHECK(save_safetensors(saved, path, SafetensorsOptions(options).max_shard_size(13 * 4)) == path);
  CHECK(load_safetensors(path).size() == 4);
  CHECK(save_safetensors(saved, path, SafetensorsOptions(options).max_shard_size(8)) == index);
  const std::map<std::string, std::vector<std::string>> expected = {
      {"model-00001-of-00003.safetensors", {"a"}},
      {"model-00002-of-00003.safetensors", {"b"}},  // larger than the limit
      {"model-00003-of-00003.safetensors", {"c", "d"}}};
  for (const auto& [name, names] : expected) {
    const SafetensorsFile file(folder.file(name));
    CHECK(file.names() == names);
    CHECK(file.metadata() == options.metadata());
  }
  CHECK(bytes_of(index).find("\"total_size\": 52") != std::string::npos);

  const SafetensorsFile file(index);
  CHECK(file.names() == std::vector<std::string>{"a", "b", "c", "d"});
  CHECK(file.metadata() == options.metadata());
  CHECK(file.contains("d"));
  CHECK(file.sizes("b") == std::vector<std::int64_t>{9});
  const StateDict loaded = load_safetensors(index);
  for (const auto& item : saved) CHECK(is_same(loaded[item.key()], item.value()));
}

TEST_CASE("SafetensorsFile: an index that does not fit its files is a FileError") {
  TemporaryFolder folder;
  const std::string index = folder.file("i.json"), in_folder = folder.path() + '/';
  save_safetensors(dict({{"a", at::ones({1})}}), folder.file("1.safetensors"));
  save_safetensors(dict({{"b", at::ones({1})}, {"c", at::ones({1})}}), folder.file("2.safetensors"));
  const auto message = [&](const std::string& weight_map) {
    write_bytes(index, "{\"weight_map\":{" + weight_map + "}}");
    return message_of<FileError>([&] { SafetensorsFile file(index); });
  };
  const std::string begin = "attend::SafetensorsFile: " + in_folder;
  CHECK(message(R"("a":"1.safetensors","b":"3.safetensors")") ==
        begin + "3.safetensors: cannot open it: No such file or directory");
  CHECK(message(R"("a":"1.safetensors","d":"1.safetensors")") ==
        begin + "i.json: tensor \"d\": expected it in \"1.safetensors\", found none");
  CHECK(message(R"("a":"1.safetensors","b":"2.safetensors")") ==
        begin + "i.json: tensor \"c\": expected it in the weight_map, because \"2.safetensors\" has it, found none");
  CHECK(message(R"("a":"..")") == begin + "..: expected a regular file");
  CHECK(message(R"("a":"1.safetensors)") ==
        begin + "i.json: tensor \"a\": JSON text, byte 35: expected the end of a string, found the end of the text");
  // One name in two files.
  save_safetensors(dict({{"a", at::ones({1})}, {"b", at::ones({1})}}), folder.file("2.safetensors"));
  CHECK(message(R"("a":"1.safetensors","b":"2.safetensors")") ==
        begin + "i.json: tensor \"a\": expected it in the weight_map, because \"2.safetensors\" has it, found none");
}

TEST_CASE("SafetensorsFile: what is wrong with a file is a FileError with its path") {
  TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors"), begin = "attend::SafetensorsFile: " + path + ": ";
  const auto message = [&](const std::string& header, const std::string& data) {
    write_bytes(path, attend::test::safetensors_file(header, data));
    return message_of<FileError>([&] { load_safetensors(path); });
  };
  CHECK(message_of<FileError>([&] { load_safetensors(path); }) == begin + "cannot open it: No such file or directory");
  CHECK(message_of<FileError>([&] { load_safetensors(folder.path()); }) ==
        "attend::SafetensorsFile: " + folder.path() + ": expected a regular file");
  write_bytes(path, "");
  CHECK(message_of<FileError>([&] { load_safetensors(path); }) ==
        begin + "expected 8 bytes for the length of the header, found a file of 0 bytes");
  CHECK(message(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "1234567") ==
        begin + "expected 8 bytes after the header, found 7");
  CHECK(message(R"({"a":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}})", std::string("\0\1\2", 3)) ==
        begin + "tensor \"a\": expected bytes 0 and 1 for dtype BOOL, found 2");
  CHECK(message(R"({"a":{"dtype":"F6_E3M2","shape":[4],"data_offsets":[0,3]}})", "123") ==
        begin + "tensor \"a\": expected a dtype that this LibTorch has, found F6_E3M2");
  CHECK(message(R"({"a":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]}})", "123") ==
        begin + "tensor \"a\": expected an even last size for dtype F4");
  save_safetensors(dict({{"a", at::ones({1})}}), path);
  for (const std::function<void(const SafetensorsFile&)>& call :
       {std::function<void(const SafetensorsFile&)>([](const SafetensorsFile& file) { file.tensor("b"); }),
        std::function<void(const SafetensorsFile&)>([](const SafetensorsFile& file) { file.dtype("b"); }),
        std::function<void(const SafetensorsFile&)>([](const SafetensorsFile& file) { file.sizes("b"); })})
    CHECK(message_of<FileError>([&] { call(SafetensorsFile(path)); }) ==
          begin + "tensor \"b\": expected a tensor of this name, found none");
  try {
    load_safetensors("no such file");
  } catch (const FileError& error) {
    CHECK(error.path() == "no such file");
  }
}

TEST_CASE("save_safetensors: a failure is a FileError, and the old file is intact") {
  TemporaryFolder folder;
  const std::string path = folder.path() + "/no folder/a.safetensors";
  CHECK(message_of<FileError>([&] {
          save_safetensors(dict({{"a", at::ones({1})}}), path);
        }).find("attend::save_safetensors: " + path + ": cannot ") == 0);
  CHECK(message_of<FileError>([&] {
          save_safetensors(dict({{"a", at::ones({1})}}), folder.path());
        }).find("attend::save_safetensors: " + folder.path() + ": cannot ") == 0);
}

TEST_CASE("save_safetensors: tensors that share memory are refused, or dropped with drop_tied") {
  TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  const torch::Tensor weight = at::arange(6.).view({2, 3}), other = weight.clone();
  const auto drop = SafetensorsOptions().drop_tied(true);
  const std::string begin = "attend::save_safetensors: tensors ";
  const std::string text = " share memory, which a file cannot express. Save a clone() of ";

  const StateDict tied = dict({{"lm_head.weight", weight}, {"embed.weight", weight.alias()}, {"other", other}});
  CHECK(message_of<c10::ValueError>([&] { save_safetensors(tied, path); }) ==
        begin + "\"embed.weight\" and \"lm_head.weight\"" + text +
            "\"lm_head.weight\", or pass SafetensorsOptions().drop_tied(true) to save only the first");
  save_safetensors(tied, path, SafetensorsOptions(drop).metadata({{"format", "pt"}}));
  const SafetensorsFile file(path);
  CHECK(file.names() == std::vector<std::string>{"embed.weight", "other"});
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"lm_head.weight", "embed.weight"}});
  CHECK(file.tensor("embed.weight").equal(weight));
  save_safetensors(tied, path, SafetensorsOptions(drop).metadata({{"lm_head.weight", "mine"}}));
  CHECK(SafetensorsFile(path).metadata() == std::map<std::string, std::string>{{"lm_head.weight", "mine"}});

  // Equal memory with other sizes, and parts that overlap. clone() is the only remedy.
  for (const StateDict& overlapping :
       {dict({{"a", weight}, {"b", weight.t()}}), dict({{"a", weight}, {"b", weight[1]}}),
        dict({{"a", weight[0]}, {"b", weight}}), dict({{"a", weight.select(1, 0)}, {"b", weight.select(1, 1)}})})
    CHECK(message_of<c10::ValueError>([&] { save_safetensors(overlapping, path, drop); }) ==
          begin + "\"a\" and \"b\"" + text + "\"b\"");

  // Parts that do not overlap, and empty tensors, are no problem.
  save_safetensors(
      dict({{"a", weight[0]}, {"b", weight[1]}, {"c", weight.slice(0, 0, 0)}, {"d", weight.slice(0, 0, 0)}}), path);
  CHECK(load_safetensors(path)["b"].equal(weight[1]));
}

TEST_CASE("save_safetensors: what no file can hold is a ValueError, and nothing is written") {
  TemporaryFolder folder;
  const std::string path = folder.path() + "/a.safetensors", name = "attend::save_safetensors: tensor \"a\": expected ";
  const auto message = [&](const torch::Tensor& tensor) {
    return message_of<c10::ValueError>([&] { save_safetensors(dict({{"a", tensor}}), path); });
  };
  CHECK(message({}) == name + "a tensor, got an undefined one");
  CHECK(message(at::eye(2).to_sparse()) == name + "a dense tensor, got one of layout Sparse");
  CHECK(message(at::empty({2}, torch::kMeta)) == name + "a tensor with elements, got one on the device meta");
  CHECK(message(at::ones({2}, torch::kComplexDouble)) == name + "a dtype of the format, got ComplexDouble");
  CHECK(message(at::quantize_per_tensor(at::ones({2}), 1., 0, torch::kQInt8)) ==
        name + "a dtype of the format, got QInt8");
  CHECK(message(at::ones(std::vector<std::int64_t>(65, 1))) == name + "at most 64 dimensions, got 65");
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 8
  CHECK(message(at::empty({}, torch::ScalarType::Float4_e2m1fn_x2)) ==
        name + "at least one dimension for dtype Float4_e2m1fn_x2, got none");
#endif

  const StateDict good = dict({{"a", at::ones({2})}, {"b", at::ones({2})}});
  const auto options_message = [&](const SafetensorsOptions& options, const std::string& to) {
    return message_of<c10::ValueError>([&] { save_safetensors(good, to, options); });
  };
  for (const std::string wrong : {"__metadata__", "\xFF"})
    CHECK(message_of<c10::ValueError>([&] {
            save_safetensors(dict({{wrong, at::ones({1})}}), path);
          }) == "attend::save_safetensors: tensor \"" + (wrong == "\xFF" ? "?" : wrong) +
                    "\": expected a name in UTF-8 other than \"__metadata__\"");
  CHECK(options_message(SafetensorsOptions().metadata({{"k", "\xC3"}}), path) ==
        "attend::save_safetensors: metadata \"k\": expected a name and a text in UTF-8");
  CHECK(options_message(SafetensorsOptions().metadata({{"k", std::string(100'000'000, 'a')}}), path) ==
        "attend::save_safetensors: the names and metadata take 100000136 bytes, but the format allows 100000000");
  CHECK(options_message(SafetensorsOptions().max_shard_size(-1), path) ==
        "attend::save_safetensors: max_shard_size (-1) must be at least 0");
  CHECK(
      options_message({}, "a.json") ==
      "attend::save_safetensors: the path (a.json) must not end in .json, which load_safetensors() takes for an index");
  CHECK(options_message(SafetensorsOptions().max_shard_size(8), "a.bin") ==
        "attend::save_safetensors: the path (a.bin) must end in .safetensors if several files are written");
  CHECK_FALSE(std::ifstream(path).good());
}

}  // namespace
