// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/detail/json.h>
#include <attend/io/detail/mapped_file.h>
#include <attend/io/detail/torch_archive.h>
#include <attend/io/file_error.h>
#include <attend/io/state_dict_type.h>
#include <attend/version.h>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/ScalarType.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

namespace detail {

/// The bytes of a storage as a 1-d tensor of uint8: a view of the mapped file if they are aligned, otherwise a copy.
inline torch::Tensor torch_storage(const std::shared_ptr<char>& memory, std::string_view bytes) {
  if (bytes.empty()) return at::empty({0}, torch::kByte);
  char* const data = memory.get() + (bytes.data() - memory.get());  // not const, as bytes.data() is
  const torch::Tensor view = at::from_blob(
      data, {static_cast<std::int64_t>(bytes.size())}, [memory](void*) {}, torch::kByte);
  return reinterpret_cast<std::uintptr_t>(data) % alignof(std::max_align_t) == 0 ? view : view.clone();
}

/// The dtype of a tensor of the file. Throws FileError if this LibTorch lacks it.
inline torch::ScalarType torch_dtype(const TorchEntry& entry, const std::string& path) {
  const auto& dtypes = c10::getStringToDtypeMap();
  const auto found = dtypes.find(std::string(entry.dtype->name));
  if (found == dtypes.end())
    throw FileError("attend::load_torch_file", path,
                    "tensor " + detail::quoted(entry.name) + ": expected a dtype of this LibTorch, found " +
                        std::string(entry.dtype->name));
  return found->second;
}

}  // namespace detail

/// Reads the tensors of a file that `torch.save(model.state_dict(), path)` in Python has written.
///
/// No code in the file is executed: the file may hold tensors, numbers, strings, lists, tuples and dicts, and anything
/// else is an error. Names, values, strides and dtypes are those in Python. Tensors that share memory in Python share
/// memory here. All tensors are on the CPU.
///
/// The tensors are views of the mapped file, which is read when they are used. A change of a tensor does not change the
/// file. Do not shorten the file while a tensor exists: reading the tensor would end the process (SIGBUS).
///
/// Differs from torch.load: files of PyTorch before 1.6, compressed archives, and sparse, quantized and meta tensors
/// are refused. Checksums are not checked, as in torch.load.
///
/// @param path The file.
/// @param key The entry that holds the state dict, if the saved object is a larger dict. It is "model" for
/// `torch.save({"model": model.state_dict(), "epoch": 3}, path)`. Default: the saved object is the state dict.
/// @return The tensors in the order of the file.
/// @throws FileError if the file cannot be read or holds anything else.
///
/// @code
/// attend::load_state_dict(*model, attend::load_torch_file("model.pt"));
/// @endcode
inline StateDict load_torch_file(const std::string& path, const std::string& key = "") {
  constexpr const char* kName = "attend::load_torch_file";
  const detail::InputFile file(path, kName);
  const std::shared_ptr<char> memory = file.size() > 0 ? file.map(0, file.size()) : nullptr;
  StateDict tensors;
  std::unordered_map<const char*, torch::Tensor> storages;  // by their first byte
  std::unordered_set<const char*> checked;                  // storages of bools
  for (const detail::TorchEntry& entry : detail::TorchArchive::read({memory.get(), file.size()}, path, key)) {
    const torch::ScalarType dtype = detail::torch_dtype(entry, path);
    auto& storage = storages[entry.storage.data()];
    if (!storage.defined()) storage = detail::torch_storage(memory, entry.storage);
    if (dtype == torch::kBool && checked.insert(entry.storage.data()).second &&
        std::ranges::any_of(entry.storage, [](char c) { return c != 0 && c != 1; }))
      throw FileError(kName, path, "tensor " + detail::quoted(entry.name) + ": expected bools, found other bytes");
    torch::Tensor tensor = at::empty({0}, dtype);
    tensor.set_(storage.storage(), entry.offset, entry.sizes, entry.strides);
    tensors.insert(entry.name, std::move(tensor));
  }
  return tensors;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
