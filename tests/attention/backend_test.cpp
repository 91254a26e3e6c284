// SPDX-License-Identifier: MIT
#include <attend/attention/backend.h>

#include <attend/attention.h>

#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>

using attend::AttentionOptions;
using attend::Backend;
using attend::BackendGuard;

namespace {

template <class T>
std::string text(const T& value) {
  std::ostringstream stream;
  stream << value;
  return stream.str();
}

/// Whom a call takes that asks for this backend, and that every backend can do.
Backend taken(Backend asked_for = Backend::kAuto) {
  const torch::Tensor x = torch::zeros({1, 1, 4, 8});
  return attend::explain(x, x, x, AttentionOptions().backend(asked_for)).backend;
}

}  // namespace

TEST_CASE("backends and explanations print as they are written") {
  CHECK(text(Backend::kAuto) == "kAuto");
  CHECK(text(Backend::kReference) == "kReference");
  CHECK(text(Backend::kSdpa) == "kSdpa");
  CHECK(text(static_cast<Backend>(42)) == "Backend(42)");
  CHECK(text(attend::Explanation{Backend::kSdpa, "", ""}) == "kSdpa");
  CHECK(text(attend::Explanation{Backend::kReference, "kSdpa: no", "copies"}) == "kReference; kSdpa: no; copies");
}

TEST_CASE("a call's own backend beats the guard, and the guard beats kAuto") {
  CHECK(BackendGuard::current() == Backend::kAuto);
  CHECK(taken() == Backend::kSdpa);
  {
    const BackendGuard guard(Backend::kReference);
    CHECK(BackendGuard::current() == Backend::kReference);
    CHECK(taken() == Backend::kReference);
    CHECK(taken(Backend::kSdpa) == Backend::kSdpa);
    CHECK(taken(Backend::kReference) == Backend::kReference);
  }
  CHECK(BackendGuard::current() == Backend::kAuto);
  CHECK(taken() == Backend::kSdpa);
}

TEST_CASE("guards nest: the innermost one counts, kAuto included") {
  const BackendGuard outer(Backend::kReference);
  {
    const BackendGuard inner(Backend::kSdpa);
    CHECK(taken() == Backend::kSdpa);
    const BackendGuard lifted(Backend::kAuto);
    CHECK(BackendGuard::current() == Backend::kAuto);
    CHECK(taken() == Backend::kSdpa);
  }
  CHECK(taken() == Backend::kReference);
}

TEST_CASE("a guard ends with its scope, also when an exception leaves it") {
  try {
    const BackendGuard guard(Backend::kReference);
    throw std::runtime_error("anything");
  } catch (const std::runtime_error&) {
    CHECK(taken() == Backend::kSdpa);
  }
}

TEST_CASE("a guard is its own thread's") {
  const BackendGuard guard(Backend::kReference);
  Backend elsewhere = Backend::kReference, guarded_elsewhere = Backend::kReference;
  std::thread([&] {
    elsewhere = taken();
    const BackendGuard other(Backend::kSdpa);
    guarded_elsewhere = taken();
  }).join();
  CHECK(elsewhere == Backend::kSdpa);
  CHECK(guarded_elsewhere == Backend::kSdpa);
  CHECK(taken() == Backend::kReference);
}

TEST_CASE("a guard's backend that cannot run is refused with the reason, as if the call had named it") {
  const torch::Tensor x = torch::randn({1, 1, 4, 8}), narrow = x.slice(3, 0, 3);
  const BackendGuard guard(Backend::kSdpa);
  CHECK(attend::test::message_of<c10::NotImplementedError>([&] {
          attend::attention(x, x, narrow);
        }).find("attend::attention: cannot use the backend asked for. kSdpa: ") != std::string::npos);
  CHECK_NOTHROW(attend::attention(x, x, narrow, AttentionOptions().backend(Backend::kReference)));
  CHECK_NOTHROW(attend::attention_weights(x, x));  // it has no backend to choose
}

TEST_CASE("attention itself follows the guard, and its backward pass stays with the forward pass") {
  const torch::Tensor x = torch::randn({1, 2, 40, 16}).requires_grad_();
  const auto output = [&] { return attend::attention(x, x, x); };
  const auto gradient = [&](const torch::Tensor& y) { return torch::autograd::grad({y.pow(2).sum()}, {x})[0]; };
  const torch::Tensor fused = output(), fused_gradient = gradient(output());
  const torch::Tensor forward_without_guard = output();
  torch::Tensor dense, dense_gradient;
  {
    const BackendGuard guard(Backend::kReference);
    dense = output();
    dense_gradient = gradient(output());
    CHECK(gradient(forward_without_guard).equal(fused_gradient));
  }
  CHECK(dense.equal(attend::attention(x, x, x, AttentionOptions().backend(Backend::kReference))));
  // The two backends round differently; were they the same, this test could not tell one from the other.
  CHECK_FALSE(dense.equal(fused));
  CHECK_FALSE(dense_gradient.equal(fused_gradient));
}
