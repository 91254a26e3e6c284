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
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// A regular file that is open for reading. All functions throw FileError.
class InputFile {
 public:
  /// @param function For FileError.
  InputFile(std::string path, std::string function) : path_(std::move(path)), function_(std::move(function)) {
    const int file = ::open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);  // a FIFO would wait for a writer
    if (file < 0) fail("open it");
    file_ = std::shared_ptr<const int>(new int(file), [](const int* p) {
      ::close(*p);
      delete p;
    });
    struct stat status {};
    if (::fstat(file, &status) != 0) fail("get its size");
    if (!S_ISREG(status.st_mode)) throw FileError(function_, path_, "expected a regular file");
    size_ = static_cast<std::uint64_t>(status.st_size);
  }

  std::uint64_t size() const { return size_; }

  /// Reads `size` bytes, which the file must have.
  void read(std::uint64_t position, void* memory, std::size_t size) const {
    for (auto* to = static_cast<char*>(memory); size > 0;) {
      const ::ssize_t count = ::pread(*file_, to, size, static_cast<::off_t>(position));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail("read it");
      if (count == 0) throw FileError(function_, path_, "it became shorter while it was read");
      to += count;
      position += static_cast<std::uint64_t>(count);
      size -= static_cast<std::size_t>(count);
    }
  }

  /// Maps `size` bytes of the file, at least one. The file is read when the memory is used. The memory stays valid
  /// without the InputFile.
  ///
  /// The memory may be written: the process then gets its own copies of the pages, and the file does not change. If
  /// another process shortens the file, reading the memory ends this process (SIGBUS). If another process replaces the
  /// file, as AtomicFile does, the memory does not change.
  std::shared_ptr<char> map(std::uint64_t position, std::size_t size) const {
    static const auto kPage = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    const std::size_t before = position % kPage, length = before + size;
    // MAP_NORESERVE: the pages belong to the file, so the file may be larger than the memory of the machine.
    void* const pages = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, *file_,
                               static_cast<::off_t>(position - before));
    if (pages != MAP_FAILED)
      return {static_cast<char*>(pages) + before, [pages, length](char*) { ::munmap(pages, length); }};
    // The file system has no maps, or the process has too many.
    const std::shared_ptr<char> memory(new char[size], [](char* p) { delete[] p; });
    read(position, memory.get(), size);
    return memory;
  }

 private:
  [[noreturn]] void fail(const char* action) const {
    throw FileError(function_, path_, std::string("cannot ") + action + ": " + std::generic_category().message(errno));
  }

  std::string path_, function_;
  std::shared_ptr<const int> file_;
  std::uint64_t size_ = 0;
};

/// A whole file as memory. See InputFile::map().
class MappedFile {
 public:
  /// @param function For FileError.
  MappedFile(const std::string& path, const std::string& function) {
    const InputFile file(path, function);
    size_ = file.size();
    if (size_ > 0) memory_ = file.map(0, size_);
  }

  std::size_t size() const { return size_; }
  std::string_view bytes() const { return {memory_.get(), size_}; }

 private:
  std::size_t size_ = 0;
  std::shared_ptr<char> memory_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
