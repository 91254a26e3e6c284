// SPDX-License-Identifier: MIT
#include "support/call.h"

#include <attend/kernels.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

using attend::AttentionParams;
using attend::test::Call;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

bool are_all(const std::vector<double>& numbers, double value) {
  return std::all_of(numbers.begin(), numbers.end(), [&](double number) { return number == value; });
}

/// A user's struct with a raw pointer, and one that reads outside of its table.
struct Scaled {
  const float* factors;
  template <class T>
  T operator()(T score, attend::Coordinate at) const {
    return score * T(factors[at.head]);
  }
};
struct ReadsOutside {
  attend::TensorView table;
  template <class T>
  T operator()(T score, attend::Coordinate at) const {
    return score + table.read<T>(at.query);
  }
};

}  // namespace

TEST_CASE("kernels: no keys: a null pointer may have any strides") {
  Call call(2, 2, 1, 3, 0, 4, 4);
  for (attend::ConstTensorView4d* const view : {&call.params.key, &call.params.value})
    *view = {nullptr, {4096, 512, 4, 1}};  // of a cache that is still empty
  call.forward();
  CHECK(are_all(call.output.values(), 0));
}

TEST_CASE("kernels: a query whose keys all have the lowest number in attn_mask attends to all alike, backward too") {
  for (const std::int64_t S : {100, 200, 500}) {  // weights saved, few tiles, many tiles
    CAPTURE(S);
    constexpr std::int64_t L = 3, D = 8;
    Call call(1, 1, 1, L, S, D, D);
    const std::vector<float> mask(static_cast<std::size_t>(L * S), std::numeric_limits<float>::lowest());
    call.params.mask_type = attend::MaskType::kAdded;
    call.params.attn_mask = attend::contiguous(mask.data(), 1, L, S);
    call.forward();
    call.backward();
    for (std::int64_t d = 0; d < D; ++d) {
      double value_sum = 0, gradient_sum = 0;
      for (std::int64_t j = 0; j < S; ++j) value_sum += call.value.get(0, 0, j, d);
      for (std::int64_t i = 0; i < L; ++i) gradient_sum += call.output_gradient.get(0, 0, i, d);
      const auto count = static_cast<double>(S);
      for (std::int64_t i = 0; i < L; ++i) CHECK(std::abs(call.output.get(0, 0, i, d) - value_sum / count) < 1e-6);
      for (std::int64_t j = 0; j < S; ++j)
        CHECK(std::abs(call.value_gradient.get(0, 0, j, d) - gradient_sum / count) < 1e-6);
    }
  }
}

TEST_CASE("kernels: no keys: zeros and −∞, and all gradients are zero") {
  for (const double softcap : {0.0, 3.0}) {
    Call call(2, 4, 2, 5, 0, 8, 3);
    call.params.softcap = softcap;
    const float slopes[4] = {1, 1, 1, 1};
    double slope_gradient[4] = {7, 7, 7, 7};
    call.params.alibi_slopes = slopes;
    call.gradients.alibi_slopes = {slope_gradient, 4};
    call.params.key.data = call.params.value.data = nullptr;
    call.gradients.key.data = call.gradients.value.data = nullptr;
    call.forward();
    call.backward();
    CHECK(are_all(call.output.values(), 0));
    CHECK(are_all(call.log_sum_exp.values(), -kInfinity));
    CHECK(are_all(call.query_gradient.values(), 0));
    CHECK(are_all({slope_gradient, slope_gradient + 4}, 0));
  }
}

TEST_CASE("kernels: few queries, nothing saved: masked keys and values that are not finite have no effect") {
  for (const double softcap : {0.0, 5.0}) {
    Call with_nan(1, 6, 2, 2, 900, 24, 40), without(1, 6, 2, 2, 900, 24, 40);
    std::vector<unsigned char> mask(2 * 900, 1);
    for (const std::int64_t key : {0, 130, 700, 899}) {
      mask[static_cast<std::size_t>(key)] = mask[static_cast<std::size_t>(900 + key)] = 0;
      for (std::int64_t d = 0; d < 24; ++d) with_nan.key.set(0, 1, key, d, std::nan(""));
      for (std::int64_t d = 0; d < 40; ++d) with_nan.value.set(0, 0, key, d, kInfinity);
    }
    for (Call* call : {&with_nan, &without}) {
      call->outputs.saved = nullptr;
      call->params.softcap = softcap;
      call->params.mask_type = attend::MaskType::kBool;
      call->params.attn_mask = {mask.data(), {0, 0, 900, 1}};
      call->forward();
    }
    const std::vector<double> result = with_nan.output.values(), expected = without.output.values();
    for (std::size_t i = 0; i < result.size(); ++i) CHECK(std::abs(result[i] - expected[i]) < 1e-6);
    const std::vector<double> sums = with_nan.log_sum_exp.values(), expected_sums = without.log_sum_exp.values();
    for (std::size_t i = 0; i < sums.size(); ++i) CHECK(std::abs(sums[i] - expected_sums[i]) < 1e-6);
  }
}

TEST_CASE("kernels: few queries, nothing saved: a NaN in one masked value, several heads and batch entries") {
  for (const std::int64_t S : {64, 300}) {
    Call with_nan(3, 8, 1, 1, S, 512, 512), without(3, 8, 1, 1, S, 512, 512);
    std::vector<unsigned char> mask(static_cast<std::size_t>(S), 1);
    mask[5] = 0;
    for (std::int64_t n = 0; n < 3; ++n) with_nan.value.set(n, 0, 5, 48 + n, std::nan(""));
    attend::ThreadPoolExecutor one_thread(1);
    for (Call* call : {&with_nan, &without}) {
      call->outputs.saved = nullptr;
      call->params.mask_type = attend::MaskType::kBool;
      call->params.attn_mask = {mask.data(), {0, 0, 0, 1}};
      call->forward(one_thread);
    }
    const std::vector<double> result = with_nan.output.values(), expected = without.output.values();
    for (std::size_t i = 0; i < result.size(); ++i) CHECK(std::abs(result[i] - expected[i]) < 1e-6);
    const std::vector<double> sums = with_nan.log_sum_exp.values(), expected_sums = without.log_sum_exp.values();
    for (std::size_t i = 0; i < sums.size(); ++i) CHECK(std::abs(sums[i] - expected_sums[i]) < 1e-6);
  }
}

TEST_CASE("kernels: few queries, nothing saved: NaN in keys that are not masked gives NaN, wherever the keys are") {
  for (const auto& [begin, end] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 256}, {256, 512}, {300, 301}}) {
    Call call(1, 1, 1, 1, 512, 16, 16);
    for (std::int64_t key = begin; key < end; ++key) call.key.set(0, 0, key, 0, std::nan(""));
    call.outputs.saved = nullptr;
    call.forward();
    for (const double number : call.output.values()) CHECK(std::isnan(number));
    CHECK(std::isnan(call.log_sum_exp.values()[0]));
  }
}

TEST_CASE("kernels: few queries, nothing saved: any number of threads gives the same bits") {
  std::vector<std::vector<double>> first;
  for (const int threads : {1, 2, 3, 7}) {
    attend::ThreadPoolExecutor executor(threads);
    Call call(1, 4, 2, 3, 2000, 32, 32);
    call.outputs.saved = nullptr;
    call.params.window_right = 0;
    call.forward(executor);
    const std::vector<std::vector<double>> results{call.output.values(), call.log_sum_exp.values()};
    if (first.empty()) first = results;
    CHECK(results == first);
  }
}

TEST_CASE("kernels: no queries: the gradients of keys and values are zero") {
  Call call(2, 4, 2, 0, 6, 8, 3);
  call.forward();
  call.backward();
  CHECK(are_all(call.key_gradient.values(), 0));
  CHECK(are_all(call.value_gradient.values(), 0));
}

TEST_CASE("kernels: an empty batch needs no memory") {
  AttentionParams params;
  params.batch_size = 0;
  params.query_length = params.key_length = 5;
  params.head_dim = params.value_dim = 4;
  CHECK(attend::kernels::saved_bytes(params) == 0);
  CHECK_NOTHROW(attend::kernels::attention_forward(params, {}));
  CHECK_NOTHROW(attend::kernels::attention_backward(params, {}, {}));
  CHECK_NOTHROW(attend::kernels::flex_attention_forward(params, attend::Softcap{1}, attend::Causal{}, {}));
  const std::vector<std::int32_t> lengths(8);
  params.key_lengths = lengths.data() + lengths.size();  // no numbers
  CHECK_NOTHROW(attend::kernels::attention_forward(params, {}));
}

TEST_CASE("kernels: windows that mask nothing, up to the largest integer") {
  Call call(1, 2, 2, 70, 80, 8, 8), wide(1, 2, 2, 70, 80, 8, 8);
  wide.params.window_left = wide.params.window_right = std::numeric_limits<std::int64_t>::max();
  call.forward();
  wide.forward();
  CHECK(call.written()[0] == wide.written()[0]);
}

/// The output of the first query for a value width of 1, by the formula, in V.
template <class V>
V one_output(const Call& call, const std::vector<float>& mask) {
  const AttentionParams& p = call.params;
  std::vector<V> scores;
  for (std::int64_t j = 0; j < p.key_length; ++j) {
    V product = 0;
    for (std::int64_t d = 0; d < p.head_dim; ++d)
      product += static_cast<V>(call.query.get(0, 0, 0, d)) * static_cast<V>(call.key.get(0, 0, j, d));
    scores.push_back(product / std::sqrt(static_cast<V>(p.head_dim)) +
                     static_cast<V>(mask[static_cast<std::size_t>(j)]));
  }
  const V largest = *std::max_element(scores.begin(), scores.end());
  V sum = 0, output = 0;
  for (std::int64_t j = 0; j < p.key_length; ++j) {
    const V weight = std::exp(scores[static_cast<std::size_t>(j)] - largest);
    sum += weight;
    output += weight * static_cast<V>(call.value.get(0, 0, j, 0));
  }
  return output / sum;
}

TEST_CASE("kernels: scores that rise or fall from key to key, a little or much, are as exact as the dense formula") {
  constexpr std::int64_t S = 1000;
  for (const float rise : {0.0F, 0.001F, 0.01F, 0.06F, 0.12F, 0.13F, 0.5F, 3.0F, -0.12F, -3.0F}) {
    CAPTURE(rise);
    std::vector<float> mask(S);
    for (std::int64_t j = 0; j < S; ++j) mask[static_cast<std::size_t>(j)] = rise * static_cast<float>(j);
    Call call(1, 1, 1, 20, S, 8, 1);
    call.params.mask_type = attend::MaskType::kAdded;
    call.params.attn_mask = {mask.data(), {0, 0, 0, 1}};
    call.forward();
    const double exact = one_output<double>(call, mask), dense = one_output<float>(call, mask);
    CHECK(std::abs(call.output.get(0, 0, 0, 0) - exact) <= 2 * std::abs(dense - exact) + 1e-6);
  }
}

TEST_CASE("kernels: dropout 1 gives zeros") {
  Call call(1, 2, 2, 7, 9, 8, 8);
  call.params.dropout = 1;
  call.forward();
  call.backward();
  CHECK(are_all(call.output.values(), 0));
  CHECK(are_all(call.query_gradient.values(), 0));
  CHECK(are_all(call.value_gradient.values(), 0));
}

TEST_CASE("kernels: a struct of the user with a raw pointer is the option that does the same") {
  const float factors[] = {0.5f, 0.5f};
  Call call(1, 2, 1, 90, 140, 16, 16), scaled(1, 2, 1, 90, 140, 16, 16);
  call.params.scale = 0.125;
  call.params.window_right = 0;
  call.forward();
  call.backward();
  attend::kernels::flex_attention_forward(scaled.params, Scaled{factors}, attend::Causal{}, scaled.outputs);
  attend::kernels::flex_attention_backward(scaled.params, Scaled{factors}, attend::Causal{}, scaled.outputs,
                                           scaled.gradients);
  for (std::size_t k = 0; k < call.written().size(); ++k) {
    const std::vector<double> a = call.written()[k], b = scaled.written()[k];
    double largest = 0;
    for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
    CHECK(largest < 1e-5);
  }
}

TEST_CASE("kernels: a read outside of a TensorView gives NaN, and touches no memory") {
  Call call(1, 1, 1, 3, 4, 8, 8);
  const float table[] = {0, 0};
  attend::kernels::flex_attention_forward(call.params, ReadsOutside{{table, {2}}}, attend::EveryKey{}, call.outputs);
  const std::vector<double> output = call.output.values();
  CHECK(std::isfinite(output[0]));
  CHECK(std::isfinite(output[8]));
  CHECK(std::isnan(output[16]));
}

TEST_CASE("kernels: instruction_set() names what the best instruction set is") {
  const std::string name = attend::kernels::instruction_set();
  CHECK_FALSE(name.empty());
  CHECK((name == "portable") == (attend::simd::best_instruction_set() == attend::simd::InstructionSet::kPortable));
}
