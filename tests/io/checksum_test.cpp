// SPDX-License-Identifier: MIT
#include <attend/io/detail/checksum.h>

#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <string>

using attend::detail::Checksum;

namespace {

std::uint64_t checksum_of(const std::string& bytes) {
  Checksum checksum;
  checksum.add(bytes.data(), bytes.size());
  return checksum.value();
}

}  // namespace

TEST_CASE("Checksum: it gives the published check value of CRC-64/XZ, and the values in files of Python's lzma") {
  CHECK(checksum_of("") == 0);
  CHECK(checksum_of("123456789") == 0x995DC9BBDF1939FA);  // Catalogue of parametrised CRC algorithms
  std::string counting;
  for (int i = 0; i < 1000; ++i) counting += static_cast<char>(i * i % 251);
  // lzma.compress(data, check=lzma.CHECK_CRC64) keeps the checksum of the data in front of the index
  CHECK(checksum_of("attend") == 0x1D924A02349A8E7A);
  CHECK(checksum_of("the quick brown fox jumps over the lazy dog") == 0x1F2616AA2C2BB398);
  CHECK(checksum_of(counting) == 0xEB107A1965794B10);
}

TEST_CASE("Checksum: the bytes may come in pieces of any size") {
  std::mt19937 random(1);
  std::string bytes(257, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  for (std::size_t first = 0; first <= bytes.size(); ++first) {
    Checksum checksum;
    checksum.add(bytes.data(), first);
    checksum.add(bytes.data() + first, bytes.size() - first);
    CHECK(checksum.value() == checksum_of(bytes));
  }
}

TEST_CASE("Checksum: every change of one byte changes it, and so does every exchange of neighbours") {
  const std::string bytes = "0123456789abcdefghijklmnopqrstuvwxyz";
  const std::uint64_t checksum = checksum_of(bytes);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    std::string changed = bytes;
    for (int step = 1; step < 256; ++step) {
      ++changed[i];
      CHECK(checksum_of(changed) != checksum);
    }
    if (i == 0) continue;
    changed = bytes;
    std::swap(changed[i - 1], changed[i]);
    CHECK(checksum_of(changed) != checksum);
  }
}
