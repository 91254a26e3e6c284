// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/options.h>
#include <attend/detail/torch/checks.h>
#include <attend/detail/torch/without_data.h>
#include <attend/version.h>

#include <ATen/ExpandUtils.h>
#include <c10/util/Exception.h>
#include <torch/types.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

// Converts the masks of MultiheadAttention, in which true means ignore, to the one mask of attention(), in which true
// means attend. Masks are broadcast only where necessary: a padding mask alone stays (N, 1, 1, S).

/// The sizes that a call's masks must fit.
struct MaskSizes {
  std::int64_t batch, heads, length, keys;
  bool is_batched;
};

inline void check_mask(const char* layer, const char* name, const torch::Tensor& mask, const torch::Tensor& query) {
  check_tensor(layer, name, mask);
  TORCH_CHECK_TYPE(mask.scalar_type() == torch::kBool || mask.scalar_type() == torch::kByte || mask.is_floating_point(),
                   layer, ": ", name, " must be bool or uint8 (true = ignore) or floating-point (added), got ",
                   mask.scalar_type());
  TORCH_CHECK_VALUE(mask.device() == query.device(), layer, ": ", name, " (", mask.device(),
                    ") must be on the device of query (", query.device(), ")");
}

/// key_padding_mask as (N, 1, 1, S).
inline torch::Tensor checked_key_padding_mask(const char* layer, const torch::Tensor& mask, const MaskSizes& sizes,
                                              const torch::Tensor& query) {
  check_mask(layer, "key_padding_mask", mask, query);
  const std::int64_t batched[] = {sizes.batch, sizes.keys};
  const torch::IntArrayRef expected = torch::IntArrayRef(batched).slice(sizes.is_batched ? 0 : 1);
  TORCH_CHECK_VALUE(mask.sizes() == expected, layer, ": key_padding_mask must be ",
                    sizes.is_batched ? "(N, S) = " : "(S) = ", expected, ", got ", mask.sizes());
  return mask.reshape({sizes.batch, 1, 1, sizes.keys});
}

/// attn_mask as (1, 1, L or 1, S or 1) or (N, H, L, S).
inline torch::Tensor checked_attn_mask(const char* layer, const torch::Tensor& given, const MaskSizes& sizes,
                                       const torch::Tensor& query) {
  check_mask(layer, "attn_mask", given, query);
  const torch::Tensor mask = given.dim() == 1 ? given.unsqueeze(0) : given;  // (S), which torch broadcasts too
  const std::int64_t shared[] = {sizes.length, sizes.keys};
  const std::int64_t for_each_head[] = {sizes.batch * sizes.heads, sizes.length, sizes.keys};
  const auto fits = [&](int i) { return mask.size(i) == shared[i] || mask.size(i) == 1; };
  const bool is_shared = mask.dim() == 2 && fits(0) && fits(1);
  TORCH_CHECK_VALUE(is_shared || mask.sizes() == torch::IntArrayRef(for_each_head), layer,
                    ": attn_mask must be (L, S) = ", torch::IntArrayRef(shared), ", where each size may be 1, or ",
                    sizes.is_batched ? "(N·H, L, S) = " : "(H, L, S) = ", torch::IntArrayRef(for_each_head), ", got ",
                    given.sizes());
  return is_shared ? mask.unsqueeze(0).unsqueeze(0) : mask.unflatten(0, {sizes.batch, sizes.heads});
}

/// is_causal and window as an explicit mask (1, 1, L, S), for calls with added keys, which have no position.
inline torch::Tensor window_mask(const Window& window, const MaskSizes& sizes, const torch::Device& device) {
  const auto options = torch::TensorOptions(torch::kLong).device(device);
  const torch::Tensor distance =
      torch::arange(sizes.keys, options) -
      (torch::arange(sizes.length, options) + (sizes.keys - sizes.length)).unsqueeze(1);  // (L, S)
  torch::Tensor ignored = torch::zeros({sizes.length, sizes.keys}, options.dtype(torch::kBool));
  if (window.left >= 0) ignored = ignored | (distance < -window.left);
  if (window.right >= 0) ignored = ignored | (distance > window.right);
  return ignored.unsqueeze(0).unsqueeze(0);
}

/// Merges two masks. Either may be undefined. Each is bool (true = ignore) or floating-point (added); floating-point
/// masks have the same dtype.
inline torch::Tensor merged(const torch::Tensor& a, const torch::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() ? a : b;
  const bool a_is_bool = a.scalar_type() == torch::kBool, b_is_bool = b.scalar_type() == torch::kBool;
  if (a_is_bool && b_is_bool) return a | b;
  constexpr double kNegativeInfinity = -std::numeric_limits<double>::infinity();
  if (a_is_bool) return torch::where(a, kNegativeInfinity, b);
  if (b_is_bool) return torch::where(b, kNegativeInfinity, a);
  return a + b;
}

/// The parts of the mask of a call.
struct MaskParts {
  std::vector<torch::Tensor> given;  // 4-d: bool or uint8 (true = ignore), or floating-point (added)
  std::optional<Window> window;
  std::int64_t added_keys;  // after the others; every query may attend to them
  MaskSizes sizes;
};

/// Whether the given mask is passed on unchanged.
inline bool is_passed_on(const MaskParts& parts, const torch::Tensor& query) {
  return parts.given.size() == 1 && parts.given[0].scalar_type() == query.scalar_type() && !parts.window &&
         parts.added_keys == 0;
}

/// The mask of attention(): bool (true = attend), or of the query's dtype (added). A new tensor is contiguous, so it
/// has the strides of attention_mask_without_data().
inline torch::Tensor attention_mask(const MaskParts& parts, const torch::Tensor& query) {
  if (is_passed_on(parts, query)) return parts.given[0];
  torch::Tensor ignored;
  for (const torch::Tensor& mask : parts.given)
    ignored = merged(ignored, mask.to(mask.is_floating_point() ? query.scalar_type() : torch::kBool));
  if (parts.window) ignored = merged(ignored, window_mask(*parts.window, parts.sizes, query.device()));
  if (parts.added_keys > 0)
    ignored = torch::constant_pad_nd(ignored.expand({-1, -1, -1, parts.sizes.keys}), {0, parts.added_keys}, 0);
  const torch::Tensor mask = (ignored.scalar_type() == torch::kBool ? ignored.logical_not() : ignored).contiguous();
  return mask.size(3) == 1 ? mask.flatten().view(mask.sizes()) : mask;  // contiguous() leaves this stride as it is
}

/// The mask that attention_mask() returns, without its data.
inline torch::Tensor attention_mask_without_data(const MaskParts& parts, const torch::Tensor& query) {
  if (is_passed_on(parts, query)) return parts.given[0];
  std::vector<std::int64_t> sizes{1, 1, 1, 1};
  bool is_bool = true, requires_grad = false;
  for (const torch::Tensor& mask : parts.given) {
    sizes = at::infer_size(sizes, mask.sizes());
    is_bool &= !mask.is_floating_point();
    requires_grad |= mask.requires_grad();
  }
  if (parts.window) sizes = at::infer_size(sizes, {1, 1, parts.sizes.length, parts.sizes.keys});
  if (parts.added_keys > 0) sizes[3] = parts.sizes.keys + parts.added_keys;
  return without_data(sizes, query.options().dtype(is_bool ? torch::kBool : query.scalar_type()), requires_grad);
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
