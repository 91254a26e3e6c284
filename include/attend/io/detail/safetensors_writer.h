// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/in_memory.h>
#include <attend/io/detail/atomic_file.h>
#include <attend/io/detail/json.h>
#include <attend/io/detail/safetensors_dtype.h>
#include <attend/io/detail/safetensors_header.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

inline constexpr char kSaveSafetensors[] = "attend::save_safetensors";

/// What the header says about a tensor. Throws c10::ValueError if no file can hold it.
inline SafetensorsEntry safetensors_entry(const std::string& name, const at::Tensor& tensor) {
  const auto check = [&](bool is_right, const auto&... problem) {
    TORCH_CHECK_VALUE(is_right, kSaveSafetensors, ": tensor ", quoted(name), ": ", problem...);
  };
  check(is_utf8(name) && name != kSafetensorsMetadata, "expected a name in UTF-8 other than __metadata__");
  check(tensor.defined(), "expected a tensor, got an undefined one");
  check(tensor.layout() == at::kStrided, "expected a dense tensor, got one of layout ", tensor.layout());
  check(!tensor.is_meta(), "expected a tensor with elements, got one on the device meta");
  const auto dtype = safetensors_dtype(tensor.scalar_type());
  check(dtype.has_value(), "expected a dtype that the format has, got ", tensor.scalar_type(),
        tensor.is_complex() ? "; save at::view_as_real(tensor)" : "");
  std::vector<std::int64_t> shape = tensor.sizes().vec();
  if (*dtype == SafetensorsDtype::kF4) {  // the format counts numbers, torch pairs of numbers
    check(!shape.empty(), "expected at least one dimension, got a 0-d tensor of dtype ", tensor.scalar_type());
    shape.back() *= 2;
  }
  check(shape.size() <= kSafetensorsMostDimensions, "expected at most 64 dimensions, got ", shape.size());
  return {*dtype, std::move(shape)};
}

/// Finds tensors that share memory, as Python's package does: not two parts of one storage that do not overlap.
///
/// @param drop_tied Whether a tensor with the elements of another one is taken out of `tensors`. The one whose name
///   comes first in the alphabet is kept. Its name is `metadata[name]` of the others, unless the user set that.
///
/// Throws c10::ValueError if tensors still share memory.
inline void check_shared_memory(std::map<std::string, at::Tensor>& tensors, bool drop_tied,
                                std::map<std::string, std::string>& metadata) {
  struct Range {
    c10::Device device;
    std::uintptr_t begin, end;
    const std::string* name;
    const at::Tensor* tensor;
  };
  std::vector<Range> ranges;
  for (const auto& [name, tensor] : tensors) {
    if (tensor.numel() == 0 || tensor._is_zerotensor()) continue;
    std::int64_t last = 0;
    for (std::int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
    const auto begin = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
    ranges.push_back({tensor.device(), begin, begin + static_cast<std::uintptr_t>(last + 1) * tensor.element_size(),
                      &name, &tensor});
  }
  std::ranges::sort(ranges, {}, [](const Range& r) { return std::tuple(r.device.str(), r.begin, *r.name); });

  const Range* furthest = nullptr;
  for (const Range& range : ranges) {
    if (furthest == nullptr || furthest->device != range.device || furthest->end <= range.begin) {
      furthest = &range;
      continue;
    }
    const auto is_equal = [&](const at::Tensor& a, const at::Tensor& b) {
      return furthest->begin == range.begin && a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
             a.strides() == b.strides();
    };
    const bool is_tied = is_equal(*furthest->tensor, *range.tensor);
    TORCH_CHECK_VALUE(is_tied && drop_tied, kSaveSafetensors, ": tensors ", quoted(*furthest->name), " and ",
                      quoted(*range.name), " share memory, which a file cannot express; ",
                      is_tied ? "save one of them with SafetensorsOptions().drop_tied(true), or a clone() of one"
                              : "save a clone() of one of them");
    metadata.emplace(*range.name, *furthest->name);
    tensors.erase(*range.name);
  }
}

/// Writes one file.
inline void write_safetensors(const std::string& path, const std::map<std::string, at::Tensor>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  SafetensorsHeader header{{}, metadata};
  for (const auto& [name, tensor] : tensors) header.tensors.emplace(name, safetensors_entry(name, tensor));
  const std::string beginning = write_safetensors_header(header);
  TORCH_CHECK_VALUE(beginning.size() - 8 <= kSafetensorsLongestHeader, kSaveSafetensors,
                    ": expected names and metadata for a header of at most ", kSafetensorsLongestHeader, " bytes, got ",
                    beginning.size() - 8);
  AtomicFile file(kSaveSafetensors, path);
  file.write(beginning.data(), beginning.size());
  for (const auto* tensor : header.by_position()) {
    const at::Tensor elements = in_memory(tensors.at(tensor->first).detach().cpu()).resolve_conj().contiguous();
    file.write(elements.const_data_ptr(), elements.nbytes());
  }
  file.commit();
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
