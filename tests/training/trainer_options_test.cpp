// SPDX-License-Identifier: MIT
#include <attend/training/trainer_options.h>

#include <attend/training/trainer.h>

#include "support/errors.h"
#include "training/support.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

using attend::Trainer;
using attend::TrainerOptions;
using attend::test::linear_model;
using attend::test::message_of;

TEST_CASE("TrainerOptions: the defaults are the documented ones") {
  const TrainerOptions options;
  CHECK(options.epochs() == 10);
  CHECK(options.batch_size() == 32);
  CHECK(options.learning_rate() == 1e-3);
  CHECK_FALSE(options.device().has_value());
  CHECK(options.seed() == 0);
  CHECK_FALSE(options.autocast().has_value());
  CHECK(options.accumulation_steps() == 1);
  CHECK(options.capture() == nullptr);
}

TEST_CASE("TrainerOptions: options out of range are refused before anything happens") {
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<std::pair<TrainerOptions, std::string>> refused = {
      {TrainerOptions().epochs(0), "attend::Trainer: epochs (0) must be at least 1"},
      {TrainerOptions().epochs(-1), "attend::Trainer: epochs (-1) must be at least 1"},
      {TrainerOptions().batch_size(0), "attend::Trainer: batch_size (0) must be at least 1"},
      {TrainerOptions().batch_size(-4), "attend::Trainer: batch_size (-4) must be at least 1"},
      {TrainerOptions().learning_rate(0), "attend::Trainer: learning_rate (0) must be positive and finite"},
      {TrainerOptions().learning_rate(-0.5), "attend::Trainer: learning_rate (-0.5) must be positive and finite"},
      {TrainerOptions().learning_rate(std::nan("")),
       "attend::Trainer: learning_rate (nan) must be positive and finite"},
      {TrainerOptions().learning_rate(infinity), "attend::Trainer: learning_rate (inf) must be positive and finite"},
      {TrainerOptions().accumulation_steps(0), "attend::Trainer: accumulation_steps (0) must be at least 1"},
      {TrainerOptions().accumulation_steps(-2), "attend::Trainer: accumulation_steps (-2) must be at least 1"},
      {TrainerOptions().autocast(torch::kHalf),
       "attend::Trainer: autocast (Half) must be BFloat16; float16 would need gradient scaling"},
      {TrainerOptions().autocast(torch::kFloat),
       "attend::Trainer: autocast (Float) must be BFloat16; float16 would need gradient scaling"},
  };
  for (const auto& row : refused)
    CHECK(message_of<c10::ValueError>([&] { Trainer(linear_model(), row.first); }) == row.second);
}
