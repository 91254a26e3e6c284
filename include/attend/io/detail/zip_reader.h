// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/detail/json.h>
#include <attend/io/file_error.h>
#include <attend/version.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The uncompressed files in a zip archive, as views of the bytes of the archive.
///
/// The constructor checks the central directory and all local headers. It does not check checksums: Python's torch does
/// not check them either, and can write files without them.
class ZipReader {
 public:
  /// @param archive The bytes of the archive, which the reader does not copy.
  /// @param function, path For FileError. It is thrown unless every file lies within the archive, has a unique name,
  /// and overlaps no other file.
  ZipReader(std::string_view archive, std::string function, std::string path)
      : archive_(archive), function_(std::move(function)), path_(std::move(path)) {
    const Directory directory = find_directory();
    std::uint64_t position = directory.begin;
    for (std::uint64_t i = 0; i < directory.count; ++i) read_entry(position, directory);
    if (position != directory.end)
      fail("expected a directory of " + std::to_string(directory.count) + " files, found more bytes after it");
    std::sort(extents_.begin(), extents_.end());
    for (std::size_t i = 1; i < extents_.size(); ++i)
      if (extents_[i].first < extents_[i - 1].second)
        fail("expected files that do not overlap, found two with byte " + std::to_string(extents_[i].first));
  }

  /// The bytes of a file, or nothing if the archive has no file of this name. Throws FileError if the file is
  /// compressed or encrypted.
  std::optional<std::string_view> find(std::string_view name) const {
    const auto found = files_.find(name);
    if (found == files_.end()) return std::nullopt;
    const File& file = found->second;
    if (file.is_encrypted || file.method != 0)
      fail("file " + detail::quoted(name) + ": expected plain bytes, found " +
           (file.is_encrypted ? "encrypted ones" : "bytes compressed by method " + std::to_string(file.method)));
    return file.bytes;
  }

  /// The name of the first file of the directory. Empty if the archive has no files.
  std::string_view first_name() const { return first_name_; }

 private:
  struct Directory {
    std::uint64_t begin, end, count;
  };

  struct File {
    std::string_view bytes;
    std::uint64_t method;
    bool is_encrypted;
  };

  struct Entry {
    std::uint64_t size, stored_size, header;
  };

  [[noreturn]] void fail(const std::string& problem) const { throw FileError(function_, path_, problem); }

  bool has(std::uint64_t position, std::uint64_t size) const {
    return position <= archive_.size() && size <= archive_.size() - position;
  }

  /// The little-endian number of `width` bytes at a position within the archive.
  std::uint64_t number(std::uint64_t position, unsigned width) const {
    std::uint64_t value = 0;
    for (unsigned i = 0; i < width; ++i)
      value |= std::uint64_t{static_cast<unsigned char>(archive_[position + i])} << 8 * i;
    return value;
  }

  /// Finds the central directory from the end of the archive.
  Directory find_directory() const {
    constexpr std::uint64_t kEndSize = 22, kLocatorSize = 20, kEnd64Size = 56;
    constexpr std::uint64_t kLongestComment = std::numeric_limits<std::uint16_t>::max();
    const std::uint64_t last = archive_.size() - std::min<std::uint64_t>(kEndSize, archive_.size());
    std::uint64_t end = last;
    while (!has(end, kEndSize) || archive_.substr(end, 4) != "PK\5\6" || number(end + 20, 2) != last - end) {
      if (end == 0 || last - end == kLongestComment)
        fail("expected a zip archive, found no end of one: it is another kind of file, or was cut short");
      --end;
    }
    std::uint64_t count = number(end + 10, 2), size = number(end + 12, 4), begin = number(end + 16, 4);
    if (end >= kLocatorSize && archive_.substr(end - kLocatorSize, 4) == "PK\6\7") {
      const std::uint64_t end64 = number(end - kLocatorSize + 8, 8);
      if (!has(end64, kEnd64Size) || archive_.substr(end64, 4) != "PK\6\6")
        fail("expected the end of a zip64 archive at byte " + std::to_string(end64) + ", found other bytes");
      count = number(end64 + 32, 8), size = number(end64 + 40, 8), begin = number(end64 + 48, 8);
    }
    if (!has(begin, size) || begin + size > end)
      fail("expected a directory before byte " + std::to_string(end) + ", found one of " + std::to_string(size) +
           " bytes at byte " + std::to_string(begin));
    return {begin, begin + size, count};
  }

  /// Reads the entry of the directory at `position`, and moves `position` behind it.
  void read_entry(std::uint64_t& position, const Directory& directory) {
    constexpr std::uint64_t kEntrySize = 46, kLocalSize = 30;
    if (directory.end - position < kEntrySize || archive_.substr(position, 4) != "PK\1\2")
      fail("expected a directory of " + std::to_string(directory.count) + " files, found " +
           std::to_string(files_.size()));
    const std::uint64_t flags = number(position + 8, 2), method = number(position + 10, 2),
                        name_size = number(position + 28, 2), extra_size = number(position + 30, 2),
                        comment_size = number(position + 32, 2);
    Entry entry{number(position + 24, 4), number(position + 20, 4), number(position + 42, 4)};
    position += kEntrySize;
    if (directory.end - position < name_size + extra_size + comment_size)
      fail("expected an entry within the directory, found a longer one at byte " + std::to_string(position));
    const std::string_view name = archive_.substr(position, name_size);
    read_zip64(entry, position + name_size, extra_size);
    position += name_size + extra_size + comment_size;

    const auto fail_here = [&](const std::string& problem) { fail("file " + detail::quoted(name) + ": " + problem); };
    if (method == 0 && entry.size != entry.stored_size)
      fail_here("expected " + std::to_string(entry.size) + " bytes, found " + std::to_string(entry.stored_size));
    if (!has(entry.header, kLocalSize) || archive_.substr(entry.header, 4) != "PK\3\4")
      fail_here("expected its header at byte " + std::to_string(entry.header) + ", found other bytes");
    const std::uint64_t local_name_size = number(entry.header + 26, 2), local_extra_size = number(entry.header + 28, 2),
                        begin = entry.header + kLocalSize + local_name_size + local_extra_size;
    if (begin > directory.begin || entry.stored_size > directory.begin - begin)
      fail_here("expected it before byte " + std::to_string(directory.begin) + ", found " +
                std::to_string(entry.stored_size) + " bytes at byte " + std::to_string(begin));
    if (archive_.substr(entry.header + kLocalSize, local_name_size) != name)
      fail_here("expected its name at byte " + std::to_string(entry.header) + ", found another");
    const File file{archive_.substr(begin, entry.stored_size), method, (flags & 1) != 0};
    if (!files_.emplace(name, file).second) fail_here("expected one file of this name, found two");
    if (files_.size() == 1) first_name_ = name;
    extents_.emplace_back(entry.header, begin + entry.stored_size);
  }

  /// Replaces the numbers that need more than 32 bits by those in the extra field of zip64.
  void read_zip64(Entry& entry, std::uint64_t position, std::uint64_t extra_size) const {
    constexpr std::uint64_t kZip64 = 1, kElsewhere = std::numeric_limits<std::uint32_t>::max();
    for (std::uint64_t left = extra_size; left >= 4;) {
      const std::uint64_t id = number(position, 2), size = std::min(number(position + 2, 2), left - 4);
      position += 4, left -= 4;
      if (id == kZip64) {
        std::uint64_t next = position;
        for (std::uint64_t* value : {&entry.size, &entry.stored_size, &entry.header})
          if (*value == kElsewhere && position + size - next >= 8) {
            *value = number(next, 8);
            next += 8;
          }
      }
      position += size, left -= size;
    }
  }

  std::string_view archive_;
  std::string function_, path_;
  std::unordered_map<std::string_view, File> files_;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> extents_;  // from the header to the end of the bytes
  std::string_view first_name_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
