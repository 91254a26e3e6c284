// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/detail/problem.h>
#include <attend/score/coordinate.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Which scores the options of a call allow, one by one: is_causal, window, a bool attn_mask, packed batches and
/// key_lengths. For checks, not for speed.
class OptionMask {
 public:
  explicit OptionMask(const Problem& problem)
      : window_(problem.window),
        query_offsets_(numbers(problem.query_offsets)),
        key_offsets_(numbers(problem.key_offsets)),
        key_lengths_(numbers(problem.key_lengths)) {
    if (problem.attn_mask.defined() && problem.attn_mask.scalar_type() == at::kBool)
      mask_ = problem.attn_mask.cpu();  // 4-d
  }

  bool operator()(const Coordinate& at) const {
    std::int64_t position = at.query_position();
    if (!key_lengths_.empty() && at.key >= key_lengths_[static_cast<std::size_t>(at.batch)]) return false;
    if (!query_offsets_.empty()) {
      const auto sequence_of = [](const std::vector<std::int64_t>& offsets, std::int64_t i) {
        return static_cast<std::size_t>(std::upper_bound(offsets.begin(), offsets.end(), i) - offsets.begin());
      };
      const std::size_t sequence = sequence_of(query_offsets_, at.query);  // counted from 1
      if (sequence != sequence_of(key_offsets_, at.key)) return false;
      position = at.query + key_offsets_[sequence] - query_offsets_[sequence];
    }
    if (window_.left >= 0 && at.key < position - window_.left) return false;
    if (window_.right >= 0 && at.key > position + window_.right) return false;
    if (!mask_.defined()) return true;
    const std::int64_t index[4] = {at.batch, at.head, at.query, at.key};
    std::int64_t place = 0;
    for (int d = 0; d < 4; ++d) place += mask_.size(d) == 1 ? 0 : index[d] * mask_.stride(d);
    return static_cast<const unsigned char*>(mask_.const_data_ptr())[place] != 0;  // true may be any byte but 0
  }

 private:
  static std::vector<std::int64_t> numbers(const at::Tensor& tensor) {
    if (!tensor.defined()) return {};
    const at::Tensor wide = tensor.to(at::kCPU, at::kLong).contiguous();
    const auto* first = static_cast<const std::int64_t*>(wide.const_data_ptr());
    return {first, first + wide.numel()};
  }

  Window window_;
  std::vector<std::int64_t> query_offsets_, key_offsets_, key_lengths_;
  at::Tensor mask_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
