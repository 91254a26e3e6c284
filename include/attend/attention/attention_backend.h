// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/backend.h>
#include <attend/attention/detail/problem.h>
#include <attend/version.h>

#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// An implementation of attention. A backend with a backward pass of its own is a KernelBackend (attention_node.h).
///
/// The built-in backends are in a table (backends.h). A caller may pass another backend to the option backend.
class AttentionBackend {
 public:
  /// Its name in the options; kGiven for a backend that is not in the table.
  virtual Backend name() const = 0;

  /// Whether it can compute a problem. If not, it sets `reason`, unless that is null, to a sentence that says why.
  virtual bool can_run(const Problem& problem, std::string* reason = nullptr) const = 0;

  /// The sentence that can_run() sets.
  std::string why_not(const Problem& problem) const {
    std::string reason;
    can_run(problem, &reason);
    return reason;
  }

  /// Explanation::copies.
  virtual std::string copies(const Problem& problem) const = 0;

  /// Explanation::how.
  virtual std::string how(const Problem& problem) const = 0;

  /// Whether it rotates queries and keys by the tables of the problem. If not, it is given rotated ones.
  virtual bool rotates(const Problem& /*problem*/) const { return false; }

  /// Computes a problem for which can_run() is true. The result is part of torch's autograd graph.
  virtual AttentionResult run(const Problem& problem) const = 0;

 protected:
  ~AttentionBackend() = default;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
