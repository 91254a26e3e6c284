// SPDX-License-Identifier: MIT

// Tests the calls of ATen's operators for CUDA without a GPU. This file defines the operators for the CPU, as ATen's
// sources say that they behave on a GPU, and passes them CPU tensors.

#include <attend/attention/detail/aten_attention.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/preference.h>
#include <attend/attention/sdpa.h>

#include <attend/attention.h>
#include <attend/layers/multihead_attention.h>

#include "support/accuracy.h"
#include "support/errors.h"

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/TensorImpl.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/library.h>
#include <torch/types.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace aten_attention_test {
namespace {

using attend::AttentionOptions;
using attend::AttentionResult;
using attend::Backend;
using attend::BackendChoice;
using attend::detail::AtenAttention;
using attend::detail::AttentionTensors;
using attend::detail::KernelResult;
using attend::detail::Problem;
using attend::test::kAtensFactor;
using attend::test::max_difference;
using attend::test::message_of;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// ---- The operators

/// The arguments of an operator, by name: LibTorch's versions have different lists.
class Arguments {
 public:
  Arguments(const c10::OperatorHandle& op, torch::jit::Stack* stack) : op_(op), stack_(stack) {}

  c10::IValue value(const std::string& name) const {
    const auto& arguments = op_.schema().arguments();
    for (std::size_t i = 0; i < arguments.size(); ++i)
      if (arguments[i].name() == name) return (*stack_)[stack_->size() - arguments.size() + i];
    throw std::logic_error("no argument " + name);
  }
  at::Tensor tensor(const std::string& name) const {
    return value(name).isNone() ? at::Tensor() : value(name).toTensor();
  }
  std::int64_t integer(const std::string& name, std::int64_t none = -1) const {
    return value(name).isNone() ? none : value(name).toInt();
  }
  double number(const std::string& name) const { return value(name).toDouble(); }

  void give(const std::vector<c10::IValue>& results) {
    torch::jit::drop(*stack_, op_.schema().arguments().size());
    for (const c10::IValue& result : results) stack_->push_back(result);
  }

 private:
  const c10::OperatorHandle& op_;
  torch::jit::Stack* stack_;
};

/// One sequence in float64: (N, L, H, D). Everything is dense.
struct Sequence {
  at::Tensor query, key, value, bias;
  double scale;
  std::int64_t left, right;  // −1: unlimited; counted from the last key
  double dropout = 0.0;
  std::uint64_t seed = 0;

  at::Tensor heads(const at::Tensor& tensor) const {  // (N, H, S, D)
    return tensor.to(at::kDouble).repeat_interleave(query.size(2) / tensor.size(2), 2).transpose(1, 2);
  }
  at::Tensor scores() const {
    at::Tensor scores = scale * heads(query).matmul(heads(key).mT());
    if (bias.defined()) scores = scores + bias.to(at::kDouble);
    const std::int64_t L = query.size(1), S = key.size(1);
    const at::Tensor distance =
        at::arange(S).unsqueeze(0) - (at::arange(L).unsqueeze(1) + (S - L));  // key − position of the query
    if (left >= 0) scores = scores.masked_fill(distance < -left, -kInfinity);
    return right >= 0 ? scores.masked_fill(distance > right, -kInfinity) : scores;
  }
  at::Tensor kept(const at::Tensor& weights) const {  // the factors of dropout
    if (dropout == 0.0) return at::ones_like(weights);
    return at::bernoulli(at::full_like(weights, 1.0 - dropout), at::make_generator<at::CPUGeneratorImpl>(seed)) /
           (1.0 - dropout);
  }

  /// Output (N, L, H, D), and log-sum-exp (N, H, L), `empty` for a query without a key.
  std::tuple<at::Tensor, at::Tensor> forward(double empty) const {
    const at::Tensor scores = this->scores(), sums = scores.logsumexp(3);
    const at::Tensor weights = at::softmax(scores, 3).nan_to_num(0.0);
    return {(weights * kept(weights)).matmul(heads(value)).transpose(1, 2), sums.masked_fill(sums.isneginf(), empty)};
  }

  /// The gradients of query, key, value and scores, from what the forward pass has saved.
  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& gradient,
                                                                      const at::Tensor& output,
                                                                      const at::Tensor& sums) const {
    const at::Tensor weights = (scores() - sums.to(at::kDouble).unsqueeze(3)).exp(), factors = kept(weights);
    const at::Tensor by_output = heads(gradient), by_weight = factors * by_output.matmul(heads(value).mT());
    const at::Tensor by_score = weights * (by_weight - (by_output * heads(output)).sum(3, true));
    const auto of_key_heads = [this](const at::Tensor& each) {
      return each.transpose(1, 2).unflatten(2, {key.size(2), -1}).sum(3);
    };
    return {scale * by_score.matmul(heads(key)).transpose(1, 2),
            of_key_heads(scale * by_score.mT().matmul(heads(query))),
            of_key_heads((weights * factors).mT().matmul(by_output)), by_score};
  }
};

std::uint64_t next_seed = 1;

/// _flash_attention_forward or its backward pass, on each sequence.
void flash(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Arguments arguments(op, stack);
  const bool is_backward = op.schema().name() == "aten::_flash_attention_backward";
  const at::Tensor query = arguments.tensor("query"), key = arguments.tensor("key"), value = arguments.tensor("value"),
                   query_offsets = arguments.tensor("cum_seq_q"), key_offsets = arguments.tensor("cum_seq_k");
  const std::int64_t most_keys = arguments.integer("max_k");
  const auto side = [&](const char* name) {  // ATen takes a window as wide as the keys as unlimited
    const std::int64_t width = arguments.integer(name);
    return width >= most_keys ? -1 : width;
  };
  Sequence whole{query, key, value, {}, arguments.number("scale"), side("window_size_left"), side("window_size_right")};
  if (arguments.value("is_causal").toBool()) whole.right = 0;
  whole.dropout = arguments.number("dropout_p");
  CHECK(query.size(-1) % 8 == 0);
  for (const at::Tensor& each : {query, key, value}) {
    CHECK(each.stride(-1) == 1);
    CHECK((each.scalar_type() == at::kBFloat16 || each.scalar_type() == at::kHalf));
  }
  at::Tensor random_state;
  if (is_backward) {
    random_state = arguments.tensor("rng_state");
    CHECK((random_state.defined() || whole.dropout == 0.0));
  } else {
    random_state = at::full({2}, static_cast<std::int64_t>(next_seed++));
  }
  if (whole.dropout > 0.0) whole.seed = static_cast<std::uint64_t>(random_state[0].item<std::int64_t>());

  struct Range {
    std::int64_t query, queries, key, keys;
  };
  std::vector<Range> ranges;
  const bool is_packed = query_offsets.defined();
  CHECK(query.dim() == (is_packed ? 3 : 4));
  if (is_packed) {
    for (std::int64_t b = 0; b + 1 < query_offsets.size(0); ++b) {
      const auto at = [b](const at::Tensor& offsets, int i) { return offsets[b + i].item<std::int64_t>(); };
      ranges.push_back({at(query_offsets, 0), at(query_offsets, 1) - at(query_offsets, 0), at(key_offsets, 0),
                        at(key_offsets, 1) - at(key_offsets, 0)});
    }
  } else {
    ranges.push_back({0, query.size(1), 0, key.size(1)});
  }
  const std::int64_t row = is_packed ? 0 : 1;  // the dimension of rows
  const auto part = [&](const at::Tensor& tensor, std::int64_t begin, std::int64_t count) {
    const at::Tensor rows = tensor.narrow(row, begin, count);
    return is_packed ? rows.unsqueeze(0) : rows;
  };
  const auto joined = [&](std::vector<at::Tensor> parts, std::int64_t dim) {
    at::Tensor all = at::cat(parts, dim);
    return is_packed ? all.squeeze(0) : all;
  };
  std::vector<at::Tensor> results[3];
  for (const Range& range : ranges) {
    Sequence one = whole;
    one.query = part(query, range.query, range.queries);
    one.key = part(key, range.key, range.keys);
    one.value = part(value, range.key, range.keys);
    if (!is_backward) {
      const auto [output, sums] = one.forward(/*empty=*/kInfinity);
      results[0].push_back(output);
      results[1].push_back(sums);
      continue;
    }
    const at::Tensor sums = arguments.tensor("logsumexp");  // (N, H, L) or (H, L)
    const at::Tensor own = sums.narrow(sums.dim() - 1, range.query, range.queries);
    const auto [by_query, by_key, by_value, by_score] =
        one.backward(part(arguments.tensor("grad_out"), range.query, range.queries),
                     part(arguments.tensor("out"), range.query, range.queries), is_packed ? own.unsqueeze(0) : own);
    results[0].push_back(by_query);
    results[1].push_back(by_key);
    results[2].push_back(by_value);
  }
  const at::ScalarType dtype = query.scalar_type();
  if (is_backward)
    arguments.give({joined(results[0], 1).to(dtype), joined(results[1], 1).to(dtype), joined(results[2], 1).to(dtype)});
  else
    arguments.give({joined(results[0], 1).to(dtype), joined(results[1], 2).to(at::kFloat), random_state, at::empty({}),
                    at::empty({0})});
}

/// _efficient_attention_forward or its backward pass.
void efficient(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  constexpr std::int64_t kAlignedRows = 32;
  Arguments arguments(op, stack);
  const bool is_backward = op.schema().name() == "aten::_efficient_attention_backward";
  const at::Tensor query = arguments.tensor("query"), key = arguments.tensor("key"), value = arguments.tensor("value"),
                   bias = arguments.tensor("bias");
  const std::int64_t N = query.size(0), L = query.size(1), H = query.size(2), S = key.size(1);
  for (const at::Tensor& each : {query, key, value}) {
    CHECK(each.stride(3) == 1);
    CHECK(each.size(2) == H);
    CHECK(bool(each.scalar_type() != at::kDouble));
  }
  CHECK(arguments.value("cu_seqlens_q").isNone());
  if (bias.defined()) {
    CHECK(bool(bias.scalar_type() == query.scalar_type()));
    CHECK(bias.sizes() == at::IntArrayRef({N, H, L, S}));
    CHECK(bias.stride(3) == 1);
    for (int i = 0; i < 3; ++i) CHECK((bias.size(i) == 1 || bias.stride(i) % 8 == 0));
  }
  const std::int64_t mask_type = arguments.integer("custom_mask_type");
  CHECK((mask_type == 0 || mask_type == 2));
  CHECK((mask_type == 0 || L <= S));
  Sequence one{query, key, value, bias, arguments.number("scale"), -1, mask_type == 2 ? 0 : -1};
  one.dropout = arguments.number("dropout_p");
  const at::ScalarType dtype = query.scalar_type();
  if (!is_backward) {
    one.seed = next_seed++;
    const auto [output, sums] = one.forward(/*empty=*/-kInfinity);
    const bool needs_sums = arguments.value("compute_log_sumexp").toBool();
    const at::Tensor padded =
        at::constant_pad_nd(sums, {0, (kAlignedRows - L % kAlignedRows) % kAlignedRows}, kInfinity);
    arguments.give({output.to(dtype), needs_sums ? padded.to(at::kFloat) : at::empty({N, H, 0}),
                    at::full({}, static_cast<std::int64_t>(one.seed)), at::full({}, std::int64_t{7}), L, S});
    return;
  }
  const at::Tensor sums = arguments.tensor("logsumexp");
  CHECK(sums.size(2) % kAlignedRows == 0);
  CHECK(sums.is_contiguous());
  CHECK(sums.narrow(2, L, sums.size(2) - L).isposinf().all().item<bool>());
  CHECK(arguments.integer("max_seqlen_q") == L);
  CHECK(arguments.integer("max_seqlen_k") == S);
  if (one.dropout > 0.0) {
    one.seed = static_cast<std::uint64_t>(arguments.tensor("philox_seed").item<std::int64_t>());
    CHECK(arguments.tensor("philox_offset").item<std::int64_t>() == 7);
  }
  const auto [by_query, by_key, by_value, by_score] =
      one.backward(arguments.tensor("grad_out_"), arguments.tensor("out"), sums.narrow(2, 0, L));
  // ATen does not write the scores above the diagonal.
  const at::Tensor unwritten = at::full({L, S}, kInfinity - kInfinity, at::kDouble).triu(S - L + 1);
  const at::Tensor by_bias = mask_type == 2 ? by_score + unwritten : by_score;
  arguments.give({by_query.to(dtype), by_key.to(dtype), by_value.to(dtype),
                  arguments.value("bias_requires_grad").toBool() ? by_bias.to(dtype) : at::Tensor()});
}

TORCH_LIBRARY_IMPL(aten, CPU, library) {
  library.impl("_flash_attention_forward", torch::CppFunction::makeFromBoxedFunction<&flash>());
  library.impl("_flash_attention_backward", torch::CppFunction::makeFromBoxedFunction<&flash>());
  library.impl("_efficient_attention_forward", torch::CppFunction::makeFromBoxedFunction<&efficient>());
  library.impl("_efficient_attention_backward", torch::CppFunction::makeFromBoxedFunction<&efficient>());
}

// ---- Calls

/// kSdpa on a GPU, but for CPU tensors.
class OnCpu final : public attend::detail::KernelBackend {
 public:
  Backend name() const override { return Backend::kGiven; }
  bool can_run(const Problem& problem, std::string* reason) const override {
    return AtenAttention::can_run(problem, reason);
  }
  std::string copies(const Problem& problem) const override { return AtenAttention::copies(problem); }
  std::string how(const Problem&) const override { return ""; }
  Problem readable(const Problem& problem) const override { return problem; }
  KernelResult forward(const Problem& problem, bool with_backward) const override {
    return AtenAttention::forward(problem, with_backward);
  }
  AttentionTensors backward(const Problem& problem, const KernelResult& result,
                            const AttentionResult& gradients) const override {
    return AtenAttention::backward(problem, result, gradients);
  }
  bool drops_other_weights(const Problem& problem) const override { return problem.dropout > 0.0; }
};

BackendChoice on_cpu() { return std::shared_ptr<const attend::detail::AttentionBackend>(std::make_shared<OnCpu>()); }

struct Case {
  std::string name;
  at::ScalarType dtype;
  AttentionOptions options;
  std::int64_t N = 2, H = 4, G = 2, L = 37, S = 53;
  bool with_lse = true;
  bool learns_mask = false;
};

torch::Tensor bool_mask(at::IntArrayRef sizes) {
  torch::Tensor mask = torch::rand(sizes) < 0.6;
  mask.select(-1, 0).fill_(true);
  return mask;
}

/// A sum whose gradient does not depend on the rounding of the results.
torch::Tensor weighted(const torch::Tensor& results) {
  const torch::Tensor numbers = torch::arange(results.numel(), torch::kDouble).view(results.sizes());
  return (results.to(torch::kDouble) * (0.7 * numbers).sin()).sum();
}

/// Output, log-sum-exp and gradients.
std::vector<torch::Tensor> results_of(const Case& c, std::vector<torch::Tensor> inputs, AttentionOptions options) {
  for (torch::Tensor& input : inputs) input = input.detach().requires_grad_();
  if (c.learns_mask) options.attn_mask(inputs[3].reshape(options.attn_mask().sizes()));
  std::vector<torch::Tensor> results;
  torch::Tensor sum;
  if (c.with_lse) {
    const auto [output, log_sum_exp] = attend::attention_with_lse(inputs[0], inputs[1], inputs[2], options);
    results = {output, log_sum_exp};
    sum = weighted(output) + weighted(log_sum_exp.masked_fill(log_sum_exp.isinf(), 0));
  } else {
    results = {attend::attention(inputs[0], inputs[1], inputs[2], options)};
    sum = weighted(results[0]);
  }
  for (const torch::Tensor& gradient : torch::autograd::grad({sum}, inputs)) results.push_back(gradient);
  return results;
}

}  // namespace

TEST_CASE("kSdpa on a GPU: ATen's operators get the arguments that give attention()'s results and gradients") {
  const auto with = [] { return AttentionOptions(); };
  const torch::Tensor offsets = torch::tensor({0, 7, 7, 20, 37}, torch::kInt),
                      key_offsets = torch::tensor({0, 9, 11, 11, 53}, torch::kInt);
  const auto half = torch::kBFloat16, single = torch::kFloat;
  const auto bias = [](at::IntArrayRef sizes, at::ScalarType dtype) { return torch::randn(sizes).to(dtype); };
  const Case cases[] = {
      {"flash, log-sum-exp", half, with()},
      {"flash, float16, scale", torch::kHalf, with().scale(0.3)},
      {"flash, causal, L < S", half, with().is_causal(true)},
      {"flash, causal, L > S", half, with().is_causal(true), 2, 4, 2, 53, 37},
      {"flash, window", half, with().window({9, 4})},
      {"flash, window to the left, causal", half, with().window({12, -1}).is_causal(true)},
      {"flash, window to the right only", half, with().window({-1, 3})},
      {"flash, window, L > S", half, with().window({9, 4}), 1, 4, 4, 53, 37},
      {"flash, one query", half, with().window({20, 0}), 2, 4, 2, 1, 53},
      {"flash, packed", half, with().query_offsets(offsets).key_offsets(key_offsets), 1},
      {"flash, packed, causal", half, with().query_offsets(offsets).key_offsets(key_offsets).is_causal(true), 1},
      {"flash, packed, window", half, with().query_offsets(offsets).key_offsets(key_offsets).window({3, 2}), 1},
      {"efficient, log-sum-exp", single, with()},
      {"efficient, causal, L < S", single, with().is_causal(true)},
      {"efficient, causal and a bool mask", single, with().is_causal(true).attn_mask(bool_mask({2, 1, 37, 53})), 2, 4,
       2, 37, 53, false},
      {"efficient, causal and a mask of the keys", half, with().is_causal(true).attn_mask(bool_mask({2, 1, 1, 53})), 2,
       4, 2, 37, 53, false},
      {"efficient, learned bias (L, S)", single, with().attn_mask(bias({37, 53}, single)), 2, 4, 2, 37, 53, false,
       true},
      {"efficient, learned bias, aligned", single, with().attn_mask(bias({4, 37, 64}, single)), 2, 4, 4, 37, 64, false,
       true},
      {"efficient, learned bias (N, 1, 1, S), causal", half,
       with().is_causal(true).attn_mask(bias({2, 1, 1, 53}, half)), 2, 4, 1, 37, 53, false, true},
      {"efficient, learned bias (H, L, 1)", single, with().attn_mask(bias({4, 37, 1}, single)), 2, 4, 4, 37, 53, false,
       true},
  };
  torch::manual_seed(4);
  for (const Case& c : cases) {
    CAPTURE(c.name);
    std::vector<torch::Tensor> inputs{torch::randn({c.N, c.H, c.L, 16}), torch::randn({c.N, c.G, c.S, 16}),
                                      torch::randn({c.N, c.G, c.S, 16})};
    if (c.learns_mask) inputs.push_back(c.options.attn_mask().flatten());
    for (torch::Tensor& input : inputs) input = input.to(c.dtype);
    std::vector<torch::Tensor> exact;
    for (const torch::Tensor& input : inputs) exact.push_back(input.to(torch::kDouble));
    const auto ours = results_of(c, inputs, AttentionOptions(c.options).backend(on_cpu()));
    const auto dense = results_of(c, inputs, AttentionOptions(c.options).backend(Backend::kReference));
    AttentionOptions in_double = AttentionOptions(c.options).backend(Backend::kReference);
    if (c.options.attn_mask().defined() && c.options.attn_mask().scalar_type() != torch::kBool)
      in_double.attn_mask(c.options.attn_mask().to(torch::kDouble));
    const auto expected = results_of(c, exact, in_double);
    const std::size_t results = c.with_lse ? 2 : 1;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      CAPTURE(i);
      CHECK(bool(ours[i].scalar_type() == dense[i].scalar_type()));
      const torch::Tensor is_finite = expected[i].isfinite();
      CHECK(ours[i].isfinite().equal(is_finite));
      const auto finite = [&](const torch::Tensor& result) {
        return result.to(torch::kDouble).masked_fill(~is_finite, 0);
      };
      const double error = max_difference(finite(ours[i]), finite(expected[i]));
      const double factor = i < results ? 2.0 : kAtensFactor;
      CHECK(error <= factor * max_difference(finite(dense[i]), finite(expected[i])) + 1e-6);
    }
  }
}

TEST_CASE("kSdpa on a GPU: dropout drops ATen's weights, the same in both passes, and has no second derivative") {
  for (const auto dtype : {torch::kBFloat16, torch::kFloat}) {
    CAPTURE(dtype);
    const auto leaf = [&](std::int64_t heads) { return torch::randn({1, heads, 24, 16}).to(dtype).requires_grad_(); };
    const torch::Tensor q = leaf(2), k = leaf(1), v = leaf(1);
    const auto options = AttentionOptions().dropout(0.4).is_causal(true).backend(on_cpu());
    const std::uint64_t seed = next_seed;
    const auto [y, log_sum_exp] = attend::attention_with_lse(q, k, v, options);
    const auto gradients = torch::autograd::grad({y.sum() + log_sum_exp.sum()}, {q, k, v}, {}, /*retain_graph=*/true);
    // The same in float64, by autograd.
    std::vector<torch::Tensor> exact;
    for (const torch::Tensor& each : {q, k, v}) exact.push_back(each.detach().to(torch::kDouble).requires_grad_());
    Sequence one{exact[0].transpose(1, 2), exact[1].transpose(1, 2), exact[2].transpose(1, 2), {}, 0.25, -1, 0};
    one.dropout = 0.4;
    one.seed = seed;
    const auto [output, sums] = one.forward(0.0);
    const torch::Tensor expected = output.transpose(1, 2);
    const double limit = dtype == torch::kFloat ? 1e-5 : 0.05;
    CHECK(max_difference(y, expected) < limit);
    const auto theirs = torch::autograd::grad({expected.sum() + sums.sum()}, exact);
    for (std::size_t i = 0; i < 3; ++i) CHECK(max_difference(gradients[i], theirs[i]) < limit);
    const torch::Tensor output_sum = y.sum();
    CHECK(message_of<c10::NotImplementedError>([&] {
            torch::autograd::grad({output_sum}, {q}, {}, /*retain_graph=*/true, /*create_graph=*/true);
          }) == "attend::attention: kGiven has no second derivative with dropout on a GPU");
  }
}

// ---- Decisions, for tensors that are on a GPU by their properties only

namespace {

/// A tensor on the device cuda:0 without memory. No GPU is needed.
torch::Tensor on_gpu(std::vector<std::int64_t> sizes, at::ScalarType dtype) {
  const c10::Device device(c10::kCUDA, 0);
  c10::Storage storage(c10::Storage::use_byte_size_t(), 0, c10::DataPtr(nullptr, device), nullptr, false);
  torch::Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet({c10::DispatchKey::CUDA, c10::DispatchKey::AutogradCUDA}),
      c10::scalarTypeToTypeMeta(dtype));
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return tensor;
}

Problem problem_on_gpu(at::ScalarType dtype, std::int64_t L = 16, std::int64_t S = 24, std::int64_t D = 64) {
  Problem problem;
  problem.query = on_gpu({2, 4, L, D}, dtype);
  problem.key = on_gpu({2, 2, S, D}, dtype);
  problem.value = on_gpu({2, 2, S, D}, dtype);
  return problem;
}

}  // namespace

TEST_CASE("kSdpa on a GPU: it says why an operator cannot compute a call") {
  const auto check = [](const Problem& problem, const std::string& reason) {
    CAPTURE(reason);
    CHECK(AtenAttention::is_needed(problem));
    std::string found;
    CHECK(AtenAttention::can_run(problem, &found) == reason.empty());
    CHECK(found == reason);
  };
  const auto half = torch::kHalf, single = torch::kFloat;
  Problem problem = problem_on_gpu(half);
  CHECK_FALSE(AtenAttention::is_needed(problem));
  problem.window = {4, 0};
  check(problem, "");
  problem = problem_on_gpu(single);
  problem.window = {4, 0};
  check(problem, "kSdpa supports a window on a GPU only in float16 and bfloat16.");
  problem = problem_on_gpu(half);
  problem.window = {4, 0};
  problem.attn_mask = on_gpu({1, 1, 16, 24}, torch::kBool);
  check(problem, "kSdpa supports a window on a GPU only without attn_mask.");
  problem = problem_on_gpu(half, 24, 16);
  problem.window = {-1, 18};
  check(problem,
        "kSdpa does not support a window of 18 keys to the right for L = 24 and S = 16, because ATen takes it "
        "as unlimited.");
  problem = problem_on_gpu(half, 24, 16);
  problem.window = {4, -1};
  check(problem,
        "kSdpa does not support a window without a limit to the right for L = 24 and S = 16, because ATen limits it to "
        "S keys.");
  problem = problem_on_gpu(half, 17, 16);
  problem.window = {4, -1};
  check(problem, "");
  problem = problem_on_gpu(torch::kDouble);
  problem.needs_log_sum_exp = true;
  check(problem, "kSdpa has no kernel for float64 on a GPU with these options.");
  problem = problem_on_gpu(single);
  problem.needs_log_sum_exp = true;
  check(problem, "");
  problem = problem_on_gpu(single, 24, 16);
  problem.window = {-1, 0};
  check(problem, "kSdpa supports is_causal for L > S on a GPU only in float16 and bfloat16.");
  problem = problem_on_gpu(half, 24, 16);
  problem.window = {-1, 0};
  check(problem, "");
  problem = problem_on_gpu(half, 16, 24, 60);
  problem.dropout = 0.1;
  check(problem, "kSdpa needs a width that is a multiple of 8 on a GPU with these options; this one is 60.");
  problem = problem_on_gpu(half, 16, 24, 264);
  problem.dropout = 0.1;
  check(problem, "kSdpa supports a width of at most 256 on a GPU with these options; this one is 264.");
  problem = problem_on_gpu(half);
  problem.dropout = 1.0;
  check(problem, "kSdpa needs a dropout below 1.");
  problem = problem_on_gpu(single);
  problem.query_offsets = problem.key_offsets = on_gpu({3}, torch::kInt);
  check(problem, "kSdpa supports query_offsets and key_offsets on a GPU only in float16 and bfloat16.");
  problem = problem_on_gpu(half);
  problem.window = {-1, 0};
  problem.attn_mask = on_gpu({1, 1, 16, 24}, single);
  check(problem, "kSdpa needs a bool attn_mask or one of the query's dtype, Half; this one is Float.");
  problem.attn_mask = on_gpu({1, 1, 16, 24}, half);
  check(problem, "");

  problem = problem_on_gpu(half);
  problem.dropout = 0.1;
  at::globalContext().setSDPUseFlash(false);
  check(problem, "kSdpa cannot run, because setSDPUseFlash(false) was called.");
  at::globalContext().setSDPUseFlash(true);
  problem.query = on_gpu({2, 4, 16, 64}, single);
  at::globalContext().setSDPUseMemEfficient(false);
  check(problem, "kSdpa cannot run, because setSDPUseMemEfficient(false) was called.");
  at::globalContext().setSDPUseMemEfficient(true);
  check(problem, "");
}

TEST_CASE("kAuto on a GPU: it takes no operator of ATen that was never tested there") {
  Problem problem = problem_on_gpu(torch::kHalf);
  CHECK_FALSE(attend::detail::is_next_faster(Backend::kSdpa, problem));
  problem.window = {4, 0};
  std::string reason;
  CHECK(attend::detail::is_next_faster(Backend::kSdpa, problem, &reason));
  CHECK(reason == "kSdpa can run, but this call was never tested on a GPU.");
}

TEST_CASE("kSdpa on a GPU: copies() names what the operators need") {
  Problem problem = problem_on_gpu(torch::kHalf);
  problem.dropout = 0.1;
  CHECK(AtenAttention::copies(problem) == "");
  problem.query = on_gpu({2, 4, 16, 64}, torch::kFloat);
  CHECK(AtenAttention::copies(problem) == "It copies key and value for each query head.");
  problem.attn_mask = on_gpu({1, 1, 16, 24}, torch::kFloat).set_requires_grad(true);
  CHECK(AtenAttention::copies(problem) ==
        "It copies key and value for each query head. It allocates the gradients of all L · S scores of each head.");
}

}  // namespace aten_attention_test
