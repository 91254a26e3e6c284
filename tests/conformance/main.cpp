// SPDX-License-Identifier: MIT

// What must hold with every LibTorch and every compiler: about a hundred named checks of everything that attend has,
// each against plain torch operations in float64 or torch's own modules. run.py compiles and runs this program for
// every version of versions.txt. It ends with status 1 and a list if a check is wrong.

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
