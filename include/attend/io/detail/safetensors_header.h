// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/detail/json.h>
#include <attend/io/file_error.h>
#include <attend/version.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

static_assert(std::endian::native == std::endian::little,
              "attend reads and writes files on little-endian machines only");

/// The dtypes of the format, in the order of the Rust crate. Files are sorted by this order, from the end.
enum class SafetensorsDtype : std::uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,  // clang-format off
  kI16, kU16, kF16, kBf16, kI32, kU32, kF32, kC64, kF64, kI64, kU64,  // clang-format on
};

struct SafetensorsDtypeFacts {
  std::string_view name;
  int bits;
};

/// The name and size of a dtype.
inline const SafetensorsDtypeFacts& facts(SafetensorsDtype dtype) {
  static constexpr std::array<SafetensorsDtypeFacts, 22> kFacts = {{
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
  }};
  return kFacts[static_cast<std::size_t>(dtype)];
}

/// One tensor of a file.
struct SafetensorsEntry {
  SafetensorsDtype dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  ///< the bytes of the elements, counted from the beginning of the file
};

/// The contents of the header of a file. The bytes of the tensors follow the header without gaps.
struct SafetensorsHeader {
  std::map<std::string, SafetensorsEntry, std::less<>> tensors;
  std::map<std::string, std::string> metadata;

  /// The tensors in the order of their bytes.
  std::vector<const std::pair<const std::string, SafetensorsEntry>*> by_position() const {
    std::vector<const std::pair<const std::string, SafetensorsEntry>*> sorted;
    sorted.reserve(tensors.size());
    for (const auto& tensor : tensors) sorted.push_back(&tensor);
    std::ranges::sort(sorted, {}, [](const auto* t) { return std::tuple(t->second.begin, t->second.end, t->first); });
    return sorted;
  }
};

inline constexpr std::uint64_t kSafetensorsLongestHeader = 100'000'000;  // the limit of the Rust crate
inline constexpr std::size_t kSafetensorsMostDimensions = 64;            // the limit of most operations of torch
inline constexpr std::string_view kSafetensorsMetadata = "__metadata__";

/// The number of bytes of the elements. Nothing if it is not a whole number, or if torch could not compute it in 63
/// bits.
inline std::optional<std::uint64_t> byte_size(SafetensorsDtype dtype, const std::vector<std::int64_t>& shape) {
  std::int64_t bits = facts(dtype).bits;
  bool is_empty = false;
  for (const std::int64_t size : shape) {
    is_empty = is_empty || size == 0;
    if (size != 0 && __builtin_mul_overflow(bits, size, &bits)) return std::nullopt;
  }
  if (is_empty) return 0;
  return bits % 8 == 0 ? std::optional<std::uint64_t>(bits / 8) : std::nullopt;
}

/// Reads the JSON text of a header. See read_safetensors_header().
class SafetensorsHeaderReader {
 public:
  SafetensorsHeaderReader(std::string_view text, const std::string& path, const std::string& function)
      : json_(text, function, path) {}

  /// @param data_begin The end of the header, in bytes from the beginning of the file.
  SafetensorsHeader read(std::uint64_t data_begin, std::uint64_t file_size) {
    read_tensors();
    check_positions(data_begin, file_size);
    return std::move(header_);
  }

 private:
  void read_tensors() {
    bool has_metadata = false;
    json_.object([&](const std::string& name) {
      if (name != kSafetensorsMetadata) return read_tensor(name);
      if (std::exchange(has_metadata, true)) json_.fail("expected one __metadata__, found two");
      json_.object([&](const std::string& key) {
        if (!header_.metadata.emplace(key, json_.string()).second)
          json_.fail("__metadata__: expected one " + quoted(key) + ", found two");
      });
    });
    json_.end();
  }

  void read_tensor(const std::string& name) {
    json_.set_part("tensor", name);
    std::optional<SafetensorsDtype> dtype;
    std::optional<std::vector<std::int64_t>> shape, offsets;
    json_.object([&](const std::string& field) {
      const bool is_second =
          (field == "dtype" && dtype) || (field == "shape" && shape) || (field == "data_offsets" && offsets);
      if (is_second) json_.fail("expected one " + field + ", found two");
      if (field == "dtype") {
        dtype = read_dtype();
      } else if (field == "shape") {
        shape = read_integers(field, kSafetensorsMostDimensions);
      } else if (field == "data_offsets") {
        offsets = read_integers(field, 2);
      } else {
        json_.skip();  // as the Rust crate
      }
    });
    if (!dtype || !shape || !offsets)
      json_.fail(std::string("expected a ") + (!dtype ? "dtype" : !shape ? "shape" : "data_offsets") + ", found none");
    if (offsets->size() != 2) json_.fail("expected two data_offsets, found " + std::to_string(offsets->size()));
    const auto [begin, end] = std::pair((*offsets)[0], (*offsets)[1]);
    const std::optional<std::uint64_t> size = byte_size(*dtype, *shape);
    if (!size) json_.fail("expected a size in whole bytes below 2^60, found " + describe(*dtype, *shape));
    if (begin > end || static_cast<std::uint64_t>(end - begin) != *size)
      json_.fail("expected " + std::to_string(*size) + " bytes for " + describe(*dtype, *shape) +
                 ", found data_offsets " + describe(*offsets));
    SafetensorsEntry entry{*dtype, std::move(*shape), static_cast<std::uint64_t>(begin),
                           static_cast<std::uint64_t>(end)};
    if (!header_.tensors.emplace(name, std::move(entry)).second)
      json_.fail("expected one tensor of this name, found two");
    json_.set_part({}, {});
  }

  SafetensorsDtype read_dtype() {
    const std::string text = json_.string();
    for (int i = 0; i <= static_cast<int>(SafetensorsDtype::kU64); ++i)
      if (const auto dtype = static_cast<SafetensorsDtype>(i); facts(dtype).name == text) return dtype;
    json_.fail("expected a dtype such as \"F32\", found " + quoted(text));
  }

  std::vector<std::int64_t> read_integers(const std::string& field, std::size_t most) {
    std::vector<std::int64_t> values;
    json_.array([&] {
      if (values.size() == most)
        json_.fail("expected at most " + std::to_string(most) + " numbers in " + field + ", found more");
      values.push_back(json_.integer());
    });
    return values;
  }

  /// Checks that the tensors cover the rest of the file without gaps, and makes their positions count from the
  /// beginning of the file.
  void check_positions(std::uint64_t data_begin, std::uint64_t file_size) {
    std::uint64_t position = 0;
    for (const auto* tensor : header_.by_position()) {
      auto& [name, entry] = *tensor;
      json_.set_part("tensor", name);
      if (entry.begin != position)
        json_.fail("expected data_offsets from " + std::to_string(position) + ", found " + std::to_string(entry.begin) +
                   ": the tensors must cover the data without holes and overlaps");
      position = entry.end;
    }
    json_.set_part({}, {});
    if (position != file_size - data_begin)
      json_.fail("expected " + std::to_string(position) + " bytes after the header, found " +
                 std::to_string(file_size - data_begin));
    for (auto& [name, entry] : header_.tensors) {
      entry.begin += data_begin;
      entry.end += data_begin;
    }
  }

  static std::string describe(const std::vector<std::int64_t>& numbers) {
    std::string text = "[";
    for (const std::int64_t number : numbers) text += (text.size() > 1 ? ", " : "") + std::to_string(number);
    return text + "]";
  }
  static std::string describe(SafetensorsDtype dtype, const std::vector<std::int64_t>& shape) {
    return std::string(facts(dtype).name) + " of shape " + describe(shape);
  }

  JsonReader json_;
  SafetensorsHeader header_;
};

/// Reads and checks the header of a file. It needs memory only for its result.
///
/// @param file The whole file.
/// @param path, function For FileError, which is thrown if anything is wrong.
inline SafetensorsHeader read_safetensors_header(std::string_view file, const std::string& path,
                                                 const std::string& function = "attend::SafetensorsFile") {
  const auto fail = [&](const std::string& problem) { throw FileError(function, path, problem); };
  std::uint64_t length = 0;
  if (file.size() < sizeof(length))
    fail("expected 8 bytes for the length of the header, found a file of " + std::to_string(file.size()) + " bytes");
  std::memcpy(&length, file.data(), sizeof(length));
  const std::uint64_t longest = std::min<std::uint64_t>(kSafetensorsLongestHeader, file.size() - sizeof(length));
  if (length > longest)
    fail("expected a header of at most " + std::to_string(longest) + " bytes, found the length " +
         std::to_string(length));
  return SafetensorsHeaderReader(file.substr(sizeof(length), length), path, function)
      .read(sizeof(length) + length, file.size());
}

/// Sets the position of each tensor in a new file, and returns the bytes before the first tensor. The order is that of
/// the Rust crate: large dtypes come first, so that all tensors are aligned. Tensors of one dtype are in alphabetical
/// order.
///
/// @param header With dtypes, shapes and metadata. All names must be UTF-8, and byte_size() of each tensor known.
inline std::string write_safetensors_header(SafetensorsHeader& header) {
  std::vector<std::pair<const std::string, SafetensorsEntry>*> sorted;
  for (auto& tensor : header.tensors) sorted.push_back(&tensor);
  std::ranges::sort(sorted, [](const auto* a, const auto* b) {
    return a->second.dtype != b->second.dtype ? a->second.dtype > b->second.dtype : a->first < b->first;
  });

  std::string text = "{";
  if (!header.metadata.empty()) {
    text += "\"__metadata__\":{";
    for (const auto& [key, value] : header.metadata) {
      if (text.back() != '{') text += ',';
      append_json_string(text, key);
      text += ':';
      append_json_string(text, value);
    }
    text += '}';
  }
  std::uint64_t position = 0;
  for (auto* tensor : sorted) {
    auto& [name, entry] = *tensor;
    entry.begin = position;
    entry.end = position += *byte_size(entry.dtype, entry.shape);
    if (text.size() > 1) text += ',';
    append_json_string(text, name);
    text.append(":{\"dtype\":\"").append(facts(entry.dtype).name).append("\",\"shape\":[");
    for (std::size_t d = 0; d < entry.shape.size(); ++d)
      text.append(d == 0 ? "" : ",").append(std::to_string(entry.shape[d]));
    text += "],\"data_offsets\":[" + std::to_string(entry.begin) + ',' + std::to_string(entry.end) + "]}";
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');

  std::uint64_t length = text.size();
  for (auto& [name, entry] : header.tensors) {
    entry.begin += sizeof(length) + length;
    entry.end += sizeof(length) + length;
  }
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + text;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
