// SPDX-License-Identifier: MIT
#include <attend/training/history.h>

#include <doctest/doctest.h>

#include <vector>

namespace {

using Figures = std::vector<double>;

TEST_CASE("a new history is empty") {
  const attend::History history;
  CHECK(history.epochs().empty());
  CHECK(history.train_loss().empty());
  CHECK(history.last_batch_loss().empty());
  CHECK(history.validation_loss().empty());
  CHECK(history.seconds().empty());
}

TEST_CASE("each figure is a column of the records, in the order of the epochs") {
  attend::History history;
  history.add({.train_loss = 1, .last_batch_loss = 2, .validation_loss = 3, .seconds = 4});
  history.add({.train_loss = 5, .last_batch_loss = 6, .validation_loss = 7, .seconds = 8});
  history.add({.train_loss = 9, .last_batch_loss = 10, .validation_loss = 11, .seconds = 12});
  CHECK(history.train_loss() == Figures{1, 5, 9});
  CHECK(history.last_batch_loss() == Figures{2, 6, 10});
  CHECK(history.validation_loss() == Figures{3, 7, 11});
  CHECK(history.seconds() == Figures{4, 8, 12});
  REQUIRE(history.epochs().size() == 3);
  CHECK(history.epochs()[1].last_batch_loss == 6);
}

TEST_CASE("a copy is a value of its own") {
  attend::History history;
  history.add({.train_loss = 1, .last_batch_loss = 2, .validation_loss = 3, .seconds = 4});
  const attend::History copy = history;
  history.add({.train_loss = 5, .last_batch_loss = 6, .validation_loss = 7, .seconds = 8});
  CHECK(copy.train_loss() == Figures{1});
}

}  // namespace
