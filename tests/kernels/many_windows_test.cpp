// SPDX-License-Identifier: MIT

// Calls of many short sequences: the numbers that a score_mod adds are read once for each head (HeadTiles).

#include "support/call.h"
#include "support/user_structs.h"

#include <attend/kernels.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <limits>
#include <tuple>
#include <vector>

using attend::test::AddedBias;
using attend::test::Call;

namespace many_windows_test {
namespace {

constexpr std::int64_t kLength = 49, kWidth = 8, kHeads = 3;

/// The same call for one batch entry, for which the numbers are read one by one.
template <class Mask>
void run_one(const Call& call, std::int64_t n, const AddedBias& score, const Mask& mask, Call& one,
             std::vector<double>& table) {
  const std::int64_t offset = n * kHeads * kLength * kWidth;
  const auto from = [&](attend::ConstTensorView4d view) {
    view.data = static_cast<const float*>(view.data) + offset;
    return view;
  };
  one.params.query = from(call.params.query);
  one.params.key = from(call.params.key);
  one.params.value = from(call.params.value);
  one.gradients.output = from(call.gradients.output);
  std::vector<double> sums(table.size());
  one.gradients.score_tensors = {{sums.data(), static_cast<std::int64_t>(sums.size())}};
  attend::kernels::flex_attention_forward(one.params, score, mask, one.outputs);
  attend::kernels::flex_attention_backward(one.params, score, mask, one.outputs, one.gradients);
  for (std::size_t i = 0; i < sums.size(); ++i) table[i] += sums[i];
}

template <class Mask>
void check(std::int64_t batch, const Mask& mask, bool has_nan) {
  CAPTURE(batch);
  CAPTURE(has_nan);
  std::vector<float> bias(6 * 16);
  for (std::size_t i = 0; i < bias.size(); ++i) bias[i] = std::sin(static_cast<float>(i));
  const AddedBias score{attend::TensorView(bias.data(), {6, 16})};
  Call call(batch, kHeads, kHeads, kLength, kLength, kWidth, kWidth),
      one(1, kHeads, kHeads, kLength, kLength, kWidth, kWidth);
  if (has_nan)  // the last key of an entry, which a causal mask hides from all queries but the last
    const_cast<float*>(static_cast<const float*>(call.params.key.data))[kLength * kWidth - 1] =
        std::numeric_limits<float>::quiet_NaN();
  std::vector<double> table(bias.size()), expected(bias.size());
  call.gradients.score_tensors = {{table.data(), static_cast<std::int64_t>(table.size())}};
  attend::kernels::flex_attention_forward(call.params, score, mask, call.outputs);
  attend::kernels::flex_attention_backward(call.params, score, mask, call.outputs, call.gradients);
  const std::vector<std::vector<double>> all = call.written();
  const std::size_t entry = kHeads * kLength * kWidth;
  int wrong = 0;
  for (std::int64_t n = 0; n < batch; ++n) {
    run_one(call, n, score, mask, one, expected);
    const std::vector<std::vector<double>> single = one.written();
    for (const std::size_t k : {0, 2, 3, 4})  // the output and the gradients of query, key and value
      for (std::size_t i = 0; i < entry; ++i) {
        const double found = all[k][static_cast<std::size_t>(n) * entry + i], wanted = single[k][i];
        wrong += !(std::abs(found - wanted) <= 1e-6 * std::max(1.0, std::abs(wanted))) &&
                 !(std::isnan(found) && std::isnan(wanted));
      }
  }
  CHECK(wrong == 0);
  for (std::size_t i = 0; i < table.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(table[i])) continue;
    CHECK(std::abs(table[i] - expected[i]) <= 1e-6 * std::max(1.0, std::abs(expected[i])));
  }
}

/// Adds numbers by the distance of a key from the query's position.
struct PositionBias {
  attend::TensorView bias;  // (kHeads, 16)
  template <class T>
  T operator()(T score, attend::Coordinate at) const {
    return score + bias.read_unchecked<T>(at.head, column(at));
  }
  std::int64_t added_place(attend::Coordinate at) const { return bias.place(at.head, column(at)); }
  auto tensors() { return std::tie(bias); }

  static std::int32_t column(const attend::Coordinate& at) { return std::abs(at.key - at.query_position()) % 16; }
};
struct SharedPositionBias : PositionBias {
  constexpr bool is_same_for_batch() const { return true; }
};

/// Checks that the results do not depend on is_same_for_batch().
void check_sharing(const std::function<void(attend::AttentionParams&)>& set_options) {
  std::vector<float> bias(kHeads * 16);
  for (std::size_t i = 0; i < bias.size(); ++i) bias[i] = std::sin(static_cast<float>(i));
  const attend::TensorView view(bias.data(), {kHeads, 16});
  const auto results_of = [&](const auto& score) {
    Call call(9, kHeads, kHeads, 20, kLength, kWidth, kWidth);
    set_options(call.params);
    std::vector<double> table(bias.size());
    call.gradients.score_tensors = {{table.data(), static_cast<std::int64_t>(table.size())}};
    attend::kernels::flex_attention_forward(call.params, score, attend::EveryKey{}, call.outputs);
    attend::kernels::flex_attention_backward(call.params, score, attend::EveryKey{}, call.outputs, call.gradients);
    std::vector<std::vector<double>> results = call.written();
    results.push_back(table);
    return results;
  };
  const auto shared = results_of(SharedPositionBias{{view}}), alone = results_of(PositionBias{view});
  int wrong = 0;
  for (std::size_t k = 0; k < shared.size(); ++k)
    for (std::size_t i = 0; i < shared[k].size(); ++i)
      wrong += shared[k][i] != alone[k][i] && !(std::abs(shared[k][i] - alone[k][i]) <= 1e-5);
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("flex_attention: a call of many short sequences equals one call for each sequence") {
  for (const bool has_nan : {false, true}) {
    check(7, attend::Causal{}, has_nan);  // too few for HeadTiles
    check(9, attend::Causal{}, has_nan);
    check(9, attend::EveryKey{}, has_nan);
    check(20, attend::SlidingWindow(9, 3), has_nan);
  }
}

TEST_CASE("flex_attention: many short sequences of different lengths read the numbers of their own positions") {
  check_sharing([](attend::AttentionParams&) {});
  static constexpr std::int32_t kKeys[9] = {49, 3, 0, 20, 49, 11, 1, 48, 5};
  check_sharing([](attend::AttentionParams& params) { params.key_lengths = kKeys; });
  static constexpr std::int32_t kQueryOffsets[3] = {0, 7, 20}, kKeyOffsets[3] = {0, 30, 49};
  check_sharing([](attend::AttentionParams& params) {
    params.query_offsets = kQueryOffsets;
    params.key_offsets = kKeyOffsets;
    params.num_sequences = 2;
  });
}

}  // namespace many_windows_test
