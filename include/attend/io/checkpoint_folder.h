// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/checkpoint.h>
#include <attend/io/detail/atomic_file.h>
#include <attend/io/file_error.h>
#include <attend/version.h>

#include <c10/util/Exception.h>

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A folder with the checkpoints of one training. Only one process may write to it at a time.
///
/// The file `checkpoint-EPOCH-BATCH.safetensors` has the state after EPOCH complete epochs and BATCH batches of the
/// next epoch. save_best() writes the file `best.safetensors`.
///
/// @code
/// attend::CheckpointFolder folder("run");
/// if (std::optional<attend::CheckpointData> data = folder.newest()) {
///   attend::load_training_state(*data, *model, optimizer);
/// }
/// @endcode
class CheckpointFolder {
 public:
  /// The position of a checkpoint in the training.
  struct Position {
    std::int64_t epoch = 0;  ///< number of complete epochs
    std::int64_t batch = 0;  ///< number of complete batches of the next epoch

    /// Compares the epochs, then the batches.
    friend auto operator<=>(const Position&, const Position&) = default;
    /// Whether both positions are the same.
    friend bool operator==(const Position&, const Position&) = default;
  };

  /// A folder of checkpoints. It does not have to exist.
  ///
  /// @param path The path of the folder. The first save() creates the folder, but not its parent.
  explicit CheckpointFolder(std::string path) : path_(std::move(path)) {}

  /// The path of the folder.
  const std::string& path() const { return path_; }

  /// The checkpoints in the folder, from the oldest to the newest. `best.safetensors` is not among them.
  ///
  /// @return The path of the file for each position.
  /// @throws FileError if the folder exists but cannot be read.
  std::map<Position, std::string> files() const {
    std::map<Position, std::string> files;
    for (const std::string& name : names())
      if (const std::optional<Position> position = position_of(name)) files[*position] = path_ + '/' + name;
    return files;
  }

  /// Saves a checkpoint as save_checkpoint() does. Then it removes other checkpoints: all of later positions, and the
  /// oldest, so that `keep_last` remain.
  ///
  /// It also removes the temporary files of killed processes.
  ///
  /// @param data The contents.
  /// @param position The position in the training.
  /// @param keep_last The number of checkpoints to keep, this one included; at least 1.
  /// @return The path of the file.
  /// @throws FileError if the operating system reports an error. The earlier checkpoints are intact then.
  /// @throws c10::ValueError if keep_last is below 1, and as save_checkpoint().
  std::string save(const CheckpointData& data, const Position& position, std::int64_t keep_last) {
    TORCH_CHECK_VALUE(keep_last >= 1, "attend::CheckpointFolder: keep_last (", keep_last, ") must be at least 1");
    make_folder();
    char name[80];
    std::snprintf(name, sizeof name, "checkpoint-%06lld-%08lld.safetensors", static_cast<long long>(position.epoch),
                  static_cast<long long>(position.batch));
    const std::string path = path_ + '/' + name;
    save_checkpoint(data, path);

    std::int64_t kept = 0;
    const std::map<Position, std::string> all = files();
    for (auto file = all.rbegin(); file != all.rend(); ++file)
      if (file->first > position || ++kept > keep_last) remove(file->second);
    for (const std::string& other : names())
      if ((other.starts_with("checkpoint-") || other.starts_with("best.safetensors")) &&
          other.find(detail::kTemporarySuffix) != std::string::npos)
        remove(path_ + '/' + other);
    return path;
  }

  /// Saves a checkpoint as `best.safetensors`.
  ///
  /// @param data The contents.
  /// @throws FileError if the operating system reports an error. The earlier file is intact then.
  /// @throws c10::ValueError as save_checkpoint().
  void save_best(const CheckpointData& data) {
    make_folder();
    save_checkpoint(data, best_path());
  }

  /// The path of `best.safetensors`.
  std::string best_path() const { return path_ + "/best.safetensors"; }

  /// Loads the newest checkpoint. If it is damaged, TORCH_WARN reports that, and the one before it is loaded.
  ///
  /// Another process may save checkpoints at the same time. If it removes a file before this function has opened it,
  /// the search starts again.
  ///
  /// @return The checkpoint, or nothing if the folder has none.
  /// @throws FileError if the folder has checkpoints, but all are damaged, and if a file cannot be read or was written
  /// by another version of attend.
  std::optional<CheckpointData> newest() const {
    const std::map<Position, std::string> all = files();
    std::optional<FileError> first_error;
    for (auto file = all.rbegin(); file != all.rend(); ++file) {
      try {
        return load_checkpoint(file->second);
      } catch (const FileError& error) {
        if (!error.is_damaged()) {
          const std::map<Position, std::string> now = files();
          if (now.empty() || now.contains(file->first)) throw;
          return newest();
        }
        TORCH_WARN(error.what(), "; the checkpoint before it is used");
        if (!first_error) first_error = error;
      }
    }
    if (first_error)
      throw FileError("attend::CheckpointFolder", path_,
                      std::string("no checkpoint can be loaded; the newest: ") + first_error->what());
    return std::nullopt;
  }

 private:
  /// The position in the name of a checkpoint. Nothing for other names.
  static std::optional<Position> position_of(const std::string& name) {
    long long epoch = 0, batch = 0;
    int end = 0;
    const int read = std::sscanf(name.c_str(), "checkpoint-%18lld-%18lld.safetensors%n", &epoch, &batch, &end);
    if (read != 2 || static_cast<std::size_t>(end) != name.size() || epoch < 0 || batch < 0) return std::nullopt;
    return Position{epoch, batch};
  }

  [[noreturn]] void fail(const std::string& path, const char* action) const {
    throw FileError("attend::CheckpointFolder", path, std::string("cannot ") + action + ": " + std::strerror(errno));
  }

  /// The names of all files. Empty if the folder does not exist.
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    const std::unique_ptr<::DIR, int (*)(::DIR*)> folder(::opendir(path_.c_str()), &::closedir);
    if (folder == nullptr) {
      if (errno != ENOENT) fail(path_, "read the folder");
      return names;
    }
    errno = 0;
    while (const ::dirent* const entry = ::readdir(folder.get())) names.emplace_back(entry->d_name);
    if (errno != 0) fail(path_, "read the folder");
    return names;
  }

  void make_folder() const {
    if (::mkdir(path_.c_str(), 0777) == -1 && errno != EEXIST) fail(path_, "create the folder");
  }

  void remove(const std::string& path) const {
    if (::unlink(path.c_str()) == -1 && errno != ENOENT) fail(path, "remove the old checkpoint");
  }

  std::string path_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
