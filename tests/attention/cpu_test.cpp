// SPDX-License-Identifier: MIT

// Compares kCpu, requested by name, with the dense formula in torch's operators. Exception: dropout, which torch's
// operators cannot express with the same weights, is compared with kReference.

#include <attend/attention/cpu.h>
#include <attend/detail/torch/parallel.h>
#include <attend/flex_attention.h>

#include "support/accuracy.h"
#include "support/dense.h"
#include "support/errors.h"
#include "support/grid.h"
#include "support/structs.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using attend::AttentionOptions;
using attend::AttentionResult;
using attend::Backend;
using attend::Coordinate;
using attend::test::causal;
using attend::test::check_as_accurate_as;
using attend::test::dense;
using attend::test::DenseMask;
using attend::test::DenseScore;
using attend::test::everywhere;
using attend::test::Grid;
using attend::test::max_difference;
using attend::test::message_of;
using attend::test::same;
using attend::test::SoftSign;
using attend::test::Tensors;
using attend::test::window;

namespace cpu_test {
namespace {

constexpr at::ScalarType kDtypes[] = {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf};
constexpr at::ScalarType kNarrowDtypes[] = {torch::kFloat, torch::kBFloat16, torch::kHalf};
constexpr double kInfinity = std::numeric_limits<double>::infinity(), kNegativeInfinity = -kInfinity;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Near the sizes of tiles and vectors.
constexpr std::int64_t kLengths[] = {1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200};
constexpr std::int64_t kWidths[] = {1, 2, 3, 15, 16, 17, 63, 64, 65, 130};

AttentionOptions on_cpu() { return AttentionOptions().backend(Backend::kCpu); }
AttentionOptions by_reference(const AttentionOptions& options) {
  return AttentionOptions(options).backend(Backend::kReference);
}

struct Sizes {
  std::int64_t batch = 1, heads = 2, kv_heads = 1, queries = 17, keys = 70, width = 3, value_dim = 2;
};

torch::Tensor random(at::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble); }

/// Query, key and value.
Tensors random_inputs(const Sizes& n) {
  return {random({n.batch, n.heads, n.queries, n.width}), random({n.batch, n.kv_heads, n.keys, n.width}),
          random({n.batch, n.kv_heads, n.keys, n.value_dim})};
}

Tensors in_dtype(const Tensors& tensors, at::ScalarType dtype) {
  Tensors converted;
  for (const torch::Tensor& tensor : tensors) converted.push_back(tensor.to(dtype));
  return converted;
}

torch::Tensor offsets_of(const std::vector<std::int64_t>& lengths) {
  return torch::cat({torch::zeros({1}, torch::kLong), torch::tensor(lengths, torch::kLong).cumsum(0)}).to(torch::kInt);
}

/// Attention as a function of query, key, value and other learned tensors.
using Attend = std::function<AttentionResult(const Tensors& inputs)>;

/// attention_with_lse() with these options.
Attend with(const AttentionOptions& options) {
  return [options](const Tensors& in) { return attend::attention_with_lse(in[0], in[1], in[2], options); };
}
/// The same with a learned attn_mask.
Attend with_mask(const AttentionOptions& options) {
  return [options](const Tensors& in) {
    return attend::attention_with_lse(in[0], in[1], in[2], AttentionOptions(options).attn_mask(in[3]));
  };
}
/// The same with learned alibi_slopes.
Attend with_slopes(const AttentionOptions& options) {
  return [options](const Tensors& in) {
    return attend::attention_with_lse(in[0], in[1], in[2], AttentionOptions(options).alibi_slopes(in[3]));
  };
}

// ---- The dense formula ----------------------------------------------------------------------------------------------

torch::Tensor add_mask(const torch::Tensor& scores, const Grid&, const Tensors& learned) { return scores + learned[0]; }
torch::Tensor add_slopes(const torch::Tensor& scores, const Grid& at, const Tensors& learned) {
  return scores - (learned[0].unsqueeze(-1).unsqueeze(-1) * at.ahead.abs()).to(scores.dtype());
}

Attend formula(const DenseScore& score = same, const DenseMask& allowed = everywhere) {
  return [=](const Tensors& in) { return dense(in, score, allowed); };
}

/// The dense formula for a packed batch, sequence by sequence.
Attend packed_formula(const std::vector<std::int64_t>& queries, const std::vector<std::int64_t>& keys,
                      const DenseScore& score, const DenseMask& allowed) {
  return [=](const Tensors& in) -> AttentionResult {
    Tensors outputs, log_sum_exps;
    std::int64_t query_begin = 0, key_begin = 0;
    for (std::size_t b = 0; b < queries.size(); ++b) {
      Tensors sequence = in;
      sequence[0] = in[0].narrow(2, query_begin, queries[b]);
      for (const std::size_t i : {1, 2}) sequence[i] = in[i].narrow(2, key_begin, keys[b]);
      if (keys[b] > 0) {
        const AttentionResult result = dense(sequence, score, allowed);
        outputs.push_back(result.output);
        log_sum_exps.push_back(result.log_sum_exp);
      } else {
        outputs.push_back(in[0].new_zeros({1, in[0].size(1), queries[b], in[2].size(3)}));
        log_sum_exps.push_back(in[0].new_full({1, in[0].size(1), queries[b]}, kNegativeInfinity));
      }
      query_begin += queries[b];
      key_begin += keys[b];
    }
    return {torch::cat(outputs, 2), torch::cat(log_sum_exps, 2)};
  };
}

// ---- Comparison -----------------------------------------------------------------------------------------------------

/// Output, log-sum-exp and the gradients of all inputs. The output gradients are random, depend only on the sizes, and
/// are rounded to `rounded_to`, by default the dtype of the inputs.
Tensors pass(const Attend& function, const Tensors& inputs, std::optional<at::ScalarType> rounded_to = std::nullopt) {
  Tensors leaves;
  for (const torch::Tensor& input : inputs) leaves.push_back(input.detach().requires_grad_());
  torch::manual_seed(5);  // for dropout
  const AttentionResult result = function(leaves);
  const torch::Tensor finite = result.log_sum_exp.masked_fill(result.log_sum_exp.isneginf(), 0.0);
  torch::manual_seed(6);
  const auto gradient_of = [&](const torch::Tensor& tensor) {
    return random(tensor.sizes()).to(rounded_to.value_or(inputs[0].scalar_type())).to(tensor.scalar_type());
  };
  const torch::Tensor for_output = gradient_of(result.output), for_log_sum_exp = gradient_of(finite);
  Tensors all{result.output.detach(), result.log_sum_exp.detach()};
  for (const torch::Tensor& of : torch::autograd::grad({result.output, finite}, leaves, {for_output, for_log_sum_exp}))
    all.push_back(of);
  return all;
}

/// The output of attention() and the gradients of query, key and value, for an output gradient from the caller.
Tensors causal_pass(const Tensors& inputs, const torch::Tensor& output_gradient) {
  Tensors leaves;
  for (const torch::Tensor& input : inputs) leaves.push_back(input.detach().requires_grad_());
  const torch::Tensor output = attend::attention(leaves[0], leaves[1], leaves[2], on_cpu().is_causal(true));
  Tensors all = torch::autograd::grad({output}, leaves, {output_gradient});
  all.push_back(output.detach());
  return all;
}

/// Checks that −∞ is in the same places, and replaces it with 0.
void take_out_infinity(torch::Tensor& a, torch::Tensor& b) {
  CHECK(a.isneginf().equal(b.isneginf()));
  a = a.masked_fill(a.isneginf(), 0.0);
  b = b.masked_fill(b.isneginf(), 0.0);
}

/// Checks that results and gradients agree to 1e-12 in float64.
void check_equal(Tensors ours, Tensors theirs) {
  REQUIRE(ours.size() == theirs.size());
  take_out_infinity(ours[1], theirs[1]);
  for (std::size_t i = 0; i < ours.size(); ++i) {
    CAPTURE(i);  // output, log-sum-exp, gradients
    const double largest = theirs[i].numel() == 0 ? 0.0 : theirs[i].abs().max().item<double>();
    CHECK(max_difference(ours[i], theirs[i]) <= 1e-12 * std::max(1.0, largest));
  }
}

/// Checks results and gradients by the rule of accuracy for float32 and lower.
void check_accurate(const Attend& ours, const Attend& formula, const Tensors& inputs, at::ScalarType dtype) {
  CAPTURE(dtype);
  const Tensors rounded = in_dtype(inputs, dtype);
  Tensors exact = pass(formula, in_dtype(rounded, torch::kDouble), dtype), plain = pass(formula, rounded),
          results = pass(ours, rounded);
  plain[1] = plain[1].to(torch::kFloat);  // as attend's log-sum-exp is
  torch::Tensor exact_log_sum_exp = exact[1];
  take_out_infinity(plain[1], exact_log_sum_exp);
  take_out_infinity(results[1], exact[1]);
  for (std::size_t i = 0; i < exact.size(); ++i) {
    CAPTURE(i);  // output, log-sum-exp, gradients
    check_as_accurate_as(plain[i], results[i], exact[i]);
  }
}

/// Checks both rules, in every dtype.
void check_every_dtype(const Attend& ours, const Attend& formula, const Tensors& inputs) {
  check_equal(pass(ours, inputs), pass(formula, inputs));
  for (const auto dtype : kNarrowDtypes) check_accurate(ours, formula, inputs, dtype);
}

/// Whether all numbers are equal. Any NaN equals any other NaN.
bool are_same(const Tensors& some, const Tensors& others) {
  return std::equal(some.begin(), some.end(), others.begin(), others.end(),
                    [](const torch::Tensor& a, const torch::Tensor& b) {
                      return a.scalar_type() == b.scalar_type() && at::allclose(a, b, 0, 0, /*equal_nan=*/true);
                    });
}

/// Sets the number of ATen's threads until the end of the scope.
struct Threads {
  explicit Threads(int count) : before(at::get_num_threads()) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  const int before;
};

// ---- Structs as a user writes them ----------------------------------------------------------------------------------

struct ThrowsAt {
  std::int32_t query;

  bool operator()(Coordinate at) const {
    if (at.query == query) throw std::runtime_error("a mask_mod's own error");
    return true;
  }
};

}  // namespace

// ---- Sizes ----------------------------------------------------------------------------------------------------------

TEST_CASE("kCpu: results and gradients equal torch's for all lengths near tile sizes, with and without is_causal") {
  for (const auto queries : kLengths) {
    for (const auto keys : kLengths) {
      CAPTURE(queries);
      CAPTURE(keys);
      torch::manual_seed(1);
      const Tensors inputs = random_inputs({.heads = 1, .queries = queries, .keys = keys});
      check_equal(pass(with(on_cpu()), inputs), pass(formula(), inputs));
      check_equal(pass(with(on_cpu().is_causal(true)), inputs), pass(formula(same, causal), inputs));
    }
  }
}

TEST_CASE("kCpu: results and gradients equal torch's for every pair of head dimensions of keys and values") {
  for (const auto width : kWidths) {
    for (const auto value_dim : kWidths) {
      CAPTURE(width);
      CAPTURE(value_dim);
      torch::manual_seed(1);
      const Tensors inputs =
          random_inputs({.heads = 1, .queries = 9, .keys = 67, .width = width, .value_dim = value_dim});
      check_equal(pass(with(on_cpu()), inputs), pass(formula(), inputs));
    }
  }
}

TEST_CASE("kCpu: grouped heads: 8 query heads with 1, 2, 4 or 8 key and value heads match the dense formula") {
  for (const std::int64_t kv_heads : {1, 2, 4, 8}) {
    CAPTURE(kv_heads);
    torch::manual_seed(1);
    const Tensors inputs = random_inputs(
        {.batch = 2, .heads = 8, .kv_heads = kv_heads, .queries = 33, .keys = 66, .width = 6, .value_dim = 5});
    check_every_dtype(with(on_cpu()), formula(), inputs);
    check_every_dtype(with(on_cpu().is_causal(true)), formula(same, causal), inputs);
  }
}

TEST_CASE("kCpu: float32, bfloat16 and float16 are as accurate as the dense formula at every length") {
  for (std::size_t k = 0; k < std::size(kLengths); ++k) {
    const auto queries = kLengths[k];
    for (const auto keys : {kLengths[std::size(kLengths) - 1 - k], queries}) {
      CAPTURE(queries);
      CAPTURE(keys);
      torch::manual_seed(1);
      // With more heads the largest error of the dense formula is not small by chance.
      const Tensors inputs = random_inputs(
          {.batch = 2, .heads = 4, .kv_heads = 2, .queries = queries, .keys = keys, .width = 18, .value_dim = 16});
      for (const auto dtype : kNarrowDtypes)
        check_accurate(with(on_cpu().is_causal(true)), formula(same, causal), inputs, dtype);
    }
  }
}

TEST_CASE("kCpu: float32, bfloat16 and float16 are as accurate as the dense formula at every head_dim") {
  for (std::size_t k = 0; k < std::size(kWidths); ++k) {
    for (const std::size_t other : {k, std::size(kWidths) - 1 - k, (k + 3) % std::size(kWidths)}) {
      const auto width = kWidths[k], value_dim = kWidths[other];
      CAPTURE(width);
      CAPTURE(value_dim);
      torch::manual_seed(1);
      const Tensors inputs = random_inputs(
          {.batch = 2, .heads = 4, .kv_heads = 4, .queries = 35, .keys = 67, .width = width, .value_dim = value_dim});
      for (const auto dtype : kNarrowDtypes) check_accurate(with(on_cpu()), formula(), inputs, dtype);
    }
  }
}

// ---- Strides --------------------------------------------------------------------------------------------------------

TEST_CASE("kCpu: any strides of query, key, value and output gradient give the results of contiguous tensors") {
  constexpr std::int64_t N = 2, H = 2, L = 66;
  for (const auto dtype : kDtypes) {
    for (const std::int64_t D : {15, 34}) {
      torch::manual_seed(1);
      const auto normal = [&](at::IntArrayRef sizes) { return random(sizes).to(dtype); };
      const std::pair<std::string, torch::Tensor> views[] = {
          {"channels first", normal({N, H, D, L}).transpose(2, 3)},
          {"heads beside channels", normal({N, L, H, D}).transpose(1, 2)},
          {"all dimensions the other way round", normal({D, L, H, N}).permute({3, 2, 1, 0})},
          {"one batch entry for all", normal({1, H, L, D}).expand({N, H, L, D})},
          {"one head for all", normal({N, 1, L, D}).expand({N, H, L, D})},
          {"one row for all", normal({N, H, 1, D}).expand({N, H, L, D})},
          {"one number for a whole row", normal({N, H, L, 1}).expand({N, H, L, D})},
          {"every second row", normal({N, H, 2 * L, D}).slice(2, 0, 2 * L, 2)},
          {"every second channel", normal({N, H, L, 2 * D}).slice(3, 0, 2 * D, 2)},
          {"every second channel, from the second on", normal({N, H, L, 2 * D}).slice(3, 1, 2 * D, 2)},
          {"overlapping rows", normal({N, H, L + D - 1}).unfold(2, D, 1)},
          {"rows of one number more", normal({N, H, L, D + 1}).slice(3, 0, D)},
          {"rows of one number more, from the second on", normal({N, H, L, D + 1}).slice(3, 1, D + 1)},
          {"rows of two numbers more, from the second on", normal({N, H, L, D + 2}).slice(3, 1, D + 1)},
          {"from the second number of the storage on", normal({N * H * L * D + 1}).slice(0, 1).view({N, H, L, D})},
      };
      for (const auto& view : views) {
        CAPTURE(dtype);
        CAPTURE(D);
        CAPTURE(view.first);
        const torch::Tensor &given = view.second, copy = given.contiguous(), other = normal({N, H, L, D});
        REQUIRE(given.sizes() == torch::IntArrayRef{N, H, L, D});
        CHECK(are_same(causal_pass({given, given, given}, other), causal_pass({copy, copy, copy}, other)));
        CHECK(are_same(causal_pass({copy, other, copy}, given), causal_pass({copy, other, copy}, copy)));
      }
    }
  }
}

// ---- Options that change scores -------------------------------------------------------------------------------------

TEST_CASE("kCpu: every argument may have torch's negative bit and is read with the right sign") {
  torch::manual_seed(1);
  Tensors inputs = random_inputs({.heads = 2, .kv_heads = 2, .queries = 5, .keys = 7});
  inputs.push_back(random({5, 7}));
  inputs.push_back(random({2}));
  inputs.push_back(random({1, 2, 5, inputs[2].size(3)}));  // gradient of the output
  const auto results_of = [](const Tensors& all) {
    Tensors leaves;
    for (std::size_t i = 0; i < 5; ++i) leaves.push_back(all[i].detach().requires_grad_());
    const torch::Tensor output =
        attend::attention(leaves[0], leaves[1], leaves[2], on_cpu().attn_mask(leaves[3]).alibi_slopes(leaves[4]));
    Tensors results = torch::autograd::grad({output}, leaves, {all[5]});
    results.push_back(output.detach());
    return results;
  };
  Tensors negated;
  for (const torch::Tensor& input : inputs)
    negated.push_back(torch::imag(torch::complex(torch::zeros_like(input), -input).conj()));
  REQUIRE(negated[0].is_neg());
  CHECK(are_same(results_of(inputs), results_of(negated)));
}

TEST_CASE("kCpu: alibi_slopes (N, H) expanded from one row have a gradient for each batch entry") {
  torch::manual_seed(1);
  const Tensors inputs = random_inputs({.batch = 2, .heads = 2, .kv_heads = 2, .queries = 5, .keys = 7});
  const auto gradient_of = [&](const torch::Tensor& slopes) {
    const torch::Tensor leaf = slopes.detach().requires_grad_();
    const torch::Tensor output = attend::attention(inputs[0], inputs[1], inputs[2], on_cpu().alibi_slopes(leaf));
    return torch::autograd::grad({output.square().sum()}, {leaf})[0];
  };
  const torch::Tensor row = torch::rand({1, 2}, torch::kDouble);
  CHECK(gradient_of(row.expand({2, 2})).equal(gradient_of(row.repeat({2, 1}))));
}

TEST_CASE("kCpu: a learned attn_mask of every shape that broadcasts has the right gradients, in every dtype") {
  constexpr std::int64_t N = 2, H = 4, L = 19, S = 67;
  std::vector<std::vector<std::int64_t>> shapes{{L, S}, {1, S}, {L, 1}, {1, 1}, {H, L, S}, {1, L, S}, {H, 1, S}};
  for (int k = 0; k < 16; ++k) shapes.push_back({k & 1 ? N : 1, k & 2 ? H : 1, k & 4 ? L : 1, k & 8 ? S : 1});
  for (const auto& shape : shapes) {
    CAPTURE(shape);
    torch::manual_seed(1);
    Tensors inputs =
        random_inputs({.batch = N, .heads = H, .kv_heads = 2, .queries = L, .keys = S, .width = 8, .value_dim = 6});
    inputs.push_back(random(shape));
    check_every_dtype(with_mask(on_cpu()), formula(add_mask), inputs);
  }
}

TEST_CASE("kCpu: an attn_mask of any strides, learned or bool, gives the dense formula's results and gradients") {
  constexpr std::int64_t L = 18, S = 66;
  torch::manual_seed(1);
  const Tensors inputs = random_inputs({.queries = L, .keys = S});
  const std::pair<std::string, torch::Tensor> masks[] = {
      {"transposed", random({S, L}).t()},
      {"every second", random({2 * L, 2 * S}).slice(0, 0, 2 * L, 2).slice(1, 1, 2 * S, 2)},
      {"one row for all", random({1, S}).expand({L, S})},
      {"one number for a whole row", random({L, 1}).expand({L, S})},
      {"diagonals", random({L + S - 1}).unfold(0, S, 1)},
  };
  for (const auto& mask : masks) {
    CAPTURE(mask.first);
    Tensors learned = inputs;
    learned.push_back(mask.second);
    check_equal(pass(with_mask(on_cpu()), learned), pass(formula(add_mask), learned));
    const torch::Tensor is_allowed = mask.second > 0;
    check_equal(pass(with(on_cpu().attn_mask(is_allowed)), inputs),
                pass(formula(same, [&](const Grid&) { return is_allowed; }), inputs));
  }
}

TEST_CASE("kCpu: learned alibi_slopes (H) and (N, H) get the right gradients, in the query's dtype and float32") {
  constexpr std::int64_t N = 3, H = 4;
  for (const bool is_per_batch : {false, true}) {
    for (const bool is_causal : {false, true}) {
      CAPTURE(is_per_batch);
      CAPTURE(is_causal);
      torch::manual_seed(1);
      Tensors inputs =
          random_inputs({.batch = N, .heads = H, .kv_heads = 2, .queries = 66, .keys = 70, .width = 8, .value_dim = 6});
      inputs.push_back(0.25 * (is_per_batch ? torch::rand({N, H}, torch::kDouble) : torch::rand({H}, torch::kDouble)));
      const Attend ours = with_slopes(on_cpu().is_causal(is_causal));
      check_every_dtype(ours, formula(add_slopes, is_causal ? causal : everywhere), inputs);

      const Tensors half = in_dtype(inputs, torch::kBFloat16);
      Tensors mixed = half;
      mixed[3] = mixed[3].to(torch::kFloat);
      const Tensors of_half = pass(ours, half), of_mixed = pass(ours, mixed);
      CHECK(of_mixed[0].equal(of_half[0]));
      CHECK((of_mixed[5].scalar_type() == torch::kFloat));
      CHECK(of_mixed[5].to(torch::kBFloat16).equal(of_half[5]));
    }
  }
}

TEST_CASE("kCpu: softcap, window, a bool attn_mask and a negative scale match the dense formula in every dtype") {
  constexpr std::int64_t L = 130, S = 135;
  torch::manual_seed(1);
  const Tensors inputs =
      random_inputs({.batch = 2, .heads = 4, .kv_heads = 2, .queries = L, .keys = S, .width = 8, .value_dim = 6});
  torch::Tensor mask = torch::rand({2, 1, L, S}) < 0.7;
  mask.select(2, 64).fill_(false);
  struct Case {
    std::string name;
    AttentionOptions options;
    DenseScore score;
    DenseMask allowed;
  };
  const Case cases[] = {
      {"window", on_cpu().window({40, 20}), same, window(40, 20)},
      {"the diagonal", on_cpu().window({0, 0}), same, window(0, 0)},
      {"bool mask", on_cpu().attn_mask(mask), same, [&](const Grid&) { return mask; }},
      {"window and bool mask", on_cpu().window({40, 20}).attn_mask(mask), same,
       [&](const Grid& at) { return mask.logical_and(window(40, 20)(at)); }},
      {"softcap and causal", on_cpu().softcap(0.8).is_causal(true),
       [](const auto& s, const Grid&, const Tensors&) { return 0.8 * torch::tanh(s / 0.8); }, causal},
      {"scale", on_cpu().scale(-0.5),
       [](const auto& s, const Grid&, const Tensors&) { return s * (-0.5 * std::sqrt(8.0)); }, everywhere},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    check_every_dtype(with(c.options), formula(c.score, c.allowed), inputs);
  }
}

TEST_CASE("kCpu: dropout drops the same weights as kReference, with the same results and gradients") {
  constexpr std::int64_t S = 70;
  for (const double dropout : {0.1, 0.5, 0.9, 1.0}) {
    CAPTURE(dropout);
    torch::manual_seed(1);
    Tensors inputs =
        random_inputs({.batch = 2, .heads = 4, .kv_heads = 2, .queries = 67, .keys = S, .width = 8, .value_dim = S});
    for (const AttentionOptions& options : {on_cpu().dropout(dropout), on_cpu().dropout(dropout).is_causal(true)})
      check_equal(pass(with(options), inputs), pass(with(by_reference(options)), inputs));

    inputs[2] = torch::eye(S, torch::kDouble).expand({2, 2, S, S});  // the output is then the weights themselves
    for (const auto dtype : kDtypes) {
      CAPTURE(dtype);
      const Tensors rounded = in_dtype(inputs, dtype);
      const AttentionOptions options = on_cpu().dropout(dropout);
      const torch::Tensor is_dropped = pass(with(options), rounded)[0] == 0;
      CHECK(is_dropped.equal(pass(with(by_reference(options)), in_dtype(rounded, torch::kDouble))[0] == 0));
      // Eight standard deviations of the mean of 2 · 4 · 67 · 70 entries.
      CHECK(std::abs(is_dropped.to(torch::kDouble).mean().item<double>() - dropout) < 0.02);
    }
  }
}

TEST_CASE("kCpu: dropout with softcap, a learned attn_mask and alibi_slopes: all gradients equal kReference's") {
  torch::manual_seed(1);
  Tensors inputs = random_inputs({.batch = 2, .queries = 20, .keys = 66});
  inputs.push_back(random({2, 20, 66}));
  inputs.push_back(torch::rand({2}, torch::kDouble));
  const auto call = [](Backend backend) {
    return [backend](const Tensors& in) {
      return attend::attention_with_lse(
          in[0], in[1], in[2],
          AttentionOptions().dropout(0.3).softcap(2.0).attn_mask(in[3]).alibi_slopes(in[4]).backend(backend));
    };
  };
  check_equal(pass(call(Backend::kCpu), inputs), pass(call(Backend::kReference), inputs));
}

// ---- Packed batches -------------------------------------------------------------------------------------------------

TEST_CASE("kCpu: query_offsets: each packed sequence equals torch's result for it alone, also of length 0 or 1") {
  struct Case {
    std::string name;
    AttentionOptions options;
    DenseScore score = same;
    DenseMask allowed = everywhere;
    bool has_slopes = false;
  };
  const Case cases[] = {
      {"plain", on_cpu()},
      {"causal", on_cpu().is_causal(true), same, causal},
      {"window", on_cpu().window({9, 3}), same, window(9, 3)},
      {"learned slopes", on_cpu(), add_slopes, everywhere, true},
      {"causal with learned slopes", on_cpu().is_causal(true), add_slopes, causal, true},
      {"window with softcap and learned slopes", on_cpu().window({70, 0}).softcap(1.5),
       [](const torch::Tensor& s, const Grid& at, const Tensors& learned) {
         return add_slopes(1.5 * torch::tanh(s / 1.5), at, learned);
       },
       window(70, 0), true},
  };
  using Lengths = std::vector<std::int64_t>;
  const std::pair<Lengths, Lengths> packings[] = {
      {{0, 1, 64, 65, 0}, {0, 1, 64, 65, 0}},
      {{5, 64, 1, 65, 3, 0}, {0, 65, 64, 1, 70, 2}},
      {{20}, {70}},
      {{0, 0, 4}, {1, 0, 3}},
  };
  for (const Case& c : cases) {
    for (const auto& packing : packings) {
      CAPTURE(c.name);
      CAPTURE(packing.first);
      CAPTURE(packing.second);
      const torch::Tensor query_offsets = offsets_of(packing.first), key_offsets = offsets_of(packing.second);
      const AttentionOptions options =
          AttentionOptions(c.options).query_offsets(query_offsets).key_offsets(key_offsets);
      torch::manual_seed(1);
      Tensors inputs = random_inputs({.heads = 4,
                                      .kv_heads = 2,
                                      .queries = query_offsets[-1].item<std::int64_t>(),
                                      .keys = key_offsets[-1].item<std::int64_t>(),
                                      .width = 8,
                                      .value_dim = 6});
      if (c.has_slopes) inputs.push_back(0.25 * torch::rand({4}, torch::kDouble));
      check_every_dtype(c.has_slopes ? with_slopes(options) : with(options),
                        packed_formula(packing.first, packing.second, c.score, c.allowed), inputs);
    }
  }
}

// ---- Queries that may attend to nothing, NaN and infinity -----------------------------------------------------------

TEST_CASE("kCpu: queries that may attend to nothing give zeros, −∞ and zero gradients, for every kind of mask") {
  constexpr std::int64_t L = 70, S = 66;
  torch::Tensor some_rows = torch::ones({L, S}, torch::kBool);
  for (const std::int64_t row : {0, 5, 63, 64, 69}) some_rows[row] = false;
  const torch::Tensor added =
      torch::zeros({L, S}, torch::kDouble).masked_fill(some_rows.logical_not(), kNegativeInfinity);
  for (const auto dtype : kDtypes) {
    const std::pair<std::string, AttentionOptions> cases[] = {
        {"causal, more queries than keys", on_cpu().is_causal(true)},
        {"the diagonal, more queries than keys", on_cpu().window({0, 0})},
        {"bool mask", on_cpu().attn_mask(some_rows)},
        {"bool mask of nothing", on_cpu().attn_mask(torch::zeros({1, 1}, torch::kBool))},
        {"−∞ added", on_cpu().attn_mask(added.to(dtype))},
        {"packed, without keys", on_cpu().query_offsets(offsets_of({4, L - 4})).key_offsets(offsets_of({0, S}))},
    };
    for (const auto& c : cases) {
      CAPTURE(dtype);
      CAPTURE(c.first);
      torch::manual_seed(1);
      const Tensors inputs = in_dtype(random_inputs({.queries = L, .keys = S}), dtype);
      const Tensors ours = pass(with(c.second), inputs);
      const torch::Tensor is_empty = ours[1].isneginf();  // (N, H, L)
      CHECK(is_empty.any().item<bool>());
      CHECK(is_empty.equal(pass(with(by_reference(c.second)), inputs)[1].isneginf()));
      for (const std::size_t i : {0, 2})  // output, gradient of the query
        CHECK(ours[i].masked_select(is_empty.unsqueeze(-1)).eq(0).all().item<bool>());
      for (const torch::Tensor& tensor : ours) CHECK_FALSE(tensor.isnan().any().item<bool>());
      if (!is_empty.all().item<bool>()) continue;
      for (const std::size_t i : {3, 4}) CHECK(ours[i].eq(0).all().item<bool>());  // gradients of key and value
    }
  }
}

TEST_CASE("kCpu: the gradient of the log-sum-exp of a query that may attend to nothing reaches no input") {
  torch::manual_seed(1);
  const Tensors leaves = [] {
    Tensors all;
    for (const torch::Tensor& input : random_inputs({.queries = 70, .keys = 66})) all.push_back(input.requires_grad_());
    return all;
  }();
  for (const Backend backend : {Backend::kCpu, Backend::kReference}) {
    CAPTURE(backend);
    const AttentionResult result = attend::attention_with_lse(leaves[0], leaves[1], leaves[2],
                                                              AttentionOptions().backend(backend).is_causal(true));
    const torch::Tensor is_empty = result.log_sum_exp.isneginf();
    REQUIRE(is_empty.any().item<bool>());
    const torch::Tensor loss = torch::where(is_empty, torch::zeros({}, torch::kDouble), result.log_sum_exp.square());
    for (const torch::Tensor& gradient : torch::autograd::grad({loss.sum()}, {leaves[0], leaves[1]}))
      CHECK(gradient.isfinite().all().item<bool>());
  }
}

TEST_CASE("kCpu: NaN and ±∞ in query, key, value and attn_mask appear in the results where kReference has them") {
  constexpr std::int64_t L = 67;
  const std::string names[] = {"query", "key", "value", "attn_mask"};
  for (const auto dtype : kDtypes) {
    for (const double bad : {kNan, kInfinity, -kInfinity}) {
      for (std::size_t which = 0; which < std::size(names); ++which) {
        for (const std::int64_t S : {90, 130}) {  // all keys in one softmax, and tile by tile
          const std::int64_t row = S == 90 ? 64 : 15;
          CAPTURE(dtype);
          CAPTURE(bad);
          CAPTURE(names[which]);
          CAPTURE(S);
          torch::manual_seed(1);
          Tensors inputs = random_inputs({.queries = L, .keys = S, .width = 20, .value_dim = 3});
          inputs.push_back(random({L, S}));
          inputs[which].select(-2, row).select(-1, 1).fill_(bad);
          const Tensors rounded = in_dtype(inputs, dtype);
          const Tensors ours = pass(with_mask(on_cpu()), rounded), theirs = pass(with_mask(by_reference({})), rounded);
          for (std::size_t i = 0; i < ours.size(); ++i) {
            CAPTURE(i);  // output, log-sum-exp, gradients
            CHECK(ours[i].isnan().equal(theirs[i].isnan()));
            CHECK(ours[i].isposinf().equal(theirs[i].isposinf()));
            CHECK(ours[i].isneginf().equal(theirs[i].isneginf()));
          }
        }
      }
    }
  }
}

TEST_CASE("kCpu: scores of any magnitude do not overflow, and results equal the dense formula") {
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
    for (const double size : {30.0, 1e3, 1e6}) {
      CAPTURE(dtype);
      CAPTURE(size);
      torch::manual_seed(1);
      Tensors inputs = in_dtype(random_inputs({.queries = 66, .keys = 130, .width = 4, .value_dim = 3}), dtype);
      inputs[0] = inputs[0] * size;
      const Tensors ours = pass(with(on_cpu()), inputs);
      for (const torch::Tensor& tensor : ours) CHECK(tensor.isfinite().all().item<bool>());
      CHECK(ours[0].abs().max().item<double>() <= 1.01 * inputs[2].abs().max().item<double>());
      if (dtype != torch::kDouble) continue;
      // A score has a rounding error of its last bit.
      CHECK(max_difference(ours[0], pass(formula(), inputs)[0]) < 1e-12 + 1e-14 * size);
    }
  }
}

// ---- Threads --------------------------------------------------------------------------------------------------------

namespace {

/// Results and gradients of calls whose sums are split among threads, in every dtype.
std::vector<Tensors> many_passes() {
  constexpr std::int64_t L = 100, S = 120;
  std::vector<Tensors> all;
  for (const auto dtype : kDtypes) {
    torch::manual_seed(1);
    const Tensors plain = in_dtype(
        random_inputs({.batch = 2, .heads = 4, .kv_heads = 2, .queries = L, .keys = S, .width = 8, .value_dim = 6}),
        dtype);
    const Tensors one_head = in_dtype(random_inputs({.heads = 1, .queries = 200, .keys = 200}), dtype);
    Tensors masked = plain, sloped = plain;
    masked.push_back(random({4, L, S}).to(dtype));
    sloped.push_back(torch::rand({2, 4}, torch::kDouble).to(dtype));
    all.push_back(pass(with(on_cpu()), plain));
    all.push_back(pass(with(on_cpu().is_causal(true).dropout(0.2)), plain));
    all.push_back(pass(with_mask(on_cpu().window({30, 5})), masked));
    all.push_back(pass(with_slopes(on_cpu().is_causal(true)), sloped));
    all.push_back(pass(with(on_cpu().is_causal(true)), one_head));
    all.push_back(
        pass(with(on_cpu().query_offsets(offsets_of({0, 1, 64, 65, 70})).key_offsets(offsets_of({3, 65, 64, 1, 67}))),
             one_head));
    all.push_back(pass(
        [](const Tensors& in) {
          return attend::flex_attention_with_lse(
              in[0], in[1], in[2], attend::then(SoftSign{0.5f}, attend::Alibi(in[3])), attend::Causal{}, on_cpu());
        },
        sloped));
  }
  return all;
}

}  // namespace

TEST_CASE("kCpu: repeated calls give the same bits; output and log-sum-exp are the same for any number of threads") {
  const std::vector<Tensors> of_one_thread = [] {
    const Threads threads(1);
    return many_passes();
  }();
  for (const int count : {1, 2, 3, 5}) {
    CAPTURE(count);
    const Threads threads(count);
    const std::vector<Tensors> first = many_passes(), second = many_passes();
    for (std::size_t k = 0; k < first.size(); ++k) {
      CAPTURE(k);
      CHECK(are_same(first[k], second[k]));
      CHECK(are_same({first[k][0], first[k][1]}, {of_one_thread[k][0], of_one_thread[k][1]}));
    }
  }
}

TEST_CASE("kCpu: gradients equal torch's for any number of threads") {
  for (const int count : {2, 3, 5, 16}) {
    CAPTURE(count);
    const Threads threads(count);
    for (const Sizes& sizes : {Sizes{.heads = 1, .queries = 200, .keys = 129}, Sizes{.heads = 6, .kv_heads = 2},
                               Sizes{.batch = 3, .heads = 1, .queries = 1, .keys = 1},
                               Sizes{.batch = 2, .heads = 3, .queries = 130, .keys = 2}}) {
      CAPTURE(sizes.heads);
      CAPTURE(sizes.queries);
      torch::manual_seed(1);
      Tensors inputs = random_inputs(sizes);
      check_equal(pass(with(on_cpu().is_causal(true)), inputs), pass(formula(same, causal), inputs));
      inputs.push_back(random({sizes.queries, sizes.keys}));
      check_equal(pass(with_mask(on_cpu()), inputs), pass(formula(add_mask), inputs));
    }
  }
}

TEST_CASE("kCpu: two threads of a program may call attention() at the same time") {
  torch::manual_seed(1);
  const Tensors inputs = random_inputs({.heads = 4, .queries = 130, .keys = 130});
  const Tensors of[] = {in_dtype(inputs, torch::kFloat), in_dtype(inputs, torch::kBFloat16)};
  const auto compute = [&](int which) { return causal_pass(of[which], torch::ones_like(of[which][0].slice(3, 0, 2))); };
  const Tensors expected[] = {compute(0), compute(1)};
  bool is_same[] = {true, true};
  const auto repeat = [&](int which) {
    for (int k = 0; k < 10; ++k) is_same[which] = is_same[which] && are_same(compute(which), expected[which]);
  };
  std::thread first(repeat, 0), second(repeat, 1);
  first.join();
  second.join();
  CHECK(is_same[0]);
  CHECK(is_same[1]);
}

TEST_CASE("kCpu: a call within a parallel section gives the same results as outside") {
  const Threads threads(2);
  torch::manual_seed(1);
  const Tensors inputs = in_dtype(random_inputs({.heads = 4, .queries = 130, .keys = 130}), torch::kFloat);
  const torch::Tensor ones = torch::ones({1, 4, 130, 2});
  const Tensors expected = causal_pass(inputs, ones);
  bool was_in_region[] = {false, false};
  Tensors results[2];
  // at::parallel_for would not do: it is no parallel region in a program compiled without OpenMP.
  attend::detail::parallel(2, [&](int thread) {
    was_in_region[thread] = at::in_parallel_region() || attend::detail::ThreadPool::is_in_section();
    results[thread] = causal_pass(inputs, ones);
  });
  for (const int thread : {0, 1}) {
    CHECK(was_in_region[thread]);
    REQUIRE(results[thread].size() == expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) CHECK(max_difference(results[thread][i], expected[i]) < 1e-5);
  }
}

TEST_CASE("kCpu: an exception of a score_mod reaches the caller from every thread, and the next call is right") {
  torch::manual_seed(1);
  const Tensors inputs = random_inputs({.heads = 4, .queries = 200});
  for (const int count : {1, 2, 5}) {
    CAPTURE(count);
    const Threads threads(count);
    for (const std::int32_t query : {0, 100, 199}) {
      for (const auto dtype : {torch::kDouble, torch::kFloat}) {
        const Tensors in = in_dtype(inputs, dtype);
        CHECK(message_of<std::runtime_error>([&] {
                attend::flex_attention(in[0], in[1], in[2], attend::Unchanged{}, ThrowsAt{query}, on_cpu());
              }) == "a mask_mod's own error");
      }
    }
    check_equal(pass(with(on_cpu()), inputs), pass(formula(), inputs));
  }
}

// ---- can_run() and explain() ----------------------------------------------------------------------------------------

TEST_CASE("kCpu: can_run() gives the reason for another device and for an empty call") {
  const auto reason = [](const torch::Tensor& query, const torch::Tensor& key, const AttentionOptions& options) {
    return message_of<c10::NotImplementedError>([&] { attend::explain(query, key, key, options); });
  };
  const torch::Tensor x = torch::randn({1, 2, 4, 8}), meta = x.to(torch::kMeta), none = x.slice(2, 0, 0);
  const std::string start = "attend::attention: the requested backend cannot run. ";
  const std::string nothing = start + "kCpu needs at least one batch entry, one query and one key.";
  CHECK(reason(meta, meta, on_cpu()) == start + "kCpu runs on the CPU only; the tensors are on meta.");
  CHECK(reason(x.slice(0, 0, 0), x.slice(0, 0, 0), on_cpu()) == nothing);
  CHECK(reason(none, x, on_cpu()) == nothing);
  CHECK(reason(x, none, on_cpu()) == nothing);
  CHECK(reason(x, none, on_cpu().query_offsets(offsets_of({3, 1})).key_offsets(offsets_of({0, 0}))) == nothing);
  CHECK_THROWS_AS(attend::attention(none, x, x, on_cpu()), c10::NotImplementedError);

  const torch::Tensor no_values = x.slice(3, 0, 0);  // a head_dim of 0 of the values is no obstacle
  CHECK(attend::attention(x, x, no_values, on_cpu()).sizes() == no_values.sizes());
}

TEST_CASE("kAuto: an empty call uses another backend, and explain() gives the reason") {
  const torch::Tensor x = torch::randn({1, 2, 4, 8});
  const attend::Explanation plan = attend::explain(x.slice(2, 0, 0), x, x);
  CHECK((plan.backend != Backend::kCpu));
  CHECK(plan.why_not_faster.find("kCpu needs at least one batch entry") != std::string::npos);
  CHECK(plan.how.find("kReference runs ") == 0);
}

TEST_CASE("kCpu: explain() names the instruction set that ATEN_CPU_CAPABILITY allows, and the resulting copies") {
  const std::string capability = at::get_cpu_capability();
  if (const char* variable = std::getenv("ATEN_CPU_CAPABILITY")) {
    const std::string wanted = variable;
    CHECK(capability == (wanted == "avx512" ? "AVX512" : wanted == "avx2" ? "AVX2" : "DEFAULT"));
  }
  const std::string start = "kCpu runs attend's own CPU kernels ";
  const std::string portable = start + "as portable code, without AVX2 or AVX-512 instructions.";
  const std::string expected = capability == "AVX512" ? start + "with AVX-512 instructions."
                               : capability == "AVX2" ? start + "with AVX2 instructions."
                                                      : portable;
#if defined(__x86_64__)
  const bool multiplies_bfloat16 = capability == "AVX512" && __builtin_cpu_supports("avx512bf16");
#else
  const bool multiplies_bfloat16 = false;
#endif
  const auto plan = [](at::ScalarType dtype) {
    const torch::Tensor x = torch::zeros({1, 2, 4, 8}, dtype);
    return attend::explain(x, x, x, on_cpu());
  };
  for (const auto dtype : kDtypes) CHECK((plan(dtype).backend == Backend::kCpu));
  CHECK(plan(torch::kDouble).how == expected);
  CHECK(plan(torch::kFloat).how == expected);
  CHECK(plan(torch::kHalf).how == expected);
  CHECK(plan(torch::kBFloat16).how ==
        (multiplies_bfloat16 ? start + "with AVX-512 and AVX512_BF16 instructions." : expected));

  CHECK(plan(torch::kDouble).copies == "");
  CHECK(plan(torch::kFloat).copies == "");
  CHECK(plan(torch::kHalf).copies == "It converts float16 inputs to float32.");
  CHECK(plan(torch::kBFloat16).copies ==
        (multiplies_bfloat16 ? "" : "It converts bfloat16 inputs to float32, tile by tile."));
}

}  // namespace cpu_test
