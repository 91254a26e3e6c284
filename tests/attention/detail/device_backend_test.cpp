// SPDX-License-Identifier: MIT

// Tests the way from attention() to the CUDA kernels and back without a GPU: a harness runs the kernels on the host
// (tests/support/cuda_block.h), on CPU tensors.

#include <attend/attention/detail/device_backend.h>
#include <attend/kernels/cuda/backward_plan.cuh>
#include <attend/kernels/cuda/forward_plan.cuh>

#include <attend/attention.h>
#include <attend/flex_attention.h>
#include <attend/layers/multihead_attention.h>

#include "support/accuracy.h"
#include "support/cuda_block.h"
#include "support/device_cases.h"
#include "support/errors.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace device_backend_test {
namespace {

using attend::AttentionGradients;
using attend::AttentionOptions;
using attend::Backend;
using attend::BackendChoice;
using attend::detail::DeviceBackend;
using attend::test::GlobalMemory;
using attend::test::max_difference;
using attend::test::message_of;

struct Width64 {
  using BFloat16 = attend::cuda::Widths<64>;
  using Float16 = attend::cuda::Widths<>;
};
struct InTf32 {
  using BFloat16 = attend::cuda::Widths<>;
  using Float16 = attend::cuda::Widths<>;
  using Float32 = attend::cuda::Widths<32>;
};

/// Runs the kernels on the host; see DeviceBackend. They may write results only, and read everything.
template <class Kernels>
class HostDevice {
 public:
  static bool can_use(c10::Device, std::string*) { return true; }
  explicit HostDevice(c10::Device) {}

  static std::int64_t forward_workspace_bytes(const attend::cuda::Call& call) {
    return attend::cuda::forward_workspace_bytes<Kernels>(call);
  }

  template <class Score, class Mask>
  void forward(const attend::cuda::Call& call, const Score& score_mod, const Mask& mask_mod, void* workspace) {
    const std::int64_t rows = call.row(call.batch_size, 0, 0);
    add(call.output, call, call.heads, call.queries, call.value_dim);
    add(call.log_sum_exp, rows * number(call));
    add(call.saved_log_sum_exp, rows * number(call));
    add(call.log_sum_exp_rest, rows * number(call));
    add(call.output_rest, rows * call.value_dim * 2);
    add(workspace, forward_workspace_bytes(call));
    GlobalMemory memory = everything_else_is_read();
    const std::int64_t seed = static_cast<std::int64_t>(call.dropout_seed);
    attend::cuda::launch_forward<Kernels>(
        with_seed_in_memory(call, &seed), workspace,
        [&](auto kernel, const attend::cuda::Call& launched) { run(kernel, launched, score_mod, mask_mod, memory); });
  }

  static std::int64_t backward_workspace_bytes(const attend::cuda::Call& call, const AttentionGradients& gradients) {
    return attend::cuda::backward_workspace_bytes(call, gradients);
  }

  template <class Score, class Mask, class Marked>
  void backward(const attend::cuda::Call& call, const AttentionGradients& gradients, const Score& score_mod,
                const Mask& mask_mod, const Marked& marked, void* workspace) {
    CHECK(attend::cuda::backward_why_not(call, gradients) == nullptr);
    const std::int64_t bytes = attend::cuda::backward_workspace_bytes(call, gradients);
    add(workspace, bytes);
    add(gradients.query, call, call.heads, call.queries, call.head_dim);
    add(gradients.key, call, call.kv_heads, call.keys, call.head_dim);
    add(gradients.value, call, call.kv_heads, call.keys, call.value_dim);
    add(gradients.attn_mask.data, gradients.attn_mask.size * 8);
    add(gradients.alibi_slopes.data, gradients.alibi_slopes.size * 8);
    for (const attend::SummedGradient& sum : gradients.score_tensors) add(sum.data, sum.size * 8);
    GlobalMemory memory = everything_else_is_read();
    const std::int64_t seed = static_cast<std::int64_t>(call.dropout_seed);
    attend::cuda::launch_backward<Score, Mask, Kernels>(
        with_seed_in_memory(call, &seed), gradients, marked, workspace, bytes,
        [&](auto kernel, const auto& launched) { run(kernel, launched, score_mod, mask_mod, memory); });
  }

 private:
  static std::int64_t number(const attend::cuda::Call& call) {
    return call.dtype == attend::NumberType::kFloat64 ? 8 : 4;
  }

  static attend::cuda::Call with_seed_in_memory(attend::cuda::Call call, const std::int64_t* seed) {
    call.dropout_seed = 0;
    call.dropout_seed_data = seed;
    return call;
  }

  template <class Kernel, class Call, class Score, class Mask>
  static void run(Kernel, const Call& call, const Score& score_mod, const Mask& mask_mod, GlobalMemory& memory) {
    const std::int64_t blocks = Kernel::blocks(call);
    if (blocks == 0) return;
    const attend::test::CudaReport report =
        attend::test::run_on_host({.grid = {static_cast<int>(blocks), 1, 1},
                                   .threads = Kernel::kThreads,
                                   .shared_bytes = Kernel::kSharedBytes,
                                   .seed = 0},
                                  memory, [&] { Kernel::run(call, score_mod, mask_mod); });
    if (!report.faults.empty()) throw std::runtime_error(report.text());
  }

  void add(void* data, std::int64_t bytes) {
    if (data != nullptr && bytes > 0) written_.push_back({static_cast<char*>(data), bytes});
  }
  void add(const attend::TensorView4d& tensor, const attend::cuda::Call& call, std::int64_t heads, std::int64_t rows,
           std::int64_t columns) {
    const std::int64_t sizes[4] = {call.batch_size, heads, rows, columns};
    std::int64_t last = 0;
    for (int i = 0; i < 4; ++i) last += (sizes[i] - 1) * tensor.strides[i];
    const bool is_half = call.dtype == attend::NumberType::kBFloat16 || call.dtype == attend::NumberType::kFloat16;
    add(tensor.data, (last + 1) * (is_half ? 2 : number(call)));
  }

  GlobalMemory everything_else_is_read() {
    GlobalMemory memory;
    std::sort(written_.begin(), written_.end());
    std::uintptr_t begin = 4096;
    for (const auto& [data, bytes] : written_) {
      const auto place = reinterpret_cast<std::uintptr_t>(data);
      memory.add_input(reinterpret_cast<void*>(begin), static_cast<std::int64_t>(place - begin), "an input");
      memory.add_output(data, bytes, "a result");
      begin = place + static_cast<std::uintptr_t>(bytes);
    }
    memory.add_input(reinterpret_cast<void*>(begin),
                     std::numeric_limits<std::int64_t>::max() - static_cast<std::int64_t>(begin), "an input");
    return memory;
  }

  std::vector<std::pair<char*, std::int64_t>> written_;
};

template <class Score = attend::Unchanged, class Mask = attend::EveryKey, class Kernels = Width64>
BackendChoice kernels() {
  return std::shared_ptr<const attend::detail::AttentionBackend>(
      std::make_shared<const DeviceBackend<Score, Mask, HostDevice<Kernels>>>());
}

}  // namespace

TEST_CASE("attend::cuda::backend: every option of attention(), with gradients, by the kernels on the host") {
  attend::test::check_every_option(torch::kCPU, kernels());
}

TEST_CASE("attend::cuda::backend: structs that hold tensors, with gradients, by the kernels on the host") {
  attend::test::check_structs(torch::kCPU, kernels<attend::test::DeviceScore, attend::test::DeviceMask>());
}

TEST_CASE("attend::cuda::backend: a layer under a BackendGuard uses the kernels") {
  attend::MultiheadAttention layer(attend::MultiheadAttentionOptions(32, 2).is_causal(true));
  const torch::Tensor x = torch::randn({9, 2, 32}), expected = std::get<0>(layer(x, x, x));
  const attend::BackendGuard guard(kernels());
  CHECK(layer->explain(x, x, x).text() ==
        std::string() + "attend::cuda::backend runs attend's own CUDA kernels, compiled for " +
            c10::demangle_type<attend::Unchanged>() + " and " + c10::demangle_type<attend::EveryKey>() + ".");
  CHECK(max_difference(std::get<0>(layer(x, x, x)), expected) < 1e-5);
}

TEST_CASE("attend::cuda::backend: float32 in tf32 with Kernels::Float32, with gradients") {
  const torch::Tensor q = torch::randn({1, 2, 70, 32}), k = torch::randn({1, 2, 90, 32}), v = torch::randn_like(k),
                      gradient = torch::randn_like(q);
  const auto results = [&](const BackendChoice& backend, torch::ScalarType dtype) {
    std::vector<torch::Tensor> inputs;
    for (const torch::Tensor& each : {q, k, v}) inputs.push_back(each.to(dtype, false, true).requires_grad_());
    torch::Tensor output =
        attend::attention(inputs[0], inputs[1], inputs[2], AttentionOptions().is_causal(true).backend(backend));
    output.backward(gradient.to(dtype));
    return std::vector<torch::Tensor>{output, inputs[0].grad(), inputs[1].grad(), inputs[2].grad()};
  };
  const BackendChoice in_tf32 = kernels<attend::Unchanged, attend::EveryKey, InTf32>();
  const auto exact = results(Backend::kReference, torch::kDouble), computed = results(in_tf32, torch::kFloat);
  for (std::size_t i = 0; i < exact.size(); ++i) {
    CAPTURE(i);
    const double error = ((computed[i] - exact[i]).norm() / exact[i].norm()).item<double>();
    CHECK(error < 1e-3);
    CHECK(error > 1e-5);  // of float32 it would be 1e-6
  }
}

TEST_CASE("attend::cuda::backend: the option rotary, rotated when the kernels load queries and keys") {
  const torch::Tensor angles = 3 * torch::randn({70, 16}), own = torch::randn({2, 40, 16});
  for (const attend::RotaryLayout layout : {attend::RotaryLayout::kHalfSplit, attend::RotaryLayout::kInterleaved})
    for (const bool has_own : {false, true}) {
      CAPTURE(layout);
      CAPTURE(has_own);
      AttentionOptions options = AttentionOptions().rotary({angles.cos(), angles.sin(), layout}).is_causal(true);
      if (has_own) options.query_rotary({own.cos(), own.sin(), layout});
      const std::vector<torch::Tensor> inputs{torch::randn({2, 4, 40, 64}), torch::randn({2, 2, 70, 64}),
                                              torch::randn({2, 2, 70, 64})};
      const auto call = [&](const std::vector<torch::Tensor>& given, const BackendChoice& choice) {
        return attend::attention_with_lse(given[0], given[1], given[2], AttentionOptions(options).backend(choice));
      };
      attend::test::compare_on(torch::kCPU, inputs, torch::kBFloat16, call, kernels());
      const attend::detail::Problem problem = attend::detail::attention_problem(
          inputs[0].to(torch::kBFloat16), inputs[1].to(torch::kBFloat16), inputs[2].to(torch::kBFloat16),
          AttentionOptions(options).backend(kernels()));
      CHECK(problem.has_rotary());
    }
}

TEST_CASE("attend::cuda::backend: second derivatives with the option rotary, and calls that are rotated first") {
  const torch::Tensor angles = 3 * torch::randn({9, 16});
  const attend::RotaryTables tables{angles.cos(), angles.sin()};
  const auto second = [&](const BackendChoice& backend) {
    torch::manual_seed(4);
    const torch::Tensor x = torch::randn({1, 2, 9, 64}).to(torch::kBFloat16).requires_grad_();
    const torch::Tensor y = attend::attention(x, x, x, AttentionOptions().rotary(tables).backend(backend));
    const torch::Tensor first = torch::autograd::grad({y.square().sum()}, {x}, {}, true, /*create_graph=*/true)[0];
    return torch::autograd::grad({first.square().sum()}, {x})[0].to(torch::kFloat);
  };
  const torch::Tensor expected = second(Backend::kReference);
  CHECK(max_difference(second(kernels()), expected) < 0.05 * expected.abs().max().item<double>());

  const auto is_left = [](at::ScalarType dtype, const attend::RotaryTables& of_call) {
    const torch::Tensor x = torch::randn({1, 2, 9, 64}).to(dtype);
    const auto options = AttentionOptions().rotary(of_call).backend(kernels());
    return attend::detail::attention_problem(x, x, x, options).has_rotary();
  };
  CHECK(is_left(torch::kBFloat16, tables));
  CHECK(is_left(torch::kHalf, tables));
  CHECK(!is_left(torch::kFloat, tables));
  CHECK(!is_left(torch::kDouble, tables));
  CHECK(!is_left(torch::kBFloat16, {angles.narrow(1, 0, 4).cos(), angles.narrow(1, 0, 4).sin()}));
  CHECK(!is_left(torch::kBFloat16, {angles.cos().requires_grad_(), angles.sin()}));
}

TEST_CASE("attend::cuda::backend: MultiheadAttention with rotary leaves the rotation to the kernels") {
  attend::MultiheadAttention layer(
      attend::MultiheadAttentionOptions(128, 2).rotary(attend::RotaryEmbeddingOptions(64)).is_causal(true));
  layer->to(torch::kBFloat16);
  const torch::Tensor x = torch::randn({2, 12, 128}).to(torch::kBFloat16), expected = std::get<0>(layer(x, x, x));
  const attend::BackendGuard guard(kernels());
  CHECK(max_difference(std::get<0>(layer(x, x, x)), expected) < 0.02);
}

TEST_CASE("attend::cuda::backend: it says why it cannot compute a call") {
  const auto refused = [](const BackendChoice& backend, const auto& call) {
    const std::string text = message_of<c10::NotImplementedError>([&] { call(AttentionOptions().backend(backend)); });
    const std::string begin = "attend::attention: the requested backend cannot run. attend::cuda::backend ";
    CHECK(text.substr(0, begin.size()) == begin);
    return text.substr(std::min(begin.size(), text.size()));
  };
  const torch::Tensor x = torch::randn({1, 2, 5, 4});
  const auto name = [](auto type) { return std::string(c10::demangle_type<decltype(type)>()); };
  const std::string softcap = name(attend::Softcap{}) + " and " + name(attend::Causal{});
  CHECK(refused(kernels<attend::Softcap, attend::Causal>(), [&](const AttentionOptions& options) {
          attend::attention(x, x, x, options);
        }) == "was compiled for " + softcap + ", but attention() passes no structs.");
  CHECK(refused(kernels<attend::Softcap, attend::Causal>(), [&](const AttentionOptions& options) {
          attend::flex_attention(x, x, x, attend::Softcap{2}, attend::EveryKey{}, options);
        }) == "was compiled for " + softcap + ", but the call has other structs.");
  CHECK(refused(kernels(), [&](const AttentionOptions& options) {
          attend::flex_attention(x, x, x, attend::Softcap{2}, attend::EveryKey{}, options);
        }).find("but the call has other structs.") != std::string::npos);
  CHECK(refused(kernels(), [&](const AttentionOptions& options) {
          attend::attention(x, x.narrow(2, 0, 0), x.narrow(2, 0, 0), options);
        }) == "needs at least one batch entry, one query and one key.");
  const auto page = torch::zeros({1, 1}, torch::kInt), lengths = torch::tensor({5}, torch::kInt);
  CHECK(refused(kernels(),
                [&](AttentionOptions options) {
                  const torch::Tensor q = x.clone().requires_grad_();
                  attend::attention(q, x, x, options.block_table(page).key_lengths(lengths));
                }) ==
        "has no backward pass with block_table; use key_lengths without pages, or torch::NoGradGuard if no "
        "gradient is needed.");
}

}  // namespace device_backend_test
