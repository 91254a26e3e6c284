// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <c10/util/StringUtil.h>

#include <memory>
#include <ostream>
#include <string>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The implementations of attention.
///
/// ConvStack and the linear projections of other layers have two implementations: attend's kernels and torch's. For
/// them, kReference means torch's. The option backend of each layer says what the other values mean.
enum class Backend {
  kAuto,       ///< the backend of the active BackendGuard; without one, the fastest that can compute the call
  kReference,  ///< the dense formula: computes every call, on every device, and allocates all L · S scores
  kCpu,        ///< attend's own fused kernels for the CPU
  kSdpa,       ///< ATen's fused kernels; throws c10::NotImplementedError where ATen would use its dense fallback
  kGiven,      ///< a backend object, see BackendChoice; you cannot pass kGiven itself to the option backend
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
    case Backend::kGiven:
      return stream << "kGiven";
  }
  return stream << "Backend(" << static_cast<int>(backend) << ")";
}

namespace detail {
class AttentionBackend;  // attention/attention_backend.h
}

/// The value of the option backend: a Backend, or a backend object, such as attend::cuda::backend() returns. Each of
/// the two converts to a BackendChoice.
class BackendChoice {
 public:
  /// A built-in backend.
  ///
  /// @param backend Any value except kGiven, for which attention() throws c10::ValueError.
  BackendChoice(Backend backend) : backend_(backend) {}

  /// A backend object. It computes the call or throws c10::NotImplementedError.
  ///
  /// @param object The object, not null. The graph of autograd keeps it alive.
  BackendChoice(std::shared_ptr<const detail::AttentionBackend> object)
      : backend_(Backend::kGiven), object_(std::move(object)) {}

  /// The built-in backend, or kGiven for an object.
  operator Backend() const { return backend_; }

  /// The object, or null for a built-in backend.
  const std::shared_ptr<const detail::AttentionBackend>& object() const { return object_; }

 private:
  Backend backend_;
  std::shared_ptr<const detail::AttentionBackend> object_;
};

/// Sets the backend of this thread until the end of the scope, for every call whose option backend is kAuto.
///
/// If the option backend of a call is not kAuto, guards have no effect on the call. Of several guards, the innermost
/// counts. BackendGuard(Backend::kAuto) cancels an outer guard.
///
/// A guard for a backend object, such as that of attend::cuda::backend(), applies to attention only. ConvStack and the
/// linear projections of layers compute as without a guard.
///
/// The backward pass uses the backend of the forward pass. With create_graph = true it uses kReference instead.
/// Exception: kSdpa on a GPU may have no second derivative.
///
/// A guard applies to all code of its thread that is built with the same version of attend and exports its symbols. It
/// does not apply to:
/// - a shared library that is built with -fvisibility=hidden, or with another version of attend
/// - with clang, a library that is loaded with RTLD_LOCAL, as Python loads its modules
///
/// In these libraries, set the option `.backend(…)` of each call.
///
/// @code
/// attend::BackendGuard guard(attend::Backend::kReference);
/// model->forward(x);  // every attention in it by the dense formula
/// @endcode
class BackendGuard {
 public:
  /// Sets the backend of this thread until the guard is destroyed.
  ///
  /// @param backend A built-in backend or a backend object. kAuto cancels an outer guard.
  explicit BackendGuard(BackendChoice backend) : choice_(std::move(backend)), outer_(innermost_) { innermost_ = this; }
  ~BackendGuard() { innermost_ = outer_; }
  BackendGuard(const BackendGuard&) = delete;
  BackendGuard& operator=(const BackendGuard&) = delete;

  /// The backend of the innermost guard on this thread: kGiven for an object, and kAuto without a guard.
  static Backend current() { return innermost_ == nullptr ? Backend::kAuto : Backend(innermost_->choice_); }

  /// The object of the innermost guard on this thread; null for a built-in backend and without a guard.
  static std::shared_ptr<const detail::AttentionBackend> current_object() {
    return innermost_ == nullptr ? nullptr : innermost_->choice_.object();
  }

 private:
  static inline thread_local const BackendGuard* innermost_ = nullptr;
  BackendChoice choice_;
  const BackendGuard* outer_;
};

/// The result of attention_with_lse() and flex_attention_with_lse(). Both tensors are differentiable.
struct AttentionResult {
  at::Tensor output;  ///< (N, H, L, Dv), as attention() returns it

  /// log Σⱼ exp(scoreⱼ) over the keys j, the natural logarithm, before dropout. −∞ for a query that may attend to no
  /// key. The shape is (N, H, L), or (H, L) or (L) if query has fewer dimensions. The dtype is float64 for float64
  /// tensors, and float32 for all others.
  at::Tensor log_sum_exp;
};

/// The result of explain(): which backend computes a call, and why.
///
/// All members except `backend` are sentences for people. The wording may change in any version: do not parse it.
struct Explanation {
  Backend backend;             ///< The backend that computes the call, never kAuto.
  std::string why_not_faster;  ///< One sentence for each faster backend that is not used; empty if there is none.

  /// The inputs that this backend copies or converts; empty if none. Three conversions are not listed, because they
  /// happen before the backend is called:
  /// - the casts of autocast
  /// - the rotation of AttentionOptions::rotary()
  /// - the conversion of a float attn_mask to another dtype; see AttentionOptions::attn_mask()
  std::string copies;

  std::string how;  ///< The code that this backend runs. For kCpu it names the instruction set.

  /// All members as one text, usually of two to four sentences. operator<< writes the same.
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
