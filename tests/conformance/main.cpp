// SPDX-License-Identifier: MIT

// About a hundred named checks of every part of attend, which must be right with every LibTorch and every compiler.
// Each compares with plain torch operations in float64 or with torch's own modules. run.py compiles and runs this
// program for every version of versions.txt. If a check is wrong, the program lists it and ends with status 1.

#include "attention.h"
#include "check.h"
#include "flex_attention.h"
#include "graph.h"
#include "layers.h"
#include "training.h"

#include <torch/version.h>

#include <iostream>

int main() {
  std::cout << "LibTorch " << TORCH_VERSION << '\n';
  conformance::Checks checks;
  conformance::attention_checks(checks);
  conformance::flex_attention_checks(checks);
  conformance::graph_checks(checks);
  conformance::layer_checks(checks);
  conformance::training_checks(checks);
  return checks.finish();
}
