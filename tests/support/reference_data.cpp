// SPDX-License-Identifier: MIT

// In a file of its own, because ATTEND_TEST_DATA is a folder of the build tree: ccache cannot reuse the object of a
// file with this definition in another build folder.

#include "support/reference_data.h"

#include <c10/util/Exception.h>
#include <torch/serialize.h>

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace attend::test {

std::string reference_file(const std::string& name) { return std::string(ATTEND_TEST_DATA) + "/" + name; }

std::map<std::string, torch::Tensor> reference_data(const std::string& name) {
  const std::string path = reference_file(name + ".pt");
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file.is_open(), "cannot read ", path, "; `ctest --preset test -R python/make` writes it");
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  std::map<std::string, torch::Tensor> tensors;
  for (const auto& entry : torch::pickle_load(bytes).toGenericDict())
    tensors.emplace(entry.key().toStringRef(), entry.value().toTensor());
  return tensors;
}

}  // namespace attend::test
