// SPDX-License-Identifier: MIT
#include <attend/attention/backend.h>

#include <attend/attention.h>
#include <attend/attention/detail/instruction_set.h>
#include <attend/flex_attention.h>
#include <attend/simd/instruction_set.h>

#include "support/backends.h"
#include "support/errors.h"
#include "support/processor.h"

#include <ATen/Version.h>
#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>

using attend::AttentionOptions;
using attend::Backend;
using attend::BackendGuard;
using attend::Explanation;
using attend::test::fastest_backend;
using attend::test::message_of;

namespace backend_test {
namespace {

template <class T>
std::string text(const T& value) {
  std::ostringstream stream;
  stream << value;
  return stream.str();
}

/// The backend that runs if a call requests this one. Every backend can run the call.
Backend taken(Backend asked_for = Backend::kAuto) {
  const torch::Tensor x = torch::zeros({1, 1, 12, 8});  // enough queries that ATen is not faster
  return attend::explain(x, x, x, AttentionOptions().backend(asked_for)).backend;
}

torch::Tensor random(at::IntArrayRef sizes, at::ScalarType dtype = torch::kFloat) {
  return torch::randn(sizes).to(dtype);
}

AttentionOptions ours_by_name() { return AttentionOptions().backend(Backend::kCpu); }

static_assert(std::size(attend::test::kTestedBackends) == std::size(attend::detail::kBackends));

}  // namespace

TEST_CASE("Backend, Explanation: operator<< prints the name of a backend and the text of an explanation") {
  CHECK(text(Backend::kAuto) == "kAuto");
  CHECK(text(Backend::kReference) == "kReference");
  CHECK(text(Backend::kCpu) == "kCpu");
  CHECK(text(Backend::kSdpa) == "kSdpa");
  CHECK(text(static_cast<Backend>(42)) == "Backend(42)");
  const attend::Explanation none{Backend::kReference, "", "", ""};
  const attend::Explanation all{Backend::kSdpa, "kCpu cannot.", "It copies.", "kSdpa runs."};
  const attend::Explanation no_copies{Backend::kCpu, "", "", "kCpu runs."};
  CHECK(text(none) == "The backend is kReference.");
  CHECK(text(all) == "kSdpa runs. It copies. kCpu cannot.");
  CHECK(text(no_copies) == "kCpu runs. It reads its inputs without a copy.");
  for (const attend::Explanation& each : {none, all, no_copies}) CHECK(each.text() == text(each));
}

TEST_CASE("BackendGuard: the backend option of a call overrides the guard, and the guard overrides kAuto") {
  for (const Backend guarded : attend::test::kNamedBackends) {
    CAPTURE(guarded);
    CHECK(BackendGuard::current() == Backend::kAuto);
    CHECK(taken() == fastest_backend());
    const BackendGuard guard(guarded);
    CHECK(BackendGuard::current() == guarded);
    CHECK(taken() == guarded);
    for (const Backend asked_for : attend::test::kNamedBackends) CHECK(taken(asked_for) == asked_for);
  }
  CHECK(BackendGuard::current() == Backend::kAuto);
  CHECK(taken() == fastest_backend());
}

TEST_CASE("BackendGuard: guards nest, and the innermost one applies, also if it is kAuto") {
  const BackendGuard outer(Backend::kReference);
  {
    const BackendGuard inner(Backend::kSdpa);
    CHECK(taken() == Backend::kSdpa);
    {
      const BackendGuard innermost(Backend::kCpu);
      CHECK(taken() == Backend::kCpu);
    }
    CHECK(taken() == Backend::kSdpa);
    const BackendGuard lifted(Backend::kAuto);
    CHECK(BackendGuard::current() == Backend::kAuto);
    CHECK(taken() == fastest_backend());
  }
  CHECK(taken() == Backend::kReference);
}

TEST_CASE("BackendGuard: a guard ends with its scope, also after an exception") {
  try {
    const BackendGuard guard(Backend::kReference);
    throw std::runtime_error("anything");
  } catch (const std::runtime_error&) {
    CHECK(taken() == fastest_backend());
  }
}

TEST_CASE("BackendGuard: a guard applies only to its own thread") {
  const BackendGuard guard(Backend::kReference);
  Backend elsewhere = Backend::kReference, guarded_elsewhere = Backend::kReference;
  std::thread([&] {
    elsewhere = taken();
    const BackendGuard other(Backend::kSdpa);
    guarded_elsewhere = taken();
  }).join();
  CHECK(elsewhere == fastest_backend());
  CHECK(guarded_elsewhere == Backend::kSdpa);
  CHECK(taken() == Backend::kReference);
}

TEST_CASE("BackendGuard: a backend that cannot run is refused with the reason, as with the option backend") {
  const torch::Tensor x = torch::randn({1, 1, 4, 8}), narrow = x.slice(3, 0, 3);
  const BackendGuard guard(Backend::kSdpa);
  CHECK(attend::test::message_of<c10::NotImplementedError>([&] {
          attend::attention(x, x, narrow);
        }).find("attend::attention: the requested backend cannot run. kSdpa ") != std::string::npos);
  CHECK_NOTHROW(attend::attention(x, x, narrow, AttentionOptions().backend(Backend::kReference)));
  CHECK_NOTHROW(attend::attention_weights(x, x));  // it has no choice of backends
}

TEST_CASE("BackendGuard: attention() uses it, and the backward pass uses the backend of the forward pass") {
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
  torch::Tensor of_aten, of_atens_gradient;
  {
    const BackendGuard guard(Backend::kSdpa);
    of_aten = output();
    of_atens_gradient = gradient(output());
  }
  CHECK(of_aten.equal(attend::attention(x, x, x, AttentionOptions().backend(Backend::kSdpa))));
  // The backends must round differently, or this test could not tell them apart.
  CHECK_FALSE(dense.equal(fused));
  CHECK_FALSE(dense.equal(of_aten));
  CHECK_FALSE(dense_gradient.equal(fused_gradient));
  CHECK_FALSE(dense_gradient.equal(of_atens_gradient));
  if (fastest_backend() == Backend::kCpu) CHECK_FALSE(fused_gradient.equal(of_atens_gradient));
}

// ---- The choice of kAuto, and what explain() says -------------------------------------------------------------------

TEST_CASE("kAuto: calls that ATen's kernels cannot run use kCpu in every dtype; explain() names no faster one") {
  const torch::Tensor offsets = torch::tensor({0, 2, 40}, torch::kInt);
  struct Case {
    std::string name;
    AttentionOptions options;
    std::int64_t keys = 40, value_dim = 8;
    bool with_lse = false;
  };
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    const auto options = [] { return AttentionOptions(); };
    const torch::Tensor mask = torch::zeros({40, 40}, dtype), learned = torch::zeros({40, 40}, dtype).requires_grad_();
    const Case cases[] = {
        {"value width", {}, 40, 3},
        {"packed", options().query_offsets(offsets).key_offsets(offsets)},
        {"window", options().window({2, -1})},
        {"softcap", options().softcap(1.0)},
        {"ALiBi", options().alibi_slopes(torch::ones({4}))},
        {"dropout", options().dropout(0.1)},
        {"learned mask", options().attn_mask(learned)},
        {"mask, with lse", options().attn_mask(mask), 40, 8, true},
        {"causal, more keys", options().is_causal(true), 41},
        {"scale 0", options().scale(0.0)},
        {"negative scale", options().scale(-0.5)},
    };
    for (const Case& c : cases) {
      CAPTURE(dtype);
      CAPTURE(c.name);
      const torch::Tensor query = random({1, 4, 40, 8}, dtype), key = random({1, 4, c.keys, 8}, dtype);
      const Explanation plan = attend::explain(query, key, key.slice(3, 0, c.value_dim), c.options, c.with_lse);
      CHECK(plan.backend == Backend::kCpu);
      CHECK(plan.why_not_faster == "");
      CHECK(plan.how != "");
    }
  }
}

TEST_CASE("kAuto: calls that both kCpu and kSdpa can run use the faster one; explain() gives the reason for kSdpa") {
  const std::string sdpa = "kSdpa runs ATen's fused kernels.";
  for (const bool is_causal : {false, true}) {
    const AttentionOptions options = AttentionOptions().is_causal(is_causal);
    CAPTURE(is_causal);
    for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      CAPTURE(dtype);
      const torch::Tensor y = random({2, 4, 12, 8}, dtype);
      const Explanation plan = attend::explain(y, y, y, options);
      CHECK(plan.backend == fastest_backend());
      CHECK(plan.why_not_faster ==
            (fastest_backend() == Backend::kCpu ? "" : "kCpu can run, but kSdpa is faster without AVX2 or AVX-512."));
      CHECK((plan.how == sdpa) == (fastest_backend() == Backend::kSdpa));
    }
  }
}

TEST_CASE("kAuto: calls with few queries use kSdpa where it is faster") {
  const auto backend = [](std::int64_t queries, std::int64_t keys, at::ScalarType dtype = torch::kFloat,
                          const AttentionOptions& options = {}, bool needs_gradient = false) {
    const torch::Tensor query = random({2, 4, queries, 8}, dtype).requires_grad_(needs_gradient);
    const torch::Tensor key = random({2, 2, keys, 8}, dtype);
    return attend::explain(query, key, key, options).backend;
  };
  const auto causal = AttentionOptions().is_causal(true);
  const Backend ours = fastest_backend();
  const bool has_avx512 = attend::detail::available_instruction_set() >= attend::simd::InstructionSet::kAvx512;
  const Backend ours_with_avx512 = has_avx512 ? ours : Backend::kSdpa;
  CHECK(backend(1, 64) == ours_with_avx512);
  CHECK(backend(1, 65) == ours);
  CHECK(backend(8, 64) == ours_with_avx512);
  CHECK(backend(8, 8) == ours);
  CHECK(backend(8, 64, torch::kFloat, causal) == Backend::kSdpa);
  CHECK(backend(9, 64, torch::kFloat, causal) == ours);
  CHECK(backend(4, 256) == ours);
  CHECK(backend(5, 256) == ours_with_avx512);
  CHECK(backend(8, 257) == ours);
  CHECK(backend(12, 512) == ours_with_avx512);
  CHECK(backend(12, 511) == ours);
  CHECK(backend(13, 512) == ours);  // grouped heads
  const torch::Tensor batch = torch::empty({16, 8, 512, 64});
  CHECK(attend::explain(batch.slice(2, 0, 1), batch, batch).backend == ours);
  CHECK(attend::explain(batch.slice(2, 0, 32), batch, batch).backend == ours_with_avx512);
  CHECK(attend::explain(batch.slice(2, 0, 33), batch, batch).backend == ours);
  CHECK(backend(1, 512, torch::kBFloat16) == ours);
  CHECK(backend(2, 512, torch::kBFloat16) == ours);
  CHECK(backend(1, 512, torch::kHalf) == ours);
  CHECK(backend(4, 40, torch::kDouble, causal) == ours_with_avx512);
  CHECK(backend(1, 64, torch::kDouble) == Backend::kSdpa);
  CHECK(backend(1, 65, torch::kDouble) == ours_with_avx512);
  CHECK(backend(2, 64, torch::kDouble) == ours_with_avx512);
  CHECK(backend(4, 257, torch::kDouble) == ours);
  CHECK(backend(4, 257, torch::kDouble, {}, true) == Backend::kSdpa);
  CHECK(backend(9, 40, torch::kDouble) == ours);

  // kCpu runs the calls that ATen's kernels cannot run.
  CHECK(backend(1, 512, torch::kFloat, AttentionOptions().softcap(1.0)) == Backend::kCpu);
  CHECK(backend(1, 512, torch::kFloat, AttentionOptions().window({4, 0})) == Backend::kCpu);
  CHECK(backend(2, 512, torch::kFloat, AttentionOptions().dropout(0.5)) == Backend::kCpu);

  // If query, key or value needs a gradient, N · H · S decides.
  CHECK(backend(4, 2048, torch::kFloat, {}, true) == Backend::kSdpa);
  CHECK(backend(4, 2047, torch::kFloat, {}, true) == ours_with_avx512);
  CHECK(backend(4, 255, torch::kFloat, {}, true) == ours);
  CHECK(backend(5, 2048, torch::kFloat, {}, true) == ours_with_avx512);
  const torch::Tensor one = random({1, 1, 1, 8}), keys = random({1, 1, 64, 8}), learned = keys.clone().requires_grad_();
  CHECK(attend::explain(one, learned, keys).backend == Backend::kSdpa);
  CHECK(attend::explain(one, keys.slice(2, 0, 63), learned.slice(2, 0, 63)).backend == ours);
  const torch::Tensor two = random({1, 1, 2, 8});
  CHECK(attend::explain(two, learned, keys).backend == ours);
  CHECK(attend::explain(two, keys, learned).backend == ours);

  CHECK(attend::explain(one, learned, keys, {}, /*with_lse=*/true).backend == Backend::kSdpa);
  if (ours == Backend::kCpu)
    CHECK(attend::explain(one, learned, keys).why_not_faster ==
          "kCpu can run, but kSdpa is faster for so few queries (L = 1).");
  const torch::Tensor many = torch::empty({1, 32, 4096, 128}, torch::kHalf);
  CHECK(attend::explain(many.slice(2, 0, 32), many, many).backend == Backend::kSdpa);
  CHECK(attend::explain(many.slice(2, 0, 33), many, many).backend == ours);
  const torch::Tensor few = many.slice(1, 0, 8), fewer = many.slice(1, 0, 7);
  const torch::Tensor two_groups = many.slice(1, 0, 16);
  CHECK(attend::explain(few.slice(2, 0, 32), few, few).backend == Backend::kSdpa);
  CHECK(attend::explain(few.slice(2, 0, 33), few, few).backend == ours);
  CHECK(attend::explain(fewer.slice(2, 0, 1), fewer, fewer).backend == ours);
  CHECK(attend::explain(many.slice(2, 0, 1), few, few).backend == ours);  // grouped heads
  CHECK(attend::explain(many.slice(2, 0, 1), two_groups, two_groups).backend == ours);
  const torch::Tensor grouped = torch::empty({1, 16, 8192, 128}, torch::kHalf);
  CHECK(attend::explain(many.slice(2, 0, 32), grouped, grouped).backend == Backend::kSdpa);
}

TEST_CASE("kCpu: requested by name, it runs even if another backend is faster; explain() names no faster one") {
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    CAPTURE(dtype);
    const torch::Tensor y = random({2, 4, 6, 8}, dtype);
    const Explanation plan = attend::explain(y, y, y, ours_by_name());
    CHECK(plan.backend == Backend::kCpu);
    CHECK(plan.why_not_faster == "");
    const attend::BackendGuard guard(Backend::kCpu);
    CHECK(attend::explain(y, y, y).backend == Backend::kCpu);
  }
}

TEST_CASE("kCpu: explain() names the instruction set that LibTorch uses on this processor") {
  const std::string capability = at::get_cpu_capability();
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    CAPTURE(dtype);
    const torch::Tensor y = random({1, 1, 4, 8}, dtype);
    const std::string start = "kCpu runs attend's own CPU kernels ";
    std::set<std::string> possible{start + "as portable code, without AVX2 or AVX-512 instructions."};
    if (capability == "AVX2") possible = {start + "with AVX2 instructions."};
    if (capability == "AVX512") possible = {start + "with AVX-512 instructions."};
    if (capability == "AVX512" && dtype == torch::kBFloat16)
      possible.insert(start + "with AVX-512 and AVX512_BF16 instructions.");
    const std::string how = attend::explain(y, y, y, ours_by_name()).how;
    CAPTURE(how);
    CHECK(possible.count(how) == 1);
    CHECK(attend::explain_flex(y, y, y, attend::Softcap{2.0f}, attend::EveryKey{}, ours_by_name()).how == how);
    for (const Backend other : {Backend::kReference, Backend::kSdpa})
      CHECK(attend::explain(y, y, y, AttentionOptions().backend(other)).how.find(text(other) + " runs ") == 0);
  }
}

TEST_CASE("kCpu: tensors of any strides are read without a copy; explain() reports conversions") {
  const torch::Tensor view = random({1, 2, 16, 8}).transpose(2, 3);  // (1, 2, 8, 16), channels first
  const torch::Tensor mask = random({8, 8}).transpose(0, 1);
  const auto copies = [&](at::ScalarType dtype) {
    const torch::Tensor y = view.to(dtype, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::Preserve);
    return attend::explain(y, y, y, ours_by_name().attn_mask(mask.to(dtype)));
  };
  CHECK(copies(torch::kFloat).copies == "");
  CHECK(copies(torch::kDouble).copies == "");
  CHECK(copies(torch::kHalf).copies == "It converts float16 inputs to float32.");
  const Explanation half = copies(torch::kBFloat16);
  CHECK(half.copies == (half.how.find("AVX512_BF16") != std::string::npos
                            ? ""
                            : "It converts bfloat16 inputs to float32, tile by tile."));
}

TEST_CASE("kCpu: calls it cannot run are refused with the reason; with kAuto, explain() gives the reason") {
  const torch::Tensor y = random({2, 2, 4, 8}), none = random({2, 2, 0, 8}), meta = y.to(torch::kMeta);
  // One number in memory, expanded to 2³⁰ queries or keys.
  const torch::Tensor endless = torch::zeros({1}).expand({1, 1, std::int64_t{1} << 30, 8});
  struct Case {
    torch::Tensor query, key;
    std::string reason, atens;
  };
  const std::string nothing = "needs at least one batch entry, one query and one key.";
  const Case cases[] = {
      {y.slice(0, 0, 0), y.slice(0, 0, 0), "kCpu " + nothing, "kSdpa " + nothing},
      {none, y, "kCpu " + nothing, "kSdpa " + nothing},
      {y, none, "kCpu " + nothing, "kSdpa " + nothing},
      {meta, meta, "kCpu runs on the CPU only; the tensors are on meta.",
       "kSdpa cannot run, because ATen has no fused kernel for this call (meta, Float, width 8)."},
      {endless.slice(2, 0, 4), endless, "kCpu supports at most 1073741823 queries and keys.", ""},
      {endless, endless.slice(2, 0, 4), "kCpu supports at most 1073741823 queries and keys.", ""},
  };
  for (const Case& c : cases) {
    CAPTURE(c.reason);
    CHECK(message_of<c10::NotImplementedError>([&] { attend::explain(c.query, c.key, c.key, ours_by_name()); }) ==
          "attend::attention: the requested backend cannot run. " + c.reason);
    if (c.atens.empty()) continue;  // asking ATen would need a copy
    const Explanation plan = attend::explain(c.query, c.key, c.key);
    CHECK(plan.backend == Backend::kReference);
    CHECK(plan.why_not_faster == c.reason + " " + c.atens);
    CHECK(plan.how == "kReference runs the dense formula, which allocates all scores (N, H, L, S).");
  }
}

}  // namespace backend_test
