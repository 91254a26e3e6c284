// SPDX-License-Identifier: MIT
#pragma once

#include "support/structs.h"

#include <attend/kernels/flex_attention.h>
#include <attend/macros.h>

#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

namespace attend::test {

// The structs of a user. Beside each is its result, with the derivative by hand.

/// The result of a user's struct for a score: the value, the derivative by the score, and those by the entries of its
/// tables.
template <class V>
struct Changed {
  struct ByEntry {
    int tensor;
    std::int64_t place;
    V derivative;
  };
  V value, slope = 1;
  int reads = 0;
  ByEntry by[3] = {};
};

/// The tables that the structs read. T is float, or double in float64.
template <class T>
struct Tables {
  const T* bias;                 // (6, 16)
  const T* gates;                // (6)
  const std::int32_t* document;  // (queries + keys) by key position, from the first
};

template <class V>
Changed<V> by_hand(const SoftSign& soft_sign, V score, Coordinate at) {
  const V divisor = 1 + std::abs(score) * static_cast<V>(soft_sign.strength);
  return {score / divisor - static_cast<V>(0.01f) * static_cast<V>(at.query - at.key), 1 / (divisor * divisor)};
}

/// Reads through a raw pointer.
template <class Number>
struct RawBias {
  const Number* bias;
  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, Coordinate at) const {
    return tanh(score * T(0.5)) * T(3) + T(bias[(at.query + 3 * at.key) % 96]);
  }
  template <class V>
  Changed<V> by_hand(V score, Coordinate at) const {
    const V tangent = std::tanh(score * static_cast<V>(0.5));
    return {tangent * 3 + static_cast<V>(bias[(at.query + 3 * at.key) % 96]),
            static_cast<V>(1.5) * (1 - tangent * tangent)};
  }
};

/// A learned table.
struct DistanceBias {
  TensorView bias;  // (6, 16)
  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, Coordinate at) const {
    return score + bias.read<T>(at.head, column(at));
  }
  auto tensors() { return std::tie(bias); }

  ATTEND_HOST_DEVICE static std::int32_t column(Coordinate at) {
    return (at.query > at.key ? at.query - at.key : at.key - at.query) % 16;
  }
};

/// The same table, and the place of the number that is added to a score.
struct AddedBias {
  TensorView bias;  // (6, 16)
  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, Coordinate at) const {
    return score + bias.read_unchecked<T>(at.head, DistanceBias::column(at));
  }
  std::int64_t added_place(Coordinate at) const { return bias.place(at.head, DistanceBias::column(at)); }
  constexpr bool is_same_for_batch() const { return true; }
  auto tensors() { return std::tie(bias); }
};

/// Two learned tables, one of which is read twice.
struct Gated {
  TensorView gates, bias;  // (6), (6, 16)
  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, Coordinate at) const {
    return score * gates.read<T>(at.head) + bias.read<T>(at.head, at.key % 16) * bias.read<T>(0, at.query % 16);
  }
  auto tensors() { return std::tie(gates, bias); }
};

/// Keys of the same document, through a raw pointer.
struct SameDocument {
  const std::int32_t* document;
  ATTEND_HOST_DEVICE bool operator()(Coordinate at) const { return document[at.query] == document[at.key]; }
};

/// The score_mod and mask_mod of a configuration: what the kernels are given, and what the naive loop does.
template <class T>
class UserStructs {
 public:
  static constexpr int kCount = 7;

  UserStructs(int which, const Tables<T>& tables) : which_(which), tables_(tables) {}

  /// Calls action(score_mod, mask_mod).
  template <class Action>
  void visit(const Action& action) const {
    const TensorView bias(tables_.bias, {6, 16}), gates(tables_.gates, {6});
    switch (which_) {
      case 1:
        return action(soft_sign_, EveryKey{});
      case 2:
        return action(Unchanged{}, SameParity{});
      case 3:
        return action(raw_bias(), same_document());
      case 4:
        return action(AddedBias{bias}, Causal{});
      case 5:
        return action(Gated{gates, bias}, window_ & SameParity{});
      case 6:
        return action(then(soft_sign_, DistanceBias{bias}), !prefix_);
      default:
        return action(Unchanged{}, PrefixLM(5) | same_document());
    }
  }

  template <class V>
  Changed<V> by_hand(V score, Coordinate at) const {
    const auto bias = [&](std::int64_t place) { return static_cast<V>(tables_.bias[place]); };
    switch (which_) {
      case 1:
        return test::by_hand(soft_sign_, score, at);
      case 3:
        return raw_bias().by_hand(score, at);
      case 4:
      case 6: {
        Changed<V> changed = which_ == 6 ? test::by_hand(soft_sign_, score, at) : Changed<V>{score};
        const std::int64_t place = at.head * 16 + DistanceBias::column(at);
        changed.value += bias(place);
        changed.reads = 1;
        changed.by[0] = {0, place, 1};
        return changed;
      }
      case 5: {
        const V gate = static_cast<V>(tables_.gates[at.head]);
        const std::int64_t first = at.head * 16 + at.key % 16, second = at.query % 16;
        return {score * gate + bias(first) * bias(second),
                gate,
                3,
                {{0, at.head, score}, {1, first, bias(second)}, {1, second, bias(first)}}};
      }
      default:
        return {score};
    }
  }

  bool allows(Coordinate at) const {
    const std::int32_t position = at.query + at.key_length - at.query_length;
    const bool is_same = tables_.document[at.query] == tables_.document[at.key];
    const bool is_even = (at.query - at.key) % 2 == 0;
    switch (which_) {
      case 0:
      case 1:
        return true;
      case 2:
        return is_even;
      case 3:
        return is_same;
      case 4:
        return at.key <= position;
      case 5:
        return is_even && at.key >= position - 40 && at.key <= position + 7;
      case 6:
        return at.key >= 3 && at.key > position;
      default:
        return is_same || at.key < 5 || at.key <= position;
    }
  }

  /// The sizes of the tables that gradients go to.
  std::vector<std::int64_t> tensor_sizes() const {
    return which_ == 4 || which_ == 6 ? std::vector<std::int64_t>{96}
           : which_ == 5              ? std::vector<std::int64_t>{6, 96}
                                      : std::vector<std::int64_t>{};
  }

 private:
  RawBias<T> raw_bias() const { return RawBias<T>{tables_.bias}; }
  SameDocument same_document() const { return SameDocument{tables_.document}; }

  static constexpr SoftSign soft_sign_{0.5f};
  static constexpr SlidingWindow window_{40, 7};
  static constexpr PrefixLM prefix_{3};
  int which_;
  Tables<T> tables_;
};

}  // namespace attend::test
