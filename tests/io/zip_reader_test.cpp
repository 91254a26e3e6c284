// SPDX-License-Identifier: MIT
#include <attend/io/detail/zip_reader.h>
#include <doctest/doctest.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/mutations.h"
#include "io/torch_files.h"
#include "support/file_error_message.h"

namespace {

using namespace attend::test;
using attend::detail::ZipReader;

ZipReader reader(std::string_view archive) { return ZipReader(archive, "attend::load_torch_file", "a.pt"); }

const std::vector<Zipped> kFiles = {{"a/data.pkl", "one"}, {"a/empty", ""}, {"a/data/0", std::string(300, 'x')}};

TEST_CASE("ZipReader: all files of an archive, with and without zip64 and a comment") {
  for (const bool is_zip64 : {false, true})
    for (const std::string comment : {"", "PK\5\6 a comment"}) {
      const std::string archive = zip_archive(kFiles, is_zip64, comment);
      const ZipReader zip = reader(archive);
      for (const Zipped& file : kFiles) CHECK(zip.find(file.name) == file.bytes);
      CHECK(!zip.find("a/data"));
      CHECK(zip.first_name() == "a/data.pkl");
    }
  CHECK(reader(zip_archive({})).first_name().empty());
}

TEST_CASE("ZipReader: a wrong archive is one error that says what was expected and what was found") {
  const std::string archive = zip_archive(kFiles);
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = archive;
    return changed.replace(changed.rfind(from), from.size(), to);
  };
  const std::string last = number(300, 4);
  struct Case {
    std::string archive, expected;
  };
  const Case cases[] = {
      {"", "expected a zip archive, found no end of one"},
      {std::string(70'000, 'x'), "expected a zip archive, found no end of one"},
      {archive + "x", "expected a zip archive, found no end of one: it is another kind of file, or was cut short"},
      {zip_archive({{"a", "1"}, {"a", "2"}}), "file \"a\": expected one file of this name, found two"},
      {with(number(3, 2) + number(3, 2), number(4, 2) + number(4, 2)), "expected a directory of 4 files, found 3"},
      {with(number(3, 2) + number(3, 2), number(2, 2) + number(2, 2)),
       "expected a directory of 2 files, found more bytes after it"},
      {with("PK\1\2", "PK\1\3"), "expected a directory of 3 files, found 2"},
      {with(last + last, last + number(301, 4)), "file \"a/data/0\": expected 301 bytes, found 300"},
      {with(last + last, number(999, 4) + number(999, 4)),
       "file \"a/data/0\": expected it before byte 433, found 999 bytes at byte 133"},
      {with("PK\3\4", "PK\3\5"), "file \"a/data/0\": expected its header at byte 90, found other bytes"},
      {archive.substr(0, 120) + "b" + archive.substr(121),
       "file \"a/data/0\": expected its name at byte 90, found another"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.expected);
    const std::string message = file_error_message([&] { reader(c.archive); });
    CAPTURE(message);
    CHECK(message.starts_with("attend::load_torch_file: a.pt: " + c.expected));
  }
}

TEST_CASE("ZipReader: a compressed and an encrypted file are errors when they are read, and not before") {
  const std::string archive = zip_archive({{"a", "one"}, {"b", "two", 8}, {"c", "three", 0, 1}});
  const ZipReader zip = reader(archive);
  CHECK(zip.find("a") == "one");
  CHECK(file_error_message([&] { zip.find("b"); }) ==
        "attend::load_torch_file: a.pt: file \"b\": expected plain bytes, found bytes compressed by method 8");
  CHECK(file_error_message([&] { zip.find("c"); }) ==
        "attend::load_torch_file: a.pt: file \"c\": expected plain bytes, found encrypted ones");
}

TEST_CASE("ZipReader: two files with common bytes are refused") {
  // The second entry of the directory points into the bytes of the first file, where there is a header as well.
  const std::string inner = zip_archive({{"b", "two"}}), header = inner.substr(0, inner.find("PK\1\2"));
  const std::string archive = zip_archive({{"a", header}, {"b", "two"}});
  const std::string from = number(header.size() + 31 + 5, 4) + "b", to = number(31 + 5, 4) + "b";
  std::string changed = archive;
  changed.replace(changed.rfind(from), from.size(), to);
  CHECK(file_error_message([&] { reader(changed); }) ==
        "attend::load_torch_file: a.pt: expected files that do not overlap, found two with byte 36");
}

void read_all(std::string_view archive) {
  const ZipReader zip = reader(archive);
  unsigned sum = 0;
  for (const std::string name : {"a/data.pkl", "a/empty", "a/data/0"})
    for (const char c : zip.find(name).value_or("")) sum += static_cast<unsigned char>(c);
  CHECK(sum < 1000 * 255);
}

TEST_CASE("ZipReader: every truncation, every change of a single byte, and 100,000 damaged archives") {
  const std::vector<std::string> files = {zip_archive(kFiles), zip_archive(kFiles, true),
                                          zip_archive(kFiles, false, "c")};
  for (const std::string& file : files) {
    CHECK(accepts(file, read_all));
    CHECK(accepted_truncations(file, read_all) == 0);
    CHECK(bytes_with_accepted_change(file, read_all) > 300);  // the contents of the files may be others
  }
  CHECK(accepted_mutations(files, 100'000, read_all) > 1'000);
}

}  // namespace
