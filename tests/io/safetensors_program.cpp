// SPDX-License-Identifier: MIT
//
// What safetensors_test.py asks of attend. Each line of the standard input is a request, each answer ends with a line "."
//   load PATH            one line for each tensor: name in hexadecimal, dtype, sizes, and the first elements in double
//   copy FROM TO         loads a file and saves it, with its metadata; shards of SIZE bytes with: copy FROM TO SIZE
//   accepts PATH         "yes", or "no" if the header is refused

#include <attend/io/safetensors.h>
#include <torch/types.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>

namespace {

void load(const std::string& path) {
  for (const auto& item : attend::load_safetensors(path)) {
    for (const char c : item.key()) std::printf("%02x", static_cast<unsigned char>(c));
    const torch::Tensor& tensor = item.value();
    std::printf(" %s", c10::toString(tensor.scalar_type()));
    for (const std::int64_t size : tensor.sizes()) std::printf(" %lld", static_cast<long long>(size));
    std::printf(" :");
    torch::Tensor flat = tensor.flatten().slice(0, 0, 5);
    const auto* const bytes = static_cast<const unsigned char*>(flat.const_data_ptr());
    if (c10::toString(tensor.scalar_type()) == std::string("Float4_e2m1fn_x2")) {
      for (std::size_t i = 0; i < flat.nbytes(); ++i) std::printf(" %d", bytes[i]);
    } else {
      if (flat.is_complex()) flat = at::view_as_real(flat).flatten();
      flat = flat.to(torch::kDouble);
      for (std::int64_t i = 0; i < flat.numel(); ++i) std::printf(" %.17g", flat[i].item<double>());
    }
    std::printf("\n");
  }
}

void copy(const std::string& from, const std::string& to, std::int64_t shard_size) {
  const auto metadata = attend::SafetensorsFile(from).metadata();
  const auto options = attend::SafetensorsOptions().metadata(metadata).max_shard_size(shard_size);
  std::cout << attend::save_safetensors(attend::load_safetensors(from), to, options) << '\n';
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string request, path, to;
    std::int64_t shard_size = 0;
    words >> request >> path >> to >> shard_size;
    try {
      if (request == "load") load(path);
      if (request == "copy") copy(path, to, shard_size);
      if (request == "accepts") std::cout << (attend::SafetensorsFile(path).names(), "yes\n");
    } catch (const std::exception& error) {
      std::cout << "no " << error.what() << '\n';
    }
    std::cout << "." << std::endl;
  }
}
