// SPDX-License-Identifier: MIT
#pragma once

// Writers of zip archives and pickles, for the tests of their readers.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace attend::test {

/// The little-endian bytes of a number.
inline std::string number(std::uint64_t value, unsigned width) {
  std::string bytes;
  for (unsigned i = 0; i < width; ++i) bytes += static_cast<char>(value >> 8 * i);
  return bytes;
}

inline std::string zeros(std::size_t count) { return std::string(count, '\0'); }

struct Zipped {
  std::string name, bytes;
  unsigned method = 0, flags = 0;
};

/// A zip archive. With `is_zip64`, the sizes and positions are in the fields for large archives.
inline std::string zip_archive(const std::vector<Zipped>& files, bool is_zip64 = false,
                               const std::string& comment = "") {
  std::string archive, directory;
  const auto small = [&](std::size_t value) { return number(is_zip64 ? 0xFFFFFFFF : value, 4); };
  for (const Zipped& file : files) {
    const std::string sizes = number(file.bytes.size(), 8) + number(file.bytes.size(), 8) + number(archive.size(), 8);
    const std::string extra = is_zip64 ? "FB" + number(3, 2) + "ZZZ" + number(1, 2) + number(24, 2) + sizes : "";
    directory += "PK\1\2" + number(0, 4) + number(file.flags, 2) + number(file.method, 2) + number(0, 8) +
                 small(file.bytes.size()) + small(file.bytes.size()) + number(file.name.size(), 2) +
                 number(extra.size(), 2) + zeros(10) + small(archive.size()) + file.name + extra;
    archive += "PK\3\4" + number(0, 2) + number(file.flags, 2) + number(file.method, 2) + zeros(16) +
               number(file.name.size(), 2) + number(5, 2) + file.name + "FB" + number(1, 2) + "Z" + file.bytes;
  }
  const std::size_t begin = archive.size(), end = begin + directory.size();
  archive += directory;
  if (is_zip64)
    archive += "PK\6\6" + number(44, 8) + zeros(12) + number(files.size(), 8) + number(files.size(), 8) +
               number(directory.size(), 8) + number(begin, 8) + "PK\6\7" + number(0, 4) + number(end, 8) + number(1, 4);
  return archive + "PK\5\6" + number(0, 4) + number(files.size(), 2) + number(files.size(), 2) +
         small(directory.size()) + small(begin) + number(comment.size(), 2) + comment;
}

// ---- Pickles
// ---------------------------------------------------------------------------------------------------------

inline std::string pickled(const std::string& text) { return "X" + number(text.size(), 4) + text; }
inline std::string pickled(int value) { return "J" + number(static_cast<std::uint32_t>(value), 4); }
inline std::string pickled_global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
inline std::string pickled_tuple(const std::vector<int>& values) {
  std::string bytes = "(";
  for (const int value : values) bytes += pickled(value);
  return bytes + "t";
}

struct PickledTensor {
  std::vector<int> sizes, strides;
  int offset = 0, elements = 0;  // of the storage
  std::string type = "FloatStorage", key = "0", dtype = "";

  /// The opcodes that torch.save writes for a tensor. With a dtype, the form for those without a typed storage.
  std::string bytes() const {
    const std::string module = type == "UntypedStorage" ? "torch.storage" : "torch";
    return pickled_global("torch._utils", dtype.empty() ? "_rebuild_tensor_v2" : "_rebuild_tensor_v3") + "((" +
           pickled("storage") + pickled_global(module, type) + pickled(key) + pickled("cpu") + pickled(elements) +
           "tQ" + pickled(offset) + pickled_tuple(sizes) + pickled_tuple(strides) + "\x89" +
           pickled_global("collections", "OrderedDict") + ")R" + (dtype.empty() ? "" : pickled_global("torch", dtype)) +
           "tR";
  }
};

/// A pickle of protocol 2 with these opcodes.
inline std::string pickle(const std::string& opcodes) { return "\x80\x02" + opcodes + "."; }

/// The archive that torch.save writes for a pickle and storages.
inline std::string torch_archive(const std::string& pickle, const std::vector<std::string>& storages) {
  std::vector<Zipped> files = {{"archive/data.pkl", pickle}, {"archive/byteorder", "little"}};
  for (std::size_t i = 0; i < storages.size(); ++i) files.push_back({"archive/data/" + std::to_string(i), storages[i]});
  return zip_archive(files);
}

}  // namespace attend::test
