// SPDX-License-Identifier: MIT
#pragma once

// The data of the experiment, and the layer that standardizes data.

#include <attend/data/drawn_shape.h>
#include <attend/data/shape_dataset.h>
#include <attend/data/standardize.h>
