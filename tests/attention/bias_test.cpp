// SPDX-License-Identifier: MIT
#include <attend/attention/bias.h>
#include <attend/attention/materialize.h>

#include "support/derivatives.h"
#include "support/errors.h"
#include "support/grid.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

using attend::Alibi;
using attend::DenseBias;
using attend::materialize;
using attend::RelativeBias;
using attend::test::check_same_derivatives;
using attend::test::Grid;

namespace {

using Tensors = std::vector<torch::Tensor>;

torch::Tensor alibi(const torch::Tensor& slopes, const Grid& at) {
  return -slopes.unsqueeze(-1).unsqueeze(-1) * at.ahead.abs();
}

torch::Tensor relative(const torch::Tensor& table, const Grid& at) {
  const std::int64_t most = table.size(1) / 2;
  return table.index({torch::indexing::Slice(), (at.ahead.clamp(-most, most) + most).to(torch::kLong)});
}

}  // namespace

TEST_CASE("Alibi, RelativeBias, DenseBias: they equal torch's operators, with first and second derivatives") {
  torch::manual_seed(1);
  using Function = std::function<torch::Tensor(const torch::Tensor& scores, const torch::Tensor& learned)>;
  struct Case {
    std::string name;
    std::vector<std::int64_t> learned;
    std::vector<std::int64_t> scores = {2, 3, 4, 6};
  };
  const auto grid = [](const torch::Tensor& s) { return Grid(s.size(0), s.size(1), s.size(2), s.size(3)); };
  const auto check = [](const std::vector<Case>& cases, const Function& ours, const Function& expected) {
    for (const Case& c : cases) {
      CAPTURE(c.name);
      check_same_derivatives([&](const Tensors& in) { return Tensors{ours(in[0], in[1])}; },
                             [&](const Tensors& in) { return Tensors{expected(in[0], in[1])}; },
                             {torch::randn(c.scores, torch::kDouble), torch::randn(c.learned, torch::kDouble)});
    }
  };
  check(
      {{"shared slopes", {3}},
       {"slopes per batch entry", {2, 3}},
       {"as many batch entries as heads", {3, 3}, {3, 3, 4, 6}},
       {"more queries than keys", {3}, {2, 3, 7, 2}},
       {"one head", {1}, {2, 1, 5, 5}}},
      [](const auto& s, const auto& learned) { return materialize(Alibi(learned), s); },
      [=](const auto& s, const auto& learned) { return s + alibi(learned, grid(s)); });
  check(
      {{"table per head", {3, 5}},
       {"shared table", {1, 5}},
       {"of distance 0 only", {3, 1}},
       {"wider than any distance", {3, 25}},
       {"more queries than keys", {3, 7}, {2, 3, 9, 2}}},
      [](const auto& s, const auto& learned) { return materialize(RelativeBias(learned), s); },
      [=](const auto& s, const auto& learned) { return s + relative(learned, grid(s)); });
  check(
      {{"(L, S)", {4, 6}},
       {"(1, S)", {1, 6}},
       {"(L, 1)", {4, 1}},
       {"(H, L, S)", {3, 4, 6}},
       {"(H, 1, 1)", {3, 1, 1}},
       {"(N, H, L, S)", {2, 3, 4, 6}},
       {"(N, 1, 1, S)", {2, 1, 1, 6}},
       {"one value", {1, 1}},
       {"sizes of 1", {1, 1, 1, 1}, {1, 1, 1, 1}}},
      [](const auto& s, const auto& learned) { return materialize(DenseBias(learned), s); },
      [](const auto& s, const auto& learned) { return s + learned; });
}

TEST_CASE("Alibi, RelativeBias, DenseBias: learned tensors may have any strides and any floating-point dtype") {
  const torch::Tensor scores = torch::zeros({2, 3, 4, 6});
  const torch::Tensor transposed = torch::randn({6, 4}).t(), every_other = torch::randn({6}).slice(0, 0, 6, 2);
  const torch::Tensor expanded = torch::randn({1, 1}).expand({3, 9});
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16, torch::kHalf}) {
    CAPTURE(dtype);
    const auto rounded = [&](const torch::Tensor& tensor) { return tensor.to(dtype).to(torch::kFloat); };
    const Grid at(2, 3, 4, 6, torch::kFloat);
    CHECK(materialize(DenseBias(transposed.to(dtype)), scores).equal(rounded(transposed).expand({2, 3, 4, 6})));
    CHECK(
        materialize(Alibi(every_other.to(dtype)), scores).equal(alibi(rounded(every_other), at).expand({2, 3, 4, 6})));
    CHECK(materialize(RelativeBias(expanded.to(dtype)), scores)
              .equal(relative(rounded(expanded), at).expand({2, 3, 4, 6})));
  }
}

TEST_CASE("Alibi, RelativeBias, DenseBias: type and text of errors") {
  const torch::Tensor scores = torch::zeros({2, 3, 4, 5});
  const auto ask = [&](const auto& score_mod) { return [=] { materialize(score_mod, scores); }; };
  const std::string slopes = "attend::Alibi: slopes must be (H) or (N, H), with N = 2 and H = 3, got ",
                    table = "attend::RelativeBias: table must be (H, 2M + 1) or (1, 2M + 1), with H = 3, got ",
                    dims = "attend::DenseBias: bias must be 2-d (L, S), 3-d (H, L, S) or 4-d (N, H, L, S), got ";
  const attend::test::Refused cases[] = {
      {slopes + "[2]", false, ask(Alibi(torch::rand({2})))},
      {slopes + "[3, 2]", false, ask(Alibi(torch::rand({3, 2})))},
      {slopes + "[1, 3]", false, ask(Alibi(torch::rand({1, 3})))},
      {slopes + "[2, 3, 1]", false, ask(Alibi(torch::rand({2, 3, 1})))},
      {slopes + "[]", false, ask(Alibi(torch::tensor(1.0)))},
      {"attend::Alibi: slopes must be a tensor (H) or (N, H), got an undefined one", false, ask(Alibi({}))},
      {"attend::Binder: values() needs a floating-point tensor, got Long", true, ask(Alibi(torch::arange(3)))},
      {table + "[3, 4]", false, ask(RelativeBias(torch::rand({3, 4})))},
      {table + "[2, 5]", false, ask(RelativeBias(torch::rand({2, 5})))},
      {table + "[3]", false, ask(RelativeBias(torch::rand({3})))},
      {table + "[3, 0]", false, ask(RelativeBias(torch::rand({3, 0})))},
      {table + "[1, 3, 5]", false, ask(RelativeBias(torch::rand({1, 3, 5})))},
      {"attend::RelativeBias: table must be a tensor (H, 2M + 1), got an undefined one", false, ask(RelativeBias({}))},
      {"attend::Binder: values() needs a floating-point tensor, got Long", true,
       ask(RelativeBias(torch::arange(9).view({3, 3})))},
      {dims + "[5]", false, ask(DenseBias(torch::rand({5})))},
      {dims + "[1, 2, 3, 4, 5]", false, ask(DenseBias(torch::rand({1, 2, 3, 4, 5})))},
      {"attend::DenseBias: bias [5, 4] must broadcast to (N, H, L, S) = [2, 3, 4, 5]", false,
       ask(DenseBias(torch::rand({5, 4})))},
      {"attend::DenseBias: bias [2, 4, 5] must broadcast to (N, H, L, S) = [2, 3, 4, 5]", false,
       ask(DenseBias(torch::rand({2, 4, 5})))},
      {"attend::DenseBias: bias [3, 3, 4, 5] must broadcast to (N, H, L, S) = [2, 3, 4, 5]", false,
       ask(DenseBias(torch::rand({3, 3, 4, 5})))},
      {"attend::DenseBias: bias must be a tensor (L, S), got an undefined one", false, ask(DenseBias({}))},
      {"attend::Binder: values() needs a floating-point tensor, got Bool", true,
       ask(DenseBias(torch::ones({4, 5}, torch::kBool)))},
      {"attend::Binder: a tensor of a score_mod or mask_mod (meta) must be on the device of query (cpu)", false,
       ask(DenseBias(torch::empty({4, 5}, torch::kMeta)))},
  };
  for (const attend::test::Refused& each : cases) each.check();
}
