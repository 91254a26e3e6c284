// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/expanded.h>
#include <attend/io/checkpoint.h>
#include <attend/io/file_error.h>
#include <attend/version.h>

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/empty.h>
#include <c10/core/Device.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <c10/util/Type.h>
#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>
#include <torch/serialize/archive.h>
#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

namespace detail {

/// A copy of the bytes as a 1-d tensor of uint8.
inline torch::Tensor tensor_of_bytes(const std::string& bytes) {
  const torch::Tensor tensor = at::empty({static_cast<std::int64_t>(bytes.size())}, torch::kByte);
  if (!bytes.empty()) std::memcpy(tensor.mutable_data_ptr(), bytes.data(), bytes.size());
  return tensor;
}

inline std::string bytes_of(const torch::Tensor& tensor) {
  return std::string(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
}

/// The parameters and buffers of a module, with their names in a checkpoint. The tensors are not copied.
inline std::vector<std::pair<std::string, torch::Tensor>> named_tensors_of(const torch::nn::Module& module) {
  std::vector<std::pair<std::string, torch::Tensor>> tensors;
  for (const auto& of_module : {module.named_parameters(), module.named_buffers()})
    for (const auto& item : of_module)
      if (item.value().defined()) tensors.emplace_back("model." + item.key(), item.value());
  return tensors;
}

/// The CPU, and the devices of the module.
inline std::set<std::string> devices_of(const torch::nn::Module& module) {
  std::set<std::string> devices{"cpu"};
  for (const auto& [name, tensor] : named_tensors_of(module)) devices.insert(tensor.device().str());
  return devices;
}

/// The name of a class, without namespace: attend::Adam and torch::optim::Adam read each other's archives.
inline std::string class_name(const std::type_info& type) {
  const std::string name = c10::demangle(type.name());
  const std::size_t colon = name.rfind(':');
  return colon == std::string::npos ? name : name.substr(colon + 1);
}

inline std::string dtype_and_sizes(const torch::Tensor& tensor) {
  std::ostringstream text;
  text << tensor.scalar_type() << ' ' << tensor.sizes();
  return text.str();
}

/// The differences between the tensors of a module and those of a checkpoint, each after "; ". Empty if there are none.
inline std::string differences(const CheckpointData& data, const torch::nn::Module& module) {
  std::string text;
  std::set<std::string> own;
  for (const auto& [name, tensor] : named_tensors_of(module)) {
    own.insert(name);
    const torch::Tensor* const saved = data.tensors.find(name);
    if (saved == nullptr)
      text += "; tensor " + detail::quoted(name) + ": expected " + dtype_and_sizes(tensor) + ", found none";
    else if (saved->sizes() != tensor.sizes() || saved->scalar_type() != tensor.scalar_type())
      text += "; tensor " + detail::quoted(name) + ": expected " + dtype_and_sizes(tensor) + ", found " +
              dtype_and_sizes(*saved);
    else if (is_expanded(tensor) && !tensor.equal(saved->to(tensor.device())))
      text +=
          "; tensor " + detail::quoted(name) +
          ": expected the elements that the module has, because its tensor is expanded and cannot be written, found "
          "others";
  }
  for (const auto& item : data.tensors)
    if (item.key().starts_with("model.") && !own.contains(item.key()))
      text += "; tensor " + detail::quoted(item.key()) + ": expected none, found " + dtype_and_sizes(item.value());
  return text;
}

/// A tensor of a checkpoint. Throws FileError unless it has this dtype and number of dimensions.
inline const torch::Tensor& tensor_of(const CheckpointData& data, const char* function, const std::string& name,
                                      torch::ScalarType dtype, std::int64_t dimensions) {
  const torch::Tensor* const tensor = data.tensors.find(name);
  if (tensor == nullptr || tensor->scalar_type() != dtype || tensor->dim() != dimensions)
    throw FileError(function, data.path,
                    "tensor " + detail::quoted(name) + ": expected " + c10::toString(dtype) + " with " +
                        std::to_string(dimensions) + " dimensions, found " +
                        (tensor == nullptr ? "none" : dtype_and_sizes(*tensor)));
  return *tensor;
}

/// Loads the optimizer from its archive in a checkpoint. Throws FileError if LibTorch cannot read the archive.
inline void load_optimizer(const CheckpointData& data, const char* function, torch::optim::Optimizer& optimizer,
                           torch::Device device) {
  const torch::Tensor& bytes = tensor_of(data, function, "optimizer", torch::kByte, 1);
  try {
    torch::serialize::InputArchive archive;
    archive.load_from(static_cast<const char*>(bytes.const_data_ptr()), bytes.nbytes(), device);
    optimizer.load(archive);
  } catch (const c10::Error& error) {
    throw FileError(function, data.path, std::string("tensor \"optimizer\": ") + error.what_without_backtrace());
  }
}

/// Sets the random number generators of the CPU and of the module's devices. A generator that the checkpoint lacks does
/// not change.
inline void load_generators(const CheckpointData& data, const char* function, const torch::nn::Module& module) {
  for (const std::string& device : devices_of(module)) {
    const std::string name = "generator." + device;
    if (!data.tensors.contains(name)) continue;  // the training was on another device
    at::Generator generator = at::globalContext().defaultGenerator(c10::Device(device));
    const std::scoped_lock lock(generator.mutex());
    try {
      generator.set_state(tensor_of(data, function, name, torch::kByte, 1));
    } catch (const c10::Error& error) {
      throw FileError(function, data.path, "tensor " + detail::quoted(name) + ": " + error.what_without_backtrace());
    }
  }
}

}  // namespace detail

/// Adds the state of model, optimizer and random number generators to a checkpoint.
///
/// The generators are torch's default generators of the CPU and of the devices of the model.
///
/// @param data The checkpoint.
/// @param model The model. Its parameters and buffers are copied.
/// @param optimizer The optimizer.
///
/// @code
/// attend::CheckpointData data;
/// attend::add_training_state(data, *model, optimizer);
/// attend::save_checkpoint(data, "last.safetensors");
/// @endcode
inline void add_training_state(CheckpointData& data, const torch::nn::Module& model,
                               const torch::optim::Optimizer& optimizer) {
  for (const auto& [name, tensor] : detail::named_tensors_of(model)) data.tensors.insert(name, tensor.detach().clone());
  torch::serialize::OutputArchive archive;
  optimizer.save(archive);
  std::string bytes;
  archive.save_to([&](const void* more, std::size_t size) {
    bytes.append(static_cast<const char*>(more), size);
    return size;
  });
  data.tensors.insert("optimizer", detail::tensor_of_bytes(bytes));
  data.metadata["optimizer"] = detail::class_name(typeid(optimizer));
  for (const std::string& device : detail::devices_of(model)) {
    at::Generator generator = at::globalContext().defaultGenerator(c10::Device(device));
    const std::scoped_lock lock(generator.mutex());
    data.tensors.insert("generator." + device, generator.get_state());
  }
}

/// Sets model, optimizer and random number generators to the state in a checkpoint.
///
/// @param data A checkpoint that add_training_state() has filled.
/// @param model The model. Its parameters and buffers must have the names, shapes and dtypes of the checkpoint.
/// @param optimizer An optimizer of the same class for the parameters of this model. Its options, learning rates
/// included, are replaced by those of the checkpoint.
/// @throws FileError if the checkpoint does not fit; the message lists all differences. The model is then unchanged.
/// Exception: random number generators are set last, so if LibTorch refuses the state of a generator, the model has
/// already changed.
///
/// @code
/// attend::CheckpointData data = attend::load_checkpoint("last.safetensors");
/// attend::load_training_state(data, *model, optimizer);
/// @endcode
inline void load_training_state(const CheckpointData& data, torch::nn::Module& model,
                                torch::optim::Optimizer& optimizer) {
  constexpr char kFunction[] = "attend::load_training_state";
  std::string problems = detail::differences(data, model);
  const auto saved_class = data.metadata.find("optimizer");
  const std::string saved = saved_class == data.metadata.end() ? "none" : saved_class->second;
  if (saved != detail::class_name(typeid(optimizer)))
    problems += "; optimizer: expected " + detail::class_name(typeid(optimizer)) + ", found " + saved;
  if (!problems.empty()) throw FileError(kFunction, data.path, problems.substr(2));

  const auto tensors = detail::named_tensors_of(model);
  detail::load_optimizer(data, kFunction, optimizer, tensors.empty() ? torch::kCPU : tensors.front().second.device());
  {
    const c10::NoGradGuard no_grad;
    for (const auto& [name, tensor] : tensors)
      if (!detail::is_expanded(tensor)) torch::Tensor(tensor).copy_(data.tensors[name]);
  }
  detail::load_generators(data, kFunction, model);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
