// SPDX-License-Identifier: MIT

// Compares results and gradients of 500 random calls of attention() and attention_with_lse(), on every backend that can
// run them, with torch's dense operations in float64. A call is a function of its number alone; a failure prints it.

#include <attend/attention.h>

#include "support/accuracy.h"
#include "support/backends.h"
#include "support/dense.h"
#include "support/draws.h"
#include "support/environment.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <map>
#include <optional>
#include <ostream>
#include <set>
#include <string>
#include <utility>
#include <vector>

using attend::AttentionOptions;
using attend::AttentionResult;
using attend::Backend;
using attend::Window;
using attend::test::Accuracy;
using attend::test::allowed_by;
using attend::test::check_as_accurate_as;
using attend::test::check_equal_in_float64;
using attend::test::kAllBackends;
using attend::test::kAtensFactor;
using attend::test::kOurFactor;

namespace parity_test {
namespace {

using Sizes = std::vector<std::int64_t>;

enum class Layout { kContiguous, kChannelsFirst, kHeadsLast, kEveryOther, kPartOfRow, kExpanded };
enum class Mask { kNone, kBool, kPadding, kFloat, kLearned };
enum class Slopes { kNone, kFixed, kLearned };

struct Call {
  std::uint32_t number;
  at::ScalarType dtype;
  std::int64_t batch = 1, heads = 1, kv_heads = 1, length, keys, width, value_dim;
  Layout layouts[3] = {};  // of query, key and value
  bool is_causal = false;
  Window window = {};
  double scale = 0.0;  // 0 for kInverseSqrt
  double softcap = 0.0;
  Mask mask = Mask::kNone;
  Sizes mask_sizes = {};
  bool mask_has_infinity = false;
  Slopes slopes = Slopes::kNone;
  Sizes slopes_sizes = {};
  std::vector<std::int32_t> query_offsets = {}, key_offsets = {};  // of a packed batch
  bool with_lse = false;
};

std::ostream& operator<<(std::ostream& stream, const Call& call) {
  stream << "call " << call.number << ": " << call.dtype << " N " << call.batch << " H " << call.heads << " G "
         << call.kv_heads << " L " << call.length << " S " << call.keys << " D " << call.width << " Dv "
         << call.value_dim << " layouts";
  for (const Layout layout : call.layouts) stream << ' ' << static_cast<int>(layout);
  return stream << (call.is_causal ? " causal " : " ") << call.window << " scale " << call.scale << " softcap "
                << call.softcap << " mask " << static_cast<int>(call.mask) << ' ' << at::IntArrayRef(call.mask_sizes)
                << (call.mask_has_infinity ? " with -inf" : "") << " slopes " << static_cast<int>(call.slopes) << ' '
                << at::IntArrayRef(call.slopes_sizes) << " packed " << call.query_offsets << ' ' << call.key_offsets
                << (call.with_lse ? " with lse" : "");
}

Call random_call(std::uint32_t number) {
  attend::test::Draws draws(number);
  const Sizes lengths{1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1023};

  Call call{.number = number,
            .dtype = draws.one_of(std::vector{torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}),
            .length = draws.one_of(lengths),
            .keys = draws.one_of(lengths),
            .width = draws.one_of(Sizes{1, 8, 16, 33, 64, 80, 128}),
            .value_dim = 0};
  call.value_dim = call.width;
  call.is_causal = draws.one_in(3);
  if (call.is_causal && draws.one_in(2)) call.keys = call.length;
  // Limits the numbers of heads and batch entries so that N · H · L · S stays small.
  const auto fits = [&] { return call.batch * call.heads * call.length * call.keys <= 1 << 17; };
  struct Heads {
    std::int64_t heads, kv_heads;
  };
  const Heads drawn = draws.one_of(std::vector<Heads>{{1, 1}, {2, 2}, {2, 1}, {3, 3}, {4, 2}, {6, 2}, {4, 1}});
  call.heads = drawn.heads;
  call.kv_heads = drawn.kv_heads;
  if (!fits()) call.heads = call.kv_heads = 1;
  call.batch = 1 + draws.below(3);
  if (!fits()) call.batch = 1;
  for (Layout& layout : call.layouts)
    if (draws.one_in(2)) layout = static_cast<Layout>(draws.below(6));
  if (draws.one_in(3)) call.scale = 0.05 * static_cast<double>(1 + draws.below(10));
  call.with_lse = draws.one_in(3);

  const std::int64_t mask = draws.below(8);  // none in half of the calls
  if (mask < 4) call.mask = static_cast<Mask>(1 + mask);
  if (call.mask == Mask::kPadding) call.mask_sizes = {call.batch, 1, 1, call.keys};
  if (call.mask == Mask::kBool || call.mask == Mask::kFloat || call.mask == Mask::kLearned) {
    call.mask_sizes = {call.batch, call.heads, call.length, call.keys};
    call.mask_sizes.erase(call.mask_sizes.begin(), call.mask_sizes.begin() + draws.below(3));
    for (std::int64_t& size : call.mask_sizes)
      if (draws.one_in(3)) size = 1;
    call.mask_has_infinity = call.mask != Mask::kBool && draws.one_in(2);
  }
  if (draws.one_in(2)) return call;  // half of the calls have no option that ATen's kernels lack

  if (draws.one_in(4)) call.value_dim = 1 + draws.below(40);
  if (draws.one_in(3)) call.window = {draws.below(call.keys + 2) - 1, draws.below(call.length + 2) - 1};
  if (draws.one_in(3)) call.softcap = 0.5 + 0.25 * static_cast<double>(draws.below(8));
  if (draws.one_in(8)) call.scale = -0.1;
  if (draws.one_in(3)) {
    call.slopes = draws.one_in(2) ? Slopes::kFixed : Slopes::kLearned;
    call.slopes_sizes = draws.one_in(2) ? Sizes{call.heads} : Sizes{call.batch, call.heads};
  }
  if (draws.one_in(4)) {
    call.batch = 1;
    if (call.slopes_sizes.size() == 2) call.slopes_sizes[0] = 1;
    if (call.mask_sizes.size() == 4) call.mask_sizes[0] = 1;
    const std::int64_t sequences = 1 + draws.below(4);
    const auto offsets = [&](std::int64_t length) {
      std::vector<std::int32_t> ends{0, static_cast<std::int32_t>(length)};
      for (std::int64_t i = 1; i < sequences; ++i) ends.push_back(static_cast<std::int32_t>(draws.below(length + 1)));
      std::sort(ends.begin(), ends.end());
      return ends;
    };
    call.query_offsets = offsets(call.length);
    call.key_offsets = offsets(call.keys);
  }
  return call;
}

/// The leaves of a call, in float64 but rounded to its dtype: query, key, value, and the mask and slopes if they are
/// defined.
struct Inputs {
  std::vector<torch::Tensor> query_key_value;
  torch::Tensor mask, slopes;

  explicit Inputs(const Call& call) {
    const Sizes sizes[] = {{call.batch, call.heads, call.length, call.width},
                           {call.batch, call.kv_heads, call.keys, call.width},
                           {call.batch, call.kv_heads, call.keys, call.value_dim}};
    const auto rounded = [&](const Sizes& of) {
      return torch::randn(of, torch::kDouble).to(call.dtype).to(torch::kDouble);
    };
    for (int i = 0; i < 3; ++i) {
      Sizes stored = sizes[i];
      if (call.layouts[i] == Layout::kExpanded) stored[0] = stored[1] = 1;
      query_key_value.push_back(rounded(stored));
    }
    if (call.mask == Mask::kBool) mask = torch::rand(call.mask_sizes) < 0.7;
    if (call.mask == Mask::kPadding)
      mask = torch::arange(call.keys) < torch::randint(call.keys + 1, {call.batch, 1, 1, 1});
    if (call.mask == Mask::kFloat || call.mask == Mask::kLearned) mask = rounded(call.mask_sizes);
    if (call.mask_has_infinity)
      mask.masked_fill_(torch::rand(call.mask_sizes) < 0.2, -std::numeric_limits<double>::infinity());
    if (call.slopes != Slopes::kNone) slopes = 0.1 * torch::rand(call.slopes_sizes, torch::kDouble);
    if (slopes.defined()) slopes = slopes.to(call.dtype).to(torch::kDouble);
  }
};

/// The results of a call: output, log-sum-exp if requested, and the gradients.
using Results = std::vector<torch::Tensor>;

torch::Tensor arranged(const torch::Tensor& leaf, Layout layout, std::int64_t batch, std::int64_t heads) {
  switch (layout) {
    case Layout::kContiguous:
      return leaf;
    case Layout::kChannelsFirst:
      return leaf.transpose(2, 3).contiguous().transpose(2, 3);
    case Layout::kHeadsLast:
      return leaf.transpose(1, 2).contiguous().transpose(1, 2);
    case Layout::kEveryOther:
      return torch::stack({leaf, leaf.detach()}, 4).select(4, 0);
    case Layout::kPartOfRow:
      return torch::cat({leaf, leaf.detach()}, 3).slice(3, 0, leaf.size(3));
    case Layout::kExpanded:
      return leaf.expand({batch, heads, -1, -1});
  }
  return {};
}

/// Calls `compute(query, key, value, mask, slopes)` in a dtype and differentiates its results.
template <class Compute>
Results with_gradients(const Call& call, const Inputs& inputs, at::ScalarType dtype, const Results& output_gradients,
                       const Compute& compute) {
  Results leaves;
  const auto leaf = [&](const torch::Tensor& tensor) {
    leaves.push_back(tensor.to(dtype, /*non_blocking=*/false, /*copy=*/true).requires_grad_());
    return leaves.back();
  };
  Results in;
  for (int i = 0; i < 3; ++i)
    in.push_back(
        arranged(leaf(inputs.query_key_value[i]), call.layouts[i], call.batch, i == 0 ? call.heads : call.kv_heads));
  torch::Tensor mask = inputs.mask, slopes = inputs.slopes;
  if (call.mask == Mask::kFloat) mask = mask.to(dtype);
  if (call.mask == Mask::kLearned) mask = leaf(mask);
  if (call.slopes == Slopes::kFixed) slopes = slopes.to(dtype);
  if (call.slopes == Slopes::kLearned) slopes = leaf(slopes);

  const AttentionResult result = compute(in[0], in[1], in[2], mask, slopes);
  Results outputs{result.output};
  if (call.with_lse) outputs.push_back(result.log_sum_exp);
  Results gradients;
  for (std::size_t i = 0; i < outputs.size(); ++i)
    gradients.push_back(output_gradients[i].to(outputs[i].scalar_type()));
  for (const torch::Tensor& gradient : torch::autograd::grad(outputs, leaves, gradients)) outputs.push_back(gradient);
  return outputs;
}

/// Which keys a query may attend to by position, bool (L, S), and the distances, float64 (L, S).
std::pair<torch::Tensor, torch::Tensor> allowed_and_distance(const Call& call) {
  torch::Tensor allowed = torch::zeros({call.length, call.keys}, torch::kBool);
  torch::Tensor distance = torch::zeros({call.length, call.keys}, torch::kDouble);
  std::vector<std::int32_t> queries = call.query_offsets, keys = call.key_offsets;
  if (queries.empty()) queries = {0, static_cast<std::int32_t>(call.length)};
  if (keys.empty()) keys = {0, static_cast<std::int32_t>(call.keys)};
  for (std::size_t sequence = 0; sequence + 1 < queries.size(); ++sequence) {
    for (std::int64_t i = queries[sequence]; i < queries[sequence + 1]; ++i) {
      for (std::int64_t j = keys[sequence]; j < keys[sequence + 1]; ++j) {
        // The last query is aligned with the last key.
        const std::int64_t ahead = (j - keys[sequence + 1]) - (i - queries[sequence + 1]);
        allowed.mutable_data_ptr<bool>()[i * call.keys + j] = (!call.is_causal || ahead <= 0) &&
                                                              (call.window.left < 0 || ahead >= -call.window.left) &&
                                                              (call.window.right < 0 || ahead <= call.window.right);
        distance.mutable_data_ptr<double>()[i * call.keys + j] = static_cast<double>(std::abs(ahead));
      }
    }
  }
  return {allowed, distance};
}

/// The dense formula in the dtype of its arguments, with every option of a call.
AttentionResult dense(const Call& call, const torch::Tensor& query, const torch::Tensor& key,
                      const torch::Tensor& value, const torch::Tensor& mask, const torch::Tensor& slopes) {
  auto [allowed, distance] = allowed_and_distance(call);
  if (mask.defined())
    allowed = allowed.logical_and(mask.scalar_type() == torch::kBool ? mask : mask.isneginf().logical_not());
  const auto change = [&, distance = distance](torch::Tensor scores, const attend::test::Grid&, const Results&) {
    if (call.softcap > 0.0) scores = call.softcap * torch::tanh(scores / call.softcap);
    if (slopes.defined()) scores = scores - slopes.unsqueeze(-1).unsqueeze(-1) * distance.to(scores.scalar_type());
    if (mask.defined() && mask.scalar_type() != torch::kBool) scores = scores + mask.masked_fill(mask.isneginf(), 0.0);
    return scores;
  };
  return attend::test::dense({query, key, value}, change, allowed_by(allowed),
                             call.scale != 0.0 ? std::make_optional(call.scale) : std::nullopt);
}

struct OurResults {
  Backend backend;  // that computed them
  Results results;
};

/// std::nullopt if the backend cannot run the call.
std::optional<OurResults> ours(const Call& call, const Inputs& inputs, const Results& output_gradients,
                               Backend backend) try {
  Backend taken = backend;
  const Results results =
      with_gradients(call, inputs, call.dtype, output_gradients,
                     [&](const auto& query, const auto& key, const auto& value, const auto& mask, const auto& slopes) {
                       AttentionOptions options = AttentionOptions().backend(backend).is_causal(call.is_causal);
                       options.window(call.window).softcap(call.softcap).attn_mask(mask).alibi_slopes(slopes);
                       if (call.scale != 0.0) options.scale(call.scale);
                       if (!call.query_offsets.empty())
                         options.query_offsets(torch::tensor(call.query_offsets, torch::kInt))
                             .key_offsets(torch::tensor(call.key_offsets, torch::kInt));
                       taken = attend::explain(query, key, value, options, call.with_lse).backend;
                       if (call.with_lse) return attend::attention_with_lse(query, key, value, options);
                       return AttentionResult{attend::attention(query, key, value, options), {}};
                     });
  return OurResults{taken, results};
} catch (const c10::NotImplementedError&) {
  return std::nullopt;
}

}  // namespace

TEST_CASE("attention: 500 random calls are as accurate as torch's dense operations, forward and backward") {
  const attend::test::CallNumbers wanted = attend::test::wanted_calls(500);
  std::map<Backend, int> calls;  // by the backend that computed them
  std::map<Backend, Accuracy> accuracy;
  for (std::uint32_t number = wanted.begin; number < wanted.end; ++number) {
    const Call call = random_call(number);
    INFO(call);
    INFO(attend::test::replay(number));
    torch::manual_seed(number);
    const Inputs inputs(call);
    const auto rounded = [&](const Sizes& sizes) { return torch::randn(sizes, torch::kDouble).to(call.dtype); };
    const Results output_gradients{rounded({call.batch, call.heads, call.length, call.value_dim}),
                                   rounded({call.batch, call.heads, call.length})};
    const auto formula = [&](const auto&... arguments) { return dense(call, arguments...); };
    const Results exact = with_gradients(call, inputs, torch::kDouble, output_gradients, formula);
    const Results plain =
        call.dtype == torch::kDouble ? exact : with_gradients(call, inputs, call.dtype, output_gradients, formula);

    const auto check = [&](const Results& results, Backend backend) {
      REQUIRE(results.size() == exact.size());
      for (std::size_t i = 0; i < exact.size(); ++i) {
        CAPTURE(i);  // output, log-sum-exp if any, then gradients of query, key, value, mask, slopes
        const bool is_log_sum_exp = call.with_lse && i == 1;
        const std::size_t first_gradient = call.with_lse ? 2 : 1;
        // With one key the dense formula's gradients of query and key are exactly zero, and no multiple of zero
        // allows ATen's rounding errors.
        if (backend == Backend::kSdpa && call.dtype != torch::kDouble && call.keys == 1 &&
            (i == first_gradient || i == first_gradient + 1))
          continue;
        if (call.dtype == torch::kDouble) {
          check_equal_in_float64(results[i], exact[i]);
          continue;
        }
        const torch::Tensor dense = is_log_sum_exp ? plain[i].to(torch::kFloat) : plain[i];
        if (backend == Backend::kReference)
          check_as_accurate_as(dense, results[i], exact[i]);
        else
          accuracy[backend].check(i == 0           ? "output"
                                  : is_log_sum_exp ? "log-sum-exp"
                                                   : "gradient " + std::to_string(i - first_gradient),
                                  dense, results[i], exact[i],
                                  i == 0 || is_log_sum_exp || backend != Backend::kSdpa ? kOurFactor : kAtensFactor);
      }
    };
    std::set<Backend> computed;
    for (const Backend backend : kAllBackends) {
      if (computed.count(backend) > 0) continue;  // kAuto has used it
      const std::optional<OurResults> given = ours(call, inputs, output_gradients, backend);
      CHECK((given || backend == Backend::kSdpa));
      if (!given) continue;
      CAPTURE(given->backend);
      check(given->results, given->backend);
      computed.insert(given->backend);
      ++calls[given->backend];
    }
  }
  if (!wanted.are_all) return;
  for (const auto& entry : accuracy) {
    CAPTURE(entry.first);
    entry.second.check_results_of_few_numbers();
  }
  CHECK(calls[Backend::kReference] == 500);
  CHECK(calls[Backend::kCpu] == 500);
  CHECK(calls[Backend::kSdpa] >= 160);  // otherwise too little was tested
}

}  // namespace parity_test
