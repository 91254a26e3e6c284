// SPDX-License-Identifier: MIT

// Compares results and gradients of 500 random calls of flex_attention() by kAuto with kReference in float64. A call is
// a function of its number alone, and a failure prints the call. flex_attention_test.cpp compares kReference with
// torch's operators.

#include <attend/flex_attention.h>

#include "support/accuracy.h"
#include "support/dense.h"
#include "support/draws.h"
#include "support/environment.h"
#include "support/structs.h"

#include <doctest/doctest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

using attend::AttentionOptions;
using attend::AttentionResult;
using attend::Backend;
using attend::Coordinate;
using attend::test::allowed_by;
using attend::test::check_as_accurate_as;
using attend::test::check_equal_in_float64;
using attend::test::SameParity;
using attend::test::SoftSign;

namespace flex_parity_test {
namespace {

using Sizes = std::vector<std::int64_t>;
using Tensors = std::vector<torch::Tensor>;

struct Call {
  std::uint32_t number;
  at::ScalarType dtype;
  std::size_t structs = 0;  // index in kStructs
  int score = 0, mask = 0;  // the kinds of AnyScore and AnyMask
  std::int64_t batch, heads, kv_heads, length, keys, width, value_dim;
  bool is_causal = false;
  attend::Window window = {};
  double scale = 0.0;  // 0 for kInverseSqrt
  double softcap = 0.0;
  bool has_bool_mask = false, has_float_mask = false, has_slopes = false;
  std::vector<std::int32_t> query_offsets = {}, key_offsets = {};  // of a packed batch
  bool with_lse = false;
};

std::ostream& operator<<(std::ostream& stream, const Call& call) {
  return stream << "call " << call.number << ": " << call.dtype << " structs " << call.structs << " score "
                << call.score << " mask " << call.mask << " N " << call.batch << " H " << call.heads << " G "
                << call.kv_heads << " L " << call.length << " S " << call.keys << " D " << call.width << " Dv "
                << call.value_dim << (call.is_causal ? " causal " : " ") << call.window << " scale " << call.scale
                << " softcap " << call.softcap << (call.has_bool_mask ? " bool mask" : "")
                << (call.has_float_mask ? " float mask" : "") << (call.has_slopes ? " slopes" : "") << " packed "
                << call.query_offsets << ' ' << call.key_offsets << (call.with_lse ? " with lse" : "");
}

// ---- The structs ---------------------------------------------------------------------------------------------------

// Structs whose kind is chosen at run time, so that one instantiation covers every combination; and structs composed as
// a user composes them.

constexpr int kScoreKinds = 10, kMaskKinds = 12;

template <class Alibi, class Relative, class Dense>
struct AnyScore {
  int kind;
  Alibi alibi;
  Relative relative;
  Dense dense;

  template <class T>
  T operator()(T score, Coordinate at) const requires attend::detail::ChangesScore<Alibi, T> {
    const T distance = abs(T(at.query_position() - at.key));
    switch (kind) {
      case 0:
        return score;
      case 1:
        return SoftSign{1}(score, at);
      case 2:
        return score * exp(-0.05 * distance);
      case 3:
        return alibi(score, at);
      case 4:
        return relative(score, at);
      case 5:
        return dense(score, at);
      case 6:
        return attend::Softcap{2}(alibi(relative(score, at), at), at);
      case 7:
        return score - log(1 + distance);
      case 8:
        return sqrt(score * score + 1) * T(at.head + 1) / T(at.batch + 2);
      default:
        return alibi(score, at) * exp(dense(T(0), at) / 4);
    }
  }
  auto bind(attend::Binder& binder) const requires attend::detail::Bindable<Alibi> {
    auto bound_alibi = alibi.bind(binder);
    auto bound_relative = relative.bind(binder);
    auto bound_dense = dense.bind(binder);
    return AnyScore<decltype(bound_alibi), decltype(bound_relative), decltype(bound_dense)>{
        kind, bound_alibi, bound_relative, bound_dense};
  }
};

template <class Document, class KeyPadding>
struct AnyMask {
  int kind;
  Document document;
  KeyPadding padding;

  bool operator()(Coordinate at) const requires attend::detail::MaskFunction<Document> {
    bool result = true;
    with_mask([&](const auto& mask) { result = mask(at); });
    return result;
  }
  attend::KeyRange keys(attend::QueryBlock block) const requires attend::detail::MaskFunction<Document> {
    attend::KeyRange result{0, 0};
    with_mask([&](const auto& mask) { result = attend::detail::key_range(mask, block); });
    return result;
  }
  auto bind(attend::Binder& binder) const requires attend::detail::Bindable<Document> {
    auto bound_document = document.bind(binder);
    auto bound_padding = padding.bind(binder);
    return AnyMask<decltype(bound_document), decltype(bound_padding)>{kind, bound_document, bound_padding};
  }

 private:
  template <class Action>
  void with_mask(const Action& action) const {
    using attend::Causal, attend::PrefixLM, attend::SlidingWindow;
    switch (kind) {
      case 0:
        return action(attend::EveryKey{});
      case 1:
        return action(Causal{});
      case 2:
        return action(SlidingWindow(9, 0));
      case 3:
        return action(SlidingWindow(3, 20));
      case 4:
        return action(PrefixLM(11));
      case 5:
        return action(document);
      case 6:
        return action(document & Causal{});
      case 7:
        return action(padding);
      case 8:
        return action(padding & SlidingWindow(-1, 6) & SameParity{});
      case 9:
        return action(document | SlidingWindow(1, 1));
      case 10:
        return action(Causal{} & !SlidingWindow(7, -1));
      default:
        return action(padding & !document);
    }
  }
};

/// Query, key, value; slopes (H), table (H, 2M + 1) and bias (H, L, S) of the score_mod; slopes and mask of the
/// options.
enum Leaf { kQuery, kKey, kValue, kSlopes, kTable, kBias, kOptionSlopes, kOptionMask, kLeaves };

/// The tensors that are not differentiated.
struct Fixed {
  torch::Tensor query_documents, key_documents, lengths, bool_mask;
};

/// flex_attention, or its dense form in the dtype of the leaves.
using Compute = std::function<AttentionResult(const Call&, const Tensors&, const Fixed&, const AttentionOptions&)>;

struct Structs {
  Compute flex, dense;
};

torch::Tensor option_allowed(const Call& call, const Fixed& fixed, const torch::Tensor& ahead) {
  torch::Tensor allowed = torch::ones_like(ahead, torch::kBool);
  if (call.is_causal) allowed = allowed.logical_and(ahead <= 0);
  if (call.window.left >= 0) allowed = allowed.logical_and(ahead >= -call.window.left);
  if (call.window.right >= 0) allowed = allowed.logical_and(ahead <= call.window.right);
  return call.has_bool_mask ? allowed.logical_and(fixed.bool_mask) : allowed;
}

/// `make_score(call, leaves)` and `make_mask(call, fixed)` give the structs.
template <class MakeScore, class MakeMask>
Structs structs(const MakeScore& make_score, const MakeMask& make_mask) {
  const auto flex = [=](const Call& call, const Tensors& in, const Fixed& fixed, const AttentionOptions& options) {
    const auto score = make_score(call, in);
    const auto mask = make_mask(call, fixed);
    if (options.backend() == Backend::kAuto)
      CHECK(attend::explain_flex(in[kQuery], in[kKey], in[kValue], score, mask, options).backend == Backend::kCpu);
    if (call.with_lse) return attend::flex_attention_with_lse(in[kQuery], in[kKey], in[kValue], score, mask, options);
    return AttentionResult{attend::flex_attention(in[kQuery], in[kKey], in[kValue], score, mask, options), {}};
  };
  // The dense form only gives the allowed error in float32 and lower, so it may take values from the library.
  const auto dense = [=](const Call& call, const Tensors& in, const Fixed& fixed, const AttentionOptions&) {
    const torch::Tensor position = torch::arange(call.length).unsqueeze(1) + (call.keys - call.length);
    const torch::Tensor ahead = torch::arange(call.keys) - position;  // (L, S)
    auto score_mod = make_score(call, in);
    auto mask_mod = make_mask(call, fixed);
    attend::detail::TypedVariant<decltype(score_mod), decltype(mask_mod)> variant(score_mod, mask_mod);
    const attend::AttentionSizes sizes{call.batch, call.heads, call.length, call.keys};
    const Tensors tensors = variant.tensors(sizes, torch::kCPU);
    const auto change = [&](torch::Tensor scores, const attend::test::Grid&, const Tensors&) {
      if (call.softcap > 0) scores = call.softcap * torch::tanh(scores / call.softcap);
      if (call.has_slopes) scores = scores - in[kOptionSlopes].view({-1, 1, 1}) * ahead.abs().to(scores.scalar_type());
      if (call.has_float_mask) scores = scores + in[kOptionMask];
      return variant.change(scores.to(scores.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat),
                            tensors, /*key_lengths=*/{});
    };
    const torch::Tensor allowed = variant.mask(sizes, tensors, {}).logical_and(option_allowed(call, fixed, ahead));
    AttentionResult result = attend::test::dense({in[kQuery], in[kKey], in[kValue]}, change, allowed_by(allowed),
                                                 call.scale != 0 ? std::make_optional(call.scale) : std::nullopt);
    if (!call.with_lse) result.log_sum_exp = torch::Tensor();
    return result;
  };
  return {flex, dense};
}

const Structs kStructs[] = {
    structs(
        [](const Call& call, const Tensors& in) {
          return AnyScore<attend::Alibi, attend::RelativeBias, attend::DenseBias>{
              call.score, attend::Alibi(in[kSlopes]), attend::RelativeBias(in[kTable]), attend::DenseBias(in[kBias])};
        },
        [](const Call& call, const Fixed& fixed) {
          return AnyMask<attend::Document, attend::KeyPadding>{
              call.mask, attend::Document(fixed.query_documents, fixed.key_documents),
              attend::KeyPadding(fixed.lengths)};
        }),
    structs([](const Call&, const Tensors&) { return attend::Unchanged{}; },
            [](const Call&, const Fixed&) { return attend::Causal{}; }),
    structs([](const Call&, const Tensors&) { return attend::Unchanged{}; },
            [](const Call&, const Fixed& fixed) {
              return attend::Document(fixed.query_documents, fixed.key_documents) | attend::SlidingWindow(0, 0);
            }),
    structs([](const Call&, const Tensors&) { return SoftSign{0.5f}; },
            [](const Call&, const Fixed&) { return SameParity{} & attend::Causal{}; }),
    structs([](const Call&, const Tensors&) { return SoftSign{2}; },
            [](const Call&, const Fixed&) { return attend::EveryKey{}; }),
    structs([](const Call&, const Tensors& in) { return attend::Alibi(in[kSlopes]); },
            [](const Call&, const Fixed&) { return attend::SlidingWindow(12, 2); }),
    structs(
        [](const Call&, const Tensors& in) {
          return attend::then(attend::Softcap{3}, attend::RelativeBias(in[kTable]), attend::DenseBias(in[kBias]));
        },
        [](const Call&, const Fixed& fixed) { return attend::KeyPadding(fixed.lengths) & !attend::PrefixLM(2); }),
};

// ---- Random calls ---------------------------------------------------------------------------------------------------

Call random_call(std::uint32_t number) {
  attend::test::Draws draws(number);
  struct Heads {
    std::int64_t heads, kv_heads;
  };
  const Heads drawn = draws.one_of(std::vector<Heads>{{1, 1}, {2, 2}, {2, 1}, {3, 3}, {4, 2}, {3, 1}});
  Call call{
      .number = number,
      .dtype = draws.one_of(std::vector{torch::kDouble, torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}),
      .batch = 1 + draws.below(2),
      .heads = drawn.heads,
      .kv_heads = drawn.kv_heads,
      .length = draws.one_in(3) ? draws.one_of(Sizes{1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65}) : 1 + draws.below(70),
      .keys = draws.one_in(3) ? draws.one_of(Sizes{1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65}) : 1 + draws.below(70),
      .width = 1 + draws.below(40),
      .value_dim = 1 + draws.below(40)};
  if (draws.one_in(3)) call.keys = call.length;
  if (draws.one_in(3)) call.value_dim = call.width;
  if (call.heads * call.length * call.keys > 1 << 13) call.batch = 1;
  if (draws.one_in(3)) call.structs = static_cast<std::size_t>(1 + draws.below(std::size(kStructs) - 1));
  call.score = static_cast<int>(draws.below(kScoreKinds));
  call.mask = static_cast<int>(draws.below(kMaskKinds));
  call.with_lse = draws.one_in(3);
  if (draws.one_in(2)) return call;  // half of the calls have no further option

  call.is_causal = draws.one_in(4);
  if (draws.one_in(4)) call.window = {draws.below(call.keys + 2) - 1, draws.below(call.length + 2) - 1};
  if (draws.one_in(4)) call.scale = draws.one_in(3) ? -0.25 : 0.5;
  if (draws.one_in(4)) call.softcap = 0.5 + 0.25 * static_cast<double>(draws.below(8));
  call.has_bool_mask = draws.one_in(4);
  call.has_float_mask = !call.has_bool_mask && draws.one_in(4);
  call.has_slopes = draws.one_in(4);
  // Packed batches are float64 only: the dense formula of the other dtypes does not support them.
  if (call.dtype == torch::kDouble && draws.one_in(4)) {
    call.batch = 1;
    const auto offsets = [&](std::int64_t length) {
      std::vector<std::int32_t> ends{0, static_cast<std::int32_t>(length)};
      for (int i = 0; i < 2; ++i) ends.push_back(static_cast<std::int32_t>(draws.below(length + 1)));
      std::sort(ends.begin(), ends.end());
      return ends;
    };
    call.query_offsets = offsets(call.length);
    call.key_offsets = offsets(call.keys);
  }
  return call;
}

/// The leaves of a call, in float64 but rounded to its dtype.
Tensors leaves_of(const Call& call) {
  Tensors leaves(kLeaves);
  const auto rounded = [&](const Sizes& sizes) {
    return torch::randn(sizes, torch::kDouble).to(call.dtype).to(torch::kDouble);
  };
  leaves[kQuery] = rounded({call.batch, call.heads, call.length, call.width});
  leaves[kKey] = rounded({call.batch, call.kv_heads, call.keys, call.width});
  leaves[kValue] = rounded({call.batch, call.kv_heads, call.keys, call.value_dim});
  leaves[kSlopes] = (rounded({call.heads}) / 8).to(call.dtype).to(torch::kDouble);
  leaves[kTable] = rounded({call.heads, 2 * (call.length / 3) + 1});
  leaves[kBias] = rounded({call.heads, call.length, call.keys});
  leaves[kOptionSlopes] = (rounded({call.heads}) / 8).to(call.dtype).to(torch::kDouble);
  leaves[kOptionMask] = rounded({call.length, call.keys});
  return leaves;
}

Fixed fixed_of(const Call& call) {
  const auto documents = [&](std::int64_t length) {
    const torch::Tensor random = torch::randint(0, 4, {call.batch, length});
    return call.number % 3 == 0 ? random : std::get<0>(random.sort(-1));
  };
  const torch::Tensor queries = documents(call.length);
  return {queries, call.length == call.keys ? queries : documents(call.keys),
          torch::randint(0, call.keys + 3, {call.batch}), torch::rand({call.length, call.keys}) < 0.7};
}

/// Output, log-sum-exp if any, and the gradients of all leaves that it depends on, by name.
std::map<std::string, torch::Tensor> results_of(const Compute& compute, const Call& call, const Fixed& fixed,
                                                at::ScalarType dtype, Backend backend) {
  static const char* const kNames[] = {"query", "key",  "value",         "slopes",
                                       "table", "bias", "option slopes", "option mask"};
  torch::manual_seed(call.number);
  Tensors leaves = leaves_of(call);
  for (torch::Tensor& leaf : leaves) leaf = leaf.to(dtype).requires_grad_();
  AttentionOptions options = AttentionOptions().backend(backend).is_causal(call.is_causal).window(call.window);
  options.softcap(call.softcap);
  if (call.scale != 0) options.scale(call.scale);
  if (call.has_bool_mask) options.attn_mask(fixed.bool_mask);
  if (call.has_float_mask) options.attn_mask(leaves[kOptionMask]);
  if (call.has_slopes) options.alibi_slopes(leaves[kOptionSlopes]);
  if (!call.query_offsets.empty())
    options.query_offsets(torch::tensor(call.query_offsets, torch::kInt))
        .key_offsets(torch::tensor(call.key_offsets, torch::kInt));

  const AttentionResult result = compute(call, leaves, fixed, options);
  std::map<std::string, torch::Tensor> results{{"output", result.output}};
  Tensors outputs{result.output}, given;
  if (call.with_lse) {
    results["log_sum_exp"] = result.log_sum_exp;
    outputs.push_back(result.log_sum_exp.masked_fill(result.log_sum_exp.isneginf(), 0.0));
  }
  for (const torch::Tensor& output : outputs)
    given.push_back(torch::randn(output.sizes(), torch::kDouble).to(call.dtype).to(output.scalar_type()));
  const Tensors gradients = torch::autograd::grad(outputs, leaves, given, /*retain_graph=*/std::nullopt,
                                                  /*create_graph=*/false, /*allow_unused=*/true);
  for (std::size_t i = 0; i < gradients.size(); ++i)
    if (gradients[i].defined()) results[std::string("gradient of ") + kNames[i]] = gradients[i];
  return results;
}

}  // namespace

TEST_CASE("flex_attention: 500 random calls equal kReference in float64, and are accurate in other dtypes") {
  const auto finite = [](const torch::Tensor& tensor) { return tensor.masked_fill(tensor.isinf(), 0.0); };
  const attend::test::CallNumbers wanted = attend::test::wanted_calls(500);
  int calls_in_float64 = 0;
  for (std::uint32_t number = wanted.begin; number < wanted.end; ++number) {
    const Call call = random_call(number);
    INFO(call);
    INFO(attend::test::replay(number));
    torch::manual_seed(number);
    const Fixed fixed = fixed_of(call);
    const Structs& structs = kStructs[call.structs];
    const auto exact = results_of(structs.flex, call, fixed, torch::kDouble, Backend::kReference);
    const auto ours = results_of(structs.flex, call, fixed, call.dtype, Backend::kAuto);
    CHECK(ours.size() == exact.size());
    const auto dense =
        call.dtype == torch::kDouble ? exact : results_of(structs.dense, call, fixed, call.dtype, Backend::kReference);
    for (const auto& result : exact) {
      const std::string& name = result.first;
      const torch::Tensor& expected = result.second;
      CAPTURE(name);
      REQUIRE(ours.count(name) == 1);
      REQUIRE(dense.count(name) == 1);
      const torch::Tensor& our = ours.at(name);
      CHECK(our.isinf().equal(expected.isinf()));
      if (call.dtype == torch::kDouble)
        check_equal_in_float64(finite(our), finite(expected));
      else
        check_as_accurate_as(finite(dense.at(name).to(our.scalar_type())), finite(our), finite(expected));
    }
    calls_in_float64 += call.dtype == torch::kDouble;
  }
  if (wanted.are_all) CHECK(calls_in_float64 > 150);  // otherwise too little was tested
}

}  // namespace flex_parity_test
