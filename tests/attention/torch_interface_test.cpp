// SPDX-License-Identifier: MIT
// Compares attention() with torch's scaled_dot_product_attention: broadcasting, number of dimensions, dtypes of masks,
// memory layout of the output, and refused tensors.
#include <attend/flex_attention.h>

#include "support/accuracy.h"
#include "support/autocast.h"
#include "support/backends.h"
#include "support/errors.h"
#include "support/tensor_structs.h"

#include <ATen/functorch/BatchedTensorImpl.h>
#include <ATen/ops/_efficientzerotensor.h>
#include <ATen/ops/_neg_view.h>
#include <ATen/ops/_nested_tensor_from_tensor_list.h>
#include <ATen/ops/quantize_per_tensor.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

using attend::AttentionOptions;
using attend::AttentionResult;
using attend::Backend;
using attend::test::HeadBias;
using attend::test::kAllBackends;
using attend::test::kAllBackendsWithAllOptions;
using attend::test::kNamedBackendsWithAllOptions;
using attend::test::max_difference;
using attend::test::message_of;

namespace torch_interface_test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

torch::Tensor random(at::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble); }

std::vector<torch::Tensor> leaves(const std::vector<torch::Tensor>& tensors) {
  std::vector<torch::Tensor> copies;
  for (const torch::Tensor& tensor : tensors) copies.push_back(tensor.detach().clone().requires_grad_());
  return copies;
}

/// Compares results and gradients of attend and torch for one call, on every backend.
void check_as_torch(const std::vector<torch::Tensor>& inputs, const torch::Tensor& mask, bool enable_gqa) {
  const std::vector<torch::Tensor> expected_inputs = leaves(inputs);
  const torch::Tensor expected = at::scaled_dot_product_attention(
      expected_inputs[0], expected_inputs[1], expected_inputs[2],
      mask.defined() ? std::make_optional(mask) : std::nullopt, 0.0, false, std::nullopt, enable_gqa);
  const torch::Tensor gradient = torch::randn_like(expected);
  const std::vector<torch::Tensor> expected_gradients = torch::autograd::grad({expected}, expected_inputs, {gradient});
  for (const Backend backend : kAllBackends) {
    CAPTURE(backend);
    const AttentionOptions options = AttentionOptions().attn_mask(mask).backend(backend);
    const auto check = [&](const auto& call) {
      const std::vector<torch::Tensor> ours = leaves(inputs);
      const torch::Tensor output = call(ours);
      CHECK(max_difference(output, expected) < 1e-12);
      const std::vector<torch::Tensor> gradients = torch::autograd::grad({output}, ours, {gradient});
      for (std::size_t i = 0; i < 3; ++i) CHECK(max_difference(gradients[i], expected_gradients[i]) < 1e-12);
    };
    check([&](const auto& x) { return attend::attention(x[0], x[1], x[2], options); });
    CHECK_NOTHROW(attend::explain(inputs[0], inputs[1], inputs[2], options));
    if (backend == Backend::kSdpa) continue;
    check([&](const auto& x) { return attend::attention_with_lse(x[0], x[1], x[2], options).output; });
    check([&](const auto& x) {
      return attend::flex_attention(x[0], x[1], x[2], attend::Unchanged{}, attend::EveryKey{}, options);
    });
    const AttentionResult both = attend::flex_attention_with_lse(inputs[0], inputs[1], inputs[2], attend::Unchanged{},
                                                                 attend::EveryKey{}, options);
    CHECK(both.log_sum_exp.sizes() == expected.sizes().slice(0, expected.sizes().size() - 1));
  }
}

}  // namespace

TEST_CASE("attention: sizes of 1 are broadcast as in scaled_dot_product_attention, with gradients") {
  struct Case {
    std::vector<std::int64_t> query, key, value;  // N and H, G, G
    std::vector<std::int64_t> mask = {};
    bool enable_gqa = false;
  };
  for (const Case& c : {
           Case{{3, 2}, {1, 2}, {1, 2}},
           Case{{1, 2}, {3, 2}, {3, 2}},
           Case{{3, 2}, {3, 2}, {1, 2}},
           Case{{3, 2}, {1, 2}, {3, 2}},
           Case{{1, 2}, {1, 2}, {3, 2}},
           Case{{1, 2}, {3, 2}, {1, 2}},
           Case{{3, 2}, {3, 1}, {3, 1}},
           Case{{3, 1}, {3, 2}, {3, 2}},
           Case{{3, 1}, {3, 1}, {3, 2}},
           Case{{3, 2}, {3, 2}, {3, 1}},
           Case{{3, 2}, {3, 1}, {3, 2}},
           Case{{1, 1}, {3, 1}, {1, 2}},
           Case{{3, 4}, {3, 2}, {3, 1}, {}, true},
           Case{{3, 4}, {1, 2}, {1, 2}, {}, true},
           Case{{1, 4}, {3, 2}, {3, 2}, {}, true},
           Case{{3, 2}, {1, 2}, {1, 2}, {3, 1, 1, 7}},
           Case{{1, 2}, {3, 2}, {3, 2}, {3, 2, 5, 7}},
           Case{{3, 1}, {1, 2}, {1, 2}, {2, 5, 7}},
           Case{{3, 2}, {1, 1}, {1, 2}, {1, 2, 5, 1}},
       }) {
    const auto tensor = [](const std::vector<std::int64_t>& sizes, std::int64_t length) {
      return random({sizes[0], sizes[1], length, 8});
    };
    CAPTURE(c.query);
    CAPTURE(c.key);
    CAPTURE(c.value);
    CAPTURE(c.mask);
    const std::vector<torch::Tensor> inputs{tensor(c.query, 5), tensor(c.key, 7), tensor(c.value, 7)};
    if (c.mask.empty()) {
      check_as_torch(inputs, {}, c.enable_gqa);
    } else {
      check_as_torch(inputs, random(c.mask), c.enable_gqa);
      check_as_torch(inputs, torch::rand(c.mask) < 0.7, c.enable_gqa);
    }
  }
}

TEST_CASE("attention: broadcast inputs equal their copies, with learned masks, slopes, dropout, second derivatives") {
  const torch::Tensor query = random({3, 2, 5, 8}), key = random({1, 1, 7, 8}), value = random({1, 2, 7, 8});
  const torch::Tensor mask = random({3, 1, 5, 7}), slopes = torch::rand({3, 2}, torch::kDouble);
  const auto gradients_of = [&](Backend backend, bool is_copied) {
    const std::vector<torch::Tensor> x = leaves({query, key, value, mask, slopes});
    const auto whole = [&](const torch::Tensor& tensor) {
      return is_copied ? tensor.expand({3, 2, 7, 8}).contiguous() : tensor;
    };
    const AttentionOptions options =
        AttentionOptions().attn_mask(x[3]).alibi_slopes(x[4]).dropout(0.3).is_causal(true).backend(backend);
    torch::manual_seed(3);
    const torch::Tensor output = attend::attention(x[0], whole(x[1]), whole(x[2]), options);
    std::vector<torch::Tensor> results = torch::autograd::grad({output.pow(3).sum()}, x, {}, true, true);
    torch::Tensor sum = torch::zeros({}, torch::kDouble);
    for (const torch::Tensor& result : results) sum = sum + result.pow(2).sum();
    for (const torch::Tensor& second : torch::autograd::grad({sum}, x)) results.push_back(second);
    results.push_back(output);
    return results;
  };
  for (const Backend backend : kNamedBackendsWithAllOptions) {
    CAPTURE(backend);
    const auto broadcast = gradients_of(backend, false), copied = gradients_of(backend, true);
    for (std::size_t i = 0; i < copied.size(); ++i) {
      CAPTURE(i);
      CHECK(max_difference(broadcast[i], copied[i]) < 1e-11 * attend::test::size_of(copied[i]));
    }
  }
}

TEST_CASE("attention: in every dtype a key and value batch of 1 gives the result of their copies") {
  for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    for (const Backend backend : kAllBackends) {
      CAPTURE(dtype);
      CAPTURE(backend);
      const torch::Tensor query = random({3, 4, 40, 16}).to(dtype), key = random({1, 2, 50, 16}).to(dtype);
      const torch::Tensor copy = key.expand({3, 2, 50, 16}).contiguous();
      const AttentionOptions options = AttentionOptions().backend(backend);
      CHECK(attend::attention(query, key, key, options).equal(attend::attention(query, copy, copy, options)));
    }
  }
}

TEST_CASE("attention_weights: sizes of 1 are broadcast") {
  const auto check = [](const torch::Tensor& query, const torch::Tensor& key) {
    const torch::Tensor expected = (query.matmul(key.transpose(-2, -1)) / std::sqrt(8.0)).softmax(-1);
    CHECK(max_difference(attend::attention_weights(query, key), expected) < 1e-12);
  };
  check(random({3, 2, 5, 8}), random({1, 2, 7, 8}));
  check(random({1, 2, 5, 8}), random({3, 2, 7, 8}));
  check(random({1, 1, 5, 8}), random({3, 2, 7, 8}));
  check(random({3, 2, 5, 8}), random({3, 1, 7, 8}));
  check(random({2, 5, 8}), random({1, 7, 8}));
  check(random({5, 8}), random({7, 8}));
}

TEST_CASE("attention: an empty batch and a batch of 1 give an empty batch") {
  const torch::Tensor none = random({0, 2, 5, 8}), one = random({1, 2, 5, 8});
  CHECK(attend::attention(none, one, one).sizes() == torch::IntArrayRef{0, 2, 5, 8});
  CHECK(attend::attention(one, none, none).sizes() == torch::IntArrayRef{0, 2, 5, 8});
}

TEST_CASE("attention: 3-d and 2-d tensors give the results of scaled_dot_product_attention") {
  const torch::Tensor matrix_mask = random({5, 7}), head_mask = random({2, 5, 7}), full_mask = random({1, 2, 5, 7});
  check_as_torch({random({2, 5, 8}), random({2, 7, 8}), random({2, 7, 8})}, {}, false);
  check_as_torch({random({2, 5, 8}), random({1, 7, 8}), random({1, 7, 8})}, {}, false);
  check_as_torch({random({1, 5, 8}), random({2, 7, 8}), random({2, 7, 8})}, {}, false);
  check_as_torch({random({4, 5, 8}), random({2, 7, 8}), random({2, 7, 8})}, {}, true);
  check_as_torch({random({5, 8}), random({7, 8}), random({7, 8})}, {}, false);
  check_as_torch({random({5, 8}), random({7, 8}), random({7, 8})}, matrix_mask, false);
  for (const torch::Tensor& mask : {matrix_mask, head_mask, full_mask, head_mask > 0})
    check_as_torch({random({2, 5, 8}), random({2, 7, 8}), random({2, 7, 8})}, mask, false);
  const torch::Tensor x = random({5, 8});
  CHECK(attend::attention(x, x, x.slice(1, 0, 3)).sizes() == torch::IntArrayRef{5, 3});
}

TEST_CASE("attention: a fused kernel's 3-d output may be changed in place, but its backward pass then throws") {
  const torch::Tensor x = random({2, 5, 8}).requires_grad_();
  torch::Tensor changed = attend::attention(x, x, x);
  changed.mul_(2.0);
  CHECK(message_of<c10::Error>([&] { changed.sum().backward(); }).find("modified by an inplace operation") !=
        std::string::npos);
  torch::Tensor of_reference = attend::attention(x, x, x, AttentionOptions().backend(Backend::kReference));
  of_reference.mul_(2.0).sum().backward();
  CHECK(x.grad().defined());
}

TEST_CASE("attention: a float attn_mask may have another dtype than query") {
  // Near these numbers, adjacent bfloat16 and float16 values are 2 apart: rounded weights would be wrong by a factor e.
  const torch::Tensor fine = 2048 + torch::tensor({0.0, 1.0, 2.0, 3.0, 1.0, 0.0, 3.0}, torch::kDouble).expand({5, 7});
  const auto wide = {torch::kDouble, torch::kFloat};
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    const torch::Tensor query = random({2, 2, 5, 8}).to(dtype), key = random({2, 2, 7, 8}).to(dtype);
    const auto expected_for = [&](const torch::Tensor& mask) {
      const torch::Tensor q = query.to(torch::kDouble), k = key.to(torch::kDouble);
      return (q.matmul(k.transpose(2, 3)) / std::sqrt(8.0) + mask).softmax(-1).matmul(k);
    };
    const double bound = dtype == torch::kDouble  ? 1e-12
                         : dtype == torch::kFloat ? 2e-3  // 2048 + a score
                                                  : 2e-2;
    for (const auto mask_dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      for (const Backend backend : kAllBackends) {
        CAPTURE(dtype);
        CAPTURE(mask_dtype);
        CAPTURE(backend);
        const bool is_wide = std::count(wide.begin(), wide.end(), mask_dtype) > 0;
        torch::Tensor mask = (is_wide ? fine : fine - 2048).clone().to(mask_dtype);
        mask[1][2] = -kInfinity;
        const AttentionOptions options = AttentionOptions().attn_mask(mask).backend(backend);
        const torch::Tensor output = attend::attention(query, key, key, options);
        CHECK((output.scalar_type() == dtype));
        CHECK(max_difference(output, expected_for(mask.to(torch::kDouble))) < bound);
        CHECK(max_difference(attend::attention_weights(query, key, options).sum(-1), torch::ones({2, 2, 5})) < 1e-2);
      }
    }
  }
}

TEST_CASE("attention: the gradient of an attn_mask has the mask's dtype") {
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    for (const auto mask_dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      for (const Backend backend : kAllBackendsWithAllOptions) {
        CAPTURE(dtype);
        CAPTURE(mask_dtype);
        CAPTURE(backend);
        const torch::Tensor query = random({2, 2, 5, 8}).to(dtype), key = random({2, 2, 7, 8}).to(dtype);
        const torch::Tensor mask = random({5, 7}).to(mask_dtype).requires_grad_();
        const torch::Tensor exact_mask = mask.detach().to(torch::kDouble).requires_grad_();
        const torch::Tensor q = query.to(torch::kDouble), k = key.to(torch::kDouble);
        const torch::Tensor exact = at::scaled_dot_product_attention(q, k, k, exact_mask);
        const torch::Tensor gradient = torch::randn_like(exact).to(dtype);
        exact.backward(gradient.to(torch::kDouble));
        attend::attention(query, key, key, AttentionOptions().attn_mask(mask).backend(backend)).backward(gradient);
        CHECK((mask.grad().scalar_type() == mask_dtype));
        const auto is_half = [](at::ScalarType each) { return each == torch::kBFloat16 || each == torch::kHalf; };
        const double bound = is_half(dtype) || is_half(mask_dtype)                     ? 5e-2
                             : dtype == torch::kDouble && mask_dtype == torch::kDouble ? 1e-12
                                                                                       : 1e-5;
        CHECK(max_difference(mask.grad(), exact_mask.grad()) < bound);
      }
    }
  }
}

TEST_CASE("attn_mask: a finite float64 number beyond float32 masks no key, and -inf masks it") {
  const torch::Tensor mask = torch::zeros({2, 4}, torch::kDouble);
  mask[0].fill_(-1e300);
  mask[1].fill_(-kInfinity);
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    for (const Backend backend : kAllBackends) {
      CAPTURE(dtype);
      CAPTURE(backend);
      const torch::Tensor query = torch::zeros({1, 1, 2, 8}, dtype), value = random({1, 1, 4, 8}).to(dtype);
      const AttentionOptions options = AttentionOptions().attn_mask(mask).backend(backend);
      const torch::Tensor output = attend::attention(query, value, value, options);
      const torch::Tensor mean = value.to(torch::kDouble).mean(2);
      CHECK(max_difference(output.select(2, 0), mean) < 2e-2);
      CHECK(output.select(2, 1).eq(0).all().item<bool>());
    }
  }
}

TEST_CASE("attn_mask: under autocast the mask of a float64 query is not rounded") {
  const torch::Tensor x = random({1, 2, 5, 8}), mask = torch::randn({5, 5});
  const torch::Tensor expected = attend::attention(x, x, x, AttentionOptions().attn_mask(mask));
  const attend::test::Autocast autocast;
  CHECK(attend::attention(x, x, x, AttentionOptions().attn_mask(mask)).equal(expected));
}

TEST_CASE("attention: the output has the memory layout of the query, on every backend") {
  const std::int64_t N = 2, H = 3, L = 20, D = 8;
  struct Case {
    std::string name;
    torch::Tensor query;
    std::vector<std::int64_t> strides;
  };
  const std::vector<std::int64_t> by_heads{H * L * D, L * D, D, 1}, by_rows{L * H * D, D, H * D, 1};
  for (const Case& c : {
           Case{"contiguous", torch::randn({N, H, L, D}), by_heads},
           Case{"as layers make it", torch::randn({N, L, H, D}).transpose(1, 2), by_rows},
           Case{"a part of a projection", torch::randn({N, L, 3, H, D}).select(2, 1).transpose(1, 2), by_rows},
           Case{"length first", torch::randn({L, N, H, D}).permute({1, 2, 0, 3}), {H * D, D, N * H * D, 1}},
           Case{"heads first", torch::randn({H, N, L, D}).transpose(0, 1), {L * D, N * L * D, D, 1}},
           Case{"every second row", torch::randn({N, H, 2 * L, D}).slice(2, 0, 2 * L, 2), by_heads},
           Case{"channels first", torch::randn({N, H, D, L}).transpose(2, 3), by_heads},
           Case{"one batch entry", torch::randn({1, L, H, D}).transpose(1, 2).expand({N, H, L, D}), by_rows},
       }) {
    for (const Backend backend : kAllBackends) {
      for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
        for (const bool needs_gradient : {false, true}) {
          CAPTURE(c.name);
          CAPTURE(backend);
          CAPTURE(dtype);
          CAPTURE(needs_gradient);
          torch::Tensor query = c.query;
          if (dtype != torch::kFloat) query = torch::empty_strided(query.sizes(), query.strides(), dtype);
          if (dtype != torch::kFloat) query.zero_();
          query = query.detach().requires_grad_(needs_gradient);
          const torch::Tensor key = torch::randn({N, H, 40, D}).to(dtype);
          const AttentionOptions options = AttentionOptions().backend(backend);
          CHECK(attend::attention(query, key, key, options).strides() == torch::IntArrayRef(c.strides));
          CHECK(attend::attention_with_lse(query, key, key, options).output.strides() == torch::IntArrayRef(c.strides));
          if (backend == Backend::kSdpa) continue;
          std::vector<std::int64_t> narrow = c.strides;
          for (std::size_t i = 0; i < 3; ++i) narrow[i] = narrow[i] / D * 5;
          CHECK(attend::attention(query, key, key.slice(3, 0, 5), options).strides() == torch::IntArrayRef(narrow));
        }
      }
    }
  }
}

TEST_CASE("attention: the output does not overlap in memory if queries do, as windows of a signal") {
  torch::manual_seed(10);
  const torch::Tensor signal = torch::randn({400}), key = torch::randn({2, 3, 30, 8});
  for (const std::vector<std::int64_t>& strides : {std::vector<std::int64_t>{40, 1, 8, 1},
                                                   {1, 5, 8, 1},
                                                   {1, 0, 8, 1},
                                                   {3, 1, 9, 1},
                                                   {8, 4, 16, 1},
                                                   {4, 8, 16, 1}}) {
    for (const std::int64_t length : {1, 20}) {
      const torch::Tensor query = signal.as_strided({2, 3, length, 8}, strides);
      for (const Backend backend : kAllBackends) {
        CAPTURE(strides[0]);
        CAPTURE(length);
        CAPTURE(backend);
        const AttentionOptions options = AttentionOptions().backend(backend);
        const torch::Tensor output = attend::attention(query, key, key, options);
        CHECK(output.is_non_overlapping_and_dense());
        CHECK(output.allclose(attend::attention(query.contiguous(), key, key, options), 1e-5, 1e-6));
      }
    }
  }
}

namespace {

struct SameDocument {
  torch::Tensor document;  // (L)
  struct View {
    attend::IntegerView document;
    ATTEND_HOST_DEVICE bool operator()(attend::Coordinate at) const {
      return document.read(at.query) == document.read(at.key);
    }
  };
  View bind(attend::Binder& binder) const { return {binder.integers(document)}; }
};

}  // namespace

TEST_CASE("attention: sparse, nested, mkldnn, quantized and wrapped tensors are refused for every argument") {
  struct Kind {
    std::function<torch::Tensor(const torch::Tensor&)> make;
    std::string expected;
    bool is_for_floats = false, is_for_matrices = false;
  };
  const std::string to_dense = "; convert it with .to_dense()";
  const Kind kinds[] = {
      {[](const torch::Tensor& x) { return x.to_sparse(); }, " must be dense, got the layout Sparse" + to_dense},
      {[](const torch::Tensor& x) { return x.to_sparse_csr(); }, " must be dense, got the layout SparseCsr" + to_dense,
       false, true},
      {[](const torch::Tensor& x) { return x.to_mkldnn(); }, " must be dense, got the layout Mkldnn" + to_dense, true},
      {[](const torch::Tensor& x) {
         return at::_nested_tensor_from_tensor_list({x, x});
       },
       " must be dense, got a nested tensor; pad it first"},
      {[](const torch::Tensor& x) { return at::quantize_per_tensor(x.to(torch::kFloat), 0.1, 10, torch::kQUInt8); },
       " must not be quantized, got QUInt8; convert it with .dequantize()"},
      {[](const torch::Tensor& x) { return at::_efficientzerotensor(x.sizes(), x.options()); },
       " must have memory, got a tensor of zeros that has none; copy it with .clone()"},
      {[](const torch::Tensor& x) { return at::functorch::makeBatched(x.unsqueeze(0), 0, 1); },
       " must have memory of its own, got a tensor wrapped by vmap or another transform of torch"},
  };
  const torch::Tensor x = torch::randn({1, 2, 4, 8}), mask = torch::randn({4, 4}), slopes = torch::rand({2});
  const torch::Tensor offsets = torch::tensor({0, 4}, torch::kInt), documents = torch::zeros({4}, torch::kInt);
  for (const Kind& kind : kinds) {
    CAPTURE(kind.expected);
    const auto is_refused = [&](const std::string& name, const auto& call) {
      CAPTURE(name);
      CHECK(message_of<c10::TypeError>(call) == name + kind.expected);
    };
    const auto call = [&](const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                          const AttentionOptions& options, const std::string& name) {
      const std::string full_name = "attend::attention: " + name;
      is_refused(full_name, [&] { attend::attention(q, k, v, options); });
      is_refused(full_name, [&] { attend::attention_with_lse(q, k, v, options); });
      is_refused(full_name, [&] { attend::explain(q, k, v, options); });
      is_refused(full_name, [&] { attend::flex_attention(q, k, v, attend::Unchanged{}, attend::EveryKey{}, options); });
      if (name != "value") is_refused(full_name, [&] { attend::attention_weights(q, k, options); });
    };
    const torch::Tensor odd = kind.make(x);
    call(odd, x, x, {}, "query");
    call(x, odd, x, {}, "key");
    call(x, x, odd, {}, "value");
    call(odd, odd, odd, {}, "query");
    call(x, x, x, AttentionOptions().attn_mask(kind.make(mask)), "attn_mask");
    is_refused("attend::materialize: scores", [&] { attend::materialize(HeadBias{slopes}, odd); });
    if (kind.is_for_matrices) continue;
    const std::string captured = "attend::Binder: a tensor of a score_mod or mask_mod";
    call(x, x, x, AttentionOptions().alibi_slopes(kind.make(slopes)), "alibi_slopes");
    is_refused(captured, [&] { attend::flex_attention(x, x, x, HeadBias{kind.make(slopes)}); });
    is_refused(captured, [&] { attend::materialize(HeadBias{kind.make(slopes)}, torch::zeros({1, 2, 4, 4})); });
    if (kind.is_for_floats) continue;
    call(x, x, x, AttentionOptions().attn_mask(kind.make(mask > 0)), "attn_mask");
    call(x, x, x, AttentionOptions().query_offsets(kind.make(offsets)).key_offsets(offsets), "query_offsets");
    call(x, x, x, AttentionOptions().query_offsets(offsets).key_offsets(kind.make(offsets)), "key_offsets");
    is_refused(captured,
               [&] { attend::flex_attention(x, x, x, attend::Unchanged{}, SameDocument{kind.make(documents)}); });
    is_refused(captured, [&] { attend::materialize(SameDocument{kind.make(documents)}, {1, 2, 4, 4}); });
  }
}

TEST_CASE("attention: tensors on the device meta are refused, except by explain()") {
  const torch::Tensor meta = torch::empty({1, 2, 4, 8}, torch::kMeta);
  const std::string expected = "attend::attention: query must have data, got a tensor on the device meta";
  CHECK(message_of<c10::ValueError>([&] { attend::attention(meta, meta, meta); }) == expected);
  CHECK(message_of<c10::ValueError>([&] { attend::attention_weights(meta, meta); }) == expected);
  CHECK(message_of<c10::ValueError>([&] { attend::flex_attention(meta, meta, meta, attend::Unchanged{}); }) ==
        expected);
  CHECK(attend::explain(meta, meta, meta).why_not_faster.find("kCpu runs on the CPU only; the tensors are on meta.") ==
        0);
  CHECK(message_of<c10::ValueError>([&] { attend::materialize(HeadBias{torch::rand({2})}, meta); }) ==
        "attend::materialize: scores must have data, got a tensor on the device meta");
}

TEST_CASE("attention: arguments with torch's negative bit are read with the right sign, also offsets") {
  const torch::Tensor x = random({1, 2, 4, 8});
  const AttentionOptions packed = AttentionOptions()
                                      .query_offsets(torch::tensor({0, 1, 4}, torch::kInt))
                                      .key_offsets(torch::tensor({0, 2, 4}, torch::kInt));
  const auto lazily = [](const torch::Tensor& tensor) { return at::_neg_view(-tensor); };
  const AttentionOptions lazily_packed =
      AttentionOptions().query_offsets(lazily(packed.query_offsets())).key_offsets(lazily(packed.key_offsets()));
  for (const Backend backend : kNamedBackendsWithAllOptions) {
    CAPTURE(backend);
    const torch::Tensor expected = attend::attention(x, x, x, AttentionOptions(packed).backend(backend));
    CHECK(attend::attention(lazily(x), lazily(x), lazily(x), AttentionOptions(lazily_packed).backend(backend))
              .equal(expected));
  }
  const torch::Tensor negated = at::_neg_view(packed.query_offsets());
  CHECK(message_of<c10::ValueError>([&] {
          attend::attention(x, x, x, AttentionOptions(packed).query_offsets(negated));
        }) == "attend::attention: query_offsets must go from 0 to L = 4, got 0 to -4");
}

TEST_CASE("attn_mask: in a bool mask every byte except 0 means true, as in torch") {
  torch::manual_seed(9);
  const torch::Tensor x = torch::randn({1, 2, 40, 16}), bytes = torch::randint(0, 3, {40, 40}).to(torch::kByte).mul(2);
  for (const attend::Backend backend : attend::test::kNamedBackends) {
    CAPTURE(backend);
    const auto with_mask = [&](const torch::Tensor& mask) {
      return attend::attention(x, x, x, attend::AttentionOptions().attn_mask(mask).backend(backend));
    };
    CHECK(with_mask(bytes.view(torch::kBool)).equal(with_mask(bytes.ne(0))));
  }
}

}  // namespace torch_interface_test
