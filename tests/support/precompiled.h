// SPDX-License-Identifier: MIT
#pragma once

// What every test needs: LibTorch, doctest and the standard library. attend's own headers stay out, so that each test
// proves that what it includes is enough.

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <string>
#include <vector>
