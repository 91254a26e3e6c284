// SPDX-License-Identifier: MIT

// Tests of checkpoints with a failing operating system and with SIGKILL. A program of its own, because it replaces
// functions of the C library and forks before LibTorch starts threads.
//
//     attend_interrupted_saves [options of doctest]       ATTEND_KILLS: the number of SIGKILLs, default 50

#include <attend/io/checkpoint_folder.h>
#include <attend/training/callbacks/checkpoint.h>
#include <attend/training/trainer.h>

#include "support/errors.h"
#include "training/support.h"

#include <doctest/doctest.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

// ---- Functions of the C library that fail on demand --------------------------------------------------------------

namespace {

/// The calls of one kind, of which one may fail. They are counted while `is_armed`.
struct Calls {
  bool is_armed = false;
  int count = 0;
  int failing = -1;  ///< the index of the call that fails
  int error = 0;     ///< errno of the failing call; 0: the call succeeds for a part (a short write)

  bool fails() { return is_armed && count++ == failing; }
};

std::map<std::string, Calls>& calls() {
  static auto* const all = new std::map<std::string, Calls>;
  return *all;
}

template <class Function>
Function* original(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

bool fails(const char* name) {
  Calls& of_name = calls()[name];
  if (!of_name.fails()) return false;
  if (of_name.error != 0) errno = of_name.error;
  return true;
}

}  // namespace

extern "C" {

::ssize_t write(int file, const void* data, std::size_t size) {
  static auto* const next = original<::ssize_t(int, const void*, std::size_t)>("write");
  if (!fails("write")) return next(file, data, size);
  return calls()["write"].error != 0 ? -1 : next(file, data, (size + 1) / 2);
}

int fsync(int file) {
  static auto* const next = original<int(int)>("fsync");
  return fails("fsync") ? -1 : next(file);
}

int close(int file) {
  static auto* const next = original<int(int)>("close");
  if (!fails("close")) return next(file);
  const int error = errno;
  next(file);  // Linux closes the file in any case
  errno = error;
  return -1;
}

int rename(const char* from, const char* to) noexcept {
  static auto* const next = original<int(const char*, const char*)>("rename");
  return fails("rename") ? -1 : next(from, to);
}

int open(const char* path, int flags, ...) {
  static auto* const next = original<int(const char*, int, ...)>("open");
  return fails("open") ? -1 : next(path, flags, 0666);
}

}  // extern "C"

namespace {

using attend::Checkpoint;
using attend::CheckpointData;
using attend::CheckpointFolder;
using attend::FileError;
using attend::test::TemporaryFolder;
using Position = CheckpointFolder::Position;

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

CheckpointData data_with(double value) {
  CheckpointData data;
  data.tensors.insert("a", torch::full({1000}, value));
  data.tensors.insert("b", torch::full({3}, value, torch::kDouble));
  return data;
}

/// Saves a checkpoint with the calls under control. Returns whether there was a FileError.
bool save_fails(const std::string& path) {
  for (const char* name : {"open", "write", "fsync", "close", "rename"}) {
    calls()[name].is_armed = true;
    calls()[name].count = 0;
  }
  bool is_error = false;
  try {
    attend::save_checkpoint(data_with(2), path);
  } catch (const FileError&) {
    is_error = true;
  }
  for (auto& [name, of_name] : calls()) of_name.is_armed = false;
  return is_error;
}

/// The number of files in a folder whose names contain a text.
int files_in(const std::string& folder, const std::string& text = "safetensors") {
  int count = 0;
  ::DIR* const opened = ::opendir(folder.c_str());
  if (opened == nullptr) return 0;
  while (const ::dirent* const entry = ::readdir(opened))
    count += std::string(entry->d_name).find(text) != std::string::npos;
  ::closedir(opened);
  return count;
}

}  // namespace

TEST_CASE("save_checkpoint: each open, write, fsync, close and rename that fails is an error, and the old file stays") {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  attend::save_checkpoint(data_with(1), path);
  const std::string old = contents(path);
  REQUIRE(!save_fails(path));
  const std::string replaced = contents(path);
  std::map<std::string, int> expected{{"open", 2}, {"write", 3}, {"fsync", 2}, {"close", 2}, {"rename", 1}};
  for (const auto& [name, count] : expected) {
    CAPTURE(name);
    CHECK(calls()[name].count == count);  // the folder is opened, synchronized and closed after the file
    for (int i = 0; i < count; ++i) {
      for (const int error : {ENOSPC, EIO}) {
        CAPTURE(i);
        attend::save_checkpoint(data_with(1), path);
        calls()[name].failing = i;
        calls()[name].error = error;
        CHECK(save_fails(path));
        calls()[name].failing = -1;
        const bool is_renamed = name != "write" && name != "rename" && i == 1;
        CHECK(contents(path) == (is_renamed ? replaced : old));
        CHECK(files_in(folder.path()) == 1);
      }
    }
  }
}

TEST_CASE("save_checkpoint: a write of a part is continued") {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  for (int i = 0; i < 3; ++i) {
    calls()["write"].failing = i;
    calls()["write"].error = 0;
    CHECK(!save_fails(path));
    calls()["write"].failing = -1;
    CHECK(torch::equal(attend::load_checkpoint(path).tensors["a"], torch::full({1000}, 2.0)));
  }
}

TEST_CASE("save_checkpoint: a full disk is an error, and the process lives") {
  const TemporaryFolder folder;
  CheckpointFolder checkpoints(folder.path());
  checkpoints.save(data_with(1), {1, 0}, 3);
  calls()["write"] = {true, 0, 0, ENOSPC};
  const std::string message = attend::test::message_of<FileError>([&] { checkpoints.save(data_with(2), {2, 0}, 3); });
  calls()["write"] = {};
  CHECK(message == "attend::save_checkpoint: " + folder.path() +
                       "/checkpoint-000002-00000000.safetensors: cannot write: No space left on device");
  CHECK(torch::equal(checkpoints.newest()->tensors["a"], torch::ones({1000})));
}

// ---- SIGKILL -----------------------------------------------------------------------------------------------------

namespace {

/// What the child tells the parent: a position, after it has resumed from it or has saved it.
struct Message {
  char kind;  ///< 'r' resumed, 's' saved, 'e' an error, 'f' finished
  std::int64_t epoch, batch;
};

/// Reports each position that Checkpoint has saved. It comes after Checkpoint.
struct Report {
  int pipe;
  void on_checkpoint(attend::TrainingState& state) { send({'s', state.epoch, state.batch}); }
  void send(const Message& message) const { (void)!::write(pipe, &message, sizeof message); }
};

/// Trains in the folder, or continues there, and writes the final weights.
void train(const std::string& folder, const std::string& weights, int pipe) {
  const attend::test::Samples samples = attend::test::linear_samples(24);
  torch::manual_seed(1);
  torch::nn::Sequential net(torch::nn::Linear(3, 16), torch::nn::Dropout(0.5), torch::nn::Linear(16, 1));
  net->to(torch::kDouble);
  attend::Trainer trainer(net, attend::TrainerOptions().epochs(4).batch_size(4).seed(2));
  Report report{pipe};
  trainer.resume(folder);
  const std::map<Position, std::string> files = CheckpointFolder(folder).files();
  const Position begin = files.empty() ? Position{} : files.rbegin()->first;
  report.send({'r', begin.epoch, begin.batch});
  trainer.fit(samples, Checkpoint(folder, attend::CheckpointOptions().every_batches(1)), report);
  std::ofstream file(weights, std::ios::binary);
  for (const torch::Tensor& tensor : net->parameters())
    file.write(static_cast<const char*>(tensor.const_data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
  file.close();
  report.send({'f', 4, 0});
}

/// Runs train() in a child process, and kills it `delay` after it has reported `saves` checkpoints. Returns its
/// messages.
std::vector<Message> messages_of_child(const std::string& folder, const std::string& weights, int saves,
                                       std::chrono::microseconds delay) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const ::pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    torch::set_num_threads(1);
    try {
      train(folder, weights, ends[1]);
    } catch (const std::exception& error) {
      std::cerr << error.what() << std::endl;
      Report{ends[1]}.send({'e', 0, 0});
    }
    ::_exit(0);
  }
  ::close(ends[1]);
  std::vector<Message> messages;
  const auto receive = [&] {
    Message message;
    if (::read(ends[0], &message, sizeof message) != static_cast<::ssize_t>(sizeof message)) return false;
    messages.push_back(message);
    return true;
  };
  while (saves > 0 && receive()) saves -= messages.back().kind == 's';
  std::this_thread::sleep_for(delay);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  while (receive()) continue;
  ::close(ends[0]);
  return messages;
}

}  // namespace

TEST_CASE("Checkpoint: SIGKILL at random moments leaves a whole checkpoint, and the final weights are unchanged") {
  const char* const wanted = std::getenv("ATTEND_KILLS");
  const int kills = wanted == nullptr ? 50 : std::atoi(wanted);
  constexpr int kAll = 1000;  // more than a training saves
  const TemporaryFolder folder;
  const std::string weights = folder.file("weights");
  const auto begin = std::chrono::steady_clock::now();
  REQUIRE(messages_of_child(folder.file("whole"), weights, kAll, {}).back().kind == 'f');
  const std::string expected = contents(weights);
  REQUIRE(expected.size() == 81 * 8);

  std::mt19937_64 random(1);
  int killed = 0, trainings = 0, within_a_save = 0;
  while (killed < kills) {
    const std::string path = folder.file("run" + std::to_string(trainings++));
    Position reported{};
    for (bool is_finished = false; !is_finished;) {
      const std::vector<Message> messages = messages_of_child(path, weights, static_cast<int>(random() % 4),
                                                              std::chrono::microseconds(random() % 20'000));
      is_finished = !messages.empty() && messages.back().kind == 'f';
      killed += !is_finished;
      for (const Message& message : messages) {
        const Position position{message.epoch, message.batch};
        REQUIRE(message.kind != 'e');
        if (message.kind == 'r') CHECK(position >= reported);
        reported = std::max(reported, position);
      }
      const std::map<Position, std::string> files = CheckpointFolder(path).files();
      if (reported != Position{}) {
        REQUIRE(!files.empty());
        CHECK(files.rbegin()->first >= reported);
      }
      for (const auto& [position, file] : files) CHECK_NOTHROW(attend::load_checkpoint(file));
      within_a_save += files_in(path, attend::detail::kTemporarySuffix) > 0;
    }
    CHECK(contents(weights) == expected);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::cout << killed << " SIGKILLs in " << trainings << " trainings, " << seconds << " s; " << within_a_save
            << " left a file half written\n";
}
