// SPDX-License-Identifier: MIT
//
// The second translation unit. The linker reports every function that a header defines twice.
#include <attend/attend.h>
#include <attend/training.h>

torch::Tensor apply(attend::SelfAttention1d layer, const torch::Tensor& x) { return layer(x); }
