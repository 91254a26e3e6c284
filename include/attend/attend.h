// SPDX-License-Identifier: MIT
#pragma once

// Attention, positions and layers. These parts have headers of their own, so that only programs that use them compile
// them:
// - ConvStack, with its convolution kernels: attend/layers/conv_stack.h
// - the trainer: attend/training.h
// - files of tensors: attend/io.h
// - the data of the experiment: attend/data.h
// - the kernels without LibTorch: attend/kernels.h
// - the kernels for a GPU, compiled with a score_mod and mask_mod: attend/cuda.cuh

// The version
#include <attend/version.h>

// Attention as a function
#include <attend/attention.h>
#include <attend/attention/key_value_cache.h>
#include <attend/attention/sinks.h>
#include <attend/flex_attention.h>

// Positions
#include <attend/positions/alibi_slopes.h>
#include <attend/positions/binary.h>
#include <attend/positions/combine.h>
#include <attend/positions/learned.h>
#include <attend/positions/linear.h>
#include <attend/positions/rotary.h>
#include <attend/positions/rotate.h>
#include <attend/positions/sinusoidal.h>
#include <attend/positions/token_positions.h>

// Layers
#include <attend/layers/drop_path.h>
#include <attend/layers/feed_forward.h>
#include <attend/layers/layer_norm.h>
#include <attend/layers/layer_scale.h>
#include <attend/layers/multihead_attention.h>
#include <attend/layers/position_bias.h>
#include <attend/layers/relative_position_bias.h>
#include <attend/layers/rms_norm.h>
#include <attend/layers/self_attention1d.h>
#include <attend/layers/self_attention2d.h>
#include <attend/layers/t5_position_bias.h>
#include <attend/layers/transformer.h>
#include <attend/layers/transformer_block.h>
#include <attend/layers/window_partition.h>
