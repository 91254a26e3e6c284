// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/nn/module.h>
#include <torch/serialize/input-archive.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <string>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The options of a layer that determine the sizes of one of its parameters, and whether the parameter exists.
struct ParameterOptions {
  std::string name;                // the name of the parameter
  std::vector<std::string> sizes;  // for each size, the name of the option that determines it
  std::string presence = "";       // the option that decides whether it exists; empty: that of check_archive()
};

/// Adds the tensors of an archive and of its nested archives, by their full names.
inline void add_tensors_of(torch::serialize::InputArchive& archive, const std::string& prefix,
                           std::map<std::string, torch::Tensor>& tensors) {
  for (const std::string& key : archive.keys()) {
    torch::Tensor tensor;
    torch::serialize::InputArchive child;
    if (archive.try_read(key, tensor))
      tensors[prefix + key] = tensor;
    else if (archive.try_read(key, child))
      add_tensors_of(child, prefix + key + ".", tensors);
  }
}

/// Throws unless the archive has exactly the parameters and buffers of the layer: c10::ValueError for a different name
/// or size, c10::TypeError for a different dtype.
///
/// Every layer calls this before it loads, because LibTorch does not check: it gives a parameter the sizes of the
/// archive, reads the bits of float64 as float32, and skips tensors that the layer lacks.
///
/// The message names the option that differs. `presence` is the option that decides which parameters exist, except for
/// parameters whose ParameterOptions name another one.
inline void check_archive(const char* layer, const torch::nn::Module& module, torch::serialize::InputArchive& archive,
                          const std::vector<ParameterOptions>& options = {}, const std::string& presence = "") {
  std::map<std::string, torch::Tensor> saved, own;
  add_tensors_of(archive, "", saved);
  for (const auto& parameter : module.named_parameters()) own[parameter.key()] = parameter.value();
  for (const auto& buffer : module.named_buffers()) own[buffer.key()] = buffer.value();
  const auto options_of = [&](const std::string& name) {
    const auto found =
        std::find_if(options.begin(), options.end(), [&](const auto& each) { return each.name == name; });
    return found == options.end() ? ParameterOptions{} : *found;
  };
  const auto presence_of = [&](const std::string& name) {
    const std::string own_option = options_of(name).presence;
    return own_option.empty() ? presence : own_option;
  };
  const auto saved_with_another = [](const std::string& option) {
    return option.empty() ? "Was the archive saved by the same kind of layer?"
                          : "The saved layer has a different " + option + ".";
  };
  for (const auto& [name, tensor] : own)
    TORCH_CHECK_VALUE(saved.count(name) == 1, layer, ": cannot load: the archive has no ", name,
                      ", which this layer has. ", saved_with_another(presence_of(name)));
  for (const auto& [name, tensor] : saved)
    TORCH_CHECK_VALUE(own.count(name) == 1, layer, ": cannot load: the archive has ", name, " ", tensor.sizes(),
                      ", which this layer does not have. ", saved_with_another(presence_of(name)));
  for (const auto& [name, tensor] : own) {
    const torch::Tensor& other = saved.at(name);
    std::string different;
    const ParameterOptions of_sizes = options_of(name);
    for (std::size_t i = 0; i < of_sizes.sizes.size() && other.dim() == tensor.dim(); ++i)
      if (tensor.sizes()[i] != other.sizes()[i])
        different += (different.empty() ? "" : ", and a different ") + of_sizes.sizes[i];
    TORCH_CHECK_VALUE(other.sizes() == tensor.sizes(), layer, ": cannot load: ", name, " is ", other.sizes(),
                      " in the archive and ", tensor.sizes(), " in this layer. ", saved_with_another(different));
    TORCH_CHECK_TYPE(other.scalar_type() == tensor.scalar_type(), layer, ": cannot load: ", name, " is ",
                     other.scalar_type(), " in the archive and ", tensor.scalar_type(),
                     " in this layer. Convert the layer with .to(torch::k", other.scalar_type(), ") before loading");
  }
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
