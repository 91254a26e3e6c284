// SPDX-License-Identifier: MIT
#pragma once

#include <attend/macros.h>
#include <attend/version.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The checksum CRC-64/XZ of a sequence of bytes, which may be added in pieces. If all changed bits lie within 64
/// consecutive bits, the checksum is certain to change. Otherwise it changes with probability 1 − 2⁻⁶⁴.
class Checksum {
 public:
  /// Appends bytes. The sixteen reads of a step do not wait for each other.
  void add(const void* data, std::size_t size) {
    static_assert(std::endian::native == std::endian::little);
    const auto* bytes = static_cast<const unsigned char*>(data);
    std::uint64_t state = state_;
    for (; size >= 16; bytes += 16, size -= 16) {
      std::uint64_t low, high;
      std::memcpy(&low, bytes, 8);
      std::memcpy(&high, bytes + 8, 8);
      low ^= state;
      std::uint64_t of_low = 0, of_high = 0;
      ATTEND_UNROLL
      for (std::size_t i = 0; i < 8; ++i) {
        of_low ^= kTables[15 - i][low >> (8 * i) & 0xff];
        of_high ^= kTables[7 - i][high >> (8 * i) & 0xff];
      }
      state = of_low ^ of_high;
    }
    for (; size > 0; ++bytes, --size) state = kTables[0][(state ^ *bytes) & 0xff] ^ (state >> 8);
    state_ = state;
  }

  /// The checksum of all bytes so far.
  std::uint64_t value() const { return ~state_; }

 private:
  // kTables[k][byte]: the remainder of a byte followed by k zero bytes.
  using Tables = std::array<std::array<std::uint64_t, 256>, 16>;

  static constexpr Tables make_tables() {
    constexpr std::uint64_t kPolynomial = 0xC96C5795D7870F42;  // of ECMA-182, the lowest power in the highest bit
    Tables tables{};
    for (std::size_t byte = 0; byte < 256; ++byte) {
      std::uint64_t remainder = byte;
      for (int bit = 0; bit < 8; ++bit) remainder = (remainder >> 1) ^ (remainder & 1 ? kPolynomial : 0);
      tables[0][byte] = remainder;
    }
    for (std::size_t k = 1; k < 16; ++k)
      for (std::size_t byte = 0; byte < 256; ++byte)
        tables[k][byte] = tables[0][tables[k - 1][byte] & 0xff] ^ (tables[k - 1][byte] >> 8);
    return tables;
  }

  static const Tables kTables;

  std::uint64_t state_ = ~std::uint64_t{0};
};

inline constexpr Checksum::Tables Checksum::kTables = Checksum::make_tables();

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
