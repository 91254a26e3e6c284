// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/detail/mapped_file.h>
#include <attend/io/detail/safetensors_dtype.h>
#include <attend/io/detail/safetensors_header.h>
#include <attend/io/detail/safetensors_index.h>
#include <attend/io/detail/safetensors_writer.h>
#include <attend/io/file_error.h>
#include <attend/io/state_dict_type.h>
#include <attend/version.h>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A file of tensors in the safetensors format, or the index of several such files.
class SafetensorsFile {
 public:
  /// Opens the file and checks its header.
  explicit SafetensorsFile(const std::string& path) : path_(path) {
    if (!path.ends_with(".json")) {
      shards_.emplace_back(path);
      return;
    }
    const detail::MappedFile file(path, kFunction);
    const detail::SafetensorsIndex index = detail::read_safetensors_index(file.bytes(), path);
    std::map<std::string, const Shard*> opened;
    std::size_t tensors = 0;
    for (const auto& [name, file_name] : index) opened.emplace(file_name, nullptr);
    shards_.reserve(opened.size());
    for (auto& [file_name, shard] : opened) {
      shard = &shards_.emplace_back((std::filesystem::path(path).parent_path() / file_name).string());
      tensors += shard->header.tensors.size();
    }
    for (const auto& [name, file_name] : index)
      if (!opened.at(file_name)->header.tensors.contains(name))
        throw FileError(
            kFunction, path,
            "tensor " + detail::quoted(name) + ": expected it in " + detail::quoted(file_name) + ", found none");
    if (tensors != index.size())
      throw FileError(
          kFunction, path,
          "expected " + std::to_string(index.size()) + " tensors in the files, found " + std::to_string(tensors));
  }

  /// The names of all tensors in alphabetical order.
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const Shard& shard : shards_)
      for (const auto& [name, entry] : shard.header.tensors) names.push_back(name);
    std::ranges::sort(names);
    return names;
  }

  /// Whether the file has a tensor of this name.
  bool contains(const std::string& name) const {
    return std::ranges::any_of(shards_, [&](const Shard& shard) { return shard.header.tensors.contains(name); });
  }

  /// The sizes of a tensor.
  std::vector<std::int64_t> sizes(const std::string& name) const {
    std::vector<std::int64_t> shape = find(name).entry.shape;
    if (find(name).entry.dtype == detail::SafetensorsDtype::kF4) {
      if (shape.empty() || shape.back() % 2 != 0) fail(name, "expected an even last size for dtype F4");
      shape.back() /= 2;
    }
    return shape;
  }

  /// The dtype of a tensor.
  torch::ScalarType dtype(const std::string& name) const {
    const auto dtype = detail::torch_dtype(find(name).entry.dtype);
    if (!dtype)
      fail(name, "expected a dtype that LibTorch has, found " + std::string(facts(find(name).entry.dtype).name));
    return *dtype;
  }

  /// A tensor, without copy.
  torch::Tensor tensor(const std::string& name) const {
    const auto& [shard, entry] = find(name);
    const torch::ScalarType dtype = this->dtype(name);
    const std::vector<std::int64_t> sizes = this->sizes(name);
    if (entry.begin == entry.end) return at::empty(sizes, dtype);
    char* const data = shard.file.memory().get() + entry.begin;
    if (dtype == torch::kBool)
      for (std::uint64_t i = 0; i < entry.end - entry.begin; ++i)
        if (static_cast<unsigned char>(data[i]) > 1)
          fail(name,
               "expected elements 0 or 1 of dtype BOOL, found " + std::to_string(static_cast<unsigned char>(data[i])));
    if (reinterpret_cast<std::uintptr_t>(data) % c10::elementSize(dtype) == 0)
      return at::from_blob(
          data, sizes, [memory = shard.file.memory()](void*) {}, dtype);
    const torch::Tensor copy = at::empty(sizes, dtype);
    std::memcpy(copy.mutable_data_ptr(), data, entry.end - entry.begin);
    return copy;
  }

  /// The metadata.
  const std::map<std::string, std::string>& metadata() const { return shards_.front().header.metadata; }

 private:
  static constexpr char kFunction[] = "attend::SafetensorsFile";

  struct Shard {
    explicit Shard(const std::string& path)
        : file(path, kFunction), header(detail::read_safetensors_header(file.bytes(), path)) {}

    detail::MappedFile file;
    detail::SafetensorsHeader header;
  };
  struct Found {
    const Shard& shard;
    const detail::SafetensorsEntry& entry;
  };

  Found find(const std::string& name) const {
    for (const Shard& shard : shards_)
      if (const auto found = shard.header.tensors.find(name); found != shard.header.tensors.end())
        return {shard, found->second};
    fail(name, "expected a tensor of this name, found none");
  }

  [[noreturn]] void fail(const std::string& name, const std::string& problem) const {
    throw FileError(kFunction, path_, "tensor " + detail::quoted(name) + ": " + problem);
  }

  std::string path_;
  std::vector<Shard> shards_;
};

/// All tensors of a file.
inline StateDict load_safetensors(const std::string& path, torch::Device device = torch::kCPU) {
  const SafetensorsFile file(path);
  StateDict tensors;
  for (const std::string& name : file.names()) tensors.insert(name, file.tensor(name).to(device));
  return tensors;
}

/// Options for save_safetensors().
struct SafetensorsOptions {
  using Metadata = std::map<std::string, std::string>;

  /// Texts that are saved with the tensors.
  TORCH_ARG(Metadata, metadata);
  /// The largest number of bytes of tensors in one file.
  TORCH_ARG(std::int64_t, max_shard_size) = 0;
  /// Whether a tensor with the memory of another one is left out.
  TORCH_ARG(bool, drop_tied) = false;
};

/// Writes tensors to a file, which appears as a whole or not at all.
///
/// @return The path to load: `path`, or that of the index if several files were written.
inline std::string save_safetensors(const StateDict& tensors, const std::string& path,
                                    const SafetensorsOptions& options = {}) {
  std::map<std::string, torch::Tensor> sorted;
  for (const auto& item : tensors) {
    detail::safetensors_entry(item.key(), item.value());
    sorted.emplace(item.key(), item.value());
  }
  SafetensorsOptions::Metadata metadata = options.metadata();
  detail::check_shared_memory(sorted, options.drop_tied(), metadata);
  detail::write_safetensors(path, sorted, metadata);
  return path;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
