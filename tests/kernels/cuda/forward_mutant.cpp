// SPDX-License-Identifier: MIT

// Runs the forward pass on tensor cores on the host and prints what is wrong with it. mutants_test.py compiles it with
// headers that have a planted fault.

#include "kernels/cuda/small_forward.h"

namespace {

using enum attend::RotaryLayout;

bool check(int L, int S, bool is_causal, double dropout, attend::test::SmallRotary rotary = {}) {
  attend::test::SmallForward pass(L, S, is_causal, dropout, rotary);
  return attend::test::run_and_print(pass) && pass.check();
}

}  // namespace

int main() {
  const bool is_right = check(70, 215, /*is_causal=*/false, /*dropout=*/0) &&
                        check(70, 215, /*is_causal=*/true, /*dropout=*/0) &&
                        check(40, 90, /*is_causal=*/true, /*dropout=*/0.3) &&
                        check(70, 130, /*is_causal=*/true, /*dropout=*/0, {64, kHalfSplit}) &&
                        check(40, 90, /*is_causal=*/false, /*dropout=*/0, {32, kInterleaved});
  return is_right ? 0 : 1;
}
