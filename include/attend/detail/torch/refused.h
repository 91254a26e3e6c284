// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <c10/util/StringUtil.h>

#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Returns false, and writes the parts as one sentence to `reason` unless `reason` is null. forward() passes null, so
/// only explain() and errors spend time on the sentence.
template <class... Parts>
bool refused(std::string* reason, const Parts&... parts) {
  if (reason != nullptr) *reason = c10::str(parts...);
  return false;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
