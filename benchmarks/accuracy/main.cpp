// SPDX-License-Identifier: MIT

// How large are the errors of attention(), compared with those of the dense formula? Each call of a list is computed in
// its dtype by kCpu, by kSdpa if that can run, and by the dense formula: torch's matmul, softmax and matmul in the same
// dtype, with torch's own gradients. All results are compared with the dense formula in float64.
//
// Prints CSV, one row for each result of each call: the largest and the root mean square error of the backend and of
// the dense formula. measure.py writes a page from it.

#include <attend/attention.h>

#include "support/program.h"

#include <ATen/Parallel.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

using attend::AttentionOptions;
using attend::AttentionResult;
using attend::Backend;
using benchmark::kCompiler;
using benchmark::positive;

namespace {

constexpr const char* kUsage =
    "usage: accuracy [options]\n"
    "  --draws N     draws of each call with few queries (default: 40)\n"
    "  --threads N   threads (default: chosen by LibTorch)\n"
    "  --quick       every 29th call of the list, and four draws of each call with few queries\n";

constexpr double kNegativeInfinity = -std::numeric_limits<double>::infinity();

struct Settings {
  int draws = 0;    // 0: not given
  int threads = 0;  // 0: chosen by LibTorch
  bool is_quick = false;
};

constexpr std::array<const char*, 7> kOptions = {"none", "causal", "window", "softcap", "ALiBi", "grouped", "packed"};

struct Call {
  std::string option;
  at::ScalarType dtype;
  std::int64_t batch, heads, kv_heads, queries, keys, width;
  double query_factor;  // the standard deviation of the query
  bool with_backward;
};

/// The lengths and widths of FlashAttention's tests. float32 has every option. bfloat16 and float16, whose dense
/// formula is slow, have one or two options for each pair of length and width, in turn.
std::vector<Call> list() {
  struct Lengths {
    std::int64_t queries, keys;
  };
  constexpr Lengths kLengths[] = {{1, 147},     {1, 239},     {3, 799},    {113, 203}, {128, 217},
                                  {113, 211},   {108, 256},   {256, 512},  {512, 256}, {1024, 1024},
                                  {1023, 1024}, {1024, 1023}, {2048, 2048}};
  constexpr std::int64_t kWidths[] = {32, 40, 59, 64, 96, 111, 128, 160, 192, 224, 256};
  std::vector<Call> calls;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    std::size_t turn = 0;
    for (const Lengths& lengths : kLengths)
      for (const std::int64_t width : kWidths) {
        ++turn;
        for (std::size_t k = 0; k < kOptions.size(); ++k) {
          if (dtype != at::kFloat && (turn + k) % 4 != 0) continue;
          const std::string option = kOptions[k];
          const bool is_long = lengths.queries >= 512;
          Call call{option, dtype, is_long ? 1 : 2, is_long ? 2 : 6, 0, lengths.queries, lengths.keys, width,
                    1.0,    true};
          call.kv_heads = option == "grouped" ? call.heads / 2 : call.heads;
          if (option == "packed") call.batch = 1;
          if (option == "softcap") call.query_factor = 4.0;
          calls.push_back(call);
        }
      }
  }
  return calls;
}

constexpr double kSoftcap = 3.0;

/// Query, key, value, the gradient of the output, and slopes, in float64 but rounded to the dtype.
struct Inputs {
  at::Tensor query, key, value, gradient, slopes;
  at::Tensor query_offsets, key_offsets;

  explicit Inputs(const Call& call) {
    const auto normal = [&](std::int64_t heads, std::int64_t length, double factor) {
      return (factor * at::randn({call.batch, heads, length, call.width}, at::kDouble)).to(call.dtype).to(at::kDouble);
    };
    query = normal(call.heads, call.queries, call.query_factor);
    key = normal(call.kv_heads, call.keys, 1.0);
    value = normal(call.kv_heads, call.keys, 1.0);
    gradient = normal(call.heads, call.queries, 1.0);
    if (call.option == "ALiBi") slopes = (0.3 * at::rand({call.heads}, at::kDouble)).to(call.dtype).to(at::kDouble);
    if (call.option == "packed") {
      query_offsets = offsets(call.queries);
      key_offsets = offsets(call.keys);
    }
  }

 private:
  /// Three sequences: a quarter, a half, the rest. A single query is one sequence.
  static at::Tensor offsets(std::int64_t length) {
    return at::tensor(std::vector<std::int64_t>{0, length / 4, length / 4 + length / 2, length}, at::kLong)
        .to(at::kInt);
  }
};

attend::Window window_of(const Call& call) { return {call.keys / 4, call.keys / 8}; }

AttentionOptions options_of(const Call& call, const Inputs& inputs) {
  AttentionOptions options;
  if (call.option == "causal") options.is_causal(true);
  if (call.option == "window") options.window(window_of(call));
  if (call.option == "softcap") options.softcap(kSoftcap);
  if (call.option == "ALiBi") options.alibi_slopes(inputs.slopes.to(call.dtype));
  if (call.option == "packed") options.query_offsets(inputs.query_offsets).key_offsets(inputs.key_offsets);
  return options;
}

/// The distance of each key from each query, and which keys are masked: (L, S) each.
struct Grid {
  at::Tensor ahead, ruled_out;

  Grid(const Call& call, const Inputs& inputs) {
    const at::Tensor query = at::arange(call.queries).unsqueeze(1), key = at::arange(call.keys);
    ahead = key - (query + (call.keys - call.queries));
    ruled_out = at::zeros({call.queries, call.keys}, at::kBool);
    if (call.option == "causal") ruled_out = ahead > 0;
    if (call.option == "window")
      ruled_out = ahead.lt(-window_of(call).left).logical_or(ahead.gt(window_of(call).right));
    if (call.option == "packed") {
      const auto sequence = [](const at::Tensor& offsets, const at::Tensor& position) {
        return at::searchsorted(offsets.to(at::kLong), position, /*out_int32=*/false, /*right=*/true);
      };
      ruled_out = sequence(inputs.query_offsets, query).ne(sequence(inputs.key_offsets, key));
    }
  }
};

/// Output, log-sum-exp, and, with the backward pass, the gradients of query, key and value.
using Results = std::vector<at::Tensor>;
constexpr std::array<const char*, 5> kNames = {"output", "lse", "dq", "dk", "dv"};

/// `compute(query, key, value)` in a dtype, and its gradients.
template <class Compute>
Results results_of(const Call& call, const Inputs& inputs, at::ScalarType dtype, const Compute& compute) {
  const at::AutoGradMode grad_mode(call.with_backward);
  Results leaves;
  for (const at::Tensor* input : {&inputs.query, &inputs.key, &inputs.value})
    leaves.push_back(input->to(dtype, /*non_blocking=*/false, /*copy=*/true).requires_grad_(call.with_backward));
  const AttentionResult result = compute(leaves[0], leaves[1], leaves[2]);
  Results results{result.output.detach(), result.log_sum_exp.detach()};
  if (!call.with_backward) return results;
  for (const at::Tensor& gradient :
       torch::autograd::grad({result.output}, leaves, {inputs.gradient.to(dtype)}, /*retain_graph=*/false))
    results.push_back(gradient);
  return results;
}

/// The dense formula in the dtype of its arguments.
AttentionResult dense(const Call& call, const Inputs& inputs, const Grid& grid, const at::Tensor& query,
                      const at::Tensor& given_key, const at::Tensor& given_value) {
  const bool is_grouped = call.heads != call.kv_heads;
  const at::Tensor key = is_grouped ? given_key.repeat_interleave(call.heads / call.kv_heads, 1) : given_key,
                   value = is_grouped ? given_value.repeat_interleave(call.heads / call.kv_heads, 1) : given_value;
  at::Tensor scores = query.matmul(key.transpose(2, 3)) * (1.0 / std::sqrt(static_cast<double>(call.width)));
  if (call.option == "softcap") scores = kSoftcap * (scores / kSoftcap).tanh();
  if (call.option == "ALiBi") {
    const at::ScalarType at_least_float = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const at::Tensor slopes = inputs.slopes.to(at_least_float).unsqueeze(-1).unsqueeze(-1);
    scores = scores - (slopes * grid.ahead.abs()).to(scores.scalar_type());
  }
  const bool has_mask = call.option == "causal" || call.option == "window" || call.option == "packed";
  if (!has_mask) return {scores.softmax(-1).matmul(value), scores.logsumexp(-1)};
  // A large finite number instead of −∞: a query that may attend to nothing must not become NaN.
  const at::Tensor masked = scores.masked_fill(grid.ruled_out, query.scalar_type() == at::kHalf ? -65504.0 : -3e38);
  return {masked.softmax(-1).masked_fill(grid.ruled_out, 0.0).matmul(value),
          masked.logsumexp(-1).masked_fill(grid.ruled_out.all(-1), kNegativeInfinity)};
}

/// The largest and the root mean square error. Throws if −∞ is in different places, or if another result is not finite.
std::array<double, 2> errors(const at::Tensor& result, const at::Tensor& exact) {
  const at::Tensor wide = result.to(at::kDouble), is_never = exact.isneginf();
  if (!wide.isneginf().equal(is_never)) throw std::runtime_error("results have −∞ in different places");
  const at::Tensor difference = (wide - exact).masked_fill(is_never, 0.0).abs();
  const double largest = difference.max().item<double>();
  if (!std::isfinite(largest)) throw std::runtime_error("a result is not finite");
  return {largest, std::sqrt(difference.square().mean().item<double>())};
}

/// Prints one row for each backend and result.
void measure(const Call& call, const std::string& list_name) {
  const Inputs inputs(call);
  const Grid grid(call, inputs);
  const auto formula = [&](const auto&... tensors) { return dense(call, inputs, grid, tensors...); };
  const Results exact = results_of(call, inputs, at::kDouble, formula),
                plain = results_of(call, inputs, call.dtype, formula);
  const AttentionOptions options = options_of(call, inputs);
  Backend chosen = Backend::kCpu;
  for (const Backend backend : {Backend::kCpu, Backend::kSdpa}) {
    Results results;
    try {
      results = results_of(call, inputs, call.dtype, [&](const auto& query, const auto& key, const auto& value) {
        chosen = attend::explain(query, key, value, options, /*with_lse=*/true).backend;
        return attend::attention_with_lse(query, key, value, AttentionOptions(options).backend(backend));
      });
    } catch (const c10::NotImplementedError&) {
      continue;
    }
    for (std::size_t i = 0; i < results.size(); ++i) {
      const auto of_dense = errors(plain[i], exact[i]), of_ours = errors(results[i], exact[i]);
      std::cout << list_name << ',' << call.dtype << ',' << call.option << ',' << call.query_factor << ',' << call.batch
                << ',' << call.heads << ',' << call.kv_heads << ',' << call.queries << ',' << call.keys << ','
                << call.width << ',' << backend << ',' << (backend == chosen ? "yes" : "no") << ',' << kNames[i] << ','
                << results[i].numel() << ',' << of_dense[0] << ',' << of_dense[1] << ',' << of_ours[0] << ','
                << of_ours[1] << std::endl;
    }
  }
}

Settings settings_from(int count, char** arguments) {
  Settings settings;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    const auto number = [&] { return static_cast<int>(positive(i + 1 < count ? arguments[++i] : "")); };
    if (name == "--draws") {
      settings.draws = number();
    } else if (name == "--threads") {
      settings.threads = number();
    } else if (name == "--quick") {
      settings.is_quick = true;
    } else {
      throw std::invalid_argument("unknown option " + name);
    }
  }
  if (settings.draws == 0) settings.draws = settings.is_quick ? 4 : 40;
  return settings;
}

}  // namespace

int main(int count, char** arguments) try {
  if (count == 2 && std::string(arguments[1]) == "--help") {
    std::cout << kUsage;
    return 0;
  }
  const Settings settings = settings_from(count, arguments);
  if (settings.threads > 0) at::set_num_threads(settings.threads);
  const at::Tensor x = at::randn({1, 1, 16, 64});
  std::cout << "# threads " << at::get_num_threads() << "\n# draws " << settings.draws << "\n# compiler " << kCompiler
            << "\n# libtorch LibTorch " << TORCH_VERSION << "\n# instructions "
            << attend::explain(x, x, x, AttentionOptions().backend(Backend::kCpu)).how
            << "\nlist,dtype,option,query_factor,N,H,G,L,S,D,backend,is_auto,result,numbers,dense_max,dense_rms,max,rms"
            << std::endl;
  const std::vector<Call> calls = list();
  for (std::size_t i = 0; i < calls.size(); i += settings.is_quick ? 29 : 1) {
    torch::manual_seed(i);
    measure(calls[i], "lengths and widths");
  }
  torch::manual_seed(0);
  for (const std::int64_t queries : {1, 2, 3})
    for (const std::int64_t keys : {64, 147, 512, 1024, 4096})
      for (const double factor : {1.0, 4.0})
        for (int draw = 0; draw < settings.draws; ++draw)
          measure({"none", at::kFloat, 2, 6, 6, queries, keys, 64, factor, /*with_backward=*/false}, "few queries");
  return 0;
} catch (const std::exception& error) {
  std::cerr << "accuracy: " << error.what() << "\n\n" << kUsage;
  return 2;
}
