// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <c10/util/Exception.h>  // for ordered_dict.h of older LibTorch
#include <torch/ordered_dict.h>
#include <torch/types.h>

#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Tensors by name, such as the parameters and buffers of a module. It corresponds to Python's `state_dict()`.
using StateDict = torch::OrderedDict<std::string, torch::Tensor>;

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
