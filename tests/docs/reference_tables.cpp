// SPDX-License-Identifier: MIT

// Prints the first table of docs/backends_and_errors.md: which backend can compute which call, as explain() answers.
// reference_test.py runs this program and compares.

#include <attend/attend.h>

#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <vector>

namespace {

using attend::AttentionOptions;
using attend::Backend;

/// One call of attention(), attention_with_lse() or flex_attention().
struct Call {
  torch::Tensor query, key, value;
  AttentionOptions options = {};
  bool with_lse = false;
  bool has_score_mod = false, has_mask_mod = false;

  attend::Explanation explain(Backend backend) const {
    AttentionOptions with_backend = options;
    with_backend.backend(backend);
    if (has_score_mod) return attend::explain_flex(query, key, value, attend::Softcap{20}, {}, with_backend);
    if (has_mask_mod)
      return attend::explain_flex(query, key, value, attend::Unchanged{}, attend::PrefixLM(3), with_backend);
    return attend::explain(query, key, value, with_backend, with_lse);
  }
};

/// "fused", "dense" or "not possible". kSdpa has a fourth answer for devices other than the CPU, for which the tensors
/// here are on the device meta: attend does not refuse the call, and ATen decides whether it has a kernel.
std::string cell(const Call& call, Backend backend) {
  const bool is_cpu = call.query.is_cpu();
  if (backend == Backend::kAuto && !is_cpu)
    return cell(call, Backend::kSdpa) == "not possible" ? "dense" : "fused, else dense";
  try {
    return call.explain(backend).backend == Backend::kReference ? "dense" : "fused";
  } catch (const c10::NotImplementedError& error) {
    const bool is_atens_answer =
        !is_cpu && std::string(error.what_without_backtrace()).find("ATen has no fused kernel") != std::string::npos;
    return is_atens_answer ? "if ATen can" : "not possible";
  }
}

/// One answer for all dtypes, or the answer of each dtype.
std::string cell(const std::function<Call(at::TensorOptions)>& make, Backend backend, at::Device device) {
  const std::pair<std::string, at::ScalarType> dtypes[] = {{"float64", torch::kDouble},
                                                           {"float32", torch::kFloat},
                                                           {"bfloat16", torch::kBFloat16},
                                                           {"float16", torch::kHalf}};
  std::map<std::string, std::string> names;  // dtypes by answer
  for (const auto& [name, dtype] : dtypes) {
    std::string& all = names[cell(make(at::TensorOptions(dtype).device(device)), backend)];
    all += (all.empty() ? "" : ", ") + name;
  }
  if (names.size() == 1) return names.begin()->first;
  std::string text;
  for (const auto& [answer, all] : names) text += (text.empty() ? "" : "; ") + answer + ": " + all;
  return text;
}

Call call(at::TensorOptions options, std::int64_t queries = 64, std::int64_t keys = 64, std::int64_t kv_heads = 4,
          std::int64_t value_dim = 16) {
  return {torch::empty({2, 4, queries, 16}, options), torch::empty({2, kv_heads, keys, 16}, options),
          torch::empty({2, kv_heads, keys, value_dim}, options)};
}

Call with(Call call, const AttentionOptions& options) {
  call.options = options;
  return call;
}

}  // namespace

int main() {
  using Options = at::TensorOptions;
  const auto bool_mask = [](Options o) { return torch::ones({64, 64}, o.dtype(torch::kBool)); };
  const auto float_mask = [](Options o) { return torch::zeros({64, 64}, o); };
  const std::pair<std::string, std::function<Call(Options)>> rows[] = {
      {"no option", [](Options o) { return call(o); }},
      {"`query`, `key`, `value` with gradients",
       [](Options o) {
         Call result = call(o);
         for (torch::Tensor* each : {&result.query, &result.key, &result.value}) each->set_requires_grad(true);
         return result;
       }},
      {"fewer heads in `key` and `value` than in `query`", [](Options o) { return call(o, 64, 64, 2); }},
      {"`value` of another width than `query`", [](Options o) { return call(o, 64, 64, 4, 8); }},
      {"channels first in memory (last dimension strided)",
       [](Options o) {
         const torch::Tensor x = torch::empty({2, 4, 16, 64}, o).transpose(2, 3);
         return Call{x, x, x};
       }},
      {"`is_causal`, L = S", [](Options o) { return with(call(o), AttentionOptions().is_causal(true)); }},
      {"`is_causal`, L < S, L ≤ 32", [](Options o) { return with(call(o, 32), AttentionOptions().is_causal(true)); }},
      {"`is_causal`, L < S, L > 32", [](Options o) { return with(call(o, 33), AttentionOptions().is_causal(true)); }},
      {"`is_causal`, L > S", [](Options o) { return with(call(o, 65), AttentionOptions().is_causal(true)); }},
      {"`window`",
       [](Options o) {
         return with(call(o), AttentionOptions().window({8, 8}));
       }},
      {"`attn_mask`, bool", [&](Options o) { return with(call(o), AttentionOptions().attn_mask(bool_mask(o))); }},
      {"`attn_mask`, float", [&](Options o) { return with(call(o), AttentionOptions().attn_mask(float_mask(o))); }},
      {"`attn_mask` with a gradient",
       [&](Options o) { return with(call(o), AttentionOptions().attn_mask(float_mask(o).set_requires_grad(true))); }},
      {"`attn_mask` and `is_causal`",
       [&](Options o) { return with(call(o), AttentionOptions().attn_mask(bool_mask(o)).is_causal(true)); }},
      {"`scale` above 0", [](Options o) { return with(call(o), AttentionOptions().scale(0.5)); }},
      {"`scale` of 0 or below", [](Options o) { return with(call(o), AttentionOptions().scale(-0.5)); }},
      {"`softcap`", [](Options o) { return with(call(o), AttentionOptions().softcap(20.0)); }},
      {"`alibi_slopes`",
       [](Options o) {
         return with(call(o), AttentionOptions().alibi_slopes(torch::ones({4}, o.dtype(torch::kFloat))));
       }},
      {"`dropout`", [](Options o) { return with(call(o), AttentionOptions().dropout(0.1)); }},
      {"`query_offsets` and `key_offsets`",
       [](Options o) {
         const torch::Tensor x = torch::empty({1, 4, 64, 16}, o);
         const torch::Tensor offsets = torch::tensor({0, 30, 64}, torch::kInt).to(o.device());
         return with({x, x, x}, AttentionOptions().query_offsets(offsets).key_offsets(offsets));
       }},
      {"`key_lengths`",
       [](Options o) {
         const torch::Tensor lengths = torch::tensor({64, 20}, torch::kInt).to(o.device());
         return with(call(o), AttentionOptions().key_lengths(lengths));
       }},
      {"`key_lengths` and `block_table`",
       [](Options o) {
         const torch::Tensor lengths = torch::tensor({64, 20}, torch::kInt).to(o.device());
         const torch::Tensor table = torch::tensor({{1, 0}, {2, 0}}, torch::kInt).to(o.device());
         Call result = call(o);
         result.key = result.value = torch::empty({3, 4, 32, 16}, o);
         return with(result, AttentionOptions().key_lengths(lengths).block_table(table));
       }},
      {"a score_mod (`flex_attention()`)",
       [](Options o) {
         Call result = call(o);
         result.has_score_mod = true;
         return result;
       }},
      {"a mask_mod (`flex_attention()`)",
       [](Options o) {
         Call result = call(o);
         result.has_mask_mod = true;
         return result;
       }},
      {"`attention_with_lse()`",
       [](Options o) {
         Call result = call(o);
         result.with_lse = true;
         return result;
       }},
      {"`attention_with_lse()` and `attn_mask`",
       [&](Options o) {
         Call result = with(call(o), AttentionOptions().attn_mask(bool_mask(o)));
         result.with_lse = true;
         return result;
       }},
      {"L = 0 or S = 0 or N = 0", [](Options o) { return call(o, 64, 0); }},
  };
  std::cout << "| Call | CPU, `kAuto` | CPU, `kCpu` | CPU, `kSdpa` | GPU, `kAuto` | GPU, `kSdpa` |\n"
            << "| --- | --- | --- | --- | --- | --- |\n";
  for (const auto& [name, make] : rows) {
    std::cout << "| " << name;
    for (const Backend backend : {Backend::kAuto, Backend::kCpu, Backend::kSdpa})
      std::cout << " | " << cell(make, backend, at::kCPU);
    for (const Backend backend : {Backend::kAuto, Backend::kSdpa}) std::cout << " | " << cell(make, backend, at::kMeta);
    std::cout << " |\n";
    // These columns would have the same word in every row, so the page states them in a sentence.
    TORCH_CHECK(cell(make, Backend::kReference, at::kCPU) == "dense");
    TORCH_CHECK(cell(make, Backend::kReference, at::kMeta) == "dense");
    TORCH_CHECK(cell(make, Backend::kCpu, at::kMeta) == "not possible");
  }
}
