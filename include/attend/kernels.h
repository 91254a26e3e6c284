// SPDX-License-Identifier: MIT
#pragma once

// The kernels of attention on raw memory, without LibTorch.

#include <attend/kernels/attention.h>
#include <attend/kernels/attention_params.h>
#include <attend/kernels/executor.h>
#include <attend/kernels/flex_attention.h>
#include <attend/score/block_mask.h>
#include <attend/score/coordinate.h>
#include <attend/score/flash_mask.h>
#include <attend/score/mask_mod.h>
#include <attend/score/mask_operators.h>
#include <attend/score/score_mod.h>
#include <attend/score/tensor_view.h>
