// SPDX-License-Identifier: MIT
#pragma once

#include <c10/util/Exception.h>
#include <torch/serialize.h>
#include <torch/types.h>

#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace attend::test {

/// Tensors that tests/python/make_reference.py computed with PyTorch in Python and saved under this name.
inline std::map<std::string, torch::Tensor> reference_data(const std::string& name) {
  const std::string path = std::string(ATTEND_TEST_DATA) + "/" + name + ".pt";
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file.is_open(), "cannot read ", path, "; `ctest --preset test -R make_reference` writes it");
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  std::map<std::string, torch::Tensor> tensors;
  for (const auto& entry : torch::pickle_load(bytes).toGenericDict())
    tensors.emplace(entry.key().toStringRef(), entry.value().toTensor());
  return tensors;
}

}  // namespace attend::test
