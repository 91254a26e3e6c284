// SPDX-License-Identifier: MIT
#pragma once

// The version of attend. CMake reads these three lines; they are the only place where it is written.
#define ATTEND_VERSION_MAJOR 0
#define ATTEND_VERSION_MINOR 1
#define ATTEND_VERSION_PATCH 0
