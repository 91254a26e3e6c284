// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/cuda_backend.cuh>
