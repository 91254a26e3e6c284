// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/attention_backend.h>
#include <attend/attention/backend.h>
#include <attend/attention/cpu.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/preference.h>
#include <attend/attention/reference.h>
#include <attend/attention/sdpa.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

inline constexpr Cpu kCpuBackend;
inline constexpr Sdpa kSdpaBackend(/*exact=*/kCpuBackend);
inline constexpr Reference kReferenceBackend;

/// All built-in backends, the fastest first. The last one can compute every call.
inline constexpr const AttentionBackend* kBackends[] = {&kCpuBackend, &kSdpaBackend, &kReferenceBackend};

/// The backend for a call. For each faster backend that is not used, it adds a sentence to `why_not_faster`, unless
/// that is null. Throws c10::NotImplementedError if a backend that was named in the call or by a guard cannot run.
inline const AttentionBackend& choose(const Problem& problem, Backend asked_for,
                                      std::string* why_not_faster = nullptr) {
  const Backend wanted = asked_for == Backend::kAuto ? BackendGuard::current() : asked_for;
  if (wanted != Backend::kAuto) {
    const AttentionBackend* named = problem.given_backend.get();
    for (const AttentionBackend* backend : kBackends)
      if (backend->name() == wanted) named = backend;
    TORCH_CHECK_VALUE(named != nullptr, "attend::attention: unknown backend ", c10::str(wanted));
    TORCH_CHECK_NOT_IMPLEMENTED(named->can_run(problem), "attend::attention: the requested backend cannot run. ",
                                named->why_not(problem));
    return *named;
  }
  bool is_known_to_run = false;
  for (const AttentionBackend* const* next = kBackends;; ++next) {
    const AttentionBackend& backend = **next;
    std::string reason;
    std::string* const sentence = why_not_faster == nullptr ? nullptr : &reason;
    if (is_known_to_run || backend.can_run(problem, sentence)) {
      is_known_to_run = is_next_faster(backend.name(), problem, sentence) && next[1]->can_run(problem);
      if (!is_known_to_run) return backend;
    }
    if (sentence != nullptr) *why_not_faster += (why_not_faster->empty() ? "" : " ") + reason;
  }
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
