// SPDX-License-Identifier: MIT
//
// Causal attention, called from each file of the program.
#pragma once

#include <ATen/core/Tensor.h>

at::Tensor causal_by_options(const at::Tensor& x);      // second.cpp
at::Tensor causal_by_flex(const at::Tensor& x);         // second.cpp
at::Tensor causal_in_a_library(const at::Tensor& x);    // library.cpp
at::Tensor causal_by_header_only(const at::Tensor& x);  // header_only.cpp
