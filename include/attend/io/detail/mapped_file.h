// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/file_error.h>
#include <attend/version.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// A whole file in memory, read when it is used.
///
/// The memory may be written: the writer then gets pages of its own and the file does not change. If another process
/// shortens the file, reading ends the process (SIGBUS). A file that is replaced, as AtomicFile does, stays as it was.
class MappedFile {
 public:
  /// Opens a regular file. Throws FileError. A file system without memory maps is read instead.
  ///
  /// @param function For FileError.
  MappedFile(const std::string& path, const std::string& function) {
    const auto fail = [&](const char* action) {
      throw FileError(function, path, std::string("cannot ") + action + ": " + std::generic_category().message(errno));
    };
    const struct Closer {
      int file;
      ~Closer() {
        if (file >= 0) ::close(file);
      }
    } closer{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (closer.file < 0) fail("open it");
    struct stat status {};
    if (::fstat(closer.file, &status) != 0) fail("get its size");
    if (!S_ISREG(status.st_mode)) throw FileError(function, path, "expected a regular file");
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ == 0) return;

    // MAP_NORESERVE: the pages are the file's, so that a file may be larger than the memory.
    void* mapped = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, closer.file, 0);
    if (mapped != MAP_FAILED) {
      memory_ = {static_cast<char*>(mapped), [size = size_](char* p) { ::munmap(p, size); }};
      return;
    }
    memory_ = {new char[size_], [](char* p) { delete[] p; }};
    for (std::size_t done = 0; done < size_;) {
      const ssize_t count = ::read(closer.file, memory_.get() + done, size_ - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail("read it");
      if (count == 0) throw FileError(function, path, "it became shorter while it was read");
      done += static_cast<std::size_t>(count);
    }
  }

  std::size_t size() const { return size_; }
  std::string_view bytes() const { return {memory_.get(), size_}; }

  /// The memory of the file, which lives as long as any of these pointers.
  const std::shared_ptr<char>& memory() const { return memory_; }

 private:
  std::size_t size_ = 0;
  std::shared_ptr<char> memory_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
