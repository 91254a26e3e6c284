// SPDX-License-Identifier: MIT
#pragma once

#include "check.h"
#include "dense.h"

#include <attend/attention.h>

#include <ATen/autocast_mode.h>
#include <c10/core/InferenceMode.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace conformance {

using attend::AttentionOptions;
using attend::AttentionResult;
using attend::Backend;

inline constexpr at::ScalarType kDtypes[] = {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf};

/// A float64 tensor of random numbers that `dtype` can represent.
inline torch::Tensor random_numbers(at::IntArrayRef sizes, at::ScalarType dtype) {
  return torch::randn(sizes, torch::kDouble).to(dtype).to(torch::kDouble);
}

/// The results of a function of tensors, and the gradients of their weighted sum.
struct Evaluated {
  Tensors results, gradients;
  std::vector<std::string> names;  // of the gradients
};

/// One call of attention() in one of its forms.
struct Case {
  std::string name;
  AttentionOptions options = {};  // without tensors
  std::int64_t batch = 2, heads = 4, kv_heads = 4, length = 24, keys = 24, width = 16, value_dim = 16;
  std::vector<std::int64_t> mask_sizes = {};
  bool mask_is_bool = false, mask_is_learned = false, mask_has_infinity = false;
  std::vector<std::int64_t> slopes_sizes = {};
  bool slopes_are_learned = false;
  std::vector<std::int64_t> query_offsets = {}, key_offsets = {};
  bool with_lse = false;
  bool heads_last = false;  // in memory (N, L, H, D)
  bool sdpa_can = false;    // kSdpa must not refuse it
  bool is_empty = false;    // only kReference can run it
};

/// The inputs of a case, in float64, with numbers that `dtype` can represent.
inline Inputs inputs_of(const Case& c, at::ScalarType dtype) {
  Inputs inputs;
  inputs.query = random_numbers({c.batch, c.heads, c.length, c.width}, dtype);
  inputs.key = random_numbers({c.batch, c.kv_heads, c.keys, c.width}, dtype);
  inputs.value = random_numbers({c.batch, c.kv_heads, c.keys, c.value_dim}, dtype);
  if (!c.mask_sizes.empty()) {
    inputs.mask = random_numbers(c.mask_sizes, dtype);
    if (c.mask_is_bool)
      inputs.mask = inputs.mask > -0.5;
    else if (c.mask_has_infinity)
      inputs.mask = inputs.mask.masked_fill(inputs.mask < -0.5, kNegativeInfinity);
  }
  if (!c.slopes_sizes.empty()) inputs.slopes = torch::rand(c.slopes_sizes, torch::kDouble).to(dtype).to(torch::kDouble);
  return inputs;
}

/// Computes results and gradients in `dtype`. `function` gets the leaves and returns the results.
inline Evaluated evaluate(const Case& c, const Inputs& exact, at::ScalarType dtype,
                          const std::function<Tensors(const Inputs&)>& function) {
  const auto leaf = [&](const torch::Tensor& tensor, bool is_differentiated) {
    if (!tensor.defined() || tensor.scalar_type() == torch::kBool) return tensor;
    return tensor.to(dtype).clone().requires_grad_(is_differentiated);
  };
  const Inputs leaves{leaf(exact.query, true), leaf(exact.key, true), leaf(exact.value, true),
                      leaf(exact.mask, c.mask_is_learned), leaf(exact.slopes, c.slopes_are_learned)};
  Inputs inputs = leaves;
  if (c.heads_last)
    for (torch::Tensor* tensor : {&inputs.query, &inputs.key, &inputs.value})
      *tensor = tensor->transpose(1, 2).contiguous().transpose(1, 2);
  Evaluated evaluated;
  evaluated.results = function(inputs);
  torch::manual_seed(2);
  Tensors finite, given, differentiated;
  for (const torch::Tensor& result : evaluated.results) {
    finite.push_back(result.masked_fill(result.isneginf(), 0.0));  // −∞, of an empty row, counts as a constant
    given.push_back(random_numbers(result.sizes(), at::kBFloat16).to(result.scalar_type()));
  }
  const std::pair<const char*, const torch::Tensor*> all[] = {{"query", &leaves.query},
                                                              {"key", &leaves.key},
                                                              {"value", &leaves.value},
                                                              {"attn_mask", &leaves.mask},
                                                              {"alibi_slopes", &leaves.slopes}};
  for (const auto& [name, tensor] : all) {
    if (!tensor->defined() || !tensor->requires_grad()) continue;
    evaluated.names.push_back(name);
    differentiated.push_back(*tensor);
  }
  evaluated.gradients = torch::autograd::grad(finite, differentiated, given, /*retain_graph=*/true,
                                              /*create_graph=*/false, /*allow_unused=*/true);
  for (std::size_t i = 0; i < differentiated.size(); ++i)
    if (!evaluated.gradients[i].defined()) evaluated.gradients[i] = torch::zeros_like(differentiated[i]);
  return evaluated;
}

inline torch::Tensor int32(const std::vector<std::int64_t>& numbers) {
  return torch::tensor(numbers, torch::kLong).to(torch::kInt);
}

/// The case's options with the tensors of a call.
inline AttentionOptions options_of(const Case& c, const Inputs& inputs, Backend backend) {
  AttentionOptions options = c.options;
  options.backend(backend).attn_mask(inputs.mask).alibi_slopes(inputs.slopes);
  if (!c.query_offsets.empty()) options.query_offsets(int32(c.query_offsets)).key_offsets(int32(c.key_offsets));
  return options;
}

/// attention() or attention_with_lse(), as the case says.
inline Tensors attend_to(const Case& c, const Inputs& inputs, Backend backend) {
  const AttentionOptions options = options_of(c, inputs, backend);
  if (!c.with_lse) return {attend::attention(inputs.query, inputs.key, inputs.value, options)};
  const AttentionResult result = attend::attention_with_lse(inputs.query, inputs.key, inputs.value, options);
  return {result.output, result.log_sum_exp};
}

inline Tensors dense_results(const Case& c, const Inputs& inputs) {
  const Geometry geometry = geometry_of(c.length, c.keys, c.options, c.query_offsets, c.key_offsets);
  const DenseResult dense = dense_attention(inputs, c.options, geometry);
  if (!c.with_lse) return {dense.output};
  // For inputs in half precision, attend's log-sum-exp is float32.
  const bool is_half = inputs.query.scalar_type() != torch::kDouble && inputs.query.scalar_type() != torch::kFloat;
  return {dense.output, is_half ? dense.log_sum_exp.to(torch::kFloat) : dense.log_sum_exp};
}

/// Requires that results and gradients in `dtype` satisfy the rules of equality.
inline void require_as_accurate(const std::string& what, at::ScalarType dtype, const Evaluated& ours,
                                const Evaluated& dense, const Evaluated& exact, double factor, Accuracy& accuracy) {
  const auto compare = [&](const std::string& name, const torch::Tensor& result, const torch::Tensor& same_dtype,
                           const torch::Tensor& in_float64, double allowed) {
    if (dtype == torch::kDouble)
      require_equal(what + ": " + name, result, in_float64);
    else
      accuracy.require_as_accurate(what + ": " + name, name, same_dtype, result, in_float64, allowed);
  };
  for (std::size_t i = 0; i < exact.results.size(); ++i)
    compare(i == 0 ? "the output" : "the log-sum-exp", ours.results[i], dense.results[i], exact.results[i],
            Accuracy::kOurFactor);
  for (std::size_t i = 0; i < exact.gradients.size(); ++i)
    compare("the gradient of " + exact.names[i], ours.gradients[i], dense.gradients[i], exact.gradients[i], factor);
}

/// Runs a case in every dtype on every backend. kSdpa, requested by name, may refuse options that ATen's kernels lack.
/// kCpu must refuse an empty call.
inline void require_case(const Case& c, Accuracy& accuracy) {
  for (const at::ScalarType dtype : kDtypes) {
    torch::manual_seed(1);
    const Inputs inputs = inputs_of(c, dtype);
    const auto dense = [&](const Inputs& leaves) { return dense_results(c, leaves); };
    const Evaluated exact = evaluate(c, inputs, at::kDouble, dense), same_dtype = evaluate(c, inputs, dtype, dense);
    for (const Backend backend : {Backend::kAuto, Backend::kReference, Backend::kCpu, Backend::kSdpa}) {
      const std::string what = c10::str(dtype, " ", backend);
      Backend taken = backend;
      const auto ours = [&](const Inputs& leaves) {
        const AttentionOptions options = options_of(c, leaves, backend);
        taken = attend::explain(leaves.query, leaves.key, leaves.value, options, c.with_lse).backend;
        return attend_to(c, leaves, backend);
      };
      Evaluated result;
      try {
        result = evaluate(c, inputs, dtype, ours);
      } catch (const c10::NotImplementedError& error) {
        const bool may_refuse = backend == Backend::kSdpa ? !c.sdpa_can : backend == Backend::kCpu && c.is_empty;
        require(may_refuse, what + " refuses: " + first_line(error.what()));
        continue;
      }
      require(backend != Backend::kCpu || !c.is_empty, what + " computes an empty call");
      require_as_accurate(what, dtype, result, same_dtype, exact,
                          taken == Backend::kSdpa ? Accuracy::kAtensFactor : Accuracy::kOurFactor, accuracy);
    }
  }
}

inline std::vector<Case> attention_cases() {
  const AttentionOptions none, causal = AttentionOptions().is_causal(true);
  const auto window = [](std::int64_t left, std::int64_t right) { return AttentionOptions().window({left, right}); };
  std::vector<Case> cases;
  const auto add = [&](
                       const std::string& name, const AttentionOptions& options,
                       const std::function<void(Case&)>& change = [](Case&) {}) {
    Case c;
    c.name = name;
    c.options = options;
    change(c);
    cases.push_back(c);
  };
  add("no options", none, [](Case& c) { c.sdpa_can = true; });
  add("more keys than a tile, head_dim 33", none,
      [](Case& c) { c.length = 70, c.keys = 150, c.width = c.value_dim = 33, c.sdpa_can = true; });
  add("one query", none, [](Case& c) { c.length = 1, c.keys = 200, c.sdpa_can = true; });
  add("heads last in memory", causal, [](Case& c) { c.heads_last = c.sdpa_can = true; });
  add("head_dim of value differs", none, [](Case& c) { c.value_dim = 24; });
  add("scale", AttentionOptions().scale(0.5), [](Case& c) { c.sdpa_can = true; });
  add("negative scale", AttentionOptions().scale(-0.3));
  add("softcap", AttentionOptions().softcap(1.5));
  add("is_causal", causal, [](Case& c) { c.sdpa_can = true; });
  add("is_causal, L < S, few queries", causal, [](Case& c) { c.length = 7, c.keys = 150, c.sdpa_can = true; });
  add("is_causal, L < S", causal, [](Case& c) { c.length = 70, c.keys = 150; });
  add("is_causal, L > S: queries without keys", causal, [](Case& c) { c.length = 40, c.keys = 9; });
  add("window to both sides", window(5, 3));
  add("window, L > S: queries without keys", window(2, 2), [](Case& c) { c.length = 40, c.keys = 9; });
  add("window with is_causal", window(6, -1).is_causal(true), [](Case& c) { c.length = c.keys = 140; });
  add("alibi_slopes (H)", none, [](Case& c) { c.slopes_sizes = {4}; });
  add("alibi_slopes (N, H), learned", causal, [](Case& c) {
    c.slopes_sizes = {2, 4}, c.slopes_are_learned = true, c.length = 10, c.keys = 30;
  });
  add("bool attn_mask (L, S)", none, [](Case& c) { c.mask_sizes = {24, 24}, c.mask_is_bool = c.sdpa_can = true; });
  add("bool attn_mask (H, L, S)", none, [](Case& c) {
    c.mask_sizes = {4, 24, 24}, c.mask_is_bool = c.sdpa_can = true;
  });
  add("bool attn_mask (N, 1, 1, S)", none, [](Case& c) {
    c.mask_sizes = {2, 1, 1, 24}, c.mask_is_bool = c.sdpa_can = true;
  });
  add("bool attn_mask (N, H, L, 1): queries without keys", none, [](Case& c) {
    c.mask_sizes = {2, 4, 24, 1}, c.mask_is_bool = c.sdpa_can = true;
  });
  add("bool attn_mask with is_causal", causal, [](Case& c) {
    c.mask_sizes = {2, 1, 24, 24}, c.mask_is_bool = c.sdpa_can = true;
  });
  add("float attn_mask (L, S)", none, [](Case& c) { c.mask_sizes = {24, 24}, c.sdpa_can = true; });
  add("float attn_mask (H, 1, S) with -inf", none, [](Case& c) {
    c.mask_sizes = {4, 1, 24}, c.mask_has_infinity = c.sdpa_can = true;
  });
  add("float attn_mask (N, H, L, S), learned", none, [](Case& c) {
    c.mask_sizes = {2, 4, 24, 24}, c.mask_is_learned = true;
  });
  add("float attn_mask (1, H, 1, S), learned, with -inf", causal, [](Case& c) {
    c.mask_sizes = {1, 4, 1, 24}, c.mask_is_learned = c.mask_has_infinity = true;
  });
  add("grouped heads", causal, [](Case& c) { c.kv_heads = 2; });  // ATen's kernels support them since LibTorch 2.9

  add("one key and value head", none, [](Case& c) { c.kv_heads = 1, c.length = 30, c.keys = 140; });
  add("packed batch (query_offsets, key_offsets)", none, [](Case& c) {
    c.batch = 1, c.query_offsets = {0, 5, 17, 24}, c.key_offsets = {0, 9, 12, 24};
  });
  add("packed batch with an empty sequence, is_causal, window, alibi_slopes", window(4, -1).is_causal(true),
      [](Case& c) {
        c.batch = 1, c.slopes_sizes = {4}, c.query_offsets = {0, 8, 8, 24}, c.key_offsets = {0, 4, 10, 24};
      });
  add("attention_with_lse", causal, [](Case& c) { c.with_lse = c.sdpa_can = true; });
  add("attention_with_lse, queries without keys", causal,
      [](Case& c) { c.with_lse = true, c.length = 40, c.keys = 9; });
  add("all options together", window(30, -1).is_causal(true).softcap(3.0).scale(0.4), [](Case& c) {
    c.kv_heads = 2, c.length = 50, c.keys = 140, c.value_dim = 24, c.with_lse = c.heads_last = true;
    c.slopes_sizes = {4}, c.slopes_are_learned = true;
    c.mask_sizes = {2, 1, 50, 140}, c.mask_is_learned = c.mask_has_infinity = true;
  });
  add("empty: N = 0", none, [](Case& c) { c.batch = 0, c.is_empty = true; });
  add("empty: L = 0", none, [](Case& c) { c.length = 0, c.is_empty = true; });
  add("empty: S = 0 gives zeros and no gradient", none, [](Case& c) { c.keys = 0, c.is_empty = true; });
  return cases;
}

/// Checks dropout from outside: with the identity as values, the output is the weights after dropout.
inline void require_dropout(Backend backend) {
  const std::int64_t S = 32;
  const double dropout = 0.3;
  torch::manual_seed(5);
  const torch::Tensor query = torch::randn({2, 4, 40, 8}, torch::kDouble).requires_grad_(),
                      key = torch::randn({2, 4, S, 8}, torch::kDouble).requires_grad_(),
                      value = torch::eye(S, torch::kDouble).expand({2, 4, S, S}).contiguous().requires_grad_();
  const AttentionOptions options = AttentionOptions().backend(backend).dropout(dropout);
  const auto run = [&](std::uint64_t seed) {
    torch::manual_seed(seed);
    return attend::attention(query, key, value, options);
  };
  const torch::Tensor output = run(7);
  require(output.equal(run(7)), c10::str(backend, ": the same seed drops other weights"));
  require(!output.equal(run(8)), c10::str(backend, ": another seed drops the same weights"));
  const torch::Tensor keep = output.ne(0.0);
  const double share = keep.logical_not().to(torch::kDouble).mean().item<double>();  // of 10,240 weights
  require(share > 0.28 && share < 0.32, c10::str(backend, ": ", share, " of the weights are dropped, not 0.3"));
  const Inputs inputs{query, key, value, {}, {}};
  const DenseResult dense = dense_attention(inputs, options, geometry_of(40, S, options, {}, {}), keep);
  require_equal(c10::str(backend, ": the output"), output, dense.output);
  const torch::Tensor given = torch::randn_like(output);
  const Tensors ours = torch::autograd::grad({output}, {query, key, value}, {given}),
                theirs = torch::autograd::grad({dense.output}, {query, key, value}, {given});
  for (std::size_t i = 0; i < 3; ++i) require_equal(c10::str(backend, ": gradient ", i), ours[i], theirs[i]);
  require(
      attend::attention(query, key, value, AttentionOptions().backend(backend).dropout(1.0)).eq(0.0).all().item<bool>(),
      c10::str(backend, ": dropout 1 leaves weights"));
}

inline void attention_checks(Checks& checks) {
  Accuracy accuracy;
  for (const Case& c : attention_cases()) checks.check("attention: " + c.name, [&] { require_case(c, accuracy); });
  checks.check("attention: results of fewer than 64 numbers, over all cases",
               [&] { accuracy.require_of_few_numbers(); });

  checks.check("attention: dropout by seed, with its share, output and gradients", [] {
    require_dropout(Backend::kCpu);
    require_dropout(Backend::kReference);
  });
  checks.check("attention: dropout drops the same weights on every backend", [] {
    const torch::Tensor x = torch::randn({2, 3, 20, 8}, torch::kDouble);
    const auto run = [&](Backend backend) {
      torch::manual_seed(9);
      return attend::attention(x, x, x, AttentionOptions().backend(backend).dropout(0.5));
    };
    require_equal("kCpu against kReference", run(Backend::kCpu), run(Backend::kReference));
  });
  checks.check("attention: dropout 0 draws no random numbers", [] {
    const torch::Tensor x = torch::randn({1, 1, 8, 8});
    torch::manual_seed(3);
    const torch::Tensor before = torch::rand({4});
    torch::manual_seed(3);
    attend::attention(x, x, x, AttentionOptions().dropout(0.0));
    require(torch::rand({4}).equal(before), "the generator has moved");
  });
  checks.check("attention_weights: equal to the dense formula's, with all options", [] {
    const Case c = [] {
      for (const Case& each : attention_cases())
        if (each.name == "all options together") return each;
      return Case();
    }();
    require(!c.name.empty(), "the case is missing");
    const Inputs inputs = inputs_of(c, at::kDouble);
    const torch::Tensor weights =
        attend::attention_weights(inputs.query, inputs.key, options_of(c, inputs, Backend::kAuto));
    const Geometry geometry = geometry_of(c.length, c.keys, c.options, {}, {});
    require_equal("the weights", weights, dense_attention(inputs, c.options, geometry).weights);
  });
  checks.check("explain: names the backend that attention() uses", [] {
    const torch::Tensor x = torch::randn({1, 2, 64, 16});
    const attend::Explanation plan = attend::explain(x, x, x);
    require(plan.backend != Backend::kAuto, "kAuto is named");
    require(attend::attention(x, x, x).equal(attend::attention(x, x, x, AttentionOptions().backend(plan.backend))),
            "the backend named gives other bits");
    const attend::Explanation window =
        attend::explain(x, x, x, AttentionOptions().window({3, 3}).backend(Backend::kCpu));
    require(window.backend == Backend::kCpu && window.why_not_faster.empty(), "kCpu is requested and not used");
    const torch::Tensor none = torch::randn({0, 2, 64, 16});
    const attend::Explanation empty = attend::explain(none, none, none);
    require(empty.backend == Backend::kReference && !empty.why_not_faster.empty(), "an empty batch has no reason");
  });
  checks.check("BackendGuard: selects the backend until the end of its scope", [] {
    const torch::Tensor x = torch::randn({1, 2, 64, 16});
    {
      const attend::BackendGuard guard(Backend::kReference);
      require(attend::explain(x, x, x).backend == Backend::kReference, "the guard is not followed");
    }
    require(attend::explain(x, x, x, AttentionOptions().window({3, 3})).backend == Backend::kCpu,
            "the guard outlives its scope");
  });
  checks.check("attention: the same bits with gradients, under NoGradGuard and under InferenceMode", [] {
    const torch::Tensor x = torch::randn({1, 2, 140, 16}).requires_grad_();
    for (const Backend backend : {Backend::kCpu, Backend::kSdpa, Backend::kReference}) {
      const AttentionOptions options = AttentionOptions().backend(backend);
      const torch::Tensor with = attend::attention(x, x, x, options);
      require(with.requires_grad(), c10::str(backend, ": the output has no gradient"));
      {
        const torch::NoGradGuard no_grad;
        const torch::Tensor without = attend::attention(x, x, x, options);
        require(without.equal(with) && !without.requires_grad(), c10::str(backend, ": NoGradGuard"));
      }
      const c10::InferenceMode inference;
      require(attend::attention(x, x, x, options).equal(with), c10::str(backend, ": InferenceMode"));
    }
  });
  checks.check("attention: autocast casts float32 to bfloat16, and not float64", [] {
    const torch::Tensor x = torch::randn({1, 2, 20, 16});
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    const torch::Tensor y = attend::attention(x, x, x);
    const torch::Tensor in_float64 = attend::attention(x.to(at::kDouble), x.to(at::kDouble), x.to(at::kDouble));
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
    require(y.scalar_type() == at::kBFloat16, "float32 is not cast");
    require(in_float64.scalar_type() == at::kDouble, "float64 is cast");
    const torch::Tensor half = x.to(at::kBFloat16);
    require(y.equal(attend::attention(half, half, half)), "the result differs from that of a bfloat16 call");
  });
  checks.check("attention: types and messages of errors", [] {
    const torch::Tensor x = torch::randn({1, 2, 8, 4});
    const auto refused = [&](const std::string& part, const AttentionOptions& options) {
      require_throws<c10::ValueError>(part, part, [&] { attend::attention(x, x, x, options); });
    };
    require_throws<c10::ValueError>("3-d", "must have as many dimensions as query",
                                    [&] { attend::attention(x[0], x, x); });
    require_throws<c10::ValueError>("undefined", "value must be a tensor", [&] { attend::attention(x, x, {}); });
    require_throws<c10::TypeError>("two dtypes", "must have the dtype of query",
                                   [&] { attend::attention(x, x.to(at::kDouble), x); });
    require_throws<c10::TypeError>("integers", "must be float64, float32, bfloat16 or float16",
                                   [&] { attend::attention(x.to(at::kInt), x.to(at::kInt), x.to(at::kInt)); });
    refused("dropout must be a probability", AttentionOptions().dropout(1.5));
    refused("softcap must be positive", AttentionOptions().softcap(-1.0));
    refused("attn_mask [7, 8] must broadcast", AttentionOptions().attn_mask(torch::zeros({7, 8})));
    refused("alibi_slopes must be (H) or (N, H)", AttentionOptions().alibi_slopes(torch::zeros({3})));
    refused("must be given together", AttentionOptions().query_offsets(int32({0, 8})));
    require_throws<c10::TypeError>("mask of another dtype", "attn_mask must be bool", [&] {
      attend::attention(x, x, x, AttentionOptions().attn_mask(torch::zeros({8, 8}, at::kInt)));
    });
    require_throws<c10::NotImplementedError>("kSdpa with a window", "kSdpa supports a window on the CPU only as an", [&] {
      attend::attention(x, x, x, AttentionOptions().window({2, 2}).backend(Backend::kSdpa));
    });
  });
}

}  // namespace conformance
