// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/in_memory.h>
#include <attend/io/detail/atomic_file.h>
#include <attend/io/detail/json.h>
#include <attend/io/detail/safetensors_header.h>
#include <attend/io/detail/safetensors_index.h>
#include <attend/io/detail/torch/safetensors_dtype.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/Layout.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Writes tensors to one or several files. Exceptions are those of save_safetensors().
class SafetensorsWriter {
 public:
  explicit SafetensorsWriter(std::map<std::string, std::string> metadata) : metadata_(std::move(metadata)) {
    for (const auto& [name, value] : metadata_)
      TORCH_CHECK_VALUE(is_utf8(name) && is_utf8(value), kName, ": metadata ", quoted(name),
                        ": expected a name and a text in UTF-8");
  }

  void add(const std::string& name, const at::Tensor& tensor) {
    const auto check = [&](bool is_right, const auto&... problem) {
      TORCH_CHECK_VALUE(is_right, kName, ": tensor ", quoted(name), ": expected ", problem...);
    };
    check(is_utf8(name) && name != kSafetensorsMetadata, "a name in UTF-8 other than \"", kSafetensorsMetadata, '"');
    check(tensor.defined(), "a tensor, got an undefined one");
    check(tensor.layout() == c10::kStrided, "a dense tensor, got one of layout ", tensor.layout());
    check(!tensor.is_meta(), "a tensor with elements, got one on the device meta");
    const auto dtype = safetensors_dtype(tensor.scalar_type());
    check(dtype.has_value(), "a dtype of the format, got ", tensor.scalar_type());
    std::vector<std::int64_t> shape = tensor.sizes().vec();
    check(shape.size() <= kSafetensorsMostDimensions, "at most 64 dimensions, got ", shape.size());
    if (*dtype == SafetensorsDtype::kF4) {  // the format counts numbers, torch pairs of numbers
      check(!shape.empty(), "at least one dimension for dtype ", tensor.scalar_type(), ", got none");
      shape.back() *= 2;
    }
    tensors_.emplace(name, Tensor{tensor.detach(), {*dtype, std::move(shape)}});
  }

  /// Finds tensors that share memory, as Python's package does.
  ///
  /// @param drop_tied Whether to leave out a tensor that has the same memory as another one. Otherwise it is an error.
  void check_shared_memory(bool drop_tied) {
    std::vector<Range> ranges;
    for (const auto& [name, saved] : tensors_) {
      const at::Tensor& tensor = saved.tensor;
      if (tensor.numel() == 0 || tensor._is_zerotensor()) continue;
      std::int64_t last = 0;
      for (std::int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
      const auto begin = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
      ranges.push_back({tensor.device().str(), begin,
                        begin + static_cast<std::uintptr_t>((last + 1) * tensor.element_size()), name, tensor});
    }
    std::ranges::sort(ranges, {}, [](const Range& range) { return std::tie(range.device, range.begin, range.name); });

    const Range* kept = nullptr;  // the range that reaches furthest
    for (const Range& range : ranges) {
      if (kept == nullptr || kept->device != range.device || kept->end <= range.begin) {
        kept = &range;
        continue;
      }
      const at::Tensor &a = kept->tensor, &b = range.tensor;
      const bool is_tied = kept->begin == range.begin && a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
                           a.strides() == b.strides() && a.is_conj() == b.is_conj() && a.is_neg() == b.is_neg();
      TORCH_CHECK_VALUE(is_tied && drop_tied, kName, ": tensors ", quoted(kept->name), " and ", quoted(range.name),
                        " share memory, which a file cannot express. Save a clone() of ", quoted(range.name),
                        is_tied ? ", or pass SafetensorsOptions().drop_tied(true) to save only the first" : "");
      metadata_.emplace(range.name, kept->name);
      tensors_.erase(range.name);
    }
  }

  /// @param max_shard_size The largest number of bytes in one file; 0 for no limit.
  /// @return The path to load.
  std::string write(const std::string& path, std::int64_t max_shard_size) const {
    TORCH_CHECK_VALUE(max_shard_size >= 0, kName, ": max_shard_size (", max_shard_size, ") must be at least 0");
    TORCH_CHECK_VALUE(!path.ends_with(".json"), kName, ": the path (", path,
                      ") must not end in .json, which load_safetensors() takes for an index");
    std::vector<SafetensorsHeader> headers = shards(static_cast<std::uint64_t>(max_shard_size));
    std::vector<std::string> beginnings;
    for (SafetensorsHeader& header : headers) {
      beginnings.push_back(write_safetensors_header(header));
      TORCH_CHECK_VALUE(beginnings.back().size() - 8 <= kSafetensorsLongestHeader, kName,
                        ": the names and metadata take ", beginnings.back().size() - 8,
                        " bytes, but the format allows ", kSafetensorsLongestHeader);
    }
    if (headers.size() == 1) {
      write_file(path, beginnings[0], headers[0]);
      return path;
    }

    constexpr std::string_view kSuffix = ".safetensors";
    TORCH_CHECK_VALUE(path.ends_with(kSuffix), kName, ": the path (", path, ") must end in ", kSuffix,
                      " if several files are written");
    SafetensorsIndex index;
    std::uint64_t total_size = 0;
    for (std::size_t i = 0; i < headers.size(); ++i) {
      char number[64];
      std::snprintf(number, sizeof(number), "-%05zu-of-%05zu", i + 1, headers.size());
      const std::string file = path.substr(0, path.size() - kSuffix.size()) + number + std::string(kSuffix);
      write_file(file, beginnings[i], headers[i]);
      for (const auto& [name, entry] : headers[i].tensors) {
        index.emplace(name, file.substr(path.rfind('/') + 1));
        total_size += entry.end - entry.begin;
      }
    }
    const std::string index_path = path + ".index.json", text = write_safetensors_index(index, total_size);
    AtomicFile file(kName, index_path);
    file.write(text.data(), text.size());
    file.commit();
    return index_path;
  }

 private:
  static constexpr const char* kName = "attend::save_safetensors";

  struct Tensor {
    at::Tensor tensor;
    SafetensorsEntry entry;
  };
  /// The memory of a tensor.
  struct Range {
    std::string device;
    std::uintptr_t begin, end;
    std::string name;
    at::Tensor tensor;
  };

  /// The headers of the files, at least one.
  std::vector<SafetensorsHeader> shards(std::uint64_t max_size) const {
    std::vector<SafetensorsHeader> headers(1, {{}, metadata_});
    std::uint64_t total = 0;
    for (const auto& [name, saved] : tensors_) {
      const std::uint64_t size = *byte_size(saved.entry.dtype, saved.entry.shape);
      if (max_size > 0 && total > 0 && total + size > max_size) {
        headers.push_back({{}, metadata_});
        total = 0;
      }
      headers.back().tensors.emplace(name, saved.entry);
      total += size;
    }
    return headers;
  }

  void write_file(const std::string& path, const std::string& beginning, const SafetensorsHeader& header) const {
    AtomicFile file(kName, path);
    file.write(beginning.data(), beginning.size());
    for (const auto* entry : header.by_position()) {
      const at::Tensor tensor = in_memory(tensors_.at(entry->first).tensor.cpu()).resolve_conj().contiguous();
      file.write(tensor.const_data_ptr(), tensor.nbytes());
    }
    file.commit();
  }

  std::map<std::string, std::string> metadata_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
