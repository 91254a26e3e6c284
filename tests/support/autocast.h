// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/autocast_mode.h>

namespace attend::test {

/// Autocast to bfloat16 on the CPU, until the end of the scope.
struct Autocast {
  Autocast() { at::autocast::set_autocast_enabled(at::kCPU, true); }
  ~Autocast() {
    at::autocast::set_autocast_enabled(at::kCPU, false);
    at::autocast::clear_cache();
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;
};

}  // namespace attend::test
