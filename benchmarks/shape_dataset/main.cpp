// SPDX-License-Identifier: MIT

// How long does it take to make the experiment's 10,000 samples, and the handout's 26,000? Prints the milliseconds of
// one construction of each. compare.py runs this program and its Python peers in turn.

#include <attend/data/shape_dataset.h>

#include <chrono>
#include <iostream>

int main() {
  using attend::ShapeDatasetOptions;
  const auto handout = attend::ShapeGenerator::kHandout;
  for (const auto& options :
       {ShapeDatasetOptions().max_samples(10000), ShapeDatasetOptions().generator(handout).max_samples(26000)}) {
    attend::ShapeDataset warm_up(options);  // LibTorch starts up with the first tensors
    const auto begin = std::chrono::steady_clock::now();
    const attend::ShapeDataset data(options);
    const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;
    std::cout << elapsed.count() << '\n';
  }
}
