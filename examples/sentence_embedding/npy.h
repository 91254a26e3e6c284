// SPDX-License-Identifier: MIT

// Files of NumPy.
#pragma once

#include <torch/types.h>

#include <bit>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>

/// Writes a float32 tensor (rows, columns) to a file that numpy.load() reads.
///
/// Source: the format of NumPy, version 1.0, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
inline void save_npy(const torch::Tensor& matrix, const std::string& path) {
  static_assert(std::endian::native == std::endian::little);
  constexpr std::size_t kPrefix = 10, kAlignment = 64;
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(matrix.size(0)) + ", " +
                       std::to_string(matrix.size(1)) + "), }";
  header.append(kAlignment - 1 - (kPrefix + header.size()) % kAlignment, ' ');
  header += '\n';
  const torch::Tensor numbers = matrix.to(torch::kFloat).contiguous();
  std::ofstream file(path, std::ios::binary);
  file << "\x93NUMPY\x01" << '\0' << static_cast<char>(header.size() & 0xFF) << static_cast<char>(header.size() >> 8)
       << header;
  file.write(static_cast<const char*>(numbers.const_data_ptr()), static_cast<std::streamsize>(numbers.nbytes()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}
