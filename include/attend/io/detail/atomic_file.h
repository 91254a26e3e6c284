// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/file_error.h>
#include <attend/version.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The name of a temporary file is the name of its file, then this text, then numbers.
inline constexpr char kTemporarySuffix[] = ".tmp-";

/// Writes a file that either appears as a whole or not at all.
///
/// The bytes go to a temporary file in the same folder. commit() flushes it to the disk and renames it. Readers of the
/// path see the old file until the renaming, and the new file after it, even if the process is killed or the power
/// fails. The new file has the permissions of any new file. If the path is a symbolic link, the link stays and its
/// target is replaced.
///
/// All functions throw FileError if the operating system reports an error. The temporary file is then removed, and the
/// old file is intact. Exception: if only the last step fails, which flushes the folder to the disk, the path already
/// has the new file. A killed process leaves its temporary file, with kTemporarySuffix in its name.
class AtomicFile {
 public:
  /// Creates the temporary file. `function` begins the message of an error.
  AtomicFile(std::string function, std::string path)
      : function_(std::move(function)), path_(std::move(path)), target_(target_of(path_)) {
    static constinit std::atomic<std::uint64_t> counter{0};
    const std::string begin = target_ + kTemporarySuffix + std::to_string(::getpid()) + '-';
    do {
      temporary_ = begin + std::to_string(counter++);
      file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (file_ == -1 && errno == EEXIST);
    if (file_ == -1) fail("create a temporary file in its folder");
  }

  ~AtomicFile() {
    if (file_ != -1) abandon();
  }

  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Appends bytes.
  void write(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const char*>(data);
    while (size > 0) {
      const ::ssize_t written = ::write(file_, bytes, size);  // may be less than size
      if (written == -1 && errno == EINTR) continue;
      if (written == 0) errno = ENOSPC;
      if (written <= 0) fail("write");
      bytes += written;
      size -= static_cast<std::size_t>(written);
    }
  }

  /// Replaces the file. Call it once, after the last write().
  void commit() {
    if (!synced(file_)) fail("write to the disk");
    if (::close(std::exchange(file_, -1)) == -1) fail("close");
    if (::rename(temporary_.c_str(), target_.c_str()) == -1) fail("rename the temporary file");
    const std::size_t slash = target_.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : target_.substr(0, slash + 1);
    const int opened = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (opened == -1) fail("open its folder");
    const bool is_synced = synced(opened) || errno == EINVAL;  // some file systems cannot do this with a folder
    const int error = errno;
    const bool is_closed = ::close(opened) == 0;
    if (!is_synced) errno = error;
    if (!is_synced || !is_closed) fail("write its folder to the disk");
  }

 private:
  /// The path of the file to replace. std::filesystem is not used: LibTorch's wheels export parts of it, which would
  /// replace those of the program's own standard library.
  std::string target_of(const std::string& path) const {
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode))
      throw FileError(function_, path, "cannot replace it, because it is not a regular file");
    if (::lstat(path.c_str(), &status) != 0 || !S_ISLNK(status.st_mode)) return path;
    const std::unique_ptr<char, decltype(&std::free)> target(::realpath(path.c_str(), nullptr), &std::free);
    if (target == nullptr)
      throw FileError(function_, path, std::string("cannot follow the symbolic link: ") + std::strerror(errno));
    return target.get();
  }

  static bool synced(int file) {
    int result;
    do {
      result = ::fsync(file);
    } while (result == -1 && errno == EINTR);
    return result == 0;
  }

  [[noreturn]] void fail(const char* action) {
    const std::string reason = std::strerror(errno);
    abandon();
    throw FileError(function_, path_, std::string("cannot ") + action + ": " + reason);
  }

  void abandon() noexcept {
    if (file_ != -1) ::close(std::exchange(file_, -1));
    ::unlink(temporary_.c_str());
  }

  std::string function_, path_, target_, temporary_;
  int file_ = -1;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
