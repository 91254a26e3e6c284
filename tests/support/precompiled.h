// SPDX-License-Identifier: MIT
#pragma once

// The headers that nearly every test needs: LibTorch's tensors, autograd and two modules, doctest, the standard
// library. <torch/torch.h> is left out: g++ repeats pending instantiations of a precompiled header in each file, which
// would take half as long again. attend's headers are left out, so that a test must include those that it needs.

#include <torch/autograd.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>

#include <string>
#include <vector>

// After LibTorch, which defines a macro CHECK too.
#include <doctest/doctest.h>
