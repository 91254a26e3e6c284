// SPDX-License-Identifier: MIT
#include <attend/io/detail/torch_archive.h>
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
using attend::detail::TorchArchive;
using attend::detail::TorchEntry;

std::vector<TorchEntry> read(std::string_view file, std::string_view key = "") {
  return TorchArchive::read(file, "a.pt", key);
}

/// A file with one tensor, named "x", and one storage of 24 bytes.
std::string file_with(const PickledTensor& tensor) {
  return torch_archive(pickle("}" + pickled("x") + tensor.bytes() + "s"), {std::string(24, '\1')});
}

/// A file with views, an empty and a 0-d tensor, of three storages, and numbers beside the state dict.
std::string checkpoint() {
  std::string dict = "}(";
  const auto add = [&](const std::string& name, const PickledTensor& tensor) {
    dict += pickled(name) + tensor.bytes();
  };
  add("weight", {{2, 3}, {3, 1}, 0, 6, "FloatStorage", "0"});
  add("transposed", {{3, 2}, {1, 3}, 0, 6, "FloatStorage", "0"});
  add("expanded", {{5, 2}, {0, 1}, 2, 6, "FloatStorage", "0"});
  add("0-d", {{}, {}, 5, 6, "FloatStorage", "0"});
  add("empty", {{3, 0}, {1, 1}, 0, 0, "LongStorage", "1"});
  add("float8", {{4}, {1}, 0, 4, "UntypedStorage", "2", "float8_e4m3fn"});
  return torch_archive(pickle("}(" + pickled("epoch") + pickled(3) + pickled("model") + dict + "u" + "u"),
                       {std::string(24, '\1'), "", "1234"});
}

TEST_CASE("TorchArchive: dtype, sizes, strides and bytes of the tensors of an entry") {
  const std::string file = checkpoint();
  const std::vector<TorchEntry> entries = read(file, "model");
  REQUIRE(entries.size() == 6);
  CHECK(entries[1].name == "transposed");
  CHECK(entries[1].dtype->name == "float32");
  CHECK(entries[1].sizes == std::vector<std::int64_t>{3, 2});
  CHECK(entries[1].strides == std::vector<std::int64_t>{1, 3});
  CHECK(entries[1].storage.data() == entries[0].storage.data());
  CHECK(entries[2].offset == 2);
  CHECK(entries[3].sizes.empty());
  CHECK(entries[4].storage.empty());
  CHECK(entries[5].dtype->name == "float8_e4m3fn");
  CHECK(entries[5].storage == "1234");
}

TEST_CASE("TorchArchive: a tensor that does not fit its storage, or is of another form, is one error that names it") {
  struct Case {
    PickledTensor tensor;
    std::string expected;
  };
  const int large = 2'000'000'000;
  const Case cases[] = {
      {{{2, 3}, {3, 1}, 1, 6},
       "expected elements within a storage of 6, found offset 1, sizes [2, 3] and strides [3, 1]"},
      {{{2, 3}, {4, 1}, 0, 6},
       "expected elements within a storage of 6, found offset 0, sizes [2, 3] and strides [4, 1]"},
      {{{}, {}, 6, 6}, "expected elements within a storage of 6, found offset 6, sizes [] and strides []"},
      {{{0}, {1}, 7, 6}, "expected elements within a storage of 6, found offset 7, sizes [0] and strides [1]"},
      {{{1}, {1}, -1, 6}, "expected elements within a storage of 6, found offset -1, sizes [1] and strides [1]"},
      {{{large, large, large}, {0, 0, 0}, 0, 6}, "expected elements within a storage of 6, found offset 0"},
      {{{large, large, 0}, {0, 0, 0}, 0, 6}, "expected elements within a storage of 6, found offset 0"},
      {{{large, large}, {large, large}, 0, 6}, "expected elements within a storage of 6, found offset 0"},
      {{{-2}, {1}, 0, 6}, "expected sizes and strides from 0, found the int -2"},
      {{{2}, {-1}, 1, 6}, "expected sizes and strides from 0, found the int -1"},
      {{{2, 3}, {1}, 0, 6}, "expected a stride for each of 2 sizes, found 1"},
      {{std::vector<int>(65, 1), std::vector<int>(65, 1), 0, 6}, "expected at most 64 dimensions, found 65"},
      {{{2}, {1}, 0, 5}, "expected a storage of 5 elements, found 6"},
      {{{2}, {1}, 0, -6}, "expected a storage of -6 elements, found 6"},
      {{{2}, {1}, 0, 6, "FloatStorage", "1"}, "expected its elements in the file \"data/1\", found none"},
      {{{2}, {1}, 0, 6, "QInt8Storage"}, "expected a dtype that attend knows, found \"QInt8Storage\""},
      {{{2}, {1}, 0, 24, "UntypedStorage", "0", "quint8"}, "expected a dtype that attend knows, found \"quint8\""},
      {{{2}, {1}, 0, 24, "UntypedStorage"}, "expected a dtype that attend knows, found \"\""},
      {{{2}, {1}, 0, 6, ""}, "expected a dtype that attend knows, found \"\""},
  };
  for (const Case& c : cases) {
    CAPTURE(c.expected);
    const std::string file = file_with(c.tensor), message = file_error_message([&] { read(file); });
    CAPTURE(message);
    CHECK(message.starts_with("attend::load_torch_file: a.pt: tensor \"x\": " + c.expected));
  }
}

TEST_CASE("TorchArchive: a file that is no state dict is one error") {
  const std::string tensor = PickledTensor{{2}, {1}, 0, 2}.bytes(), reduced = "ctorch._utils\n_rebuild_tensor_v2\n";
  const std::string dict =
      pickle("}(" + pickled("epoch") + pickled(3) + pickled("model") + "}" + pickled("ema") + "}u");
  struct Case {
    std::string file, key, expected;
  };
  const auto archive = [](const std::string& opcodes) { return torch_archive(pickle(opcodes), {"12345678"}); };
  const Case cases[] = {
      {archive(tensor), "", "expected a dict of tensors, found a tensor"},
      {archive("]"), "a", "expected a dict with the key \"a\", found a list of 0 elements"},
      {archive("}" + pickled(1) + tensor + "s"), "", "expected names of tensors, found the key the int 1"},
      {archive("}(" + pickled("a") + tensor + pickled("a") + tensor + "u"), "",
       "tensor \"a\": expected one of this name, found two"},
      {archive("}" + pickled("\xff") + tensor + "s"), "", "expected a name in UTF-8, found \"?\""},
      {torch_archive(dict, {}), "",
       "\"epoch\": expected a tensor, found the int 3. Pass the key of the state dict. "
       "Entries that are dicts: \"model\", \"ema\""},
      {torch_archive(dict, {}), "net", "expected the key \"net\", found \"epoch\", \"model\", \"ema\""},
      {torch_archive(dict, {}), "epoch", "expected a dict of tensors, found the int 3"},
      {archive("}" + pickled("a") + reduced + ")Rs"), "",
       "tensor \"a\": expected a storage, an offset, sizes and strides, found other arguments"},
      {archive("}" + pickled("a") + reduced + "()QK\x01))tRs"), "",
       "tensor \"a\": expected a storage with type, key and number of elements, found another"},
      {zip_archive({}), "", "expected what torch.save of Python writes, found a zip archive without data.pkl"},
      {zip_archive({{"a/data.pkl", ""}, {"a/constants.pkl", ""}}), "",
       "expected what torch.save of Python writes, found a TorchScript archive"},
      {zip_archive({{"a/data.pkl", pickle("}")}, {"a/byteorder", "big"}}), "",
       "expected byteorder \"little\", found \"big\""},
  };
  for (const Case& c : cases) {
    CAPTURE(c.expected);
    const std::string message = file_error_message([&] { read(c.file, c.key); });
    CAPTURE(message);
    CHECK(message.starts_with("attend::load_torch_file: a.pt: " + c.expected));
  }
}

/// Reads each element of each tensor.
void read_elements(std::string_view file, std::string_view key) {
  for (const TorchEntry& entry : read(file, key)) {
    unsigned sum = 0;
    std::int64_t last = entry.offset;
    bool is_empty = false;
    for (const char c : entry.storage) sum += static_cast<unsigned char>(c);
    for (std::size_t d = 0; d < entry.sizes.size(); ++d) {
      last += (entry.sizes[d] - 1) * entry.strides[d];
      is_empty = is_empty || entry.sizes[d] == 0;
    }
    const auto size = static_cast<std::int64_t>(entry.storage.size());
    if (sum > 255u * entry.storage.size() || (!is_empty && (last + 1) * entry.dtype->size > size))
      FAIL("a tensor outside of its storage");
  }
}

void read_model(std::string_view file) { read_elements(file, "model"); }

TEST_CASE("TorchArchive: every truncation and every change of a single byte of a small file") {
  const std::string file = file_with({{2, 3}, {3, 1}, 0, 6});
  const auto read_all = [](std::string_view bytes) { read_elements(bytes, ""); };
  CHECK(accepts(file, read_all));
  CHECK(accepted_truncations(file, read_all) == 0);
  CHECK(bytes_with_accepted_change(file, read_all) > 24);  // the elements may be others
  CHECK(accepted_truncations(checkpoint(), read_model) == 0);
}

TEST_CASE("TorchArchive: 100,000 damaged files, and as many with a damaged pickle in a whole archive") {
  const std::vector<std::string> files = {checkpoint(), zip_archive({{"a/data.pkl", pickle("}")}}, true)};
  CHECK(accepted_mutations(files, 100'000, read_model) > 1'000);
  const std::string tensor = PickledTensor{{2, 3}, {3, 1}, 0, 6}.bytes();
  const std::vector<std::string> pickles = {
      pickle("}" + pickled("x") + tensor + "s"),
      pickle(pickled_global("collections", "OrderedDict") + ")R(" + pickled("y") + tensor + "u}" +
             pickled("_metadata") + "}" + pickled("version") + "K\x01ssb"),
      pickle("}q" + std::string(1, '\0') + "(" + pickled("z") + "q\x01" + tensor + "q\x02" + pickled("w") + "h\x02u"),
  };
  const int accepted = accepted_mutations(pickles, 100'000, [](std::string_view bytes) {
    read_elements(torch_archive(std::string(bytes), {std::string(24, '\1')}), "");
  });
  CHECK(accepted > 1'000);
}

}  // namespace
