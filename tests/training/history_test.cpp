// SPDX-License-Identifier: MIT
#include <attend/training/history.h>

#include <doctest/doctest.h>

#include <vector>

using Figures = std::vector<double>;

TEST_CASE("History: each member function returns one column of the records, in the order of the epochs") {
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
