// SPDX-License-Identifier: MIT

// How long does it take to make the 10,000 samples of the experiment, and the 26,000 of the handout? Prints the
// milliseconds of one construction of each. compare.py runs this program and its Python counterparts in turn.

#include <attend/data/shape_dataset.h>

#include <chrono>
#include <iostream>

int main() {
  using attend::ShapeDatasetOptions;
  const auto handout = attend::ShapeGenerator::kHandout;
  for (const auto& options :
       {ShapeDatasetOptions().max_samples(10000), ShapeDatasetOptions().generator(handout).max_samples(26000)}) {
    attend::ShapeDataset warm_up(options);  // creating the first tensors starts LibTorch up
    const auto begin = std::chrono::steady_clock::now();
    const attend::ShapeDataset data(options);
    const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;
    std::cout << elapsed.count() << '\n';
  }
}
