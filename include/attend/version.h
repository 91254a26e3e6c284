// SPDX-License-Identifier: MIT
#pragma once

// CMake and Conan read these three numbers. vcpkg.json repeats them, and a test compares.
/// The first number of attend's version MAJOR.MINOR.PATCH, an integer.
#define ATTEND_VERSION_MAJOR 0
/// The second number of attend's version.
#define ATTEND_VERSION_MINOR 1
/// The third number of attend's version.
#define ATTEND_VERSION_PATCH 0

#define ATTEND_JOIN_VERSION(major, minor, patch) v##major##_##minor##_##patch
#define ATTEND_MAKE_VERSION_NAMESPACE(major, minor, patch) ATTEND_JOIN_VERSION(major, minor, patch)
/// The inline namespace that all names of attend are members of, for example v0_1_0 in attend::v0_1_0.
///
/// The libraries of one program may be built with different versions of attend, because their functions then have
/// different symbols.
#define ATTEND_VERSION_NAMESPACE \
  ATTEND_MAKE_VERSION_NAMESPACE(ATTEND_VERSION_MAJOR, ATTEND_VERSION_MINOR, ATTEND_VERSION_PATCH)
