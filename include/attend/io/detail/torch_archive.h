// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/detail/json.h>
#include <attend/io/detail/pickle_reader.h>
#include <attend/io/detail/utf8.h>
#include <attend/io/detail/zip_reader.h>
#include <attend/io/file_error.h>
#include <attend/version.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// A dtype of torch: Python's name, the name of its typed storage if it has one, and the size of an element in bytes.
struct TorchDtype {
  std::string_view name, storage;
  std::int64_t size;
};

inline constexpr TorchDtype kTorchDtypes[] = {
    {"float32", "FloatStorage", 4},
    {"float64", "DoubleStorage", 8},
    {"float16", "HalfStorage", 2},
    {"bfloat16", "BFloat16Storage", 2},
    {"int8", "CharStorage", 1},
    {"int16", "ShortStorage", 2},
    {"int32", "IntStorage", 4},
    {"int64", "LongStorage", 8},
    {"uint8", "ByteStorage", 1},
    {"bool", "BoolStorage", 1},
    {"complex64", "ComplexFloatStorage", 8},
    {"complex128", "ComplexDoubleStorage", 16},
    {"complex32", "", 4},
    {"uint16", "", 2},
    {"uint32", "", 4},
    {"uint64", "", 8},
    {"float8_e4m3fn", "", 1},
    {"float8_e4m3fnuz", "", 1},
    {"float8_e5m2", "", 1},
    {"float8_e5m2fnuz", "", 1},
    {"float8_e8m0fnu", "", 1},
    {"float4_e2m1fn_x2", "", 1},
};

/// A tensor of a file that torch.save wrote. All its elements lie within its storage.
struct TorchEntry {
  std::string name;
  const TorchDtype* dtype;
  std::string_view storage;  ///< the bytes of the storage, the same for all tensors that share it
  std::int64_t offset;       ///< of the first element, in elements
  std::vector<std::int64_t> sizes, strides;
};

/// Finds the tensors of one dict in a file that Python's torch.save wrote. No byte of a tensor is read or copied.
class TorchArchive {
 public:
  /// @param file The bytes of the file.
  /// @param path For FileError.
  /// @param key The entry of the saved dict that holds the tensors. Empty: the saved dict itself.
  /// @return The tensors in the order of the dict. The storages are parts of `file`.
  static std::vector<TorchEntry> read(std::string_view file, const std::string& path, std::string_view key) {
    return TorchArchive(file, path).read_dict(key);
  }

 private:
  using Kind = PickleReader::Kind;
  using Value = PickleReader::Value;

  static constexpr const char* kFunction = "attend::load_torch_file";
  static constexpr std::size_t kMaxDimensions = 64;  // of torch's operations

  TorchArchive(std::string_view file, const std::string& path)
      : path_(path),
        zip_(with_zip(file, path), kFunction, path),
        folder_(zip_.first_name().substr(0, zip_.first_name().find('/') + 1)),
        pickle_(pickle_of(), kFunction, path) {
    const std::string_view byte_order = zip_.find(folder_ + "byteorder").value_or("little");
    if (byte_order != "little") fail("expected byteorder \"little\", found " + detail::quoted(byte_order));
  }

  [[noreturn]] void fail(const std::string& problem) const { throw FileError(kFunction, path_, problem); }

  /// Refuses files that torch.save wrote before PyTorch 1.6, or with _use_new_zipfile_serialization=False.
  static std::string_view with_zip(std::string_view file, const std::string& path) {
    constexpr std::string_view kMagicNumber("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15);
    if (file.starts_with(kMagicNumber))
      throw FileError(kFunction, path,
                      "expected a zip archive, found the format of torch.save before PyTorch 1.6. Load and save the "
                      "file in Python: torch.save(torch.load(old), new)");
    return file;
  }

  std::string_view pickle_of() const {
    if (zip_.find(folder_ + "constants.pkl"))
      fail(
          "expected what torch.save of Python writes, found a TorchScript archive, as torch::save of C++ writes it. "
          "Load it with torch::load");
    const auto pickle = zip_.find(folder_ + "data.pkl");
    if (!pickle) fail("expected what torch.save of Python writes, found a zip archive without data.pkl");
    return *pickle;
  }

  // ---- The dict ----------------------------------------------------------------------------------------------------

  std::vector<TorchEntry> read_dict(std::string_view key) const {
    const Value dict = key.empty() ? pickle_.root() : find(key);
    if (pickle_.kind(dict) != Kind::kDict) fail("expected a dict of tensors, found " + pickle_.describe(dict));
    const std::span<const Value> items = pickle_.items(dict);
    std::vector<TorchEntry> entries;
    std::unordered_set<std::string_view> names;
    std::size_t dimensions = 0;
    for (std::size_t i = 0; i < items.size(); i += 2) {
      if (pickle_.kind(items[i]) != Kind::kString)
        fail("expected names of tensors, found the key " + pickle_.describe(items[i]));
      const std::string_view name = pickle_.text(items[i]);
      if (!is_utf8(name)) fail("expected a name in UTF-8, found " + detail::quoted(name));
      if (!names.insert(name).second) fail("tensor " + detail::quoted(name) + ": expected one of this name, found two");
      if (pickle_.kind(items[i + 1]) != Kind::kTensor)
        fail(detail::quoted(name) + ": expected a tensor, found " + pickle_.describe(items[i + 1]) + advice(items));
      entries.push_back(read_tensor(name, pickle_.items(items[i + 1])));
      // One tensor may have any number of names, each of a few bytes.
      dimensions += entries.back().sizes.size();
      if (dimensions > pickle_bytes_)
        fail("expected at most as many dimensions of tensors as bytes of data.pkl, found more");
    }
    return entries;
  }

  /// The entry of the saved dict. If several have this name, the last of them, as in Python.
  Value find(std::string_view key) const {
    const Value root = pickle_.root();
    if (pickle_.kind(root) != Kind::kDict)
      fail("expected a dict with the key " + detail::quoted(key) + ", found " + pickle_.describe(root));
    const std::span<const Value> items = pickle_.items(root);
    for (std::size_t i = items.size(); i > 0; i -= 2)
      if (pickle_.kind(items[i - 2]) == Kind::kString && pickle_.text(items[i - 2]) == key) return items[i - 1];
    fail("expected the key " + detail::quoted(key) + ", found " + keys(items, [](Kind) { return true; }));
  }

  /// Says which entries may be a state dict, for a file such as {"model": state_dict, "epoch": 3}.
  std::string advice(std::span<const Value> items) const {
    const std::string dicts = keys(items, [](Kind kind) { return kind == Kind::kDict; });
    return dicts.empty() ? "" : ". Pass the key of the state dict. Entries that are dicts: " + dicts;
  }

  /// The first keys of a dict whose values are of the wanted kinds.
  template <class IsWanted>
  std::string keys(std::span<const Value> items, IsWanted is_wanted) const {
    std::string text;
    int left = 10;
    for (std::size_t i = 0; i < items.size() && left > 0; i += 2) {
      if (pickle_.kind(items[i]) != Kind::kString || !is_wanted(pickle_.kind(items[i + 1]))) continue;
      text += (text.empty() ? "" : ", ") + detail::quoted(pickle_.text(items[i]));
      --left;
    }
    return left > 0 ? text : text + ", …";
  }

  // ---- A tensor ----------------------------------------------------------------------------------------------------

  /// Reads the arguments of torch._utils._rebuild_tensor_v2: storage, offset, sizes, strides, and then arguments about
  /// gradients. _rebuild_tensor_v3 has the dtype after them.
  TorchEntry read_tensor(std::string_view name, std::span<const Value> arguments) const {
    const auto fail_here = [&](const std::string& problem) { fail("tensor " + detail::quoted(name) + ": " + problem); };
    const auto kind_of = [&](std::size_t i) { return i < arguments.size() ? pickle_.kind(arguments[i]) : Kind::kNone; };
    if (kind_of(0) != Kind::kStorage || kind_of(1) != Kind::kInt || kind_of(2) != Kind::kTuple ||
        kind_of(3) != Kind::kTuple)
      fail_here("expected a storage, an offset, sizes and strides, found other arguments");
    TorchEntry entry{std::string(name), nullptr, {}, pickle_.integer(arguments[1]), {}, {}};
    const auto read_integers = [&](Value tuple, std::vector<std::int64_t>& integers) {
      const std::span<const Value> items = pickle_.items(tuple);
      if (items.size() > kMaxDimensions)
        fail_here("expected at most 64 dimensions, found " + std::to_string(items.size()));
      for (const Value item : items) {
        if (pickle_.kind(item) != Kind::kInt || pickle_.integer(item) < 0)
          fail_here("expected sizes and strides from 0, found " + pickle_.describe(item));
        integers.push_back(pickle_.integer(item));
      }
    };
    for (std::size_t i = 6; i < arguments.size(); ++i)  // after the dtype, if there is one
      if (kind_of(i) == Kind::kDict && !pickle_.items(arguments[i]).empty())
        fail_here("expected no flags conj and neg, found some; in Python save tensor.resolve_conj().resolve_neg()");
    read_integers(arguments[2], entry.sizes);
    read_integers(arguments[3], entry.strides);
    if (entry.sizes.size() != entry.strides.size())
      fail_here("expected a stride for each of " + std::to_string(entry.sizes.size()) + " sizes, found " +
                std::to_string(entry.strides.size()));

    // ("storage", type, key, location, number of elements)
    const std::span<const Value> storage = pickle_.items(arguments[0]);
    const auto is = [&](std::size_t i, Kind kind) { return i < storage.size() && pickle_.kind(storage[i]) == kind; };
    if (!is(1, Kind::kGlobal) || !is(2, Kind::kString) || !is(4, Kind::kInt))
      fail_here("expected a storage with type, key and number of elements, found another");
    const std::string_view type = pickle_.text(storage[1]), record = pickle_.text(storage[2]);
    const bool is_untyped = type == "UntypedStorage";
    const std::string_view dtype = !is_untyped                   ? type
                                   : kind_of(6) == Kind::kGlobal ? pickle_.text(arguments[6])
                                                                 : std::string_view();
    for (const TorchDtype& known : kTorchDtypes)
      if (dtype == (is_untyped ? known.name : known.storage)) entry.dtype = &known;
    if (!entry.dtype || dtype.empty()) fail_here("expected a dtype that attend knows, found " + detail::quoted(dtype));

    const auto bytes = zip_.find(folder_ + "data/" + std::string(record));
    if (!bytes)
      fail_here("expected its elements in the file " + detail::quoted("data/" + std::string(record)) + ", found none");
    entry.storage = *bytes;
    const std::int64_t count = pickle_.integer(storage[4]), size = entry.dtype->size;
    const auto found = static_cast<std::int64_t>(bytes->size()) / (is_untyped ? 1 : size);
    if (found != count)
      fail_here("expected a storage of " + std::to_string(count) + " elements, found " + std::to_string(found));
    check_extent(entry, static_cast<std::int64_t>(bytes->size()) / size);
    return entry;
  }

  /// Checks that all elements of the tensor are among the `count` elements of its storage. With strides of 0 a tensor
  /// may have more elements than its storage, but they must take less than 2^63 bytes.
  void check_extent(const TorchEntry& entry, std::int64_t count) const {
    bool is_empty = false, fits = true;
    std::int64_t bytes = entry.dtype->size, last = entry.offset;
    for (std::size_t d = 0; d < entry.sizes.size(); ++d) {
      std::int64_t step = 0;
      is_empty = is_empty || entry.sizes[d] == 0;
      if (entry.sizes[d] == 0) continue;
      fits = fits && !__builtin_mul_overflow(bytes, entry.sizes[d], &bytes) &&
             !__builtin_mul_overflow(entry.sizes[d] - 1, entry.strides[d], &step) &&
             !__builtin_add_overflow(last, step, &last);
    }
    if (!fits || entry.offset < 0 || (is_empty ? entry.offset > count : last >= count))
      fail("tensor " + detail::quoted(entry.name) + ": expected elements within a storage of " + std::to_string(count) +
           ", found offset " + std::to_string(entry.offset) + ", sizes " + describe(entry.sizes) + " and strides " +
           describe(entry.strides));
  }

  static std::string describe(const std::vector<std::int64_t>& numbers) {
    std::string text = "[";
    for (const std::int64_t number : numbers) text += (text.size() > 1 ? ", " : "") + std::to_string(number);
    return text + "]";
  }

  std::string path_;
  ZipReader zip_;
  std::string folder_;
  PickleReader pickle_;
  std::size_t pickle_bytes_ = pickle_of().size();
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
