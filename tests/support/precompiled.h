// SPDX-License-Identifier: MIT
#pragma once

// What nearly every test needs: LibTorch's tensors, autograd and two modules, doctest, the standard library. Not
// <torch/torch.h>: the compiler instantiates what a precompiled header leaves pending in each file anew, and half of
// that is what few tests use. attend's own headers stay out, so that what a test includes of them is what it needs.

#include <torch/autograd.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>

#include <string>
#include <vector>

// After LibTorch, which has a CHECK of its own.
#include <doctest/doctest.h>
