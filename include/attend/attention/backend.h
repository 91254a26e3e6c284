// SPDX-License-Identifier: MIT
#pragma once

#include <ostream>
#include <string>

namespace attend {

/// Who computes attention. Each has a header under attention/.
enum class Backend {
  kAuto,       ///< the fastest backend that can do what the call asks for
  kReference,  ///< the dense formula (attention/reference.h): differentiable any number of times, O(L·S) memory
  kSdpa,  ///< ATen's fused kernels (attention/sdpa.h); asked for by name, it throws rather than go ATen's dense way
};

/// What explain() tells of a call.
struct Explanation {
  Backend backend;             ///< the backend that attention() takes
  std::string why_not_faster;  ///< one sentence for each faster backend that was passed over; empty if there is none
  std::string copies;          ///< what this backend copies before it starts; empty if nothing
};

inline std::ostream& operator<<(std::ostream& stream, Backend backend) {
  switch (backend) {
    case Backend::kAuto:
      return stream << "kAuto";
    case Backend::kReference:
      return stream << "kReference";
    case Backend::kSdpa:
      return stream << "kSdpa";
  }
  return stream << "Backend(" << static_cast<int>(backend) << ")";
}

inline std::ostream& operator<<(std::ostream& stream, const Explanation& explanation) {
  stream << explanation.backend;
  if (!explanation.why_not_faster.empty()) stream << "; " << explanation.why_not_faster;
  if (!explanation.copies.empty()) stream << "; " << explanation.copies;
  return stream;
}

}  // namespace attend
