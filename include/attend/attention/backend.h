// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/util/StringUtil.h>

#include <ostream>
#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Who computes attention: each has a header under attention/. ConvStack and the projections of SelfAttention1d have
/// two: our own kernels, where these can and are faster, and torch, which is also what kReference asks for.
enum class Backend {
  kAuto,       ///< the fastest backend that can do what the call asks for
  kReference,  ///< the dense formula (attention/reference.h): can do everything, O(L·S) memory
  kCpu,        ///< our own kernels for the CPU (attention/cpu.h, convolution/cpu.h)
  kSdpa,  ///< ATen's fused kernels (attention/sdpa.h); asked for by name, it throws rather than go ATen's dense way
};

inline std::ostream& operator<<(std::ostream& stream, Backend backend) {
  switch (backend) {
    case Backend::kAuto:
      return stream << "kAuto";
    case Backend::kReference:
      return stream << "kReference";
    case Backend::kCpu:
      return stream << "kCpu";
    case Backend::kSdpa:
      return stream << "kSdpa";
  }
  return stream << "Backend(" << static_cast<int>(backend) << ")";
}

/// The backend of every call of this thread that does not ask for one itself, until the end of the scope.
///
/// A call's own `.backend(…)` beats the guard, and the guard beats kAuto. Guards nest; the innermost one counts, so
/// that BackendGuard(Backend::kAuto) lifts an outer one. A backward pass stays with the backend of its forward pass,
/// but that one which is to be differentiated itself (create_graph) goes through the reference.
///
/// A guard reaches all code of its thread that is built with the same version of attend and exports its symbols. It
/// does not reach a shared library that is built with -fvisibility=hidden or with another version of attend. With clang
/// it also does not reach a library that is loaded with RTLD_LOCAL, as Python loads its modules. Pass `.backend(…)` to
/// the call there.
///
/// Example:
/// @code
/// attend::BackendGuard guard(attend::Backend::kReference);
/// model->forward(x);  // every attention in it by the definition
/// @endcode
class BackendGuard {
 public:
  /// Sets the backend of this thread until the guard is destroyed.
  explicit BackendGuard(Backend backend) : outer_(current_) { current_ = backend; }
  ~BackendGuard() { current_ = outer_; }
  BackendGuard(const BackendGuard&) = delete;
  BackendGuard& operator=(const BackendGuard&) = delete;

  /// The innermost guard's backend on this thread; kAuto without one.
  static Backend current() { return current_; }

 private:
  static inline thread_local Backend current_ = Backend::kAuto;
  Backend outer_;
};

/// What attention_with_lse() returns. Both may be differentiated.
struct AttentionResult {
  at::Tensor output;  ///< (N, H, L, Dv), as attention() returns it

  /// (N, H, L), without the sizes that query lacks; float32, or float64 for float64: log Σⱼ exp(scoreⱼ), the natural
  /// logarithm, before dropout; −∞ for a query that may attend to nothing. With it two results over different keys can
  /// be merged into that over all of them.
  at::Tensor log_sum_exp;
};

/// The answer of explain(): which backend computes a call, and why.
///
/// Except for `backend`, each member holds whole sentences for people. The wording may change in any version.
struct Explanation {
  Backend backend;             ///< The backend that computes the call.
  std::string why_not_faster;  ///< One sentence for each faster backend that was passed over; empty if there is none.

  /// What this backend copies or converts; empty if nothing. Two conversions come before the backend and are not
  /// listed: the casts of autocast, and the conversion of a float attn_mask to the dtype in which scores are computed.
  std::string copies;

  std::string how;  ///< What this backend runs; for kCpu with the instruction set.

  /// All of it, usually in two to four sentences. operator<< prints the same.
  ///
  /// Example:
  ///   kCpu runs attend's own CPU kernels with AVX-512 instructions. It reads its inputs without a copy.
  std::string text() const {
    std::string text = how;
    const auto add = [&text](const std::string& sentences) {
      if (!sentences.empty()) text += (text.empty() ? "" : " ") + sentences;
    };
    if (text.empty()) text = c10::str("The backend is ", backend, ".");
    const bool is_fused = backend == Backend::kCpu || backend == Backend::kSdpa;
    add(copies.empty() && is_fused ? "It reads its inputs without a copy." : copies);
    add(why_not_faster);
    return text;
  }
};

inline std::ostream& operator<<(std::ostream& stream, const Explanation& explanation) {
  return stream << explanation.text();
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
