// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/philox.h>
#include <attend/detail/torch/const_data.h>
#include <attend/version.h>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <c10/core/GradMode.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>
#include <torch/data/example.h>
#include <torch/types.h>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Data in two tensors, with the samples as the first dimension.
template <class Data>
concept TensorData = requires(Data& data) {
  { data.inputs() } -> std::convertible_to<torch::Tensor>;
  { data.targets() } -> std::convertible_to<torch::Tensor>;
};

/// A torch::data dataset that returns the batch with given indices: a vector of examples, or one stacked example.
template <class Data>
concept TorchDataset = !TensorData<Data> && requires(Data & data, std::vector<std::size_t> indices) {
  { data.size() } -> std::same_as<std::optional<std::size_t>>;
  requires std::same_as<std::remove_cvref_t<decltype(data.get_batch(indices))>, torch::data::Example<>> ||
      std::same_as<std::remove_cvref_t<decltype(data.get_batch(indices))>, std::vector<torch::data::Example<>>>;
};

template <class Data>
concept TrainingData = TensorData<std::remove_reference_t<Data>> || TorchDataset<std::remove_reference_t<Data>>;

/// Batches of a data set on a device. Data in two tensors is moved there once as a whole. The batches of a torch::data
/// dataset are moved one by one.
///
/// All batches of two dense tensors use the same memory: the next batch overwrites the last one without an allocation.
template <class Data>
class Batches {
 public:
  Batches(const char* name, Data& data, torch::Device device, std::int64_t batch_size)
      : data_(data), device_(device), batch_size_(batch_size) {
    if constexpr (TensorData<Data>) {
      const torch::Tensor& inputs = data.inputs();
      const torch::Tensor& targets = data.targets();
      TORCH_CHECK_VALUE(inputs.defined() && targets.defined() && inputs.dim() >= 1 && targets.dim() >= 1,
                        "attend::Trainer: ", name,
                        " must have inputs() and targets() with samples as the first dimension");
      TORCH_CHECK_VALUE(inputs.size(0) == targets.size(0), "attend::Trainer: ", name, " must have as many targets (",
                        targets.size(0), ") as inputs (", inputs.size(0), ")");
      size_ = inputs.size(0);
      inputs_ = inputs.detach().to(device);
      targets_ = targets.detach().to(device);
    } else {
      const std::optional<std::size_t> size = data.size();
      TORCH_CHECK_VALUE(size.has_value(), "attend::Trainer: ", name, " must have a known size()");
      size_ = static_cast<std::int64_t>(*size);
    }
    TORCH_CHECK_VALUE(size_ >= 1, "attend::Trainer: ", name, " must not be empty");
  }

  std::int64_t size() const { return size_; }

  /// Whether all batches have the same address, so that a recording of one batch can be replayed for the others.
  bool reuses_memory() const { return TensorData<Data> && is_dense(inputs_) && is_dense(targets_); }

  /// Moves indices from the CPU to the device on which gather() needs slices of them. It is called once per epoch,
  /// because a copy to a GPU may wait.
  torch::Tensor prepared(const torch::Tensor& indices) const {
    return TensorData<Data> ? indices.to(device_) : indices;
  }

  /// The samples with these indices: int64 (batch), a slice of the result of prepared().
  std::pair<torch::Tensor, torch::Tensor> gather(const torch::Tensor& indices) {
    if constexpr (TensorData<Data>) {
      return {select(inputs_, indices, input_buffer_), select(targets_, indices, target_buffer_)};
    } else {
      const auto* first = const_data<std::int64_t>(indices);
      const std::vector<std::size_t> samples(first, first + indices.numel());
      auto batch = data_.get_batch(samples);
      if constexpr (std::is_same_v<decltype(batch), torch::data::Example<>>) {
        return {batch.data.to(device_), batch.target.to(device_)};
      } else {
        std::vector<torch::Tensor> inputs, targets;
        for (auto& example : batch) {
          inputs.push_back(std::move(example.data));
          targets.push_back(std::move(example.target));
        }
        return {at::stack(inputs).to(device_), at::stack(targets).to(device_)};
      }
    }
  }

 private:
  static bool is_dense(const torch::Tensor& tensor) { return tensor.layout() == torch::kStrided; }

  torch::Tensor select(const torch::Tensor& samples, const torch::Tensor& indices, torch::Tensor& buffer) const {
    if (!is_dense(samples)) return samples.index_select(0, indices);
    if (!buffer.defined()) {
      std::vector<std::int64_t> sizes = samples.sizes().vec();
      sizes[0] = std::min(batch_size_, size_);
      buffer = at::empty(sizes, samples.options());
    }
    torch::Tensor batch = buffer.slice(0, 0, indices.size(0));
    const c10::NoGradGuard no_grad;
    at::index_select_out(batch, samples, 0, indices);
    return batch;
  }

  Data& data_;
  torch::Device device_;
  std::int64_t batch_size_;
  std::int64_t size_ = 0;
  torch::Tensor inputs_, targets_;
  torch::Tensor input_buffer_, target_buffer_;
};

/// The order of the samples in one epoch: (samples), int64, on the CPU. It depends only on seed and epoch.
inline torch::Tensor shuffled(std::int64_t samples, std::uint64_t seed, std::int64_t epoch) {
  const PhiloxBlock block = philox(seed, static_cast<std::uint64_t>(epoch), 0);
  const std::uint64_t epoch_seed = (std::uint64_t{block.words[1]} << 32) | block.words[0];
  return at::randperm(samples, at::detail::createCPUGenerator(epoch_seed), torch::kLong);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
