// SPDX-License-Identifier: MIT

// Tests the common promises of all layers in positions/.

#include <attend/positions/binary.h>
#include <attend/positions/combine.h>
#include <attend/positions/learned.h>
#include <attend/positions/linear.h>
#include <attend/positions/sinusoidal.h>

#include "support/accuracy.h"
#include "support/allocator_peak.h"
#include "support/autocast.h"
#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/serialize.h>

#include <cstdint>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

using attend::Combine;
using attend::test::max_difference;
using attend::test::message_of;

namespace every_positions_test {
namespace {

struct LinearCase {
  static constexpr const char* kName = "attend::LinearPositions";
  static constexpr const char* kPrinted = "attend::LinearPositions(combine=kAdd)";
  static constexpr std::int64_t kChannels = 1;
  static attend::LinearPositions make(Combine combine, bool batch_first = false) {
    return attend::LinearPositions(attend::LinearPositionsOptions().combine(combine).batch_first(batch_first));
  }
  static torch::Tensor positions(attend::LinearPositions&, std::int64_t length) {
    return attend::linear_positions(length);
  }
};

struct BinaryCase {
  static constexpr const char* kName = "attend::BinaryPositions";
  static constexpr const char* kPrinted = "attend::BinaryPositions(num_channels=4, combine=kAdd)";
  static constexpr std::int64_t kChannels = 4;
  static attend::BinaryPositions make(Combine combine, bool batch_first = false) {
    return attend::BinaryPositions(
        attend::BinaryPositionsOptions().num_channels(4).combine(combine).batch_first(batch_first));
  }
  static torch::Tensor positions(attend::BinaryPositions&, std::int64_t length) {
    return attend::binary_positions(length, 4);
  }
};

struct SinusoidalCase {
  static constexpr const char* kName = "attend::SinusoidalPositions";
  static constexpr const char* kPrinted = "attend::SinusoidalPositions(4, base=1000, sine_first=true, combine=kAdd)";
  static constexpr std::int64_t kChannels = 4;
  static attend::SinusoidalPositionsOptions options() {
    return attend::SinusoidalPositionsOptions(4).base(1000).sine_first(true);
  }
  static attend::SinusoidalPositions make(Combine combine, bool batch_first = false) {
    return attend::SinusoidalPositions(options().combine(combine).batch_first(batch_first));
  }
  static torch::Tensor positions(attend::SinusoidalPositions&, std::int64_t length) {
    return attend::sinusoidal_positions(length, options());
  }
};

struct LearnedCase {
  static constexpr const char* kName = "attend::LearnedPositions";
  static constexpr const char* kPrinted = "attend::LearnedPositions(4, 16, combine=kAdd)";
  static constexpr std::int64_t kChannels = 4;
  static attend::LearnedPositions make(Combine combine, bool batch_first = false) {
    return attend::LearnedPositions(attend::LearnedPositionsOptions(4, 16).combine(combine).batch_first(batch_first));
  }
  static torch::Tensor positions(attend::LearnedPositions& layer, std::int64_t length) {
    const torch::Tensor weight = layer->weight.detach();
    return attend::learned_positions(layer->options.batch_first() ? weight.t() : weight, length);
  }
};

}  // namespace

#define EVERY_CASE LinearCase, BinaryCase, SinusoidalCase, LearnedCase

TEST_CASE_TEMPLATE("positions layers: the positions are concatenated to the signal or added to it", Case, EVERY_CASE) {
  auto beside = Case::make(Combine::kConcatenate), added = Case::make(Combine::kAdd);
  for (const std::int64_t batch : {0, 1, 3}) {
    for (const std::int64_t length : {1, 7, 16, 7}) {
      const torch::Tensor x = torch::randn({batch, 4, length});
      const torch::Tensor positions = Case::positions(beside, length).to(torch::kFloat);
      CHECK(positions.sizes() == torch::IntArrayRef{Case::kChannels, length});
      CHECK(beside(x).equal(torch::cat({x, positions.unsqueeze(0).expand({batch, -1, -1})}, 1)));
      CHECK(added(x).equal(x + Case::positions(added, length).to(torch::kFloat)));
    }
  }
}

TEST_CASE_TEMPLATE("positions layers: batch_first takes sequences (N, L, C), also in Sequential", Case, EVERY_CASE) {
  for (const Combine combine : {Combine::kConcatenate, Combine::kAdd}) {
    auto layer = Case::make(combine, /*batch_first=*/true);
    for (const std::int64_t batch : {0, 1, 3})
      for (const std::int64_t length : {1, 7, 16, 7}) {
        const torch::Tensor x = torch::randn({batch, length, 4});
        const torch::Tensor positions = Case::positions(layer, length).to(torch::kFloat).t();  // (L, P)
        const torch::Tensor expected = combine == Combine::kAdd
                                           ? x + positions
                                           : torch::cat({x, positions.unsqueeze(0).expand({batch, -1, -1})}, 2);
        CHECK(layer(x).equal(expected));
        torch::nn::Sequential sequential(layer);
        CHECK(sequential->forward(x).equal(expected));
      }
  }
  auto layer = Case::make(Combine::kAdd, /*batch_first=*/true), loaded = Case::make(Combine::kAdd, true);
  const torch::Tensor x = torch::randn({2, 7, 4}).requires_grad_(), weight = torch::randn({2, 7, 4});
  (layer(x) * weight).sum().backward();
  CHECK(x.grad().equal(weight));
  std::stringstream stream, text;
  torch::save(layer, stream);
  torch::load(loaded, stream);
  CHECK(loaded(x).equal(layer(x)));
  CHECK(std::dynamic_pointer_cast<typename decltype(layer)::Impl>(layer->clone())->forward(x).equal(layer(x)));
  layer->pretty_print(text);
  std::string printed = Case::kPrinted;
  printed.insert(printed.size() - 1, ", batch_first=true");
  CHECK(text.str() == printed);
  const std::string name = std::string(Case::kName) + ": ";
  const auto message = [&](const torch::Tensor& y) { return message_of<c10::ValueError>([&] { layer(y); }); };
  CHECK(message({}) == name + "x must be a tensor (N, L, C), got an undefined one");
  CHECK(message(torch::randn({4, 9})) == name + "x must be 3-d (N, L, C), got 2-d [4, 9]");
  CHECK(message(torch::randn({2, 0, 4})) == name + "x must have a length of at least 1, got [2, 0, 4]");
  if constexpr (Case::kChannels > 1)
    CHECK(message(torch::randn({2, 9, 3})) ==
          name + "x (3 channels) must have as many channels as the positions (4) for kAdd");
}

TEST_CASE_TEMPLATE("positions layers: the gradient reaches x", Case, EVERY_CASE) {
  const torch::Tensor weight = torch::randn({2, 4 + Case::kChannels, 7});
  const torch::Tensor x = torch::randn({2, 4, 7}).requires_grad_();
  auto layer = Case::make(Combine::kConcatenate);
  (layer(x) * weight).sum().backward();
  CHECK(x.grad().equal(weight.slice(1, 0, 4)));
}

TEST_CASE_TEMPLATE("positions layers: a clone and a layer restored by torch::load compute the same", Case, EVERY_CASE) {
  auto layer = Case::make(Combine::kAdd), loaded = Case::make(Combine::kAdd);
  const torch::Tensor x = torch::randn({2, 4, 7});
  const torch::Tensor y = layer(x);
  const auto clone = std::dynamic_pointer_cast<typename decltype(layer)::Impl>(layer->clone());
  CHECK(clone->forward(x).equal(y));
  std::stringstream stream;
  torch::save(layer, stream);
  torch::load(loaded, stream);
  CHECK(loaded(x).equal(y));
}

TEST_CASE_TEMPLATE("positions layers: positions have the dtype of x, and are exact in float64", Case, EVERY_CASE) {
  auto layer = Case::make(Combine::kAdd);
  layer->to(torch::kDouble);
  const torch::Tensor zeros = torch::zeros({1, 4, 7}, torch::kDouble);
  CHECK(layer(zeros)[0].equal(Case::positions(layer, 7).expand({4, 7})));
  layer->to(torch::kBFloat16);
  CHECK((layer(zeros.to(torch::kBFloat16)).scalar_type() == torch::kBFloat16));
  layer->to(torch::kFloat);
  const attend::test::Autocast autocast;
  CHECK(max_difference(layer(zeros.to(torch::kBFloat16)), layer(zeros.to(torch::kFloat))) < 0.01);
}

TEST_CASE_TEMPLATE("positions layers: they run in Sequential and AnyModule, and print their options", Case,
                   EVERY_CASE) {
  auto layer = Case::make(Combine::kAdd);
  const torch::Tensor x = torch::randn({2, 4, 7});
  torch::nn::Sequential sequential(layer);
  CHECK(sequential->forward(x).equal(layer(x)));
  torch::nn::AnyModule any(layer);
  CHECK(any.forward(x).equal(layer(x)));
  std::ostringstream stream;
  layer->pretty_print(stream);
  CHECK(stream.str() == Case::kPrinted);
}

TEST_CASE_TEMPLATE("positions layers: two threads may use one at the same time, for signals of different lengths", Case,
                   EVERY_CASE) {
  auto layer = Case::make(Combine::kAdd);
  std::vector<bool> are_equal(2);
  std::vector<torch::Tensor> signals{torch::randn({2, 4, 7}), torch::randn({2, 4, 16})};
  std::vector<torch::Tensor> expected, results(2);
  for (const torch::Tensor& x : signals) expected.push_back(layer(x));
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i)
    threads.emplace_back([&, i] {
      for (int times = 0; times < 50; ++times) results[i] = layer->forward(signals[i]);
    });
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 2; ++i) CHECK(results[i].equal(expected[i]));
}

TEST_CASE("positions layers: after signals of many lengths they hold at most four tables of the longest one") {
  const auto held = [](auto layer) {
    const attend::test::AllocatorPeak memory;
    for (std::int64_t length = 1000; length <= 2000; ++length) layer(torch::zeros({1, 1, length}));
    return memory.now();
  };
  attend::SinusoidalPositions waves(attend::SinusoidalPositionsOptions(512).combine(Combine::kConcatenate));
  CHECK(held(waves) <= 4 * 512 * 2000 * 4);
  CHECK(held(attend::LinearPositions()) <= 4 * 2000 * 8);
  CHECK(held(attend::BinaryPositions()) <= 4 * 11 * 2000 * 4);
}

TEST_CASE_TEMPLATE("positions layers: positions do not depend on the signals of earlier calls", Case, LinearCase,
                   BinaryCase, SinusoidalCase) {
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
    auto layer = Case::make(Combine::kConcatenate);
    for (const std::int64_t length : {16, 1, 2, 9, 16, 3}) {
      const torch::Tensor y = layer(torch::zeros({1, 1, length}, dtype));
      CHECK(y[0].slice(0, 1).equal(Case::positions(layer, length).to(dtype)));
    }
  }
}

TEST_CASE_TEMPLATE("positions layers: signals that do not fit are refused with the rule and the values", Case,
                   EVERY_CASE) {
  auto layer = Case::make(Combine::kAdd);
  const std::string name = std::string(Case::kName) + ": ";
  const auto message = [&](const torch::Tensor& x) { return message_of<c10::ValueError>([&] { layer(x); }); };
  CHECK(message({}) == name + "x must be a tensor (N, C, L), got an undefined one");
  CHECK(message(torch::randn({4, 9})) == name + "x must be 3-d (N, C, L), got 2-d [4, 9]");
  CHECK(message(torch::randn({2, 4, 0})) == name + "x must have a length of at least 1, got [2, 4, 0]");
  CHECK(message_of<c10::TypeError>([&] {
          layer(torch::ones({2, 4, 9}, torch::kLong));
        }) == name + "x (Long) must have a floating dtype");
  CHECK(message_of<c10::TypeError>([&] {
          layer(torch::ones({2, 4, 9}).to_sparse());
        }) == name + "x must be dense, got the layout Sparse; convert it with .to_dense()");
  if constexpr (Case::kChannels > 1)
    CHECK(message(torch::randn({2, 3, 9})) ==
          name + "x (3 channels) must have as many channels as the positions (4) for kAdd");
}

}  // namespace every_positions_test
