// SPDX-License-Identifier: MIT

// The CPU kernels, optimised. The tests are not: their time goes into compiling. Of an inline function that several
// objects have, the linker takes the first, and this object comes first.

#include <attend/attention.h>

namespace attend::test {

extern decltype(&attend::attention) optimised;
decltype(&attend::attention) optimised = &attend::attention;  // or nothing would be compiled here

}  // namespace attend::test
