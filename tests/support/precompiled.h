// SPDX-License-Identifier: MIT
#pragma once

// What every test needs: LibTorch, doctest and the standard library. attend's own headers stay out, so that what a test
// includes of them is what it needs.

#include <torch/torch.h>

#include <string>
#include <vector>

// After LibTorch, which has a CHECK of its own.
#include <doctest/doctest.h>
