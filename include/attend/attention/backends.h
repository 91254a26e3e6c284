// SPDX-License-Identifier: MIT
#pragma once

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

/// One backend in the table kBackends.
struct BackendEntry {
  Backend backend;
  bool (*can_run)(const Problem&, std::string* reason);  // if not, writes why not to `reason`, unless it is null
  std::string (*copies)(const Problem&);
  std::string (*how)(const Problem&);
  AttentionResult (*run)(const Problem&);
};

template <class B>
inline constexpr BackendEntry kEntry{B::kBackend, &B::can_run, &B::copies, &B::how, &B::run};

/// All backends, the fastest first. The last one can do everything.
inline constexpr BackendEntry kBackends[] = {kEntry<Cpu>, kEntry<Sdpa>, kEntry<Reference>};

/// The backend for a call. Adds a sentence to `why_not_faster`, unless it is null, for each faster backend that is
/// passed over. Throws c10::NotImplementedError if a backend asked for by name cannot run.
inline const BackendEntry& choose(const Problem& problem, Backend asked_for, std::string* why_not_faster = nullptr) {
  const Backend wanted = asked_for == Backend::kAuto ? BackendGuard::current() : asked_for;
  bool is_known_to_run = false;
  for (const BackendEntry& entry : kBackends) {
    if (wanted == entry.backend) {
      if (entry.can_run(problem, nullptr)) return entry;
      std::string reason;
      entry.can_run(problem, &reason);
      TORCH_CHECK_NOT_IMPLEMENTED(false, "attend::attention: the requested backend cannot run. ", reason);
    }
    if (wanted != Backend::kAuto) continue;
    std::string reason;
    std::string* const sentence = why_not_faster == nullptr ? nullptr : &reason;
    if (is_known_to_run || entry.can_run(problem, sentence)) {
      is_known_to_run = is_next_faster(entry.backend, problem, sentence) && (&entry + 1)->can_run(problem, nullptr);
      if (!is_known_to_run) return entry;
    }
    if (sentence != nullptr) *why_not_faster += (why_not_faster->empty() ? "" : " ") + reason;
  }
  TORCH_CHECK_VALUE(false, "attend::attention: unknown backend ", c10::str(wanted));
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
