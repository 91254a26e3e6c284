// SPDX-License-Identifier: MIT
#pragma once

// What nearly every test needs: LibTorch's tensors, autograd and two modules, doctest, the standard library. Not
// <torch/torch.h>: in each file g++ instantiates anew what a precompiled header leaves pending, and with that header it
// takes half as long again. attend's own headers stay out, so that a test includes those that it needs.

#include <torch/autograd.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>

#include <string>
#include <vector>

// After LibTorch, which has a CHECK of its own.
#include <doctest/doctest.h>
