// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/detail/json.h>
#include <attend/io/detail/mapped_file.h>
#include <attend/io/detail/safetensors_header.h>
#include <attend/io/detail/safetensors_index.h>
#include <attend/io/detail/torch/file_view.h>
#include <attend/io/detail/torch/safetensors_dtype.h>
#include <attend/io/detail/torch/safetensors_writer.h>
#include <attend/io/file_error.h>
#include <attend/io/state_dict_type.h>
#include <attend/version.h>

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Reads a file in the safetensors format, or several of them through their index `model.safetensors.index.json`.
///
/// The constructor checks the whole header before anything else is read. A tensor is read when it is used.
///
/// Source: the format of https://github.com/huggingface/safetensors. The checks are those of its Rust crate. In
/// addition, attend refuses two tensors of one name, more than 64 dimensions, and sizes that do not fit into 63 bits.
///
/// @code
/// attend::SafetensorsFile file("model.safetensors");
/// for (const std::string& name : file.names())
///   std::cout << name << ' ' << file.dtype(name) << ' ' << file.sizes(name) << '\n';
/// torch::Tensor weight = file.tensor("encoder.weight");
/// @endcode
class SafetensorsFile {
 public:
  /// Opens a file and checks its header.
  ///
  /// @param path A file, or an index if the path ends in `.json`. An index must name the file of each tensor. The files
  /// must be in the folder of the index, and must have no other tensors.
  /// @throws FileError if a file cannot be read or its content is wrong.
  explicit SafetensorsFile(const std::string& path) : path_(path) {
    if (path.ends_with(".json")) {
      open_index();
    } else {
      files_.emplace_back(path);
    }
  }

  /// The names of all tensors in alphabetical order.
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const File& file : files_)
      for (const auto& [name, entry] : file.header.tensors) names.push_back(name);
    std::ranges::sort(names);
    return names;
  }

  /// Whether there is a tensor of this name.
  bool contains(const std::string& name) const {
    return std::ranges::any_of(files_, [&](const File& file) { return file.header.tensors.contains(name); });
  }

  /// The sizes of a tensor.
  ///
  /// @param name One of names().
  /// @return The sizes.
  /// @throws FileError if there is no tensor of this name, or if the dtype is F4 and the last size is odd: torch keeps
  /// two F4 numbers in one element.
  std::vector<std::int64_t> sizes(const std::string& name) const {
    const detail::SafetensorsEntry& entry = find(name).entry;
    std::vector<std::int64_t> sizes = entry.shape;
    if (entry.dtype == detail::SafetensorsDtype::kF4) {
      if (sizes.empty() || sizes.back() % 2 != 0) fail(name, "expected an even last size for dtype F4");
      sizes.back() /= 2;
    }
    return sizes;
  }

  /// The dtype of a tensor.
  ///
  /// @param name One of names().
  /// @return The dtype.
  /// @throws FileError if there is no tensor of this name, or if this LibTorch lacks the dtype. All versions lack
  /// F6_E2M3 and F6_E3M2. Versions before 2.8 lack F4.
  torch::ScalarType dtype(const std::string& name) const {
    const detail::SafetensorsDtype dtype = find(name).entry.dtype;
    const auto found = detail::torch_dtype(dtype);
    if (!found) fail(name, "expected a dtype that this LibTorch has, found " + std::string(facts(dtype).name));
    return *found;
  }

  /// A tensor on the CPU. It is a view of the file without a copy: the operating system reads the file when the
  /// elements are used.
  ///
  /// The view stays valid without this object, and after the file is removed or replaced as save_safetensors() does. Do
  /// not shorten the file while a view exists: reading the view would end the process (SIGBUS). A change of the
  /// elements changes neither the file nor the result of other calls.
  ///
  /// Two kinds of tensors are not views but copies, and are read at once:
  /// - tensors of less than 64 KiB
  /// - tensors whose position in the file is not a multiple of the size of an element. Files of save_safetensors() and
  ///   of Python's package have no such tensors.
  ///
  /// @param name One of names().
  /// @return A contiguous tensor of sizes() and dtype().
  /// @throws FileError as dtype() and sizes(), and if a tensor of dtype BOOL has bytes other than 0 and 1.
  torch::Tensor tensor(const std::string& name) const {
    const auto& [file, entry] = find(name);
    const std::vector<std::int64_t> sizes = this->sizes(name);
    const torch::ScalarType dtype = this->dtype(name);
    const std::size_t size = entry.end - entry.begin;
    torch::Tensor tensor;
    if (size < kSmallestMap || entry.begin % c10::elementSize(dtype) != 0) {
      tensor = at::empty(sizes, dtype);
      file.input.read(entry.begin, tensor.mutable_data_ptr(), size);
    } else {
      tensor = detail::make_file_view(file.input, entry.begin, sizes, dtype);
    }
    if (dtype == torch::kBool) {  // another byte would be undefined behaviour in torch
      const std::string_view bytes(static_cast<const char*>(tensor.const_data_ptr()), size);
      const auto wrong = std::ranges::find_if(bytes, [](char byte) { return byte != 0 && byte != 1; });
      if (wrong != bytes.end())
        fail(name,
             "expected bytes 0 and 1 for dtype BOOL, found " + std::to_string(static_cast<unsigned char>(*wrong)));
    }
    return tensor;
  }

  /// Reads a tensor into the memory of another tensor. If the target is a contiguous CPU tensor of the same dtype, this
  /// takes about the time of a plain read, and no other memory.
  ///
  /// @param name One of names().
  /// @param target A tensor of sizes(name), on any device and of any dtype, such as a parameter of a model.
  /// @throws c10::ValueError if the sizes differ.
  /// @throws FileError as tensor().
  ///
  /// @code
  /// attend::SafetensorsFile file("model.safetensors");
  /// for (const auto& parameter : model->named_parameters()) file.read(parameter.key(), parameter.value());
  /// @endcode
  void read(const std::string& name, const torch::Tensor& target) const {
    const torch::Tensor source = tensor(name);
    TORCH_CHECK_VALUE(source.sizes() == target.sizes(), kName, ": tensor ", detail::quoted(name),
                      ": expected a target of sizes ", source.sizes(), ", got ", target.sizes());
    const c10::NoGradGuard no_grad;
    if (!detail::read_from_file(source, target)) target.copy_(source);
  }

  /// The texts that are saved with the tensors. With an index, those of all files.
  std::map<std::string, std::string> metadata() const {
    std::map<std::string, std::string> metadata;
    for (const File& file : files_) metadata.insert(file.header.metadata.begin(), file.header.metadata.end());
    return metadata;
  }

 private:
  static constexpr const char* kName = "attend::SafetensorsFile";
  static constexpr std::size_t kSmallestMap = 64 * 1024;  // a process has at most 65,530 maps

  struct File {
    explicit File(const std::string& path) : input(path, kName) {
      const std::shared_ptr<char> all = input.size() > 0 ? input.map(0, input.size()) : nullptr;
      header = detail::read_safetensors_header({all.get(), input.size()}, path, kName);
    }

    detail::InputFile input;
    detail::SafetensorsHeader header;
  };
  struct Found {
    const File& file;
    const detail::SafetensorsEntry& entry;
  };

  void open_index() {
    const detail::SafetensorsIndex index =
        detail::read_safetensors_index(detail::MappedFile(path_, kName).bytes(), path_);
    const std::string folder = path_.substr(0, path_.rfind('/') + 1);  // npos + 1 is 0
    std::map<std::string, const File*> opened;
    for (const auto& [name, file] : index) opened.emplace(file, nullptr);
    files_.reserve(opened.size());
    for (auto& [name, file] : opened) file = &files_.emplace_back(folder + name);
    for (const auto& [name, file] : index)
      if (!opened.at(file)->header.tensors.contains(name))
        fail(name, "expected it in " + detail::quoted(file) + ", found none");
    for (const auto& [file_name, file] : opened)
      for (const auto& [name, entry] : file->header.tensors)
        if (const auto found = index.find(name); found == index.end() || found->second != file_name)
          fail(name, "expected it in the weight_map, because " + detail::quoted(file_name) + " has it, found none");
  }

  Found find(const std::string& name) const {
    for (const File& file : files_)
      if (const auto found = file.header.tensors.find(name); found != file.header.tensors.end())
        return {file, found->second};
    fail(name, "expected a tensor of this name, found none");
  }

  [[noreturn]] void fail(const std::string& name, const std::string& problem) const {
    throw FileError(kName, path_, "tensor " + detail::quoted(name) + ": " + problem);
  }

  std::string path_;
  std::vector<File> files_;
};

/// Reads all tensors of a file in the safetensors format, or of several files through their index.
///
/// @param path A file, or an index if the path ends in `.json`.
/// @param device The device of the tensors. On the CPU they are views of the file without a copy: see
/// SafetensorsFile::tensor(). Default: the CPU.
/// @return The tensors in alphabetical order of their names.
/// @throws FileError if a file cannot be read or its content is wrong.
///
/// @code
/// attend::StateDict weights = attend::load_safetensors("model.safetensors");
/// torch::Tensor weight = weights["encoder.weight"];
/// @endcode
inline StateDict load_safetensors(const std::string& path, torch::Device device = torch::kCPU) {
  const SafetensorsFile file(path);
  StateDict tensors;
  for (const std::string& name : file.names()) tensors.insert(name, file.tensor(name).to(device));
  return tensors;
}

/// Options of save_safetensors().
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::SafetensorsOptions().metadata({{"format", "pt"}}).max_shard_size(5'000'000'000)
/// @endcode
struct SafetensorsOptions {
  /// Texts by name.
  using Metadata = std::map<std::string, std::string>;

  /// Texts that are saved with the tensors, in UTF-8. Hugging Face's transformers expects `{"format", "pt"}`. Default:
  /// none.
  TORCH_ARG(Metadata, metadata);
  /// The largest number of bytes of tensors in one file, or 0 for no limit. A larger tensor has a file of its own.
  /// Default: 0.
  TORCH_ARG(std::int64_t, max_shard_size) = 0;
  /// Whether to save only one of several tensors with the same memory, as Python's `save_model` does. The name that
  /// comes first in alphabetical order is kept, and the metadata gets an entry {other name, kept name}. Default: false;
  /// such tensors are an error.
  TORCH_ARG(bool, drop_tied) = false;
};

/// Writes tensors to a file in the safetensors format. With SafetensorsOptions::max_shard_size(), tensors that do not
/// fit into one file go to several files with an index. For the path `model.safetensors` these are
/// `model-00001-of-00002.safetensors` and so on, and `model.safetensors.index.json`.
///
/// Each file is replaced as a whole: it is written under another name, flushed to the disk and renamed. If that fails,
/// the old file is intact. Several files are not replaced in one step, so write them into a new folder. The bytes are
/// those that Python's package writes for the same tensors.
///
/// @param tensors Dense tensors with elements, on any device, contiguous or not. All dtypes of torch can be saved
/// except complex32, complex128 and quantized dtypes. The tensors must not share memory, as for Python's `save_file`.
/// Parts of one storage that do not overlap are allowed.
/// @param path The path of the file. Its folder must exist. It must not end in `.json`. If several files are written,
/// it must end in `.safetensors`.
/// @param options The options.
/// @return The path to load: the path of the index if there is one, otherwise `path`.
/// @throws c10::ValueError if the format cannot hold the tensors, names or metadata. Nothing is written then.
/// @throws FileError if the operating system reports an error.
///
/// @code
/// attend::StateDict weights;
/// weights.insert("encoder.weight", torch::ones({2, 3}));
/// attend::save_safetensors(weights, "model.safetensors");
/// @endcode
inline std::string save_safetensors(const StateDict& tensors, const std::string& path,
                                    const SafetensorsOptions& options = {}) {
  detail::SafetensorsWriter writer(options.metadata());
  for (const auto& item : tensors) writer.add(item.key(), item.value());
  writer.check_shared_memory(options.drop_tied());
  return writer.write(path, options.max_shard_size());
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
