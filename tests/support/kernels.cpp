// SPDX-License-Identifier: MIT

// Compiles the CPU kernels with optimization. The tests are compiled without it, because compiling takes most of their
// time. If several objects have an inline function, the linker uses the first one, and this object comes first.

#include <attend/attention.h>

namespace attend::test {

extern decltype(&attend::attention) optimised;
decltype(&attend::attention) optimised = &attend::attention;  // otherwise nothing would be compiled here

}  // namespace attend::test
