// SPDX-License-Identifier: MIT
#include <attend/training/callbacks/csv_log.h>

#include <attend/training/trainer.h>

#include "support/errors.h"
#include "training/support.h"

#include <unistd.h>

#include <doctest/doctest.h>

#include <cmath>
#include <csignal>
#include <cstddef>
#include <limits>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using attend::CsvLog;
using attend::test::linear_model;
using attend::test::linear_samples;
using attend::test::lines_of;
using attend::test::message_of;
using attend::test::StateByHand;
using attend::test::TemporaryFolder;

namespace {

const std::string kHeader = "epoch,train_loss,last_batch_loss,validation_loss,learning_rate,seconds";

std::vector<double> numbers_in(const std::string& line) {
  std::vector<double> numbers;
  std::istringstream cells(line);
  for (std::string cell; std::getline(cells, cell, ',');) {
    std::size_t read = 0;
    numbers.push_back(std::stod(cell, &read));
    CHECK(read == cell.size());
  }
  return numbers;
}

}  // namespace

TEST_CASE("CsvLog: the file has the history to the last digit and the learning rate of each epoch") {
  TemporaryFolder folder;
  const std::string path = folder.file("history.csv");
  struct HalveRate {
    void on_epoch_end(attend::TrainingState& state) { state.set_learning_rate(state.learning_rate() / 2); }
  };
  attend::Trainer trainer(linear_model(), attend::TrainerOptions().epochs(4).batch_size(3).learning_rate(0.1));
  const attend::History history = trainer.fit(linear_samples(8), linear_samples(5, 3), CsvLog(path), HalveRate());

  const std::vector<std::string> lines = lines_of(path);
  REQUIRE(lines.size() == 5);
  CHECK(lines[0] == kHeader);
  double rate = 0.1;
  for (std::size_t epoch = 0; epoch < 4; ++epoch) {
    const attend::EpochRecord& record = history.epochs()[epoch];
    CHECK(numbers_in(lines[epoch + 1]) == std::vector<double>{static_cast<double>(epoch), record.train_loss,
                                                              record.last_batch_loss, record.validation_loss, rate,
                                                              record.seconds});
    rate /= 2;
  }
}

TEST_CASE("CsvLog: tiny, huge, infinite and missing numbers are written so that they can be read back") {
  TemporaryFolder folder;
  const std::string path = folder.file("history.csv");
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  StateByHand fit;
  CsvLog log(path);
  fit.state.epoch = 1234567;
  fit.history.add({.train_loss = 0.1,
                   .last_batch_loss = 4.9406564584124654e-324,
                   .validation_loss = std::nan(""),
                   .seconds = 1.7976931348623157e308});
  log.on_epoch_end(fit.state);
  fit.history.add({.train_loss = kInfinity, .last_batch_loss = 3, .validation_loss = 0.5, .seconds = 0.25});
  log.on_epoch_end(fit.state);
  fit.history.add({.train_loss = -std::nan(""), .last_batch_loss = -kInfinity, .seconds = 1});
  log.on_epoch_end(fit.state);
  CHECK(lines_of(path) == std::vector<std::string>{
                              kHeader,
                              "1234567,0.10000000000000001,4.9406564584124654e-324,nan,0.10000000000000001,"
                              "1.7976931348623157e+308",
                              "1234567,inf,3,0.5,0.10000000000000001,0.25",
                              "1234567,nan,-inf,nan,0.10000000000000001,1",
                          });
}

TEST_CASE("CsvLog: the file is complete after each epoch, also if a later one throws") {
  TemporaryFolder folder;
  const std::string path = folder.file("history.csv");
  std::vector<std::size_t> lines;
  struct Look {
    void on_epoch_begin(attend::TrainingState& state) {
      lines.push_back(lines_of(path).size());
      if (state.epoch == 2) throw std::runtime_error("enough");
    }
    std::string path;
    std::vector<std::size_t>& lines;
  };
  CsvLog log(path);
  attend::Trainer trainer(linear_model(), attend::TrainerOptions().epochs(3));
  CHECK(message_of<std::runtime_error>([&] { trainer.fit(linear_samples(4), log, Look{path, lines}); }) == "enough");
  CHECK(lines == std::vector<std::size_t>{1, 2, 3});
  CHECK(lines_of(path).size() == 3);
}

TEST_CASE("CsvLog: a log used by two fits appends to its file; a new log overwrites the file") {
  TemporaryFolder folder;
  const std::string path = folder.file("history.csv");
  CsvLog log(path);
  attend::Trainer trainer(linear_model(), attend::TrainerOptions().epochs(2));
  trainer.fit(linear_samples(4), log);
  trainer.fit(linear_samples(4), log);
  const std::vector<std::string> lines = lines_of(path);
  REQUIRE(lines.size() == 5);
  for (std::size_t epoch = 0; epoch < 4; ++epoch) CHECK(numbers_in(lines[epoch + 1])[0] == static_cast<double>(epoch));

  const CsvLog another(path);
  CHECK(lines_of(path) == std::vector<std::string>{kHeader});
}

TEST_CASE("CsvLog: numbers have a decimal point in every locale") {
  struct Commas : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };
  TemporaryFolder folder;
  const std::string path = folder.file("history.csv");
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new Commas));
  StateByHand fit;
  fit.state.epoch = 12345;
  fit.history.add({.train_loss = 0.5, .last_batch_loss = 1234567.5, .validation_loss = 2, .seconds = 3});
  CsvLog(path).on_epoch_end(fit.state);
  std::locale::global(before);
  CHECK(lines_of(path)[1] == "12345,0.5,1234567.5,2,0.10000000000000001,3");
}

TEST_CASE("CsvLog: the constructor refuses a path that cannot be written") {
  TemporaryFolder folder;
  const std::string in_no_folder = folder.path() + "/no/such/folder/history.csv";
  CHECK(message_of<c10::ValueError>([&] { CsvLog log(in_no_folder); }) ==
        "attend::CsvLog: cannot write \"" + in_no_folder + "\": No such file or directory");
  CHECK(message_of<c10::ValueError>([&] { CsvLog log(folder.path()); }) ==
        "attend::CsvLog: cannot write \"" + folder.path() + "\": Is a directory");
}

#ifdef __linux__
TEST_CASE("CsvLog: the constructor throws if the disk is full (Linux)") {
  CHECK(message_of<c10::Error>([] { CsvLog log("/dev/full"); }) ==
        "attend::CsvLog: cannot write a line to \"/dev/full\": No space left on device");
}

TEST_CASE("CsvLog: a line that cannot be written is an error, and the history keeps the epoch") {
  // A pipe whose reader closes it after the header.
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const std::string path = "/proc/self/fd/" + std::to_string(ends[1]);
  const auto handler = std::signal(SIGPIPE, SIG_IGN);
  {
    CsvLog log(path);
    ::close(ends[0]);
    attend::Trainer trainer(linear_model(), attend::TrainerOptions().epochs(3));
    CHECK(message_of<c10::Error>([&] { trainer.fit(linear_samples(4), log); }) ==
          "attend::CsvLog: cannot write a line to \"" + path + "\": Broken pipe");
    CHECK(trainer.history().epochs().size() == 1);
  }
  ::close(ends[1]);
  std::signal(SIGPIPE, handler);
}
#endif
