// SPDX-License-Identifier: MIT
#pragma once

#include <c10/util/Exception.h>
#include <torch/serialize.h>
#include <torch/types.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace attend::test {

/// Tensors that tests/python/make_reference.py computed with PyTorch in Python and saved under this name.
inline std::map<std::string, torch::Tensor> reference_data(const std::string& name) {
  const char* folder = std::getenv("ATTEND_TEST_DATA");
  TORCH_CHECK(folder != nullptr,
              "the environment variable ATTEND_TEST_DATA must name the folder that "
              "tests/python/make_reference.py wrote; ctest sets it");
  const std::string path = std::string(folder) + "/" + name + ".pt";
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file.is_open(), "cannot read ", path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  std::map<std::string, torch::Tensor> tensors;
  for (const auto& entry : torch::pickle_load(bytes).toGenericDict())
    tensors.emplace(entry.key().toStringRef(), entry.value().toTensor());
  return tensors;
}

}  // namespace attend::test
