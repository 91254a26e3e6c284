// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>

#include <vector>

namespace attend::test {

/// A backend, and the tests that it takes part in.
struct TestedBackend {
  Backend backend;
  bool supports_all_options;  // and a score_mod and a mask_mod; others throw c10::NotImplementedError for some of them
  bool has_own_gradients;     // its kernels have a backward pass; kReference is differentiated by torch
};

/// The backends that a call can name. A new backend needs a line here.
inline constexpr TestedBackend kTestedBackends[] = {
    {Backend::kReference, true, false},
    {Backend::kCpu, true, true},
    {Backend::kSdpa, false, true},
};

template <class Condition>
std::vector<Backend> backends_that(const Condition& condition) {
  std::vector<Backend> backends;
  for (const TestedBackend& each : kTestedBackends)
    if (condition(each)) backends.push_back(each.backend);
  return backends;
}

inline const std::vector<Backend> kNamedBackends = backends_that([](const TestedBackend&) { return true; });
inline const std::vector<Backend> kNamedBackendsWithAllOptions =
    backends_that([](const TestedBackend& each) { return each.supports_all_options; });
inline const std::vector<Backend> kBackendsWithOwnGradients =
    backends_that([](const TestedBackend& each) { return each.has_own_gradients; });

inline std::vector<Backend> and_auto(std::vector<Backend> backends) {
  backends.insert(backends.begin(), Backend::kAuto);
  return backends;
}

/// kReference, and the best backend for the call: for calls that a backend asked for by name may refuse.
inline const std::vector<Backend> kReferenceAndAuto{Backend::kReference, Backend::kAuto};
/// kAuto and every backend.
inline const std::vector<Backend> kAllBackends = and_auto(kNamedBackends);
/// kAuto and every backend that supports all options, a score_mod and a mask_mod.
inline const std::vector<Backend> kAllBackendsWithAllOptions = and_auto(kNamedBackendsWithAllOptions);

}  // namespace attend::test
