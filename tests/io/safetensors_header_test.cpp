// SPDX-License-Identifier: MIT
#include <attend/io/detail/safetensors_header.h>
#include <attend/io/detail/safetensors_index.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "io/safetensors_files.h"
#include "support/file_error_message.h"

namespace {

using attend::detail::facts;
using attend::detail::read_safetensors_index;
using attend::detail::SafetensorsDtype;
using attend::detail::SafetensorsEntry;
using attend::detail::SafetensorsHeader;
using attend::detail::write_safetensors_index;
using attend::test::file_error_message;
using attend::test::safetensors_file;

SafetensorsHeader read(const std::string& file) {
  return attend::detail::read_safetensors_header(file, "a.safetensors");
}

/// A file with one tensor "a" of these fields, and `size` zero bytes after the header.
std::string file_with(const std::string& fields, std::size_t size) {
  return safetensors_file("{\"a\":{" + fields + "}}", std::string(size, '\0'));
}

TEST_CASE("read_safetensors_header: the files of the Rust crate's tests") {
  const SafetensorsHeader one = read(file_with(R"("dtype":"I32","shape":[2,2],"data_offsets":[0,16])", 16));
  REQUIRE(one.tensors.size() == 1);
  const SafetensorsEntry& a = one.tensors.at("a");
  CHECK(a.dtype == SafetensorsDtype::kI32);
  CHECK(a.shape == std::vector<std::int64_t>{2, 2});
  CHECK(a.end - a.begin == 16);
  CHECK(a.begin == 8 + std::strlen(R"({"a":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}})"));

  CHECK(read(file_with(R"("dtype":"I32","shape":[],"data_offsets":[0,4])", 4)).tensors.at("a").shape.empty());
  CHECK(read(file_with(R"("dtype":"I32","shape":[2,0],"data_offsets":[0, 0])", 0)).tensors.at("a").shape.size() == 2);
  CHECK(read(file_with(R"("dtype":"F4","shape":[2,3],"data_offsets":[0,3])", 3)).tensors.size() == 1);
  CHECK(read(safetensors_file("{}\r \t\n", "")).tensors.empty());
  CHECK(read(safetensors_file("\t\n{}\r ", "")).tensors.empty());
  CHECK(read(safetensors_file(R"({"__metadata__":{"framework":"pt","":"é"}})", "")).metadata ==
        std::map<std::string, std::string>{{"framework", "pt"}, {"", "é"}});
}

TEST_CASE("read_safetensors_header: tensors in any order, fields in any order, unknown fields are skipped") {
  const SafetensorsHeader header =
      read(safetensors_file(R"({"b":{"data_offsets":[4,6],"more":{"x":[null]},"shape":[2],"dtype":"U8"},)"
                            R"("__metadata__":{},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                            R"("c":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}})",
                            "123456"));
  CHECK(header.tensors.at("b").begin - header.tensors.at("a").begin == 4);
  std::vector<std::string> names;
  for (const auto* tensor : header.by_position()) names.push_back(tensor->first);
  CHECK(names == std::vector<std::string>{"a", "c", "b"});
}

TEST_CASE("read_safetensors_header: what is wrong is a FileError with tensor, expectation and finding") {
  struct Case {
    std::string file, message;
  };
  const std::string good = file_with(R"("dtype":"I32","shape":[2,2],"data_offsets":[0,16])", 16);
  std::string big_endian = good;
  std::reverse(big_endian.begin(), big_endian.begin() + 8);
  const std::string two_tensors =
      R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":)";
  std::string long_header(8 + 100'000'001, ' ');
  const std::uint64_t length = 100'000'001;
  std::memcpy(long_header.data(), &length, 8);

  const std::vector<Case> cases = {
      {"", "expected 8 bytes for the length of the header, found a file of 0 bytes"},
      {"1234567", "expected 8 bytes for the length of the header, found a file of 7 bytes"},
      {good.substr(0, 8), "expected a header of at most 0 bytes, found the length 57"},
      {good.substr(0, 60), "expected a header of at most 52 bytes, found the length 57"},
      {big_endian, "expected a header of at most 73 bytes, found the length 4107282860161892352"},
      {std::string(8, '\xFF') + "{}", "expected a header of at most 2 bytes, found the length 18446744073709551615"},
      {long_header, "expected a header of at most 100000000 bytes, found the length 100000001"},
      {good.substr(0, good.size() - 1), "expected 16 bytes after the header, found 15"},
      {good + "x", "expected 16 bytes after the header, found 17"},
      {safetensors_file("", ""), "JSON text, byte 0: expected an object, found the end of the text"},
      {safetensors_file("[]", ""), "JSON text, byte 0: expected an object, found \"[\""},
      {safetensors_file("{", ""), "JSON text, byte 1: expected a string, found the end of the text"},
      {safetensors_file("\xFF", ""), "JSON text, byte 0: expected an object, found \"?\""},
      {safetensors_file("{}{}", ""), "JSON text, byte 2: expected the end, found \"{\""},
      {safetensors_file("{\"a\":1}", ""), "tensor \"a\": JSON text, byte 5: expected an object, found \"1\""},
      {safetensors_file("{\"__metadata__\":{\"a\":1}}", ""), "JSON text, byte 21: expected a string, found \"1\""},
      {safetensors_file("{\"__metadata__\":{},\"__metadata__\":{}}", ""), "expected one __metadata__, found two"},
      {safetensors_file(R"({"__metadata__":{"k":"","\u006b":""}})", ""), "__metadata__: expected one \"k\", found two"},
      {safetensors_file(two_tensors + "[4,8]},\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
                        "12345678"),
       "tensor \"a\": expected one tensor of this name, found two"},
      {safetensors_file(two_tensors + "[3,7]}}", "1234567"),
       "tensor \"b\": expected data_offsets from 4, found 3: the tensors must cover the data without holes and "
       "overlaps"},
      {safetensors_file(two_tensors + "[5,9]}}", "123456789"),
       "tensor \"b\": expected data_offsets from 4, found 5: the tensors must cover the data without holes and "
       "overlaps"},
      {safetensors_file(two_tensors + "[0,4]}}", "1234"),
       "tensor \"b\": expected data_offsets from 4, found 0: the tensors must cover the data without holes and "
       "overlaps"},
      {file_with(R"("dtype":"U8","shape":[1],"data_offsets":[1,2])", 2),
       "tensor \"a\": expected data_offsets from 0, found 1: the tensors must cover the data without holes and "
       "overlaps"},
      {file_with(R"("dtype":"F31","shape":[],"data_offsets":[0,4])", 4),
       "tensor \"a\": expected a dtype such as \"F32\", found \"F31\""},
      {file_with(R"("dtype":7,"shape":[],"data_offsets":[0,4])", 4),
       "tensor \"a\": JSON text, byte 14: expected a string, found \"7\""},
      {file_with(R"("shape":[],"data_offsets":[0,4])", 4), "tensor \"a\": expected a dtype, found none"},
      {file_with(R"("dtype":"F32","data_offsets":[0,4])", 4), "tensor \"a\": expected a shape, found none"},
      {file_with(R"("dtype":"F32","shape":[])", 4), "tensor \"a\": expected a data_offsets, found none"},
      {file_with(R"("dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4])", 4),
       "tensor \"a\": expected one dtype, found two"},
      {file_with(R"("dtype":"F32","shape":[],"shape":[],"data_offsets":[0,4])", 4),
       "tensor \"a\": expected one shape, found two"},
      {file_with(R"("dtype":"F32","shape":[],"data_offsets":[0],"data_offsets":[0,4])", 4),
       "tensor \"a\": expected one data_offsets, found two"},
      {file_with(R"("dtype":"F32","shape":[],"data_offsets":[4])", 4),
       "tensor \"a\": expected two data_offsets, found 1"},
      {file_with(R"("dtype":"F32","shape":[],"data_offsets":[0,4,8])", 4),
       "tensor \"a\": expected at most 2 numbers in data_offsets, found more"},
      {file_with(R"("dtype":"F32","shape":[1],"data_offsets":[0,5])", 5),
       "tensor \"a\": expected 4 bytes for F32 of shape [1], found data_offsets [0, 5]"},
      {file_with(R"("dtype":"F32","shape":[],"data_offsets":[4,0])", 4),
       "tensor \"a\": expected 4 bytes for F32 of shape [], found data_offsets [4, 0]"},
      {file_with(R"("dtype":"F32","shape":[0],"data_offsets":[4,0])", 4),
       "tensor \"a\": expected 0 bytes for F32 of shape [0], found data_offsets [4, 0]"},
      {file_with(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])", 4),
       "tensor \"a\": JSON text, byte 29: expected an integer from 0 to 2^63 - 1, found \"-\""},
      {file_with(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])", 4),
       "tensor \"a\": JSON text, byte 30: expected an integer from 0 to 2^63 - 1, found \".\""},
      {file_with(R"("dtype":"F32","shape":[18446744073709551614],"data_offsets":[0,4])", 4),
       "tensor \"a\": JSON text, byte 29: expected an integer from 0 to 2^63 - 1, found \"1\""},
      {file_with(R"("dtype":"I32","shape":[2,9223372036854775807],"data_offsets":[0,4])", 4),
       "tensor \"a\": expected a size in whole bytes below 2^60, found I32 of shape [2, 9223372036854775807]"},
      {file_with(R"("dtype":"I32","shape":[0,4294967296,4294967296],"data_offsets":[0,0])", 0),
       "tensor \"a\": expected a size in whole bytes below 2^60, found I32 of shape [0, 4294967296, 4294967296]"},
      {file_with(R"("dtype":"F4","shape":[3],"data_offsets":[0,2])", 2),
       "tensor \"a\": expected a size in whole bytes below 2^60, found F4 of shape [3]"},
      {file_with(R"("dtype":"F6_E2M3","shape":[2],"data_offsets":[0,2])", 2),
       "tensor \"a\": expected a size in whole bytes below 2^60, found F6_E2M3 of shape [2]"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.message);
    CHECK(file_error_message([&] { read(c.file); }) == "attend::SafetensorsFile: a.safetensors: " + c.message);
  }

  std::string ones = "1";
  for (int d = 1; d < 64; ++d) ones += ",1";
  CHECK(read(file_with("\"dtype\":\"U8\",\"shape\":[" + ones + "],\"data_offsets\":[0,1]", 1))
            .tensors.at("a")
            .shape.size() == 64);
  CHECK(file_error_message([&] {
          read(file_with("\"dtype\":\"U8\",\"shape\":[" + ones + ",1],\"data_offsets\":[0,1]", 1));
        }) == "attend::SafetensorsFile: a.safetensors: tensor \"a\": expected at most 64 numbers in shape, found more");
}

TEST_CASE("read_safetensors_header: the message shows a name that is not printable as a JSON string") {
  const std::string file =
      safetensors_file(R"({"\u001b[31m\n\"é":{"dtype":"X","shape":[],"data_offsets":[0,4]}})", "1234");
  CHECK(file_error_message([&] { read(file); }) ==
        "attend::SafetensorsFile: a.safetensors: tensor \"\\u001b[31m\\n\\\"é\": expected a dtype such as \"F32\", "
        "found \"X\"");
}

TEST_CASE("write_safetensors_header: the bytes of the Rust crate, for the files of its tests") {
  SafetensorsHeader header;
  header.tensors["test1"] = {SafetensorsDtype::kI32, {2, 2}};
  CHECK(write_safetensors_header(header) ==
        std::string("@\0\0\0\0\0\0\0", 8) + R"({"test1":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}}   )");
  header.tensors["test2"] = {SafetensorsDtype::kF16, {2, 2}};
  CHECK(
      write_safetensors_header(header) ==
      std::string("\x80\0\0\0\0\0\0\0", 8) +
          R"({"test1":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]},"test2":{"dtype":"F16","shape":[2,2],"data_offsets":[16,24]}})"
          "      ");
  header.tensors.erase("test2");
  header.metadata["framework"] = "pt";
  CHECK(write_safetensors_header(header) ==
        std::string("`\0\0\0\0\0\0\0", 8) +
            R"({"__metadata__":{"framework":"pt"},"test1":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}} )");
}

TEST_CASE("write_safetensors_header: every dtype reads back, large ones first, so that each tensor is aligned") {
  SafetensorsHeader header;
  for (int i = 0; i <= static_cast<int>(SafetensorsDtype::kU64); ++i) {
    const auto dtype = static_cast<SafetensorsDtype>(i);
    header.tensors[std::string(facts(dtype).name) + "\n\"é"] = {dtype, {4, 3}};
  }
  header.tensors["empty"] = {SafetensorsDtype::kF64, {0}};
  header.metadata["\u0001"] = "\\";
  std::string file = write_safetensors_header(header);
  CHECK(file.size() % 8 == 0);
  file.resize(header.by_position().back()->second.end);
  const SafetensorsHeader again = read(file);
  CHECK(again.metadata == header.metadata);
  REQUIRE(again.tensors.size() == header.tensors.size());
  for (const auto& [name, entry] : again.tensors) {
    CAPTURE(name);
    CHECK(entry.dtype == header.tensors.at(name).dtype);
    CHECK(entry.shape == header.tensors.at(name).shape);
    CHECK(entry.begin == header.tensors.at(name).begin);
    CHECK(entry.end == header.tensors.at(name).end);
    const auto bits = static_cast<std::uint64_t>(facts(entry.dtype).bits);
    CHECK((bits == 6 || 8 * entry.begin % bits == 0));
  }
}

TEST_CASE("read_safetensors_index: the map from tensors to files") {
  CHECK(read_safetensors_index(
            R"({"metadata":{"total_size":12.5e3,"more":[{}]},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})",
            "model.safetensors.index.json") ==
        attend::detail::SafetensorsIndex{{"a", "1.safetensors"}, {"b", "2.safetensors"}});
  CHECK(read_safetensors_index(R"({"weight_map":{}})", "").empty());
  const attend::detail::SafetensorsIndex index = {{"a\"é", "x y.safetensors"}, {"b", "2"}};
  CHECK(read_safetensors_index(write_safetensors_index(index, 7), "") == index);
  CHECK(read_safetensors_index(write_safetensors_index({}, 0), "").empty());
}

TEST_CASE("read_safetensors_index: what is wrong is a FileError with tensor, expectation and finding") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "JSON text, byte 0: expected an object, found the end of the text"},
      {"{}", "expected a weight_map, found none"},
      {R"({"weight_map":[]})", "JSON text, byte 14: expected an object, found \"[\""},
      {R"({"weight_map":{"a":1}})", "tensor \"a\": JSON text, byte 19: expected a string, found \"1\""},
      {R"({"weight_map":{},"weight_map":{}})", "expected one weight_map, found two"},
      {R"({"weight_map":{"a":"1","a":"2"}})", "tensor \"a\": expected one tensor of this name, found two"},
      {R"({"weight_map":{"a":"/etc/passwd"}})",
       "tensor \"a\": expected the name of a file in the same folder, found \"/etc/passwd\""},
      {R"({"weight_map":{"a":"../b"}})",
       "tensor \"a\": expected the name of a file in the same folder, found \"../b\""},
      {R"({"weight_map":{"a":""}})", "tensor \"a\": expected the name of a file in the same folder, found \"\""},
      {R"({"weight_map":{"a":"b\u0000"}})",
       "tensor \"a\": expected the name of a file in the same folder, found \"b\\u0000\""},
      {R"({"weight_map":{}} x)", "JSON text, byte 18: expected the end, found \"x\""},
  };
  for (const auto& [text, message] : cases) {
    CAPTURE(text);
    CHECK(file_error_message([&] { read_safetensors_index(text, "i.json"); }) ==
          "attend::SafetensorsFile: i.json: " + message);
  }
}

}  // namespace
