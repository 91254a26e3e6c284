// SPDX-License-Identifier: MIT
#include <attend/io/checkpoint.h>

#include <attend/io/checkpoint_folder.h>
#include <attend/io/checkpoint_state.h>
#include <attend/io/safetensors.h>

#include "support/errors.h"
#include "support/temporary_folder.h"

#include <c10/util/Exception.h>
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>
#include <torch/types.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using attend::CheckpointData;
using attend::CheckpointFolder;
using attend::FileError;
using attend::test::message_of;
using attend::test::TemporaryFolder;
using attend::test::write_bytes;

namespace {

CheckpointData data_with(double value) {
  CheckpointData data;
  data.tensors.insert("value", torch::full({}, value));
  return data;
}

bool exists(const std::string& path) { return std::ifstream(path).is_open(); }

/// The epochs of the checkpoints in a folder, one after the other.
std::string epochs_in(const CheckpointFolder& folder) {
  std::string epochs;
  for (const auto& [position, path] : folder.files()) epochs += std::to_string(position.epoch);
  return epochs;
}

}  // namespace

TEST_CASE("save_checkpoint: load_checkpoint gives the same tensors, bit by bit, and the same metadata") {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  CheckpointData data;
  data.metadata = {{"", "empty name"}, {"!", "before attend.crc"}, {"größe", "\"\n\\"}};
  for (const auto dtype : {torch::kBool, torch::kByte, torch::kChar, torch::kShort, torch::kInt, torch::kLong,
                           torch::kHalf, torch::kBFloat16, torch::kFloat, torch::kDouble, torch::kComplexFloat,
                           torch::kFloat8_e4m3fn, torch::kFloat8_e5m2})
    data.tensors.insert(c10::toString(dtype), (torch::rand({3, 5}) * 2).to(dtype));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  data.tensors.insert("0-d", torch::full({}, nan, torch::kDouble));
  data.tensors.insert("empty", torch::empty({0, 3}));
  data.tensors.insert("größe", torch::arange(12).view({3, 4}).t());  // not contiguous
  data.tensors.insert("part", data.tensors["größe"].slice(0, 1, 3));
  data.tensors.insert("conj", torch::rand({2}, torch::kComplexFloat).conj());
  attend::save_checkpoint(data, path);
  const CheckpointData loaded = attend::load_checkpoint(path);
  CHECK(loaded.metadata == data.metadata);
  CHECK(loaded.path == path);
  CHECK(loaded.tensors.size() == data.tensors.size());
  for (const auto& item : data.tensors) {
    CAPTURE(item.key());
    const torch::Tensor saved = item.value().resolve_conj().contiguous(), &read = loaded.tensors[item.key()];
    const bool has_dtype = read.scalar_type() == saved.scalar_type();  // doctest cannot print a dtype
    CHECK(has_dtype);
    CHECK(read.sizes() == saved.sizes());
    if (saved.dim() == 0) {
      CHECK(torch::equal(read.view({1}).view(torch::kByte), saved.view({1}).view(torch::kByte)));
    } else if (saved.numel() > 0) {
      CHECK(torch::equal(read.view(torch::kByte), saved.view(torch::kByte)));
    }
  }
  // load_safetensors() reads it as well
  CHECK(torch::equal(attend::load_safetensors(path)["Float"], data.tensors["Float"]));
}

TEST_CASE("save_checkpoint: what a checkpoint cannot hold is refused, with its name, and the old file stays") {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  attend::save_checkpoint(data_with(1), path);
  const auto message = [&](const CheckpointData& data) {
    return message_of<c10::ValueError>([&] { attend::save_checkpoint(data, path); });
  };
  const std::string rule =
      ": expected a name in UTF-8 other than __metadata__, and a dense tensor of a dtype that safetensors has, got ";
  const auto with_tensor = [&](const std::string& name, const torch::Tensor& tensor) {
    CheckpointData data;
    data.tensors.insert(name, tensor);
    return message(data);
  };
  CHECK(with_tensor("x", torch::Tensor()) == "attend::save_checkpoint: tensor \"x\"" + rule + "UndefinedType");
  CHECK(with_tensor("x", torch::eye(2).to_sparse()) ==
        "attend::save_checkpoint: tensor \"x\"" + rule + "SparseCPUFloatType");
  CHECK(with_tensor("x", torch::zeros({1}, torch::kComplexDouble)) ==
        "attend::save_checkpoint: tensor \"x\"" + rule + "CPUComplexDoubleType");
  CHECK(with_tensor("__metadata__", torch::eye(2)) ==
        "attend::save_checkpoint: tensor \"__metadata__\"" + rule + "CPUFloatType");
  CHECK(with_tensor("\xff", torch::eye(2)) == "attend::save_checkpoint: tensor \"?\"" + rule + "CPUFloatType");
  for (const auto& [name, text] :
       std::map<std::string, std::string>{{"attend.crc", "0"}, {"attend.format", "1"}, {"x", "\xff"}, {"\xff", "x"}}) {
    CheckpointData data;
    data.metadata[name] = text;
    CHECK(message(data).find("expected a name that is not reserved and a text in UTF-8") != std::string::npos);
  }
  CHECK(attend::load_checkpoint(path).tensors["value"].item<double>() == 1);
}

TEST_CASE("load_checkpoint: a missing, damaged or other file is an error with the path") {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  const auto message = [&] { return message_of<FileError>([&] { attend::load_checkpoint(path); }); };
  CHECK(message() == "attend::load_checkpoint: " + path + ": cannot open it: No such file or directory");
  write_bytes(path, "");
  const std::string other =
      "attend::load_checkpoint: " + path + ": expected a checkpoint of attend, found another file or a damaged one";
  CHECK(message() == other);
  attend::StateDict weights;
  weights.insert("a", torch::eye(2));
  attend::save_safetensors(weights, path);
  CHECK(message() == other);
  attend::save_checkpoint(data_with(1), path);
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  ++bytes.back();
  write_bytes(path, bytes);
  CHECK(message().starts_with("attend::load_checkpoint: " + path + ": the file is damaged: expected the checksum \""));
}

TEST_CASE("CheckpointFolder: a newest file that cannot be read is an error, not a damaged file") {
  const TemporaryFolder folder;
  CheckpointFolder checkpoints(folder.path());
  checkpoints.save(data_with(1), {1, 0}, 3);
  const std::string unreadable = folder.file("checkpoint-000002-00000000.safetensors");
  REQUIRE(::mkdir(unreadable.c_str(), 0777) == 0);  // a folder
  CHECK(message_of<FileError>([&] { checkpoints.newest(); }) ==
        "attend::load_checkpoint: " + unreadable + ": expected a regular file");
  REQUIRE(::rmdir(unreadable.c_str()) == 0);
  CHECK(checkpoints.newest()->tensors["value"].item<double>() == 1);
}

TEST_CASE("load_training_state: an expanded buffer is not written, and its elements must be those of the checkpoint") {
  struct Expanded : torch::nn::Module {
    explicit Expanded(double value) {
      weight = register_parameter("weight", torch::full({2}, value));
      register_buffer("mask", torch::full({1, 1}, value).expand({8, 8}));
    }
    torch::Tensor weight;
  } saved(1), same(1), other(2);
  torch::optim::SGD optimizer(saved.parameters(), 0.1), own(same.parameters(), 0.1), another(other.parameters(), 0.1);
  {
    const torch::NoGradGuard no_grad;
    saved.weight.fill_(5);
  }
  CheckpointData data;
  attend::add_training_state(data, saved, optimizer);
  attend::load_training_state(data, same, own);
  CHECK(same.weight.equal(saved.weight));
  CHECK(message_of<FileError>([&] {
          attend::load_training_state(data, other, another);
        }).find("tensor \"model.mask\": expected the elements that the module has") != std::string::npos);
  CHECK(other.weight.equal(torch::full({2}, 2.0)));
}

TEST_CASE("load_training_state: a loop of its own continues bit-identically") {
  const auto train = [](torch::nn::Linear& model, torch::optim::Optimizer& optimizer, int steps) {
    for (int i = 0; i < steps; ++i) {
      optimizer.zero_grad();
      model->forward(torch::rand({4, 3})).square().mean().backward();
      optimizer.step();
    }
  };
  torch::manual_seed(1);
  torch::nn::Linear model(3, 2), other(3, 2);
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(0.1));
  torch::optim::Adam other_optimizer(other->parameters(), torch::optim::AdamOptions(0.5));
  train(model, optimizer, 3);
  CheckpointData data;
  attend::add_training_state(data, *model, optimizer);
  train(model, optimizer, 3);  // the checkpoint must not change with the model

  attend::load_training_state(data, *other, other_optimizer);
  CHECK(other_optimizer.param_groups()[0].options().get_lr() == 0.1);
  train(other, other_optimizer, 3);
  CHECK(torch::equal(model->weight, other->weight));
  CHECK(torch::equal(model->bias, other->bias));
}

TEST_CASE("load_training_state: an error lists all differences, and the model is unchanged") {
  torch::nn::BatchNorm1d model(3), other(torch::nn::BatchNorm1dOptions(4).affine(false));
  torch::nn::Linear linear(3, 3);
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  torch::optim::Adam adam(linear->parameters());
  CheckpointData data;
  attend::add_training_state(data, *model, optimizer);
  const torch::Tensor mean = other->running_mean.clone();
  CHECK(message_of<FileError>([&] { attend::load_training_state(data, *other, adam); }) ==
        "attend::load_training_state: : tensor \"model.running_mean\": expected Float [4], found Float [3]; tensor "
        "\"model.running_var\": expected Float [4], found Float [3]; tensor \"model.weight\": expected none, found "
        "Float [3]; tensor \"model.bias\": expected none, found Float [3]; optimizer: expected Adam, found SGD");
  CHECK(torch::equal(other->running_mean, mean));
}

TEST_CASE("CheckpointFolder: save() keeps the newest checkpoints, and leaves other files alone") {
  const TemporaryFolder parent;
  CheckpointFolder folder(parent.file("run"));
  CHECK(folder.files().empty());
  CHECK(!folder.newest().has_value());
  CHECK(folder.save(data_with(1), {1, 0}, 2) == folder.path() + "/checkpoint-000001-00000000.safetensors");
  folder.save_best(data_with(1));
  for (const char* name : {"/notes.txt", "/checkpoint-1-2.safetensors.bak", "/checkpoint-x-2.safetensors"})
    write_bytes(folder.path() + name, "x");
  for (int epoch = 2; epoch <= 11; ++epoch) folder.save(data_with(epoch), {epoch, 0}, 2);
  CHECK(folder.files().size() == 2);
  CHECK(folder.newest()->tensors["value"].item<double>() == 11);
  CHECK(attend::load_checkpoint(folder.best_path()).tensors["value"].item<double>() == 1);
  for (const char* name : {"/notes.txt", "/checkpoint-1-2.safetensors.bak", "/checkpoint-x-2.safetensors"})
    CHECK(exists(folder.path() + name));
  CHECK(message_of<c10::ValueError>([&] {
          folder.save(data_with(1), {12, 0}, 0);
        }) == "attend::CheckpointFolder: keep_last (0) must be at least 1");
}

TEST_CASE("CheckpointFolder: newest() finds a checkpoint while others are added and removed") {
  const TemporaryFolder parent;
  const std::string saved = parent.file("saved");
  attend::save_checkpoint(data_with(7), saved);
  const CheckpointFolder folder(parent.file("run"));
  REQUIRE(::mkdir(folder.path().c_str(), 0777) == 0);
  const auto path = [&](int epoch) { return folder.path() + "/checkpoint-" + std::to_string(epoch) + "-0.safetensors"; };
  REQUIRE(::link(saved.c_str(), path(0).c_str()) == 0);
  std::atomic<bool> is_done = false;
  std::thread writer([&] {  // what save() does to the folder with keep_last = 1, but much faster
    for (int epoch = 1; !is_done; ++epoch) {
      if (::link(saved.c_str(), path(epoch).c_str()) != 0) break;
      ::unlink(path(epoch - 1).c_str());
    }
  });
  CHECK_NOTHROW(for (int k = 0; k < 1'000; ++k) CHECK(folder.newest()->tensors["value"].item<double>() == 7));
  is_done = true;
  writer.join();
}

TEST_CASE("CheckpointFolder: positions are ordered by epoch, then by batch, also with more digits than usual") {
  const TemporaryFolder parent;
  CheckpointFolder folder(parent.file("run"));
  for (const CheckpointFolder::Position position :
       {CheckpointFolder::Position{1, 7}, {1, 100'000'000}, {2, 0}, {1'000'000, 1}})
    folder.save(data_with(static_cast<double>(position.batch)), position, 9);
  CHECK(folder.files().size() == 4);
  CHECK(folder.newest()->path == folder.path() + "/checkpoint-1000000-00000001.safetensors");
  CHECK(std::next(folder.files().begin())->second == folder.path() + "/checkpoint-000001-100000000.safetensors");
}

TEST_CASE("CheckpointFolder: save() removes the temporary files of a killed process, and later checkpoints") {
  const TemporaryFolder parent;
  CheckpointFolder folder(parent.file("run"));
  for (int epoch = 1; epoch <= 5; ++epoch) folder.save(data_with(epoch), {epoch, 0}, 9);
  const std::string temporary = folder.path() + "/checkpoint-000006-00000000.safetensors.tmp-12-3",
                    temporary_best = folder.path() + "/best.safetensors.tmp-12-3";
  write_bytes(temporary, "x");
  write_bytes(temporary_best, "x");
  folder.save(data_with(3), {3, 0}, 2);
  CHECK(epochs_in(folder) == "23");
  CHECK(!exists(temporary));
  CHECK(!exists(temporary_best));
}
