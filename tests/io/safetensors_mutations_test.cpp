// SPDX-License-Identifier: MIT
#include <attend/io/detail/safetensors_header.h>
#include <attend/io/detail/safetensors_index.h>
#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/mutations.h"
#include "io/safetensors_files.h"

namespace {

using namespace attend::detail;
using namespace attend::test;

/// Reads the header, and each byte of each tensor. A file that is accepted must be written back with the same tensors.
void read_tensors(std::string_view file) {
  const SafetensorsHeader header = read_safetensors_header(file, "a.safetensors");
  std::uint64_t bytes = 0, sum = 0;
  for (const auto& [name, entry] : header.tensors) {
    for (const char c : file.substr(entry.begin, entry.end - entry.begin)) sum += static_cast<unsigned char>(c);
    bytes += entry.end - entry.begin;
    if (entry.begin > entry.end || entry.end > file.size()) FAIL("a tensor outside of the file");
  }
  if (bytes > file.size() || sum > 255 * bytes) FAIL("tensors that overlap");
}

void read_index(std::string_view text) { read_safetensors_index(text, "model.safetensors.index.json"); }

/// Files of several dtypes, with metadata and names that need escapes.
std::vector<std::string> small_files() {
  SafetensorsHeader header;
  header.metadata = {{"format", "pt"}, {"é\n", "\"\\\x01"}};
  header.tensors = {{"weight", {SafetensorsDtype::kF32, {2, 3}}},   {"b", {SafetensorsDtype::kBf16, {3}}},
                    {"0-d é\t", {SafetensorsDtype::kI64, {}}},      {"empty", {SafetensorsDtype::kU8, {0, 4}}},
                    {"mask", {SafetensorsDtype::kBool, {1, 2, 1}}}, {"f4", {SafetensorsDtype::kF4, {2, 2}}}};
  std::string file = write_safetensors_header(header);
  file.resize(header.by_position().back()->second.end, '\x01');
  return {file, safetensors_file(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})", "123"),
          safetensors_file(R"( {"\u00e9":{"data_offsets":[2,4],"x":[{}, 1.5e3,null],"shape":[1],"dtype":"F16"},)"
                           R"("b":{"dtype":"F8_E4M3","shape":[2,1],"data_offsets":[0,2]}} )",
                           "1234"),
          safetensors_file(R"({"__metadata__":{"a":"b"}})", "")};
}

const std::string kIndex =
    R"({"metadata":{"total_size":12.5e3},"weight_map":{"a":"1.safetensors","\u00e9":"2.safetensors"}})";

TEST_CASE("read_safetensors_header: every truncation of a small file is refused") {
  for (const std::string& file : small_files()) {
    CHECK(accepts(file, read_tensors));
    CHECK(accepted_truncations(file, read_tensors) == 0);
  }
}

TEST_CASE("read_safetensors_header: every change of a single byte of a small file is refused or gives whole tensors") {
  for (const std::string& file : small_files()) bytes_with_accepted_change(file, read_tensors);
  const std::string file = small_files()[1];
  // The name, and the three bytes of the tensor. The dtype: U8 to I8. The shape: [03] and so on are no JSON.
  CHECK(bytes_with_accepted_change(file, read_tensors) == 1 + 3 + 1);
}

TEST_CASE("read_safetensors_header: 100,000 damaged files are refused or give whole tensors") {
  const int accepted = accepted_mutations(small_files(), 100'000, read_tensors);
  CHECK(accepted > 1'000);   // some changes do no harm
  CHECK(accepted < 50'000);  // most of them do
}

TEST_CASE("read_safetensors_index: every truncation, every change of a single byte, and 100,000 damaged files") {
  CHECK(accepts(kIndex, read_index));
  CHECK(accepted_truncations(kIndex, read_index) == 0);
  CHECK(bytes_with_accepted_change(kIndex, read_index) > 10);  // names may be others
  const std::vector<std::string> files = {kIndex, write_safetensors_index({{"a\"", "1"}, {"b", "2"}}, 7)};
  CHECK(accepted_mutations(files, 100'000, read_index) > 1'000);
}

TEST_CASE("read_safetensors_header: at most 12 bytes of memory per byte of the longest headers, in small pieces") {
  // The shortest entries. A number of 64 sizes takes 512 bytes in memory and 128 in the file.
  std::string metadata = "{\"__metadata__\":{", tensors = "{", shapes = "{", ones = "1";
  for (int d = 1; d < 64; ++d) ones += ",1";
  for (int i = 0; i < 20'000; ++i) {
    const std::string name = '"' + std::to_string(i) + '"', comma = i == 0 ? "" : ",";
    const std::string offsets = std::to_string(i) + ',' + std::to_string(i + 1);
    metadata += comma + name + ":\"\"";
    tensors += comma + name + R"(:{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
    shapes += comma + name + R"(:{"dtype":"U8","shape":[)" + ones + "],\"data_offsets\":[" + offsets + "]}";
  }
  for (const std::string& file : {safetensors_file(metadata + "}}", ""), safetensors_file(tensors + "}", ""),
                                  safetensors_file(shapes + "}", std::string(20'000, '\0'))}) {
    const HeapPeak heap;
    read_tensors(file);
    CHECK(heap.peak() < static_cast<std::int64_t>(12 * file.size()));
  }
}

}  // namespace
