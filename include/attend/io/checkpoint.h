// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/in_memory.h>
#include <attend/io/detail/atomic_file.h>
#include <attend/io/detail/checkpoint_bytes.h>
#include <attend/io/detail/mapped_file.h>
#include <attend/io/detail/safetensors_header.h>
#include <attend/io/detail/torch/safetensors_dtype.h>
#include <attend/io/file_error.h>
#include <attend/io/state_dict_type.h>
#include <attend/version.h>

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/types.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The contents of a checkpoint: tensors and texts by name.
///
/// TrainingState::checkpoint() returns one with everything that Trainer::resume() needs. In a loop without Trainer,
/// call add_training_state(), which fills in model, optimizer and generators.
///
/// | Name | Tensor |
/// | --- | --- |
/// | `model.NAME` | the parameters and buffers of the model |
/// | `optimizer` | the archive of the optimizer, as LibTorch writes it |
/// | `generator.DEVICE` | the state of the random number generator of a device |
/// | `history` | (epochs, 4), float64: the fields of EpochRecord |
struct CheckpointData {
  /// The tensors.
  StateDict tensors;
  /// Texts in UTF-8. The names "attend.crc" and "attend.format" are reserved.
  std::map<std::string, std::string> metadata;
  /// The file that load_checkpoint() has read; otherwise empty.
  std::string path;
};

/// Writes a checkpoint: a safetensors file with a checksum.
///
/// The file appears as a whole or not at all. The steps are: write a temporary file in the same folder, flush it to the
/// disk, rename it, flush the folder to the disk. The renaming replaces an existing file.
///
/// Python reads the file by `safetensors.torch.load_file(path)`.
///
/// @param data The contents. Tensors may be on any device.
/// @param path The path of the file. Its folder must exist.
/// @throws FileError if the operating system reports an error, for example a full disk. The old file is intact then.
/// @throws c10::ValueError for a tensor that the format cannot hold, such as a sparse tensor, and for a reserved name.
///
/// @code
/// attend::CheckpointData data;
/// attend::add_training_state(data, *model, optimizer);
/// data.metadata["epoch"] = "12";
/// attend::save_checkpoint(data, "last.safetensors");
/// @endcode
inline void save_checkpoint(const CheckpointData& data, const std::string& path) {
  detail::SafetensorsHeader header;
  std::map<std::string, torch::Tensor> tensors;
  for (const auto& item : data.tensors) {
    const torch::Tensor& tensor = item.value();
    const bool has_elements = tensor.defined() && tensor.layout() == torch::kStrided && !tensor.is_meta();
    const auto dtype = has_elements ? detail::safetensors_dtype(tensor.scalar_type()) : std::nullopt;
    TORCH_CHECK_VALUE(dtype.has_value() && detail::is_utf8(item.key()) && item.key() != detail::kSafetensorsMetadata,
                      "attend::save_checkpoint: tensor ", detail::quoted(item.key()),
                      ": expected a name in UTF-8 other than __metadata__, and a dense tensor of a dtype that "
                      "safetensors has, got ",
                      tensor.toString());
    std::vector<std::int64_t> shape = tensor.sizes().vec();
    const bool is_packed = *dtype == detail::SafetensorsDtype::kF4;  // the format counts numbers, torch pairs
    TORCH_CHECK_VALUE(shape.size() <= detail::kSafetensorsMostDimensions && (!is_packed || !shape.empty()),
                      "attend::save_checkpoint: tensor ", detail::quoted(item.key()),
                      ": expected at most 64 dimensions, and at least one for pairs of numbers, got ", shape.size());
    if (is_packed) shape.back() *= 2;
    header.tensors.emplace(item.key(), detail::SafetensorsEntry{*dtype, std::move(shape)});
    tensors[item.key()] = detail::in_memory(tensor.detach().cpu()).resolve_conj().contiguous();
  }
  for (const auto& [name, text] : data.metadata)
    TORCH_CHECK_VALUE(name != "attend.crc" && name != "attend.format" && detail::is_utf8(name) && detail::is_utf8(text),
                      "attend::save_checkpoint: metadata ", detail::quoted(name),
                      ": expected a name that is not reserved and a text in UTF-8, got ", detail::quoted(text));
  header.metadata = data.metadata;
  std::string beginning = detail::write_checkpoint_header(header);
  TORCH_CHECK_VALUE(beginning.size() - 8 <= detail::kSafetensorsLongestHeader,
                    "attend::save_checkpoint: the names and metadata take ", beginning.size() - 8,
                    " bytes, but the format allows ", detail::kSafetensorsLongestHeader);
  const auto order = header.by_position();
  detail::Checksum checksum;
  checksum.add(beginning.data(), beginning.size());
  for (const auto* tensor : order) {
    const torch::Tensor& elements = tensors.at(tensor->first);
    checksum.add(elements.const_data_ptr(), elements.nbytes());
  }
  beginning.replace(detail::kDigitsBegin, detail::kZeroDigits.size(), detail::digits_of(checksum));

  detail::AtomicFile file("attend::save_checkpoint", path);
  file.write(beginning.data(), beginning.size());
  for (const auto* tensor : order) {
    const torch::Tensor& elements = tensors.at(tensor->first);
    file.write(elements.const_data_ptr(), elements.nbytes());
  }
  file.commit();
}

/// Reads a checkpoint. The checksum is compared before anything else is read. A file that was truncated or damaged is
/// an error.
///
/// The checksum does not protect against manipulation: a manipulated file can have a valid checksum, and LibTorch reads
/// the optimizer's archive without checks. Load only checkpoints of your own programs.
///
/// @param path The path of the file.
/// @return Its contents. The tensors are on the CPU.
/// @throws FileError if the file cannot be read, is damaged, or is not a checkpoint of this version of attend.
///
/// @code
/// attend::CheckpointData data = attend::load_checkpoint("last.safetensors");
/// std::int64_t epoch = std::stoll(data.metadata.at("epoch"));
/// @endcode
inline CheckpointData load_checkpoint(const std::string& path) {
  const detail::MappedFile file(path, "attend::load_checkpoint");
  const detail::SafetensorsHeader header = detail::read_checkpoint_header(file.bytes(), path);
  CheckpointData data;
  data.metadata = header.metadata;
  data.path = path;
  for (const auto& [name, entry] : header.tensors) {
    const auto dtype = detail::torch_dtype(entry.dtype);
    std::vector<std::int64_t> sizes = entry.shape;
    const bool is_packed = entry.dtype == detail::SafetensorsDtype::kF4;  // two numbers in an element of a tensor
    if (!dtype || (is_packed && (sizes.empty() || sizes.back() % 2 != 0)))
      throw FileError("attend::load_checkpoint", path,
                      "tensor " + detail::quoted(name) + ": expected a dtype and shape that LibTorch has, found " +
                          std::string(facts(entry.dtype).name));
    if (is_packed) sizes.back() /= 2;
    const torch::Tensor tensor = at::empty(sizes, *dtype);
    if (entry.begin != entry.end)
      std::memcpy(tensor.mutable_data_ptr(), file.bytes().data() + entry.begin, entry.end - entry.begin);
    data.tensors.insert(name, tensor);
  }
  return data;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
