// SPDX-License-Identifier: MIT
#include <attend/io/detail/pickle_reader.h>
#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/mutations.h"
#include "io/torch_files.h"
#include "support/file_error_message.h"

namespace {

using namespace attend::test;
using namespace std::string_literals;
using attend::detail::PickleReader;
using Kind = PickleReader::Kind;

PickleReader reader(std::string_view bytes) { return PickleReader(bytes, "attend::load_torch_file", "a.pt"); }

const std::string kTensor = PickledTensor{{2, 3}, {3, 1}, 0, 6}.bytes();
const std::string kOrderedDict = pickled_global("collections", "OrderedDict");

TEST_CASE("PickleReader: the values that Python's pickle module writes, in its own bytes") {
  struct Case {
    std::string opcodes, description;
  };
  const Case cases[] = {
      {"N", "None"},
      {"\x88", "True"},
      {"\x89", "False"},
      {"K\xff", "the int 255"},
      {"M\xff\xff", "the int 65535"},
      {"J\xfe\xff\xff\xff", "the int -2"},
      {"\x8a\x00"s, "the int 0"},
      {"\x8a\x01\xfe", "the int -2"},
      {"\x8a\x05\x00\x00\x00\x00\x01"s, "the int 4294967296"},
      {"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80"s, "the int -9223372036854775808"},
      {"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x80\x00"s, "a number"},
      {"G\x3f\xf8\x00\x00\x00\x00\x00\x00"s, "a number"},
      {"X\x02\x00\x00\x00\xc3\xa9"s, "the string \"é\""},
      {"\x8c\x02\xc3\xa9", "the string \"é\""},
      {")", "a tuple of 0 elements"},
      {"K\x01\x85", "a tuple of 1 element"},
      {"NN\x86", "a tuple of 2 elements"},
      {"NNN\x87", "a tuple of 3 elements"},
      {"(NNNNt", "a tuple of 4 elements"},
      {"]", "a list of 0 elements"},
      {"]Na", "a list of 1 element"},
      {"](NNe", "a list of 2 elements"},
      {"}", "a dict of 0 entries"},
      {"}K\x01Ns", "a dict of 1 entry"},
      {"}(K\x01NK\x02Nu", "a dict of 2 entries"},
      {kOrderedDict + ")R", "a dict of 0 entries"},
      {kOrderedDict + ")R}X\x09\x00\x00\x00_metadataNsb"s, "a dict of 0 entries"},
      {pickled_global("torch", "float32"), "the name \"float32\""},
      {"\x8c\x05torch\x8c\x07"
       "float32\x93",
       "the name \"float32\""},
      {pickled_global("torch", "Size") + "K\x01K\x02\x86\x85R", "a tuple of 2 elements"},
      {kTensor, "a tensor"},
      {pickled_global("torch._utils", "_rebuild_parameter") + kTensor + "\x88" + kOrderedDict + ")R\x87R", "a tensor"},
      {"]q\x00K\x01"
       "ah\x00"s +
           "\x86",
       "a tuple of 2 elements"},
      {"\x95\x00\x00\x00\x00\x00\x00\x00\x00]\x94h\x00\x86"s, "a tuple of 2 elements"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.description);
    const std::string bytes = pickle(c.opcodes);
    const PickleReader values = reader(bytes);
    CHECK(values.describe(values.root()) == c.description);
  }
}

TEST_CASE("PickleReader: the keys and values of a dict, and the arguments of a tensor") {
  const std::string bytes = pickle("}(" + pickled("a") + pickled(7) + pickled("b") + kTensor + "u");
  const PickleReader values = reader(bytes);
  const auto items = values.items(values.root());
  REQUIRE(items.size() == 4);
  CHECK(values.text(items[0]) == "a");
  CHECK(values.integer(items[1]) == 7);
  REQUIRE(values.kind(items[3]) == Kind::kTensor);
  const auto arguments = values.items(items[3]);
  REQUIRE(arguments.size() == 6);
  CHECK(values.text(values.items(arguments[0])[1]) == "FloatStorage");
  CHECK(values.integer(values.items(arguments[2])[1]) == 3);
}

TEST_CASE("PickleReader: any other opcode, function or order of opcodes is an error that names it") {
  struct Case {
    std::string bytes, expected;
  };
  const Case cases[] = {
      {pickle(pickled_global("os", "system") + pickled("ls") + "\x85R"),
       "found \"os.system\", which attend does not call"},
      {pickle("\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R"), "found \"posix.system\", which attend does not call"},
      {pickle(pickled_global("torch", "load") + pickled("a.pt") + "\x85R"), "found one of \"load\""},
      {pickle(kOrderedDict + "N\x85R"), "found one of \"OrderedDict\""},
      {pickle(pickled_global("torch", "Size") + ")R"), "found one of \"Size\""},
      {pickle(pickled_global("torch._utils", "_rebuild_parameter") + "N\x85R"), "found one of \"_rebuild_parameter\""},
      {pickle("i"), "pickle, byte 2: expected an opcode that makes dicts, tensors or numbers, found the opcode INST"},
      {pickle("N\x81"), "found the opcode NEWOBJ"},
      {pickle("\x82\x01"), "found the opcode EXT1"},
      {pickle("\xff"), "found the opcode 255"},
      {"\x80\x06N.", "pickle, byte 0: expected a pickle protocol of at most 5, found 6"},
      {"", "expected more bytes, found the end of the pickle"},
      {"\x80\x02N", "expected more bytes, found the end of the pickle"},
      {pickle("X\xff\xff\xff\xff"
              "abc"),
       "expected more bytes, found the end of the pickle"},
      {pickle("ccollections"), "expected the end of a line, found the end of the pickle"},
      {pickle(""), "expected 1 values on the stack, found fewer"},
      {pickle("N\x86"), "expected 2 values on the stack, found fewer"},
      {pickle("N(\x85t"), "expected 1 values on the stack, found fewer"},
      {pickle("Nt"), "expected a mark on the stack, found none"},
      {pickle("NN"), "expected the end of the pickle, found more values"},
      {pickle("(N"), "expected the end of the pickle, found more values"},
      {pickle("N.N"), "expected the end of the pickle, found more values"},
      {pickle("}(Nu"), "expected a value for each key, found a key without one"},
      {pickle("]NNs"), "expected a dict, found a list of 0 elements"},
      {pickle("}Na"), "expected a list, found a dict of 0 entries"},
      {pickle("h\x00"s), "expected a remembered value, found number 0, which is none"},
      {pickle("Nq\x01"), "expected values remembered in order, found number 1 too early"},
      {pickle("q\x00"s), "expected 1 values on the stack, found fewer"},
      {pickle("NQ"), "expected a tuple that names a storage, found None"},
      {pickle("N)R"), "expected a function, found None"},
      {pickle("NNR"), "expected a tuple of arguments, found None"},
      {pickle("N\x8c\x01"
              "a\x93"),
       "expected a module, found None"},
      {pickle("NNb"), "expected attributes of a dict, found those of None"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.expected);
    const std::string message = file_error_message([&] { reader(c.bytes); });
    CAPTURE(message);
    CHECK(message.starts_with("attend::load_torch_file: a.pt: pickle, byte "));
    CHECK(message.find(c.expected) != std::string::npos);
  }
}

TEST_CASE("PickleReader: values within each other a million times, and a list that contains itself") {
  constexpr int kDepth = 1'000'000;
  const std::string deep = pickle("N" + std::string(kDepth, '\x85')), cycle = pickle(
                                                                          "]q\x00h\x00"
                                                                          "a"s);
  const PickleReader values = reader(deep), cyclic = reader(cycle);
  CHECK(values.describe(values.root()) == "a tuple of 1 element");
  CHECK(cyclic.items(cyclic.root())[0] == cyclic.root());
}

TEST_CASE("PickleReader: at most 40 bytes of memory per byte of the pickles that need the most") {
  for (const std::string& repeated :
       {"]"s, "}"s, ")"s, "("s, "N"s, "Nq\x00"s, "]\x94"s, "N\x85\x94"s, "]Na"s, "](Nu"s}) {
    std::string opcodes;
    while (opcodes.size() < 100'000) opcodes += repeated;
    const HeapPeak heap;
    file_error_message([&] { reader(pickle(opcodes)); });
    CHECK(heap.peak() < static_cast<std::int64_t>(40 * opcodes.size()));
  }
}

}  // namespace
