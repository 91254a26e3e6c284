// SPDX-License-Identifier: MIT
#pragma once

// Attention, positions and layers. The trainer is in attend/training.h, the data of the experiment in attend/data.h.

// The version
#include <attend/version.h>

// Attention as a function
#include <attend/attention.h>
#include <attend/flex_attention.h>

// Positions
#include <attend/positions/binary.h>
#include <attend/positions/combine.h>
#include <attend/positions/learned.h>
#include <attend/positions/linear.h>
#include <attend/positions/sinusoidal.h>

// Layers
#include <attend/layers/activation.h>
#include <attend/layers/conv_stack.h>
#include <attend/layers/multihead_attention.h>
#include <attend/layers/self_attention1d.h>
