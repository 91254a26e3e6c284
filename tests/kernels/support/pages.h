// SPDX-License-Identifier: MIT
#pragma once

#include "configuration.h"
#include "memory.h"

#include <attend/kernels/attention_params.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace attend::test {

/// The keys and values of a call in pages, which lie in a random order among pages of NaN. Rows that are no key are
/// NaN.
class Pages {
 public:
  /// has_whole_rows: each row is made of neighbours.
  Pages(const CallMemory& call, Random& random, bool has_whole_rows = false) : params_(call.params) {
    AttentionParams& p = params_;
    p.page_size = random.one_of({1, 3, 16, 64, 100});
    const std::int64_t columns = (p.key_length + p.page_size - 1) / p.page_size;
    p.num_pages = p.batch_size * columns + 2;
    for (std::int64_t page = 0; page < p.num_pages; ++page) pages_.push_back(static_cast<std::int32_t>(page));
    for (std::size_t i = pages_.size() - 1; i > 0; --i)
      std::swap(pages_[i], pages_[static_cast<std::size_t>(random.from_to(0, static_cast<std::int64_t>(i)))]);
    const std::array<int, 4> last = has_whole_rows ? std::array<int, 4>{0, 2, 1, 3} : std::array<int, 4>{0, 1, 3, 2};
    const auto order = random.one_of<std::array<int, 4>>({{0, 1, 2, 3}, {0, 2, 1, 3}, last});
    const auto in_pages = [&](const Tensor& from, std::int64_t width) {
      Tensor to(call.number(), {p.num_pages, p.num_kv_heads, p.page_size, width}, order, {0, 0, 0, 0}, 1);
      Tensor::for_each({p.batch_size, p.num_kv_heads, p.key_length, width}, [&](auto n, auto g, auto j, auto d) {
        if (j < length_of(n))
          to.set(pages_[static_cast<std::size_t>(n * columns + j / p.page_size)], g, j % p.page_size, d,
                 from.get(n, g, j, d));
      });
      return to;
    };
    for (std::int64_t n = 0; n < p.batch_size; ++n) lengths_.push_back(static_cast<std::int32_t>(length_of(n)));
    key_ = in_pages(call.key, p.head_dim);
    value_ = in_pages(call.value, p.value_dim);
    for (std::int64_t n = 0; n < p.batch_size; ++n)  // a table has no page where it needs none
      for (std::int64_t i = (length_of(n) + p.page_size - 1) / p.page_size; i < columns; ++i)
        pages_[static_cast<std::size_t>(n * columns + i)] = -1;
    p.key = key_.view();
    p.value = value_.view();
    p.key_lengths = lengths_.data();
    p.block_table = pages_.data();
    p.block_table_stride = columns;
  }

  // The params point into the vectors.
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  /// The call with pages.
  const AttentionParams& params() const { return params_; }

  Tensor& key() { return key_; }
  Tensor& value() { return value_; }
  const std::vector<std::int32_t>& table() const { return pages_; }
  const std::vector<std::int32_t>& lengths() const { return lengths_; }

 private:
  std::int64_t length_of(std::int64_t n) const { return given_ == nullptr ? params_.key_length : given_[n]; }

  AttentionParams params_;
  const std::int32_t* given_ = params_.key_lengths;
  Tensor key_, value_;
  std::vector<std::int32_t> pages_, lengths_;
};

}  // namespace attend::test
