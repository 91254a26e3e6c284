// SPDX-License-Identifier: MIT

// Tests score_mods and mask_mods that read tensors: their gradients, and reads outside a tensor.

#include <attend/flex_attention.h>

#include "flex_attention/support.h"
#include "support/accuracy.h"
#include "support/backends.h"
#include "support/dense.h"
#include "support/errors.h"
#include "support/grid.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using attend::AttentionOptions;
using attend::Backend;
using attend::Coordinate;
using attend::EveryKey;
using attend::test::calls_of;
using attend::test::causal;
using attend::test::check_equals_dense;
using attend::test::check_throws;
using attend::test::everywhere;
using attend::test::Grid;
using attend::test::kReferenceAndAuto;
using attend::test::max_difference;
using attend::test::random;
using attend::test::Tensors;

namespace flex_attention_tensor_view_test {
namespace {

/// Adds the sum of two values of one view.
struct TwoOfOneView {
  torch::Tensor bias;  // (at least S + 1)

  struct View {
    attend::TensorView bias;

    template <class T>
    T operator()(T score, Coordinate at) const {
      return score + bias.read<T>(at.key) + bias.read<T>(at.key + 1);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(bias)}; }
};

/// Uses the product of two values of one view.
struct ProductOfOneView {
  torch::Tensor bias;

  struct View {
    attend::TensorView bias;

    template <class T>
    T operator()(T score, Coordinate at) const {
      return score * bias.read<T>(at.query) + bias.read<T>(at.query) * bias.read<T>(at.key);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(bias)}; }
};

/// Adds a value for each distance to an earlier key.
struct DistanceTable {
  torch::Tensor table;

  struct View {
    attend::TensorView table;

    template <class T>
    T operator()(T score, Coordinate at) const {
      return score + table.read<T>(at.query_position() - at.key);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(table)}; }
};

/// Multiplies by a value for each distance. For later keys the derivative with respect to the score is NaN.
struct DistanceFactor {
  torch::Tensor table;

  struct View {
    attend::TensorView table;

    template <class T>
    T operator()(T score, Coordinate at) const {
      return score * table.read<T>(at.query_position() - at.key);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(table)}; }
};

struct LearnedNumber {
  torch::Tensor number;  // ()

  struct View {
    attend::TensorView number;

    template <class T>
    T operator()(T score, Coordinate) const {
      return score * number.read<T>() + number.read<T>();
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(number)}; }
};

struct Functions {
  torch::Tensor number;  // ()

  struct View {
    attend::TensorView number;

    template <class T>
    T operator()(T score, Coordinate) const {
      const T a = number.read<T>();
      return sin(score * a) + cos(score) + tan(score * 0.1) + sigmoid(score + a) + erf(score * a) +
             pow(abs(score) + 1, a) + floor(score) + round(score);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(number)}; }
};

/// Adds integers by query and key.
struct Shift {
  torch::Tensor numbers;

  struct View {
    attend::IntegerView numbers;

    template <class T>
    T operator()(T score, Coordinate at) const {
      return score + numbers.read(at.query + at.key);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.integers(numbers)}; }
};

/// A mask given as a table, (N, L, S) or (N, H, L, S).
struct MaskTable {
  torch::Tensor allowed;

  struct View {
    attend::IntegerView allowed;
    bool has_heads;

    bool operator()(Coordinate at) const {
      return (has_heads ? allowed.read(at.batch, at.head, at.query, at.key)
                        : allowed.read(at.batch, at.query, at.key)) != 0;
    }
  };

  View bind(attend::Binder& binder) const { return {binder.integers(allowed), allowed.dim() == 4}; }
};

/// The product of two values, each read through its own view.
struct TwoViews {
  torch::Tensor bias;

  struct View {
    attend::TensorView first, second;

    template <class T>
    T operator()(T score, Coordinate at) const {
      return score + first.read<T>(at.key) * second.read<T>(at.key + 1);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(bias), binder.values(bias)}; }
};

/// Reads two values of one view, but the result depends on only one of them.
struct EitherOfOneView {
  torch::Tensor bias;

  struct View {
    attend::TensorView bias;

    template <class T>
    T operator()(T score, Coordinate at) const {
      const T here = bias.read<T>(at.key), next = bias.read<T>(at.key + 1);
      return score * select(at.query % 2 == 0, here, next);
    }
  };

  View bind(attend::Binder& binder) const { return {binder.values(bias)}; }
};

}  // namespace

TEST_CASE("TensorView: a score_mod that reads two values of one tensor gets both gradients, of each order") {
  check_equals_dense({"TwoOfOneView",
                      calls_of([](const Tensors& learned) { return TwoOfOneView{learned[0]}; }, EveryKey{}),
                      [](const auto& s, const Grid&, const Tensors& learned) {
                        return s + learned[0].slice(0, 0, 7) + learned[0].slice(0, 1, 8);
                      },
                      everywhere,
                      {random({8})}});
  check_equals_dense({"ProductOfOneView",
                      calls_of([](const Tensors& learned) { return ProductOfOneView{learned[0]}; }, attend::Causal{}),
                      [](const auto& s, const Grid& at, const Tensors& learned) {
                        const torch::Tensor by_query =
                            learned[0].index_select(0, at.query.flatten().to(torch::kLong)).unsqueeze(1);
                        return s * by_query + by_query * learned[0].slice(0, 0, 7);
                      },
                      causal,
                      {random({8})}});
}

TEST_CASE("TensorView: a learned table of distances under Causal and a learned number have the right gradients") {
  check_equals_dense({"DistanceTable",
                      calls_of([](const Tensors& learned) { return DistanceTable{learned[0]}; }, attend::Causal{}),
                      [](const auto& s, const Grid& at, const Tensors& learned) {
                        const torch::Tensor distance = (-at.ahead).clamp(0).to(torch::kLong);
                        return s + learned[0].index_select(0, distance.flatten()).view(distance.sizes());
                      },
                      causal,
                      {random({8})}});
  check_equals_dense({"DistanceFactor",
                      calls_of([](const Tensors& learned) { return DistanceFactor{learned[0]}; }, attend::Causal{}),
                      [](const auto& s, const Grid& at, const Tensors& learned) {
                        const torch::Tensor distance = (-at.ahead).clamp(0).to(torch::kLong);
                        return s * learned[0].index_select(0, distance.flatten()).view(distance.sizes());
                      },
                      causal,
                      {random({8})}});
  check_equals_dense({"LearnedNumber",
                      calls_of([](const Tensors& learned) { return LearnedNumber{learned[0]}; }, EveryKey{}),
                      [](const auto& s, const Grid&, const Tensors& learned) { return s * learned[0] + learned[0]; },
                      everywhere,
                      {random({})}});
}

TEST_CASE("flex_attention: a score_mod may use sin, cos, tan, sigmoid, erf, pow, floor, round and a learned number") {
  check_equals_dense({"Functions",
                      calls_of([](const Tensors& learned) { return Functions{learned[0]}; }, EveryKey{}),
                      [](const auto& s, const Grid&, const Tensors& learned) {
                        const torch::Tensor& a = learned[0];
                        return torch::sin(s * a) + torch::cos(s) + torch::tan(s * 0.1) + torch::sigmoid(s + a) +
                               torch::erf(s * a) + torch::pow(s.abs() + 1, a) + torch::floor(s) + torch::round(s);
                      },
                      everywhere,
                      {torch::tensor(0.7, torch::kDouble)}});
}

TEST_CASE("IntegerView: a mask_mod reads tensors of three and four sizes, integer and bool") {
  torch::manual_seed(4);
  const torch::Tensor q = random({2, 2, 9, 8}), k = random({2, 2, 12, 8});
  for (const auto dtype : {torch::kBool, torch::kInt}) {
    for (const std::vector<std::int64_t>& sizes : {std::vector<std::int64_t>{2, 9, 12}, {2, 2, 9, 12}}) {
      CAPTURE(sizes.size());
      const torch::Tensor allowed = torch::rand(sizes) > 0.3;
      const torch::Tensor mask = sizes.size() == 3 ? allowed.unsqueeze(1) : allowed;
      const torch::Tensor expected =
          attend::attention(q, k, k, AttentionOptions().attn_mask(mask).backend(Backend::kReference));
      for (const Backend backend : kReferenceAndAuto)
        CHECK(max_difference(attend::flex_attention(q, k, k, attend::Unchanged{}, MaskTable{allowed.to(dtype)},
                                                    AttentionOptions().backend(backend)),
                             expected) < 1e-12);
    }
  }
}

TEST_CASE("TensorView: a read outside the tensor has no effect for a masked score, and is an error elsewhere") {
  torch::manual_seed(5);
  const std::string rule = "attend::flex_attention: a score_mod or mask_mod reads outside of its tensor: index ";
  for (const Backend backend : kReferenceAndAuto) {
    for (const auto dtype : {torch::kFloat, torch::kDouble}) {
      CAPTURE(backend);
      CAPTURE(dtype);
      const torch::Tensor x = torch::randn({2, 2, 9, 8}, dtype);
      const auto options = [&] { return AttentionOptions().backend(backend); };
      const auto table = [&](std::int64_t size) { return DistanceTable{torch::randn({size}, dtype)}; };
      const auto shifts = [](std::int64_t size) { return Shift{torch::ones({size}, torch::kInt)}; };
      const auto is_finite = [](const torch::Tensor& y) { return y.isfinite().all().item<bool>(); };
      const auto index = torch::arange(9);
      const torch::Tensor few = index.unsqueeze(1) + index < 9;

      CHECK(is_finite(attend::flex_attention(x, x, x, table(9), attend::Causal{}, options())));
      CHECK(is_finite(attend::flex_attention(x, x, x, table(9), EveryKey{}, options().is_causal(true))));
      CHECK(is_finite(attend::flex_attention(x, x, x, table(4), attend::Causal{}, options().window({3, 0}))));
      CHECK(is_finite(attend::flex_attention(x, x, x, shifts(17), EveryKey{}, options())));
      CHECK(is_finite(attend::flex_attention(x, x, x, shifts(9), EveryKey{}, options().attn_mask(few))));

      check_throws<c10::ValueError>(rule + "[-1, 0, 0, 0] of sizes [9, 1, 1, 1]",
                                    [&] { attend::flex_attention(x, x, x, table(9), EveryKey{}, options()); });
      check_throws<c10::ValueError>(rule + "[4, 0, 0, 0] of sizes [4, 1, 1, 1]",
                                    [&] { attend::flex_attention(x, x, x, table(4), attend::Causal{}, options()); });
      check_throws<c10::ValueError>(rule + "[0, 0, 0, 0] of sizes [0, 1, 1, 1]",
                                    [&] { attend::flex_attention(x, x, x, table(0), attend::Causal{}, options()); });
      check_throws<c10::ValueError>(rule + "[9, 0, 0, 0] of sizes [9, 1, 1, 1]",
                                    [&] { attend::flex_attention(x, x, x, shifts(9), EveryKey{}, options()); });

      // In a packed batch, coordinates count through all sequences, and no query attends to keys of another sequence.
      const torch::Tensor packed = x.slice(0, 0, 1), offsets = torch::tensor({0, 4, 9}, torch::kInt);
      const auto of_packed = options().is_causal(true).query_offsets(offsets).key_offsets(offsets);
      CHECK(is_finite(attend::flex_attention(packed, packed, packed, table(5), EveryKey{}, of_packed)));
      check_throws<c10::ValueError>(rule + "[4, 0, 0, 0]", [&] {
        attend::flex_attention(packed, packed, packed, table(4), EveryKey{}, of_packed);
      });

      // NaN in the caller's inputs is not reported as a read outside.
      torch::Tensor with_nan = x.clone();
      with_nan[0][0][3][0] = std::numeric_limits<double>::quiet_NaN();
      CHECK(attend::flex_attention(with_nan, x, x, table(9), attend::Causal{}, options()).isnan().any().item<bool>());
    }
  }
}

TEST_CASE("TensorView: a tensor with two views gets the gradients of both") {
  check_equals_dense({"TwoViews",
                      calls_of([](const Tensors& learned) { return TwoViews{learned[0]}; }, attend::Causal{}),
                      [](const auto& s, const Grid&, const Tensors& learned) {
                        return s + learned[0].slice(0, 0, 7) * learned[0].slice(0, 1, 8);
                      },
                      causal,
                      {random({8})}});
}

TEST_CASE("TensorView: a score_mod may read two values of one view and choose one of them") {
  check_equals_dense({"EitherOfOneView",
                      calls_of([](const Tensors& learned) { return EitherOfOneView{learned[0]}; }, attend::Causal{}),
                      [](const auto& s, const Grid& at, const Tensors& learned) {
                        const torch::Tensor here = learned[0].slice(0, 0, 7), next = learned[0].slice(0, 1, 8);
                        return s * torch::where(at.query.remainder(2) == 0, here, next);
                      },
                      causal,
                      {random({8})}});
}

}  // namespace flex_attention_tensor_view_test
