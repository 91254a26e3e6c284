// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/detail/json.h>
#include <attend/io/detail/nearest_name.h>
#include <attend/io/state_dict_type.h>
#include <attend/version.h>

#include <ATen/ops/cat.h>
#include <c10/util/Exception.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <regex>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A rule that changes names and tensors of a state dict, so that another model can load it.
///
/// A pattern is a regular expression of std::regex in ECMAScript's syntax. It may match any part of a name. `^` and `$`
/// match the beginning and the end of the name. A replacement may contain `$1`, the text that the first group matched.
///
/// If a rule matches no tensor, renamed() throws. Otherwise a typing error in the pattern of transpose() could go
/// unnoticed, because the transpose of a square matrix has the same sizes.
///
/// @code
/// std::vector<attend::Rename> rules = {
///     attend::Rename::pattern("^module\\.", ""),
///     attend::Rename::merge({"q_proj\\.(weight|bias)$", "k_proj\\.(weight|bias)$", "v_proj\\.(weight|bias)$"},
///                           "in_proj_$1"),
/// };
/// @endcode
class Rename {
 public:
  /// Renames one tensor.
  ///
  /// @param from The name in the state dict.
  /// @param to The new name.
  /// @return The rule.
  static Rename exact(const std::string& from, const std::string& to) {
    return Rename("exact(" + detail::quoted(from) + ")", [=](const StateDict& dict, const std::string& rule) {
      TORCH_CHECK_VALUE(dict.contains(from), "attend::Rename::", rule, ": no tensor has this name",
                        nearest(from, dict));
      return changed(dict, rule, [&](const std::string& name, const torch::Tensor& tensor) {
        return name == from ? std::optional<Items>({{to, tensor}}) : std::nullopt;
      });
    });
  }

  /// Replaces the matching part of each name that has one.
  ///
  /// @param pattern A regular expression for the part.
  /// @param replacement The text that replaces each match in a name. May be empty.
  /// @return The rule.
  /// @throws c10::ValueError if the pattern is invalid. All functions of this class with a pattern throw it.
  static Rename pattern(const std::string& pattern, const std::string& replacement) {
    return for_matches("pattern", pattern, [=](const Match& match) {
      return Items{{match.with(replacement), match.tensor}};
    });
  }

  /// Splits each matching tensor along its first dimension, for example a packed projection into the projections of
  /// query, key and value.
  ///
  /// @param pattern Matches the names of packed tensors.
  /// @param replacements The text that replaces the match in the name, one for each part.
  /// @param sizes The size of each part, at least 0. Default: equal sizes.
  /// @return The rule.
  /// @throws c10::ValueError for an invalid pattern, no replacements, a negative size, or another number of sizes than
  /// of replacements.
  ///
  /// @code
  /// attend::Rename::split("in_proj_(weight|bias)$", {"q_proj.$1", "k_proj.$1", "v_proj.$1"})
  /// @endcode
  static Rename split(const std::string& pattern, const std::vector<std::string>& replacements,
                      const std::vector<std::int64_t>& sizes = {}) {
    TORCH_CHECK_VALUE(!replacements.empty() && (sizes.empty() || sizes.size() == replacements.size()),
                      "attend::Rename::split: expected a size for each of ", replacements.size(), " replacements, got ",
                      sizes.size());
    TORCH_CHECK_VALUE(std::all_of(sizes.begin(), sizes.end(), [](std::int64_t size) { return size >= 0; }),
                      "attend::Rename::split: expected sizes from 0, got ", torch::IntArrayRef(sizes));
    return for_matches("split", pattern, [=](const Match& match) {
      const auto count = static_cast<std::int64_t>(replacements.size());
      const std::int64_t rows = match.tensor.dim() == 0 ? 0 : match.tensor.size(0);
      const std::vector<std::int64_t> parts =
          sizes.empty() ? std::vector<std::int64_t>(replacements.size(), rows / count) : sizes;
      TORCH_CHECK_VALUE(match.tensor.dim() > 0 && std::accumulate(parts.begin(), parts.end(), std::int64_t{0}) == rows,
                        "attend::Rename::", match.rule, ": cannot split ", match.name, " ", match.tensor.sizes(),
                        " into parts of sizes ", torch::IntArrayRef(parts));
      Items items;
      std::int64_t begin = 0;
      for (std::size_t i = 0; i < parts.size(); begin += parts[i++])
        items.emplace_back(match.with(replacements[i]), match.tensor.narrow(0, begin, parts[i]));
      return items;
    });
  }

  /// Joins tensors along their first dimension, for example the projections of query, key and value into a packed one.
  ///
  /// In the name of each part, the match is replaced. Parts that get the same new name are joined into one tensor of
  /// this name. So one rule serves all layers of a model.
  ///
  /// @param patterns The patterns of the parts, in the order in which they are joined. If several match a name, the
  /// first of them is used.
  /// @param replacement The text that replaces each match.
  /// @return The rule.
  ///
  /// @code
  /// attend::Rename::merge({"q_proj\\.(weight|bias)$", "k_proj\\.(weight|bias)$", "v_proj\\.(weight|bias)$"},
  /// "in_proj_$1")
  /// @endcode
  static Rename merge(const std::vector<std::string>& patterns, const std::string& replacement) {
    std::vector<std::regex> compiled;
    std::string text;
    for (const std::string& pattern : patterns) {
      compiled.push_back(compile("merge", pattern));
      text += (text.empty() ? "" : ", ") + detail::quoted(pattern);
    }
    return Rename("merge({" + text + "})", [=](const StateDict& dict, const std::string& rule) {
      std::map<std::string, std::vector<torch::Tensor>> results;
      const auto result_of = [&](const std::string& name) {
        for (std::size_t i = 0; i < compiled.size(); ++i)
          if (std::regex_search(name, compiled[i]))
            return std::optional(std::pair(std::regex_replace(name, compiled[i], replacement), i));
        return std::optional<std::pair<std::string, std::size_t>>();
      };
      for (const auto& item : dict) {
        check_length(item.key(), rule);
        const auto result = result_of(item.key());
        if (!result) continue;
        auto& parts = results[result->first];
        parts.resize(compiled.size());
        TORCH_CHECK_VALUE(!parts[result->second].defined(), "attend::Rename::", rule, ": two tensors are part ",
                          result->second, " of ", result->first);
        parts[result->second] = item.value();
      }
      return changed(dict, rule, [&](const std::string& name, const torch::Tensor&) -> std::optional<Items> {
        const auto result = result_of(name);
        if (!result) return std::nullopt;
        auto& parts = results.at(result->first);
        if (parts.empty()) return Items();  // joined already
        return Items{{result->first, joined(std::exchange(parts, {}), result->first, rule)}};
      });
    });
  }

  /// Transposes each matching matrix, for example the weights of GPT-2's Conv1D, which are (in, out).
  ///
  /// @param pattern Matches the names of the matrices. The names do not change.
  /// @return The rule.
  static Rename transpose(const std::string& pattern) {
    return for_matches("transpose", pattern, [](const Match& match) {
      TORCH_CHECK_VALUE(match.tensor.dim() == 2, "attend::Rename::", match.rule, ": ", match.name, " ",
                        match.tensor.sizes(), " is not a matrix");
      return Items{{match.name, match.tensor.t()}};
    });
  }

  /// Leaves out each matching tensor, such as a mask that is saved as a buffer.
  ///
  /// @param pattern Matches the names.
  /// @return The rule.
  static Rename drop(const std::string& pattern) {
    return for_matches("drop", pattern, [](const Match&) { return Items(); });
  }

 private:
  friend StateDict renamed(const StateDict& dict, const std::vector<Rename>& rules);

  using Items = std::vector<std::pair<std::string, torch::Tensor>>;

  struct Match {
    const std::string& rule;
    const std::regex& pattern;
    const std::string& name;
    const torch::Tensor& tensor;

    std::string with(const std::string& replacement) const { return std::regex_replace(name, pattern, replacement); }
  };

  Rename(const std::string& text, std::function<StateDict(const StateDict&, const std::string&)> apply)
      : text_(text), apply_(std::move(apply)) {}

  /// A rule that replaces each tensor with a matching name by the tensors of change(match).
  template <class Change>
  static Rename for_matches(const std::string& kind, const std::string& pattern, Change change) {
    const std::regex compiled = compile(kind, pattern);
    return Rename(kind + "(" + detail::quoted(pattern) + ")", [=](const StateDict& dict, const std::string& rule) {
      return changed(dict, rule, [&](const std::string& name, const torch::Tensor& tensor) -> std::optional<Items> {
        check_length(name, rule);
        if (!std::regex_search(name, compiled)) return std::nullopt;
        return change(Match{rule, compiled, name, tensor});
      });
    });
  }

  /// The dict with each tensor replaced by the tensors of change(name, tensor), or kept if that returns nullopt.
  template <class Change>
  static StateDict changed(const StateDict& dict, const std::string& rule, Change&& change) {
    StateDict result;
    bool matches = false;
    for (const auto& item : dict) {
      std::optional<Items> items = change(item.key(), item.value());
      matches = matches || items;
      if (!items) items = Items{{item.key(), item.value()}};
      for (auto& [name, tensor] : *items) {
        TORCH_CHECK_VALUE(!result.contains(name), "attend::Rename::", rule, ": two tensors would be named ", name);
        result.insert(std::move(name), std::move(tensor));
      }
    }
    TORCH_CHECK_VALUE(matches, "attend::Rename::", rule, ": no name matches");
    return result;
  }

  static torch::Tensor joined(const std::vector<torch::Tensor>& parts, const std::string& name,
                              const std::string& rule) {
    for (const torch::Tensor& part : parts) {
      TORCH_CHECK_VALUE(part.defined(), "attend::Rename::", rule, ": ", name, " lacks a part");
      TORCH_CHECK_VALUE(part.dim() > 0 && part.dim() == parts[0].dim() &&
                            part.sizes().slice(1) == parts[0].sizes().slice(1) && part.dtype() == parts[0].dtype(),
                        "attend::Rename::", rule, ": the parts of ", name, " differ: ", parts[0].dtype(), " ",
                        parts[0].sizes(), " and ", part.dtype(), " ", part.sizes());
    }
    return at::cat(parts);
  }

  static std::regex compile(const std::string& kind, const std::string& pattern) {
    try {
      return std::regex(pattern);
    } catch (const std::regex_error& error) {
      TORCH_CHECK_VALUE(false, "attend::Rename::", kind, ": invalid pattern ", detail::quoted(pattern), ": ",
                        error.what());
    }
  }

  /// Longer names are refused, because std::regex would need too much stack for them.
  static void check_length(const std::string& name, const std::string& rule) {
    constexpr std::size_t kLongest = 1000;
    TORCH_CHECK_VALUE(name.size() <= kLongest, "attend::Rename::", rule, ": expected names of at most ", kLongest,
                      " bytes, found one of ", name.size());
  }

  static std::string nearest(const std::string& name, const StateDict& dict) {
    const std::string found = detail::nearest_name(name, dict.keys());
    return found.empty() ? "" : ". Nearest: " + detail::quoted(found);
  }

  std::string text_;
  std::function<StateDict(const StateDict&, const std::string& rule)> apply_;
};

/// Applies rules to a state dict, each to the result of the one before.
///
/// @param dict The state dict, which does not change. Tensors of the result share its memory, except joined tensors.
/// @param rules The rules.
/// @return The state dict with new names, in the order of `dict`.
/// @throws c10::ValueError if a rule matches nothing, does not fit a tensor, or gives two tensors the same name, and if
/// a name to which a pattern is applied is longer than 1000 bytes.
inline StateDict renamed(const StateDict& dict, const std::vector<Rename>& rules) {
  StateDict result = dict;
  for (const Rename& rule : rules) result = rule.apply_(result, rule.text_);
  return result;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
