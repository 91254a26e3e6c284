// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/detail/json.h>
#include <attend/version.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// For the name of each tensor, the name of the file that holds it: the weight_map of model.safetensors.index.json.
using SafetensorsIndex = std::map<std::string, std::string>;

/// Reads and checks an index.
///
/// @param text The whole file.
/// @param path For FileError, which is thrown if anything is wrong.
inline SafetensorsIndex read_safetensors_index(std::string_view text, const std::string& path) {
  JsonReader json(text, "attend::SafetensorsFile", path);
  std::optional<SafetensorsIndex> index;
  json.object([&](const std::string& field) {
    if (field != "weight_map") return json.skip();
    if (std::exchange(index, SafetensorsIndex()).has_value()) json.fail("expected one weight_map, found two");
    json.object([&](const std::string& name) {
      json.set_part("tensor", name);
      std::string file = json.string();
      if (file.empty() || file.find_first_of(std::string_view("/\0", 2)) != file.npos)
        json.fail("expected the name of a file in the same folder, found " + quoted(file));
      if (!index->emplace(name, std::move(file)).second) json.fail("expected one tensor of this name, found two");
      json.set_part({}, {});
    });
  });
  json.end();
  if (!index) json.fail("expected a weight_map, found none");
  return std::move(*index);
}

/// The text of an index, as Hugging Face's libraries write it.
///
/// @param total_size The number of bytes of all tensors.
inline std::string write_safetensors_index(const SafetensorsIndex& index, std::uint64_t total_size) {
  std::string text =
      "{\n  \"metadata\": {\n    \"total_size\": " + std::to_string(total_size) + "\n  },\n  \"weight_map\": {";
  for (const auto& [name, file] : index) {
    text += text.back() == '{' ? "\n    " : ",\n    ";
    append_json_string(text, name);
    text += ": ";
    append_json_string(text, file);
  }
  return text + "\n  }\n}\n";
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
