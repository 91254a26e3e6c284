// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The smallest number of characters to insert, delete or replace that turns one text into the other.
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);  // distances of the first i characters of a to the first j of b
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0]++;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

/// Whether `name` is `part` with a prefix of whole components, for example "model.a.b" for the part "a.b".
inline bool is_prefixed(std::string_view name, std::string_view part) {
  return name.size() > part.size() && name.ends_with(part) && name[name.size() - part.size() - 1] == '.';
}

/// The candidate that is most similar to the name: a candidate that differs by a prefix, otherwise the one with the
/// smallest edit distance, which must be at most half the length. Empty if there is none.
inline std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates) {
  const auto end_of = [](std::string_view text) {
    constexpr std::size_t kLongest = 200;  // of a long name only the end is compared
    return text.substr(text.size() - std::min(text.size(), kLongest));
  };
  std::string nearest;
  std::size_t least = std::string::npos;
  std::size_t compared = 0;
  for (const std::string& candidate : candidates) {
    if (is_prefixed(candidate, name) || is_prefixed(name, candidate)) return candidate;
    if (++compared > 1000) continue;  // a comparison takes time
    const std::size_t distance = edit_distance(end_of(name), end_of(candidate));
    if (distance < least && distance <= std::max(end_of(name).size(), end_of(candidate).size()) / 2) {
      nearest = candidate;
      least = distance;
    }
  }
  return nearest;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
