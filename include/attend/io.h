// SPDX-License-Identifier: MIT
#pragma once

// Reads and writes files of named tensors that Python also reads and writes.

#include <attend/io/checkpoint.h>
#include <attend/io/checkpoint_folder.h>
#include <attend/io/checkpoint_state.h>
#include <attend/io/file_error.h>
#include <attend/io/rename.h>
#include <attend/io/safetensors.h>
#include <attend/io/state_dict.h>
#include <attend/io/state_dict_type.h>
#include <attend/io/torch_file.h>
