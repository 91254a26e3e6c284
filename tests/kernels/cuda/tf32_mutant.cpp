// SPDX-License-Identifier: MIT

// Runs the forward and the backward pass in tf32 on the host and prints what is wrong with them. mutants_test.py
// compiles it with headers that have a planted fault.

#include "kernels/cuda/small_backward.h"
#include "kernels/cuda/small_forward.h"

namespace {

using attend::NumberType;

template <class Pass>
bool check(int L, int S, bool is_causal) {
  Pass pass(L, S, is_causal, /*dropout=*/0);
  return attend::test::run_and_print(pass) && pass.check();
}

}  // namespace

int main() {
  const bool is_right = check<attend::test::SmallForwardOf<NumberType::kFloat32>>(70, 215, /*is_causal=*/false) &&
                        check<attend::test::SmallBackwardOf<NumberType::kFloat32>>(71, 90, /*is_causal=*/true);
  return is_right ? 0 : 1;
}
