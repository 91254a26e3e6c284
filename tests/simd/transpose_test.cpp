// SPDX-License-Identifier: MIT
#include "simd/isas.h"

#include <attend/macros.h>
#include <attend/simd/transpose.h>
#include <attend/simd/vector.h>

#include <doctest/doctest.h>

#include <vector>

using namespace attend::simd;

namespace {

/// to = fromᵀ, both (kLanes, kLanes).
template <class T>
struct Transpose {
  template <class Isa>
  static ATTEND_ALWAYS_INLINE void run(const T* from, T* to) {
    VecBlock<T, Isa> block;
    ATTEND_UNROLL for (int r = 0; r < block.kLanes; ++r) Vec<T, Isa>::load(block.rows[r], from + r * block.kLanes);
    block.transpose();
    ATTEND_UNROLL for (int r = 0; r < block.kLanes; ++r) Vec<T, Isa>::store(to + r * block.kLanes, block.rows[r]);
  }
};

}  // namespace

TEST_CASE_TEMPLATE("VecBlock::transpose: rows become columns", T, float, double) {
  attend::test::for_each_isa([](auto isa) {
    constexpr int kLanes = Vec<T, decltype(isa)>::kLanes;
    std::vector<T> from(kLanes * kLanes), to(kLanes * kLanes);
    for (int i = 0; i < kLanes * kLanes; ++i) from[i] = static_cast<T>(i);
    CompiledFor<decltype(isa), Transpose<T>>::call(from.data(), to.data());
    int wrong = 0;
    for (int r = 0; r < kLanes; ++r)
      for (int c = 0; c < kLanes; ++c) wrong += to[c * kLanes + r] != from[r * kLanes + c];
    CHECK(wrong == 0);
  });
}
