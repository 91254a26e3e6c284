// SPDX-License-Identifier: MIT

// The library attend::compiled: attention() and its kernels, compiled once for all files of a program.

#if !defined(ATTEND_COMPILED)  // the target attend::compiled defines it
#define ATTEND_COMPILED
#endif

#include <attend/attention/detail/calls.h>
#include <attend/attention/detail/calls_impl.h>
