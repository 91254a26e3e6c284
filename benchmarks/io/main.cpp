// SPDX-License-Identifier: MIT

// How long does a file in the safetensors format take, beside a plain read and a plain write? The model has
// 64 float32 tensors of 16 MiB, 1 GiB together. Prints CSV.
//
//   io load FILE ROUNDS      way, whether the file is in the page cache, seconds
//   io save FILE ROUNDS      way, whether the file is new, seconds
//   io memory FILE WAY       the largest resident memory during a load beyond that before it, in MiB
//
// measure.py runs it.

#include <ATen/ops/full.h>
#include <attend/io/safetensors.h>
#include <attend/io/state_dict.h>
#include <fcntl.h>
#include <torch/nn/module.h>
#include <torch/utils.h>
#include <torch/version.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/program.h"

namespace {

constexpr int kTensors = 64;

std::string name_of(int i) { return "weight" + std::to_string(i); }

attend::StateDict make_model(double value) {
  attend::StateDict model;
  for (int i = 0; i < kTensors; ++i) model.insert(name_of(i), at::full({4096, 1024}, value + i));
  return model;
}

void check(bool is_right, const std::string& what) {
  if (!is_right) throw std::runtime_error(what + " failed");
}

struct Descriptor {
  Descriptor(const std::string& path, int flags) : number(::open(path.c_str(), flags, 0666)) {
    check(number >= 0, "open " + path);
  }
  ~Descriptor() { ::close(number); }
  const int number;
};

void read_all(int file, char* to, std::size_t size) {
  while (size > 0) {
    const ::ssize_t count = ::read(file, to, size);
    check(count > 0, "read");
    to += count;
    size -= static_cast<std::size_t>(count);
  }
}

/// The ways to load: into the memory of the model, which exists.
const std::map<std::string, std::function<void(attend::StateDict&, const std::string&)>> kLoads = {
    {"plain read into the model",
     [](attend::StateDict& model, const std::string& path) {
       const Descriptor file(path, O_RDONLY);
       for (auto& item : model)
         read_all(file.number, static_cast<char*>(item.value().mutable_data_ptr()), item.value().nbytes());
     }},
    {"SafetensorsFile::read",
     [](attend::StateDict& model, const std::string& path) {
       const attend::SafetensorsFile file(path);
       for (auto& item : model) file.read(item.key(), item.value());
     }},
    {"load_state_dict of a SafetensorsFile",
     [](attend::StateDict& model, const std::string& path) {
       struct Buffers : torch::nn::Module {
         explicit Buffers(const attend::StateDict& tensors) {
           for (const auto& item : tensors) register_buffer(item.key(), item.value());
         }
       } module(model);
       attend::load_state_dict(module, attend::SafetensorsFile(path));
     }},
    {"SafetensorsFile::tensor and copy_",
     [](attend::StateDict& model, const std::string& path) {
       const attend::SafetensorsFile file(path);
       for (auto& item : model) item.value().copy_(file.tensor(item.key()));
     }},
    {"load_safetensors and copy_",
     [](attend::StateDict& model, const std::string& path) {
       const attend::StateDict loaded = attend::load_safetensors(path);
       for (auto& item : model) item.value().copy_(loaded[item.key()]);
     }},
};

/// The ways to save.
const std::map<std::string, std::function<void(const attend::StateDict&, const std::string&)>> kSaves = {
    {"plain write with fsync and rename",
     [](const attend::StateDict& model, const std::string& path) {
       const std::string temporary = path + ".plain";
       const Descriptor file(temporary, O_WRONLY | O_CREAT | O_EXCL);
       for (const auto& item : model)
         check(::write(file.number, item.value().const_data_ptr(), item.value().nbytes()) ==
                   static_cast<::ssize_t>(item.value().nbytes()),
               "write");
       check(::fsync(file.number) == 0 && ::rename(temporary.c_str(), path.c_str()) == 0, "fsync");
     }},
    {"save_safetensors",
     [](const attend::StateDict& model, const std::string& path) { attend::save_safetensors(model, path); }},
};

double seconds(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Writes the file to the disk, and removes it from the page cache.
void evict(const std::string& path) {
  const Descriptor file(path, O_RDONLY);
  check(::fsync(file.number) == 0 && ::posix_fadvise(file.number, 0, 0, POSIX_FADV_DONTNEED) == 0, "posix_fadvise");
}

void load(const std::string& path, std::int64_t rounds) {
  attend::save_safetensors(make_model(1), path);
  attend::StateDict model = make_model(0);
  for (const bool is_cached : {true, false})
    for (std::int64_t round = 0; round <= rounds; ++round)
      for (const auto& [way, call] : kLoads) {
        if (!is_cached) evict(path);
        const double took = seconds([&] { call(model, path); });
        if (round > 0) std::cout << way << ',' << (is_cached ? "yes" : "no") << ',' << took << std::endl;
      }
  // The plain read takes the header for numbers, so the other ways come last.
  kLoads.at("SafetensorsFile::read")(model, path);
  for (int i = 0; i < kTensors; ++i) check(model[name_of(i)].eq(1. + i).all().item<bool>(), "load");
}

void save(const std::string& path, std::int64_t rounds) {
  const attend::StateDict model = make_model(1);
  for (const bool is_new : {true, false})
    for (std::int64_t round = 0; round <= rounds; ++round)
      for (const auto& [way, call] : kSaves) {
        if (is_new) ::unlink(path.c_str());
        const double took = seconds([&] { call(model, path); });
        if (round > 0) std::cout << way << ',' << (is_new ? "yes" : "no") << ',' << took << std::endl;
      }
}

/// The largest resident memory so far, in MiB.
double peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) / 1024;
  throw std::runtime_error("/proc/self/status has no VmHWM");
}

void memory(const std::string& path, const std::string& way) {
  attend::StateDict model = make_model(0);
  const double before = peak_memory();
  kLoads.at(way)(model, path);
  std::cout << peak_memory() - before << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments == std::vector<std::string>{"about"}) {
      std::cout << benchmark::kCompiler << ", LibTorch " << TORCH_VERSION << ", " << torch::get_num_threads()
                << " threads\n";
      return 0;
    }
    if (arguments.size() != 3) throw std::invalid_argument("expected load, save or memory with two more arguments");
    if (arguments[0] == "load") load(arguments[1], benchmark::positive(arguments[2]));
    if (arguments[0] == "save") save(arguments[1], benchmark::positive(arguments[2]));
    if (arguments[0] == "memory") memory(arguments[1], arguments[2]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
