// SPDX-License-Identifier: MIT
//
// The second translation unit: what a header defines twice is seen by the linker.
#include <attend/attend.h>
#include <attend/training.h>

torch::Tensor apply(attend::SelfAttention1d layer, const torch::Tensor& x) { return layer(x); }
