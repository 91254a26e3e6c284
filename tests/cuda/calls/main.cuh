// SPDX-License-Identifier: MIT
#pragma once

// main() of the programs that run the random calls of the harness's tests on a GPU. Without one they return 77.

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "cuda/run_on_gpu.cuh"

#include <cstdio>

int main(int argc, char** argv) {
  if (attend::test::has_gpu()) return doctest::Context(argc, argv).run();
  std::puts("skipped: this machine has no GPU");
  return attend::test::kSkipped;
}
