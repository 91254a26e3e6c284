// SPDX-License-Identifier: MIT
#pragma once

#include <torch/types.h>

#include <map>
#include <string>

namespace attend::test {

/// Tensors that a script in tests/python computed with PyTorch in Python and saved under this name.
std::map<std::string, torch::Tensor> reference_data(const std::string& name);

/// The path of a file that a script in tests/python wrote.
std::string reference_file(const std::string& name);

}  // namespace attend::test
