// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/check_problem.h>
#include <attend/attention/detail/page_table.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/key_value_cache_options.h>
#include <attend/attention/options.h>
#include <attend/version.h>

#include <ATen/TensorOperators.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// One number per batch entry as a tensor (N).
inline at::Tensor as_tensor(const std::vector<std::int64_t>& numbers, at::ScalarType dtype, c10::Device device) {
  return at::tensor(numbers, at::kLong).to(device, dtype);
}

/// A tensor int64 (N) as numbers.
inline std::vector<std::int64_t> as_numbers(const char* name, const at::Tensor& tensor, std::int64_t batch_size) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kLong, "attend::KeyValueCache: ", name, " must be int64, got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.size(0) == batch_size, "attend::KeyValueCache: ", name,
                    " must be (N), with N = ", batch_size, ", got ", tensor.sizes());
  const at::Tensor on_cpu = tensor.cpu().contiguous();
  const auto* const first = static_cast<const std::int64_t*>(on_cpu.const_data_ptr());
  return {first, first + batch_size};
}

/// The implementation of KeyValueCache, with the same functions.
class KeyValueStore {
 public:
  explicit KeyValueStore(const KeyValueCacheOptions& options);
  void append(std::int64_t layer, const at::Tensor& key, const at::Tensor& value, const at::Tensor& valid);
  CachedKeys arguments(std::int64_t layer, std::int64_t query_length, const AttentionOptions& options) const;
  at::Tensor lengths(std::int64_t layer) const;
  at::Tensor positions(std::int64_t length, std::int64_t layer, const at::Tensor& valid) const;
  void truncate(std::int64_t length);
  void reorder(const at::Tensor& indices);
  std::int64_t free_pages() const;
  const KeyValueCacheOptions& options() const { return options_; }

 private:
  using Counts = std::vector<std::int64_t>;  // of the batch entries

  static KeyValueCacheOptions checked(KeyValueCacheOptions options);
  const Counts& lengths_of(std::int64_t layer) const;
  Counts new_tokens(std::int64_t length, const at::Tensor& valid) const;
  void check_tokens(const char* name, const at::Tensor& tokens, const char* shape, std::int64_t length,
                    std::int64_t width) const;
  void make_room(const Counts& begin, const Counts& added);
  void write(at::Tensor to, const at::Tensor& tokens, const Counts& begin, const Counts& added) const;
  void check_not_evicted(const char* what, std::int64_t entry, std::int64_t position) const;

  /// The last append() to a layer.
  struct LastAppend {
    std::int64_t rows = 0;  // with padding
    Counts begin;           // the position of the first new token of each entry
  };

  KeyValueCacheOptions options_;
  std::optional<PageTable> pages_;
  at::Tensor keys_, values_;     // (layers, N, G, max_length, D or Dv), or (layers, num_pages, G, page_size, D or Dv)
  std::vector<Counts> lengths_;  // of each layer
  std::vector<LastAppend> last_appends_;  // to each layer
};

inline KeyValueCacheOptions KeyValueStore::checked(KeyValueCacheOptions options) {
  const auto check = [](const char* name, std::int64_t value, std::int64_t least) {
    TORCH_CHECK_VALUE(value >= least, "attend::KeyValueCache: ", name, " must be at least ", least, ", got ", value);
  };
  check("num_layers", options.num_layers(), 1);
  check("batch_size", options.batch_size(), 1);
  check("num_kv_heads", options.num_kv_heads(), 1);
  check("head_dim", options.head_dim(), 1);
  check("max_length", options.max_length(), 1);
  check("value_dim", options.value_dim(), 0);
  check("window", options.window(), -1);
  check("max_append", options.max_append(), 1);
  check("page_size", options.page_size(), 0);
  check("num_pages", options.num_pages(), 0);
  TORCH_CHECK_TYPE(is_attention_dtype(options.dtype()),
                   "attend::KeyValueCache: dtype must be float64, float32, bfloat16 or float16, got ", options.dtype());
  if (options.value_dim() == 0) options.value_dim(options.head_dim());
  const bool is_sliding = options.window() >= 0;
  if (is_sliding && options.page_size() == 0) options.page_size(64);
  if (options.page_size() > 0 && options.num_pages() == 0) {
    const std::int64_t size = options.page_size(), most = options.max_length();
    const std::int64_t positions =
        is_sliding ? std::min(most, std::min(most, options.window()) + std::min(most, options.max_append())) : most;
    // The oldest and the newest page of a window may both be in use in part.
    const std::int64_t pages = (positions + size - 1) / size + (is_sliding ? 1 : 0);
    options.num_pages(options.batch_size() * pages);
  }
  return options;
}

inline KeyValueStore::KeyValueStore(const KeyValueCacheOptions& options)
    : options_(checked(options)),
      lengths_(static_cast<std::size_t>(options.num_layers()),
               Counts(static_cast<std::size_t>(options.batch_size()), 0)),
      last_appends_(static_cast<std::size_t>(options.num_layers())) {
  const std::int64_t size = options_.page_size();
  const bool has_pages = size > 0;
  if (has_pages)
    pages_.emplace(options_.batch_size(), (options_.max_length() + size - 1) / size, options_.num_pages(), size);
  const auto allocate = [&](std::int64_t width) {
    return at::zeros({options_.num_layers(), has_pages ? options_.num_pages() : options_.batch_size(),
                      options_.num_kv_heads(), has_pages ? size : options_.max_length(), width},
                     at::TensorOptions().dtype(options_.dtype()).device(options_.device()));
  };
  keys_ = allocate(options_.head_dim());
  values_ = allocate(options_.value_dim());
}

inline const KeyValueStore::Counts& KeyValueStore::lengths_of(std::int64_t layer) const {
  TORCH_CHECK_VALUE(layer >= 0 && layer < options_.num_layers(), "attend::KeyValueCache: layer must be from 0 to ",
                    options_.num_layers() - 1, ", got ", layer);
  return lengths_[static_cast<std::size_t>(layer)];
}

inline KeyValueStore::Counts KeyValueStore::new_tokens(std::int64_t length, const at::Tensor& valid) const {
  if (!valid.defined()) return Counts(static_cast<std::size_t>(options_.batch_size()), length);
  Counts added = as_numbers("valid", valid, options_.batch_size());
  for (const std::int64_t count : added)
    TORCH_CHECK_VALUE(count >= 0 && count <= length, "attend::KeyValueCache: valid must be from 0 to L = ", length,
                      ", got ", count);
  return added;
}

inline void KeyValueStore::check_tokens(const char* name, const at::Tensor& tokens, const char* shape,
                                        std::int64_t length, std::int64_t width) const {
  TORCH_CHECK_VALUE(
      tokens.defined() && tokens.dim() == 4 && tokens.size(0) == options_.batch_size() &&
          tokens.size(1) == options_.num_kv_heads() && tokens.size(2) == length && tokens.size(3) == width,
      "attend::KeyValueCache: ", name, " must be ", shape, " = (", options_.batch_size(), ", ", options_.num_kv_heads(),
      ", ", length, ", ", width, "), got ", tokens.defined() ? c10::str(tokens.sizes()) : "an undefined tensor");
  TORCH_CHECK_TYPE(tokens.scalar_type() == options_.dtype(), "attend::KeyValueCache: ", name,
                   " must have the dtype of the cache (", options_.dtype(), "), got ", tokens.scalar_type());
  TORCH_CHECK_VALUE(tokens.device() == keys_.device(), "attend::KeyValueCache: ", name,
                    " must be on the device of the cache (", keys_.device(), "), got ", tokens.device());
  TORCH_CHECK_VALUE(!needs_gradient(tokens), "attend::KeyValueCache: ", name,
                    " must not require a gradient, because none reaches cached keys and values; use "
                    "torch::NoGradGuard or detach()");
}

/// Gives the new tokens pages, and gives back those that no token of the window needs. Changes nothing if it throws.
inline void KeyValueStore::make_room(const Counts& begin, const Counts& added) {
  std::optional<PageTable> before;
  if (options_.window() >= 0) before = pages_;
  std::vector<PageTable::Rows> rows;
  for (std::size_t n = 0; n < begin.size(); ++n) {
    rows.push_back({begin[n], begin[n] + added[n]});
    if (options_.window() < 0) continue;
    std::int64_t first = begin[n];  // of the next token of any layer
    for (const Counts& lengths : lengths_) first = std::min(first, lengths[n]);
    pages_->release_before(static_cast<std::int64_t>(n), first - options_.window());
  }
  const std::int64_t free = pages_->free_pages();
  const std::optional<std::vector<PageTable::Copy>> copies = pages_->prepare(rows);
  if (!copies && before) pages_ = std::move(before);
  TORCH_CHECK_VALUE(copies.has_value(), "attend::KeyValueCache: the new tokens need more pages than are free (", free,
                    " of num_pages = ", options_.num_pages(), "); raise num_pages, or call truncate()");
  for (const auto& [from, to] : *copies)
    for (at::Tensor* const tensor : {&keys_, &values_}) tensor->select(1, to).copy_(tensor->select(1, from));
}

/// Copies the last added[n] rows of each entry to the positions from begin[n] on.
inline void KeyValueStore::write(at::Tensor to, const at::Tensor& tokens, const Counts& begin,
                                 const Counts& added) const {
  const std::int64_t length = tokens.size(2);
  const auto all_are = [](const Counts& counts, std::int64_t value) {
    return std::all_of(counts.begin(), counts.end(), [value](std::int64_t count) { return count == value; });
  };
  if (!pages_ && all_are(begin, begin[0]) && all_are(added, length)) {
    to.narrow(2, begin[0], length).copy_(tokens);
    return;
  }
  Counts first, row, from;  // in `to`, in `to` and in `tokens`
  for (std::size_t n = 0; n < begin.size(); ++n)
    for (std::int64_t i = 0; i < added[n]; ++i) {
      const std::int64_t position = begin[n] + i, entry = static_cast<std::int64_t>(n);
      first.push_back(pages_ ? pages_->page_of(entry, position) : entry);
      row.push_back(pages_ ? position % pages_->page_size() : position);
      from.push_back(entry * length + length - added[n] + i);
    }
  const auto index = [&](const Counts& numbers) { return as_tensor(numbers, at::kLong, to.device()); };
  to.index_put_(c10::List<std::optional<at::Tensor>>({index(first), std::nullopt, index(row)}),
                tokens.transpose(1, 2).flatten(0, 1).index_select(0, index(from)));  // (tokens, G, D)
}

inline void KeyValueStore::append(std::int64_t layer, const at::Tensor& key, const at::Tensor& value,
                                  const at::Tensor& valid) {
  const Counts begin = lengths_of(layer);
  const std::int64_t length = key.defined() && key.dim() == 4 ? key.size(2) : 0;
  check_tokens("key", key, "(N, G, L, D)", length, options_.head_dim());
  check_tokens("value", value, "(N, G, L, Dv)", length, options_.value_dim());
  const Counts added = new_tokens(length, valid);
  TORCH_CHECK_VALUE(options_.window() < 0 || length <= options_.max_append(),
                    "attend::KeyValueCache: with a window at most max_append = ", options_.max_append(),
                    " tokens can be added at once, got ", length, "; add them in pieces, or raise max_append");
  for (std::size_t n = 0; n < begin.size(); ++n)
    TORCH_CHECK_VALUE(begin[n] + added[n] <= options_.max_length(), "attend::KeyValueCache: batch entry ", n, " has ",
                      begin[n], " of max_length = ", options_.max_length(), " tokens; ", added[n], " more do not fit");
  const c10::AutoGradMode no_grad(false);
  if (pages_) make_room(begin, added);
  write(keys_.select(0, layer), key, begin, added);
  write(values_.select(0, layer), value, begin, added);
  for (std::size_t n = 0; n < begin.size(); ++n) lengths_[static_cast<std::size_t>(layer)][n] += added[n];
  last_appends_[static_cast<std::size_t>(layer)] = {length, begin};
}

inline void KeyValueStore::check_not_evicted(const char* what, std::int64_t entry, std::int64_t position) const {
  if (options_.window() < 0) return;
  const std::int64_t first = std::max<std::int64_t>(position - options_.window(), 0);
  TORCH_CHECK_VALUE(pages_->first_row(entry) <= first, "attend::KeyValueCache: ", what,
                    " needs the keys of batch entry ", entry, " from position ", first, " on, but those before ",
                    pages_->first_row(entry), " were evicted");
}

inline CachedKeys KeyValueStore::arguments(std::int64_t layer, std::int64_t query_length,
                                           const AttentionOptions& options) const {
  const Counts& lengths = lengths_of(layer);
  TORCH_CHECK_VALUE(!options.key_lengths().defined() && !options.block_table().defined() &&
                        !options.query_offsets().defined() && !options.key_offsets().defined(),
                    "attend::KeyValueCache: key_lengths, block_table, query_offsets and key_offsets must not be set");
  const auto [shortest, longest] = std::minmax_element(lengths.begin(), lengths.end());
  const std::int64_t count = *longest;
  CachedKeys result{keys_.select(0, layer), values_.select(0, layer), options};
  if (const std::int64_t window = options_.window(); window >= 0) {
    const LastAppend& last = last_appends_[static_cast<std::size_t>(layer)];
    for (std::size_t n = 0; n < lengths.size(); ++n) {
      std::int64_t first = lengths[n] - query_length;
      if (query_length <= last.rows) first = std::max(first, last.begin[n]);  // rows before are padding
      check_not_evicted("the first query", static_cast<std::int64_t>(n), first);
    }
    const Window& given = options.window();
    result.options.window({given.left < 0 ? window : std::min(given.left, window), given.right});
  }
  if (!pages_) {
    result.key = result.key.narrow(2, 0, count);
    result.value = result.value.narrow(2, 0, count);
    if (*shortest == count) return result;
  } else {
    const std::int64_t size = pages_->page_size(), used = (count + size - 1) / size;
    at::Tensor table = at::empty({options_.batch_size(), used}, at::kInt);
    for (std::int64_t n = 0; n < options_.batch_size(); ++n)
      std::copy_n(pages_->pages_of(n), used, table.mutable_data_ptr<std::int32_t>() + n * used);
    result.options.block_table(table.to(keys_.device()));
    if (const at::Tensor& mask = options.attn_mask(); mask.defined() && mask.dim() > 0 && mask.size(-1) != 1) {
      TORCH_CHECK_VALUE(mask.size(-1) == count, "attend::KeyValueCache: attn_mask must have S = ", count,
                        " columns, the largest of lengths(), got ", mask.sizes());
      result.options.attn_mask(at::constant_pad_nd(mask, {0, used * size - count}));
    }
  }
  result.options.key_lengths(as_tensor(lengths, at::kInt, keys_.device()));
  return result;
}

inline at::Tensor KeyValueStore::lengths(std::int64_t layer) const {
  return as_tensor(lengths_of(layer), at::kLong, at::kCPU);
}

inline at::Tensor KeyValueStore::positions(std::int64_t length, std::int64_t layer, const at::Tensor& valid) const {
  Counts first = lengths_of(layer);
  TORCH_CHECK_VALUE(length >= 0, "attend::KeyValueCache: length must be at least 0, got ", length);
  const Counts added = new_tokens(length, valid);
  for (std::size_t n = 0; n < first.size(); ++n) first[n] += added[n] - length;
  const at::Tensor positions = as_tensor(first, at::kLong, keys_.device()).unsqueeze(1) +
                               at::arange(length, keys_.options().dtype(at::kLong));  // (N, L)
  return positions.clamp_min(0);
}

inline void KeyValueStore::truncate(std::int64_t length) {
  TORCH_CHECK_VALUE(length >= 0, "attend::KeyValueCache: length must be at least 0, got ", length);
  for (const Counts& lengths : lengths_)
    for (std::size_t n = 0; n < lengths.size(); ++n)
      if (length > 0 && length < lengths[n]) check_not_evicted("truncate", static_cast<std::int64_t>(n), length);
  for (LastAppend& last : last_appends_) last.rows = 0;
  for (Counts& lengths : lengths_)
    for (std::int64_t& each : lengths) each = std::min(each, length);
  for (std::int64_t n = 0; pages_ && n < options_.batch_size(); ++n) {
    std::int64_t end = 0;  // of the entry in any layer, which may be shorter than `length`
    for (const Counts& lengths : lengths_) end = std::max(end, lengths[static_cast<std::size_t>(n)]);
    pages_->release_from(n, end);
  }
}

inline void KeyValueStore::reorder(const at::Tensor& indices) {
  TORCH_CHECK_VALUE(indices.defined(), "attend::KeyValueCache: indices must be (N), got an undefined tensor");
  const Counts from = as_numbers("indices", indices, options_.batch_size());
  for (const std::int64_t entry : from)
    TORCH_CHECK_VALUE(entry >= 0 && entry < options_.batch_size(),
                      "attend::KeyValueCache: indices must be from 0 to N - 1 = ", options_.batch_size() - 1, ", got ",
                      entry);
  for (LastAppend& last : last_appends_) last.rows = 0;
  std::int64_t longest = 0;
  for (Counts& lengths : lengths_) {
    const Counts before = lengths;
    longest = std::max(longest, *std::max_element(before.begin(), before.end()));
    for (std::size_t n = 0; n < lengths.size(); ++n) lengths[n] = before[static_cast<std::size_t>(from[n])];
  }
  if (pages_) return pages_->reorder(from);
  const at::Tensor index = as_tensor(from, at::kLong, keys_.device());
  for (std::int64_t layer = 0; layer < options_.num_layers(); ++layer)  // one after the other, to need less memory
    for (const at::Tensor* const tensor : {&keys_, &values_}) {
      at::Tensor used = tensor->select(0, layer).narrow(2, 0, longest);  // (N, G, longest, D or Dv)
      used.copy_(used.index_select(0, index));
    }
}

inline std::int64_t KeyValueStore::free_pages() const { return pages_ ? pages_->free_pages() : 0; }

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
