// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/util/StringUtil.h>

#include <ostream>
#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The implementations of attention. ConvStack and the projections of SelfAttention1d have two: attend's kernels, which
/// are used where they can run and are faster, and torch, which kReference asks for.
enum class Backend {
  kAuto,       ///< the fastest backend that can do what the call asks for
  kReference,  ///< the dense formula (attention/reference.h): can do everything, O(L·S) memory
  kCpu,        ///< our own kernels for the CPU (attention/cpu.h, convolution/cpu.h)
  kSdpa,  ///< ATen's fused kernels (attention/sdpa.h); asked for by name, it throws rather than go ATen's dense way
};

/// Writes the name, for example "kCpu".
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

/// Sets the backend of this thread until the end of the scope, for every call that does not ask for one itself.
///
/// A call's own `.backend(…)` comes first, then the innermost guard, then kAuto. BackendGuard(Backend::kAuto) therefore
/// cancels an outer guard. The backward pass uses the backend of the forward pass. With create_graph = true it uses the
/// reference instead.
///
/// A guard reaches all code of its thread that is built with the same version of attend and exports its symbols. It
/// does not reach:
/// - a shared library that is built with -fvisibility=hidden, or with another version of attend
/// - with clang, a library that is loaded with RTLD_LOCAL, as Python loads its modules
///
/// Pass `.backend(…)` to the call there.
///
/// @code
/// attend::BackendGuard guard(attend::Backend::kReference);
/// model->forward(x);  // every attention in it by the dense formula
/// @endcode
class BackendGuard {
 public:
  /// Sets the backend of this thread until the guard is destroyed.
  explicit BackendGuard(Backend backend) : outer_(current_) { current_ = backend; }
  ~BackendGuard() { current_ = outer_; }
  BackendGuard(const BackendGuard&) = delete;
  BackendGuard& operator=(const BackendGuard&) = delete;

  /// The backend of the innermost guard on this thread; kAuto without a guard.
  static Backend current() { return current_; }

 private:
  static inline thread_local Backend current_ = Backend::kAuto;
  Backend outer_;
};

/// The result of attention_with_lse(). Both tensors may be differentiated.
struct AttentionResult {
  at::Tensor output;  ///< (N, H, L, Dv), as attention() returns it

  /// (N, H, L), or fewer sizes if query has fewer; float32, and float64 for float64. log Σⱼ exp(scoreⱼ), the natural
  /// logarithm, before dropout; −∞ for a query that may attend to nothing. It merges two results over different keys
  /// into the result over all of them.
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

/// Writes Explanation::text().
inline std::ostream& operator<<(std::ostream& stream, const Explanation& explanation) {
  return stream << explanation.text();
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
