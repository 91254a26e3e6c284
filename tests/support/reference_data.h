// SPDX-License-Identifier: MIT
#pragma once

#include <torch/types.h>

#include <map>
#include <string>

namespace attend::test {

/// Tensors that tests/python/make_reference.py computed with PyTorch in Python and saved under this name.
std::map<std::string, torch::Tensor> reference_data(const std::string& name);

}  // namespace attend::test
