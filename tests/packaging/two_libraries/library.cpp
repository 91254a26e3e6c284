// SPDX-License-Identifier: MIT
//
// A shared library that uses attend. Its own three functions do not depend on how the names of attend are exported.
#include <attend/attention/backend.h>

#include <sstream>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT bool reference_is_active() { return attend::BackendGuard::current() == attend::Backend::kReference; }

EXPORT bool under_a_guard(bool (*call)()) {
  const attend::BackendGuard guard(attend::Backend::kReference);
  return call();
}

EXPORT const char* name_of_reference() {
  static const std::string name = (std::ostringstream() << attend::Backend::kReference).str();
  return name.c_str();
}
