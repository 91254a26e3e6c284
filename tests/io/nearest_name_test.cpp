// SPDX-License-Identifier: MIT
#include <attend/io/detail/nearest_name.h>
#include <doctest/doctest.h>

#include <string>
#include <vector>

namespace {

using attend::detail::edit_distance, attend::detail::nearest_name;

TEST_CASE("edit_distance: insertions, deletions and replacements") {
  CHECK(edit_distance("", "") == 0);
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("kitten", "sitting") == 3);  // the example of Wagner and Fischer's algorithm in textbooks
  CHECK(edit_distance("sitting", "kitten") == 3);
  CHECK(edit_distance("saturday", "sunday") == 3);
}

TEST_CASE("nearest_name: a prefix of whole components, then the fewest edits, and nothing if no name is alike") {
  const std::vector<std::string> names = {"q_proj.weight", "model.k_proj.weight", "layers.0.norm.bias", "x"};
  CHECK(nearest_name("k_proj.weight", names) == "model.k_proj.weight");
  CHECK(nearest_name("model.q_proj.weight", names) == "q_proj.weight");
  CHECK(nearest_name("q_prj.weight", names) == "q_proj.weight");
  CHECK(nearest_name("layers.0.norm1.bias", names) == "layers.0.norm.bias");
  CHECK(nearest_name("completely_different_name", names) == "");
  CHECK(nearest_name("a", {}) == "");
  CHECK(nearest_name(std::string(100'000, 'a'), {std::string(99'999, 'a') + "b"}).size() == 100'000);
}

}  // namespace
