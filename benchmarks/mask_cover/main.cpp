// SPDX-License-Identifier: MIT

// What does it save that a mask says which blocks of scores are empty or full? Calls of flex_attention() with the same
// masks in several forms, in turn, float32, on the CPU. Prints the table of benchmarks/results/mask_cover.md.

#include <attend/flex_attention.h>

#include "support/program.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/stack.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/utils.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <iomanip>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr std::int64_t kLength = 8192;
constexpr std::int32_t kDocument = 512, kWindow = 256, kGlobal = 4;

/// Documents of kDocument positions.
struct Documents {
  bool operator()(attend::Coordinate at) const { return at.query / kDocument == at.key / kDocument; }
};

struct DocumentsWithCover : Documents {
  attend::MaskCover cover(attend::QueryBlock queries, attend::KeyRange keys) const {
    const std::int32_t a = queries.query_begin / kDocument, b = (queries.query_end - 1) / kDocument,
                       c = keys.begin / kDocument, d = (keys.end - 1) / kDocument;
    if (b < c || d < a) return attend::MaskCover::kEmpty;
    return a == b && c == d ? attend::MaskCover::kFull : attend::MaskCover::kPartial;
  }
};

/// A causal window, and kGlobal keys that every later query sees.
struct GlobalWindow {
  bool operator()(attend::Coordinate at) const {
    return at.key <= at.query && (at.key < kGlobal || at.query - at.key <= kWindow);
  }
};

struct GlobalWindowWithKeys : GlobalWindow {
  attend::KeyRange keys(attend::QueryBlock block) const { return {0, block.query_end}; }
};

struct FirstKeys {
  std::int32_t count;
  bool operator()(attend::Coordinate at) const { return at.key < count; }
  attend::KeyRange keys(attend::QueryBlock) const { return {0, count}; }
};

struct Case {
  std::string mask, form;
  std::function<void(bool with_backward)> call;
  std::vector<double> milliseconds[2] = {};
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void measure(std::int64_t rounds) {
  torch::manual_seed(1);
  std::vector<at::Tensor> inputs;
  for (int i = 0; i < 3; ++i) inputs.push_back(at::randn({1, 8, kLength, 64}).requires_grad_());
  const at::Tensor gradient = at::randn({1, 8, kLength, 64});
  const auto call_with = [&](const auto& mask) {
    return [&, mask](bool with_backward) {
      const at::AutoGradMode mode(with_backward);
      const at::Tensor y = attend::flex_attention(inputs[0], inputs[1], inputs[2], attend::Unchanged{}, mask);
      if (with_backward) torch::autograd::grad({y}, inputs, {gradient});
    };
  };
  const at::Tensor document = at::arange(kLength).div(kDocument, "floor"), begins = document * kDocument;
  const at::Tensor rows = at::stack({begins + kDocument, begins}, -1).view({1, 1, kLength, 2});
  const std::string documents = "16 documents of 512", window = "causal window of 256, 4 global keys";
  std::vector<Case> cases{
      {documents, "a struct with `operator()` only", call_with(Documents{})},
      {documents, "the struct with `cover`", call_with(DocumentsWithCover{})},
      {documents, "`block_mask_of` the struct",
       call_with(attend::block_mask_of(Documents{}, {1, 1, kLength, kLength}))},
      {documents, "`Document`", call_with(attend::Document(document))},
      {documents, "`FlashMask`", call_with(attend::FlashMask(rows))},
      {window, "a struct with `operator()` only", call_with(GlobalWindow{})},
      {window, "the struct with `keys`", call_with(GlobalWindowWithKeys{})},
      {window, "`(SlidingWindow \\| FirstKeys) & Causal`",
       call_with((attend::SlidingWindow(kWindow, 0) | FirstKeys{kGlobal}) & attend::Causal{})},
      {window, "`block_mask_of` the struct",
       call_with(attend::block_mask_of(GlobalWindow{}, {1, 1, kLength, kLength}, {64, 64}))},
  };
  for (std::int64_t round = -1; round < rounds; ++round)
    for (const bool with_backward : {false, true})
      for (Case& each : cases) {
        const auto begin = std::chrono::steady_clock::now();
        each.call(with_backward);
        const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;
        if (round >= 0) each.milliseconds[with_backward].push_back(elapsed.count());
      }
  std::cout << "| mask | form | forward (ms) | ratio | forward + backward (ms) | ratio |\n"
            << "| --- | --- | --- | --- | --- | --- |\n"
            << std::fixed;
  const Case* first = nullptr;
  for (const Case& each : cases) {
    if (first == nullptr || first->mask != each.mask) first = &each;
    std::cout << "| " << each.mask << " | " << each.form << " |";
    for (int pass = 0; pass < 2; ++pass) {
      const double time = median(each.milliseconds[pass]);
      std::cout << std::setprecision(time < 100 ? 1 : 0) << ' ' << time << " | " << std::setprecision(1)
                << median(first->milliseconds[pass]) / time << " |";
    }
    std::cout << '\n';
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc > 3) throw std::invalid_argument("the program takes at most two numbers");
    torch::set_num_threads(argc > 1 ? static_cast<int>(benchmark::positive(argv[1])) : 2);
    measure(argc > 2 ? benchmark::positive(argv[2]) : 5);
  } catch (const std::exception& error) {
    std::cerr << "mask_cover: " << error.what() << "\nusage: mask_cover [NUMBER OF THREADS [ROUNDS]]\n";
    return 1;
  }
}
