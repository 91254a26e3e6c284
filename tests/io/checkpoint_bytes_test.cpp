// SPDX-License-Identifier: MIT
#include <attend/io/detail/checkpoint_bytes.h>
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint_files.h"
#include "io/mutations.h"
#include "io/safetensors_files.h"
#include "support/file_error_message.h"

namespace {

using namespace attend::detail;
using namespace attend::test;

void read_checkpoint(std::string_view file) { read_checkpoint_header(file, "a.safetensors"); }

/// Reads the file after its checksum was made right, and each byte of each tensor.
void read_with_right_checksum(std::string_view file) {
  const std::string right = with_right_checksum(std::string(file));
  const SafetensorsHeader header = read_checkpoint_header(right, "a.safetensors");
  std::uint64_t sum = 0;
  for (const auto& [name, entry] : header.tensors) {
    if (entry.begin > entry.end || entry.end > right.size()) FAIL("a tensor outside of the file");
    for (const char c : std::string_view(right).substr(entry.begin, entry.end - entry.begin))
      sum += static_cast<unsigned char>(c);
  }
  if (sum > 255 * right.size()) FAIL("tensors that overlap");
}

}  // namespace

TEST_CASE("read_checkpoint_header: it reads what write_checkpoint_header wrote, and the tensors are aligned") {
  const std::string file = small_checkpoint();
  const SafetensorsHeader header = read_checkpoint_header(file, "a.safetensors");
  CHECK(header.metadata == std::map<std::string, std::string>{{"!first", "é"}, {"epoch", "3"}});
  REQUIRE(header.tensors.size() == 3);
  for (const auto& [name, entry] : header.tensors) CHECK(entry.begin % 8 == 0);
  CHECK(header.tensors.find("model.weight")->second.shape == std::vector<std::int64_t>{2, 2});
  CHECK(file.substr(header.tensors.find("optimizer")->second.begin) == "bytes");
}

TEST_CASE("read_checkpoint_header: every truncation is detected") {
  CHECK(accepted_truncations(small_checkpoint(), read_checkpoint) == 0);
}

TEST_CASE("read_checkpoint_header: every change of a single byte is detected") {
  CHECK(bytes_with_accepted_change(small_checkpoint(), read_checkpoint) == 0);
}

TEST_CASE("read_checkpoint_header: 100000 mutated files are refused or read without a fault") {
  const std::vector<std::string> files{small_checkpoint(), safetensors_file("{}", "")};
  CHECK(accepted_mutations(files, 50'000, read_checkpoint) < 5000);  // some mutations change nothing
  const int accepted = accepted_mutations(files, 50'000, read_with_right_checksum);
  CHECK(accepted > 500);
  CHECK(accepted < 25'000);
}

TEST_CASE("read_checkpoint_header: another file, another format and a wrong checksum are errors that say so") {
  const std::string file = small_checkpoint(), begin = "attend::load_checkpoint: a.safetensors: ";
  const std::string other = begin + "expected a checkpoint of attend, found another file or a damaged one";
  CHECK(file_error_message([] { read_checkpoint(""); }) == other);
  CHECK(file_error_message([] {
          read_checkpoint("PK\x03\x04 a zip file that is long enough for the digits of a checksum");
        }) == other);
  CHECK(file_error_message([] { read_checkpoint(safetensors_file(R"({"__metadata__":{"format":"pt"}})", "")); }) ==
        other);

  std::string changed = file;
  ++changed.back();
  const std::string digits = file.substr(kDigitsBegin, 16);
  CHECK(file_error_message([&] { read_checkpoint(changed); }) ==
        begin + "the file is damaged: expected the checksum \"" + digits + "\", found \"" +
            with_right_checksum(changed).substr(kDigitsBegin, 16) + '"');

  std::string next = file;
  next.replace(next.find(R"("attend.format":"1")"), 19, R"("attend.format":"2")");
  CHECK(file_error_message([&] { read_checkpoint(with_right_checksum(next)); }) ==
        begin + "expected the checkpoint format 1, found \"2\", probably of another version of attend");
  std::string none = file;
  none.replace(none.find("attend.format"), 13, "attend_format");
  CHECK(file_error_message([&] { read_checkpoint(with_right_checksum(none)); }) ==
        begin + "expected the checkpoint format 1, found none, probably of another version of attend");
}
