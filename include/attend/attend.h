// SPDX-License-Identifier: MIT
#pragma once

// All of attend but the trainer: attention, layers, data.

// The version
#include <attend/version.h>

// Attention as a function
#include <attend/attention.h>
#include <attend/flex_attention.h>

// Layers
#include <attend/layers/activation.h>
#include <attend/layers/conv_stack.h>
#include <attend/layers/multihead_attention.h>
#include <attend/layers/self_attention1d.h>

// Data
#include <attend/data/shape_dataset.h>
