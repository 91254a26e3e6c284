// SPDX-License-Identifier: MIT
#pragma once

// The trainer, its parts and its callbacks, except <attend/training/cuda_graph.h>, which needs the headers of CUDA.

// Training
#include <attend/training/accuracy.h>
#include <attend/training/adam.h>
#include <attend/training/cross_entropy.h>
#include <attend/training/history.h>
#include <attend/training/mean_squared_error.h>
#include <attend/training/step.h>
#include <attend/training/step_capture.h>
#include <attend/training/trainer.h>
#include <attend/training/trainer_options.h>
#include <attend/training/training_state.h>

// Callbacks
#include <attend/training/callbacks/checkpoint.h>
#include <attend/training/callbacks/csv_log.h>
#include <attend/training/callbacks/progress_bar.h>
#include <attend/training/callbacks/stop_early.h>
#include <attend/training/callbacks/stop_on_interrupt.h>
