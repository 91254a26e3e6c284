// SPDX-License-Identifier: MIT
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "support/environment.h"

int main(int argc, char** argv) {
  attend::test::pin_isa_of_libtorch();
  return doctest::Context(argc, argv).run();
}
