// SPDX-License-Identifier: MIT

// The operators torch.ops.gpu_attention, by which measure.py calls attend's CUDA kernels. So attend and its peers run
// in one process, in turn. On the CPU, where there are no kernels, they compute the dense formula.

#include "kernels.h"

#include <attend/attention.h>
#include <attend/flex_attention.h>
#include <attend/score/mask_mod.h>

#include <torch/library.h>

#include <cstdint>
#include <optional>

namespace {

attend::AttentionOptions options(const at::Tensor& query, const attend::BackendChoice& kernels) {
  const attend::BackendChoice dense = attend::Backend::kReference;
  return attend::AttentionOptions().backend(query.is_cuda() ? kernels : dense);
}

/// `window` is the number of keys that a query sees: itself and those before it.
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, bool is_causal,
                     std::optional<std::int64_t> window) {
  static const attend::BackendChoice kernels = gpu_attention::plain_kernels();
  attend::AttentionOptions options = ::options(query, kernels).is_causal(is_causal);
  if (window) options.window({*window - 1, 0});
  return attend::attention(query, key, value, options);
}

at::Tensor table_bias(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                      const at::Tensor& table) {
  static const attend::BackendChoice kernels = gpu_attention::table_kernels();
  return attend::flex_attention(query, key, value, gpu_attention::TableBias(table), attend::Causal{},
                                options(query, kernels));
}

at::Tensor bounded(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, double limit) {
  static const attend::BackendChoice kernels = gpu_attention::bounded_kernels();
  return attend::flex_attention(query, key, value, gpu_attention::Bounded{static_cast<float>(limit)}, attend::Causal{},
                                options(query, kernels));
}

}  // namespace

TORCH_LIBRARY(gpu_attention, library) {
  library.def("attention(Tensor query, Tensor key, Tensor value, bool is_causal, int? window) -> Tensor", &attention);
  library.def("table_bias(Tensor query, Tensor key, Tensor value, Tensor table) -> Tensor", &table_bias);
  library.def("bounded(Tensor query, Tensor key, Tensor value, float limit) -> Tensor", &bounded);
}
