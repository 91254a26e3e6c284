// SPDX-License-Identifier: MIT
#pragma once

// The version of attend. CMake and Conan read these three lines. vcpkg.json repeats them, and a test compares.
#define ATTEND_VERSION_MAJOR 0
#define ATTEND_VERSION_MINOR 1
#define ATTEND_VERSION_PATCH 0

// All names of attend are members of an inline namespace with the version, for example attend::v0_1_0. The libraries of
// one program may be built with different versions of attend: their functions then have different symbols.
#define ATTEND_JOIN_VERSION(major, minor, patch) v##major##_##minor##_##patch
#define ATTEND_MAKE_VERSION_NAMESPACE(major, minor, patch) ATTEND_JOIN_VERSION(major, minor, patch)
#define ATTEND_VERSION_NAMESPACE \
  ATTEND_MAKE_VERSION_NAMESPACE(ATTEND_VERSION_MAJOR, ATTEND_VERSION_MINOR, ATTEND_VERSION_PATCH)
