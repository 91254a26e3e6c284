// SPDX-License-Identifier: MIT
//
// Loads the two libraries named by its arguments, as a program linked to both does. Prints the name that each of them
// gives kReference. Then prints for each library whether a BackendGuard of the first library applies to it: 1 or 0.
#include <dlfcn.h>

#include <iostream>

template <class F>
F* function(void* library, const char* name) {
  return reinterpret_cast<F*>(dlsym(library, name));
}

int main(int, char** arguments) {
  void* libraries[2];
  for (int i : {0, 1}) {
    libraries[i] = dlopen(arguments[i + 1], RTLD_NOW | RTLD_GLOBAL);
    if (libraries[i] == nullptr) {
      std::cerr << dlerror() << '\n';
      return 1;
    }
  }
  for (void* library : libraries) std::cout << function<const char*()>(library, "name_of_reference")() << '\n';
  auto* under_a_guard = function<bool(bool (*)())>(libraries[0], "under_a_guard");
  for (void* library : libraries) std::cout << under_a_guard(function<bool()>(library, "reference_is_active")) << '\n';
}
