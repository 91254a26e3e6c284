// SPDX-License-Identifier: MIT
#include <attend/io/detail/json.h>
#include <doctest/doctest.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "support/file_error_message.h"

namespace {

using attend::detail::JsonReader;
using attend::test::file_error_message;

JsonReader reader(std::string_view text) { return JsonReader(text, "function", "file.json"); }

/// The string that the whole text is.
std::string string_of(std::string_view text) {
  JsonReader json = reader(text);
  std::string string = json.string();
  json.end();
  return string;
}

std::int64_t integer_of(std::string_view text) {
  JsonReader json = reader(text);
  const std::int64_t integer = json.integer();
  json.end();
  return integer;
}

void skip(std::string_view text) {
  JsonReader json = reader(text);
  json.skip();
  json.end();
}

TEST_CASE("JsonReader: an object of arrays, with white space anywhere") {
  std::map<std::string, std::vector<std::int64_t>> found;
  JsonReader json = reader(" {\n\"a\" : [ 1 ,\t2 ] , \"b\":[],\"c\":[0]}\r\n ");
  json.object(
      [&](const std::string& name) { json.array([&] { found[name].push_back(json.integer()); }), found[name]; });
  json.end();
  CHECK(found == std::map<std::string, std::vector<std::int64_t>>{{"a", {1, 2}}, {"b", {}}, {"c", {0}}});
}

TEST_CASE("JsonReader: strings with escapes and UTF-8") {
  const std::map<std::string, std::string> cases = {
      {R"("")", ""},
      {R"("plain")", "plain"},
      {R"("\"\\\/\b\f\n\r\t")", "\"\\/\b\f\n\r\t"},
      {R"("\u0041\u00e9\u20AC")", "Aé€"},
      {R"("\uD83D\uDE00")", "😀"},
      {R"("\uDBFF\uDFFF")", "\xF4\x8F\xBF\xBF"},
      {R"("\u0000")", std::string(1, '\0')},
      {"\"é€😀\x7f\"", "é€😀\x7f"},
  };
  for (const auto& [text, expected] : cases) {
    CAPTURE(text);
    CHECK(string_of(text) == expected);
  }
}

TEST_CASE("JsonReader: integers up to 2^63 - 1") {
  CHECK(integer_of("0") == 0);
  CHECK(integer_of(" 12 ") == 12);
  CHECK(integer_of("9223372036854775807") == INT64_MAX);
}

TEST_CASE("JsonReader: numbers with sign, fraction and exponent") {
  JsonReader json = reader("[1e-12, -2.5, 384, 0.1]");
  std::vector<double> numbers;
  json.array([&] { numbers.push_back(json.number()); });
  json.end();
  CHECK(numbers == std::vector<double>{1e-12, -2.5, 384, 0.1});
  const auto read = [](const char* text) { return file_error_message([&] { reader(text).number(); }); };
  CHECK(read(" 1e999") ==
        "function: file.json: JSON text, byte 1: expected a number that a double can hold, found \"1\"");
  CHECK(read("true") == "function: file.json: JSON text, byte 0: expected a value, found \"t\"");
}

TEST_CASE("JsonReader::skip: every kind of value") {
  for (const char* text : {"null", "true", "false", "0", "-0", "-12.50e+3", "1E9", "\"a\"", "[]", "{}",
                           "[1,[2,{\"a\":null}]]", "{\"a\":1,\"a\":[]}"}) {
    CAPTURE(text);
    CHECK_NOTHROW(skip(text));
  }
}

TEST_CASE("JsonReader: what is not JSON is a FileError with the byte, what was expected and what was found") {
  struct Case {
    std::string text, message;
  };
  const std::vector<Case> values = {
      {"", "byte 0: expected a value, found the end of the text"},
      {"x", "byte 0: expected a value, found \"x\""},
      {"\xFF", "byte 0: expected a value, found \"?\""},
      {"nul", "byte 0: expected a value, found \"n\""},
      {"01", "byte 1: expected no digit after 0, found \"1\""},
      {"-", "byte 1: expected a value, found the end of the text"},
      {"1.", "byte 2: expected a digit, found the end of the text"},
      {"1e", "byte 2: expected a digit, found the end of the text"},
      {"+1", "byte 0: expected a value, found \"+\""},
      {".5", "byte 0: expected a value, found \".\""},
      {"1 2", "byte 2: expected the end, found \"2\""},
      {"[1", "byte 2: expected ',' or ']', found the end of the text"},
      {"[1}", "byte 2: expected ',' or ']', found \"}\""},
      {"[1,]", "byte 3: expected a value, found \"]\""},
      {"[,1]", "byte 1: expected a value, found \",\""},
      {"{\"a\" 1}", "byte 5: expected ':', found \"1\""},
      {"{\"a\":1", "byte 6: expected ',' or '}', found the end of the text"},
      {"{\"a\":1,}", "byte 7: expected a string, found \"}\""},
      {"{a:1}", "byte 1: expected a string, found \"a\""},
      {"\"abc", "byte 4: expected the end of a string, found the end of the text"},
      {"\"abc\\", "byte 5: expected the end of a string, found the end of the text"},
      {"\"abc\\\"", "byte 6: expected the end of a string, found the end of the text"},
      {"\"a\nb\"", "byte 2: expected the end of a string, found \"\\n\""},
      {std::string("\"a\0b\"", 5), "byte 2: expected the end of a string, found \"\\u0000\""},
      {"\"\\x41\"", "byte 2: expected an escape sequence of JSON, found \"x\""},
      {"\"\\u12g4\"", "byte 5: expected a hexadecimal digit, found \"g\""},
      {"\"\\uD800\"", "byte 7: expected a pair of surrogates, found \"\\\"\""},
      {"\"\\uD800\\u0041\"", "byte 13: expected a pair of surrogates, found \"\\\"\""},
      {"\"\\uDC00\"", "byte 7: expected a pair of surrogates, found \"\\\"\""},
      {"// comment", "byte 0: expected a value, found \"/\""},
      {"NaN", "byte 0: expected a value, found \"N\""},
  };
  for (const Case& c : values) {
    CAPTURE(c.text);
    CHECK(file_error_message([&] { skip(c.text); }) == "function: file.json: JSON text, " + c.message);
  }
  for (const char* text : {"-1", "1.0", "1e2", "\"1\"", "[", "", "9223372036854775808", "99999999999999999999"}) {
    CAPTURE(text);
    CHECK(file_error_message([&] { integer_of(text); }).find("expected an integer from 0 to 2^63 - 1") !=
          std::string::npos);
  }
}

TEST_CASE("JsonReader: bytes that are not UTF-8 are refused") {
  // From Markus Kuhn's UTF-8 decoder test: stray and missing continuations, overlong forms, surrogates, beyond
  // U+10FFFF.
  for (const char* bytes :
       {"\x80", "\xBF", "\xC0\xAF", "\xC1\xBF", "\xC3", "\xC3\x28", "\xE0\x80\xAF", "\xE0\x9F\xBF", "\xE2\x82",
        "\xED\xA0\x80", "\xED\xBF\xBF", "\xF0\x80\x80\xAF", "\xF0\x8F\xBF\xBF", "\xF0\x9F\x98", "\xF4\x90\x80\x80",
        "\xF5\x80\x80\x80", "\xF8\x88\x80\x80\x80", "\xFE", "\xFF"}) {
    CAPTURE(bytes);
    CHECK_FALSE(attend::detail::is_utf8(bytes));
    CHECK(file_error_message([&] {
            string_of("\"" + std::string(bytes) + "\"");
          }).find("expected a character in UTF-8") != std::string::npos);
  }
  for (const char* bytes : {"", "a", "\x7F", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
                            "\xEF\xBF\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    CAPTURE(bytes);
    CHECK(attend::detail::is_utf8(bytes));
    CHECK(string_of("\"" + std::string(bytes) + "\"") == bytes);
  }
}

TEST_CASE("JsonReader: 64 arrays within each other, and not one more") {
  const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK_NOTHROW(skip(nested(64)));
  CHECK(file_error_message([&] { skip(nested(65)); }).find("at most 64 objects and arrays within each other") !=
        std::string::npos);
  CHECK_THROWS_AS(skip(std::string(1'000'000, '[')), attend::FileError);
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  CHECK_THROWS_AS(skip(objects), attend::FileError);
}

TEST_CASE("append_json_string: its text reads back, with short escapes as the Rust crate writes them") {
  std::string all;
  for (char c = 0; c < 127; ++c) all += c;
  all += "\x7Fé€😀";
  std::string text;
  attend::detail::append_json_string(text, all);
  CHECK(string_of(text) == all);
  CHECK(text.substr(0, 12) == "\"\\u0000\\u000");
  CHECK(text.find("\\b\\t\\n\\u000b\\f\\r") != std::string::npos);
}

TEST_CASE("quoted: a long text is cut between two characters") {
  CHECK(attend::detail::quoted("a\"b") == R"("a\"b")");
  std::string text = "a";
  for (int i = 0; i < 100; ++i) text += "€";
  const std::string shown = attend::detail::quoted(text);
  CHECK(attend::detail::is_utf8(shown));
  CHECK(shown.size() < 110);
  CHECK(shown.ends_with("€\"…"));
}

}  // namespace
