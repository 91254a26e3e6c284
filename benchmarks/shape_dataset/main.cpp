// SPDX-License-Identifier: MIT

// How long does it take to make the experiment's 10,000 samples? Prints the milliseconds of one construction.
// compare.py runs this program and its Python peer in turn.

#include <attend/data/shape_dataset.h>

#include <chrono>
#include <iostream>

int main() {
  const auto make = [] { return attend::ShapeDataset(attend::ShapeDatasetOptions().max_samples(10000).seed(7)); };
  make();  // LibTorch starts up with the first tensors
  const auto begin = std::chrono::steady_clock::now();
  const attend::ShapeDataset data = make();
  const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;
  std::cout << elapsed.count() << '\n';
}
