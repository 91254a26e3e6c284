// SPDX-License-Identifier: MIT

// Masked rows, infinity, NaN and sizes of 1: the CUDA kernels, run on the host by the harness
// (tests/support/cuda_block.h), give what the CPU kernels give.

#include "kernels/support/configuration.h"
#include "kernels/support/cuda_memory.h"
#include "kernels/support/house_rule.h"
#include "kernels/support/memory.h"
#include "kernels/support/results.h"
#include "support/cuda_block.h"

#include <attend/kernels.h>
#include <attend/score/mask_mod.h>
#include <attend/score/score_mod.h>
#include <attend/score/tensor_view.h>
#include <attend/kernels/cuda/backward_plan.cuh>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/forward_plan.cuh>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace attend::test::cuda_special_numbers_test {

constexpr double kInfinity = std::numeric_limits<double>::infinity(), kNaN = std::numeric_limits<double>::quiet_NaN();

struct Width32 {
  using BFloat16 = cuda::Widths<32>;
  using Float16 = cuda::Widths<32>;
};
struct Width32InTf32 : Width32 {
  using Float32 = cuda::Widths<32>;
};

struct Shape {
  std::int64_t L, S, D;
};

/// Two heads of queries with one head of keys.
struct SpecialCall : CallMemory {
  static constexpr std::int64_t N = 2, H = 2;
  std::int64_t L, S, D;
  std::vector<std::int32_t> key_lengths;

  SpecialCall(NumberType dtype, const Shape& shape) : L(shape.L), S(shape.S), D(shape.D) {
    params.dtype = dtype;
    params.batch_size = N;
    params.num_heads = H;
    params.query_length = L;
    params.key_length = S;
    params.head_dim = params.value_dim = D;
    Random random(1);
    const auto tensor = [&](Element element, std::int64_t heads, std::int64_t rows, std::int64_t columns) {
      Tensor made(element, {N, heads, rows, columns});
      made.fill([&] { return random.normal(); });
      return made;
    };
    query = tensor(number(), H, L, D);
    key = tensor(number(), 1, S, D);
    value = tensor(number(), 1, S, D);
    output_gradient = tensor(number(), H, L, D);
    log_sum_exp_gradient = tensor(computed(), H, L, 1);
    params.query = query.view();
    params.key = key.view();
    params.value = value.view();
  }

  // A row and a key that are changed.
  std::int64_t row() const { return L / 2; }
  std::int64_t column() const { return S / 3; }

  /// A mask of ones, or of zeros that are added.
  void use_mask(MaskType type) {
    params.mask_type = type;
    mask = Tensor(type == MaskType::kBool ? Element::kBool : computed(), {N, H, L, S});
    mask.fill([&] { return type == MaskType::kBool ? 1 : 0; });
    params.attn_mask = mask.view();
  }
  void mask_row(double value) {
    for (std::int64_t h = 0; h < H; ++h)
      for (std::int64_t j = 0; j < S; ++j) mask.set(0, h, row(), j, value);
  }
  void mask_column(double value) {
    for (std::int64_t n = 0; n < N; ++n)
      for (std::int64_t h = 0; h < H; ++h)
        for (std::int64_t i = 0; i < L; ++i) mask.set(n, h, i, column(), value);
  }

  template <class T>
  Results by_cpu() {
    return results_of<T>(
        *this, [this](const Sizes& sizes) { return Tensor(number(), sizes); }, {}, kernels::saved_bytes<T>(params),
        /*also_without_saved=*/false,
        [&](const AttentionOutputs& outputs) { kernels::attention_forward<T>(params, outputs); },
        [&](const AttentionOutputs& outputs, const AttentionGradients& gradients) {
          kernels::attention_backward<T>(params, outputs, gradients);
        });
  }

  template <class T, class Kernels>
  Results by_cuda() {
    return results_of<T>(
        *this, [this](const Sizes& sizes) { return Tensor(number(), sizes); }, {}, cuda::saved_bytes(params),
        /*also_without_saved=*/false, [&](const AttentionOutputs& outputs) { forward<Kernels>(outputs); },
        [&](const AttentionOutputs& outputs, const AttentionGradients& gradients) {
          backward<Kernels>(outputs, gradients);
        });
  }

 private:
  static auto launch_in(GlobalMemory& memory) {
    return [&memory](auto kernel, const auto& call) {
      using Kernel = decltype(kernel);
      const CudaReport report = run_on_host({.grid = {static_cast<int>(Kernel::blocks(call)), 1, 1},
                                             .threads = Kernel::kThreads,
                                             .shared_bytes = Kernel::kSharedBytes},
                                            memory, [&] { Kernel::run(call, Unchanged(), EveryKey()); });
      CAPTURE(kernel.name());
      CHECK(report.text() == "");
    };
  }

  template <class Kernels>
  void forward(const AttentionOutputs& outputs) {
    const cuda::Call call = cuda::call_of(params, outputs);
    std::vector<double> workspace(
        static_cast<std::size_t>(cuda::forward_workspace_bytes<Kernels>(call)) / sizeof(double) + 1);
    GlobalMemory memory = memory_of(outputs, workspace);
    cuda::launch_forward<Kernels>(call, workspace.data(), launch_in(memory));
  }

  template <class Kernels>
  void backward(const AttentionOutputs& outputs, const AttentionGradients& gradients) {
    const cuda::Call call = cuda::call_of(params, outputs);
    const std::int64_t bytes = cuda::backward_workspace_bytes(call, gradients);
    std::vector<double> workspace(static_cast<std::size_t>(bytes) / sizeof(double) + 1);
    GlobalMemory memory = memory_of(outputs, workspace);
    add_tensor(memory, output_gradient, /*is_output=*/false, "gradient of output");
    add_tensor(memory, log_sum_exp_gradient, /*is_output=*/false, "gradient of log_sum_exp");
    memory.add_output(gradients.query.data, N * H * L * D * query.number_bytes(), "gradient of query");
    memory.add_output(gradients.key.data, N * S * D * query.number_bytes(), "gradient of key");
    memory.add_output(gradients.value.data, N * S * D * query.number_bytes(), "gradient of value");
    if (gradients.attn_mask.data != nullptr)
      memory.add_output(gradients.attn_mask.data, gradients.attn_mask.size * 8, "gradient of attn_mask");
    cuda::launch_backward<Unchanged, EveryKey, Kernels>(
        call, gradients, [](int, attend::detail::TensorReads*) { return Unchanged(); }, workspace.data(), bytes,
        launch_in(memory));
  }

  GlobalMemory memory_of(const AttentionOutputs& outputs, std::vector<double>& workspace) {
    GlobalMemory memory;
    for (const auto& [tensor, name] : std::vector<std::pair<Tensor*, std::string>>{
             {&query, "query"}, {&key, "key"}, {&value, "value"}, {&mask, "attn_mask"}})
      add_tensor(memory, *tensor, /*is_output=*/false, name);
    add_input(memory, key_lengths, "key_lengths");
    memory.add_output(outputs.output.data, N * H * L * D * query.number_bytes(), "output");
    memory.add_output(outputs.log_sum_exp, N * H * L * log_sum_exp_gradient.number_bytes(), "log_sum_exp");
    memory.add_output(outputs.saved, outputs.saved_bytes, "saved");
    memory.add_output(workspace.data(), static_cast<std::int64_t>(workspace.size() * sizeof(double)), "workspace");
    return memory;
  }
};

struct Case {
  std::string name;
  void (*change)(SpecialCall&);
  /// An infinity that is not masked makes 0 · ∞ and ∞ − ∞ in sums of the backward pass. They are NaN in the dense
  /// formula and on the CPU. The CUDA kernels may leave out products with a weight of 0, and have other orders of sums.
  /// So only gradients that are finite on the CPU are compared.
  bool has_infinity = false;
};

constexpr double kLowest = -3.3e38;

const Case kCases[] = {
    {"nothing special", [](SpecialCall&) {}},
    {"a bool mask without a key for a query",
     [](SpecialCall& c) {
       c.use_mask(MaskType::kBool);
       c.mask_row(0);
     }},
    {"an added mask of −∞ for a query",
     [](SpecialCall& c) {
       c.use_mask(MaskType::kAdded);
       c.mask_row(-kInfinity);
     }},
    {"an added mask of −∞ for a key",
     [](SpecialCall& c) {
       c.use_mask(MaskType::kAdded);
       c.mask_column(-kInfinity);
     }},
    {"an added mask of the lowest number for a query",
     [](SpecialCall& c) {
       c.use_mask(MaskType::kAdded);
       c.mask_row(kLowest);
     }},
    {"an added mask of −10⁹ for a query",
     [](SpecialCall& c) {
       c.use_mask(MaskType::kAdded);
       c.mask_row(-1e9);
     }},
    {"an added mask of ∞ for a key",
     [](SpecialCall& c) {
       c.use_mask(MaskType::kAdded);
       c.mask_column(kInfinity);
     }},
    {"an added mask of NaN for a key",
     [](SpecialCall& c) {
       c.use_mask(MaskType::kAdded);
       c.mask_column(kNaN);
     }},
    {"a causal mask, with more queries than keys in some shapes", [](SpecialCall& c) { c.params.window_right = 0; }},
    {"no key in a batch entry",
     [](SpecialCall& c) {
       c.key_lengths = {static_cast<std::int32_t>(c.S), 0};
       c.params.key_lengths = c.key_lengths.data();
     }},
    {"a masked key of NaN with a value of ∞",
     [](SpecialCall& c) {
       c.use_mask(MaskType::kBool);
       c.mask_column(0);
       c.key.set(0, 0, c.column(), 0, kNaN);
       c.value.set(0, 0, c.column(), 0, kInfinity);
     }},
    {"a key of NaN", [](SpecialCall& c) { c.key.set(0, 0, c.column(), 0, kNaN); }},
    {"a key of ∞", [](SpecialCall& c) { c.key.set(0, 0, c.column(), 0, kInfinity); }, true},
    {"a value of NaN", [](SpecialCall& c) { c.value.set(0, 0, c.column(), 0, kNaN); }},
    {"a value of ∞", [](SpecialCall& c) { c.value.set(0, 0, c.column(), 0, kInfinity); }, true},
    {"a query of NaN", [](SpecialCall& c) { c.query.set(0, 1, c.row(), 0, kNaN); }},
    {"a query of −∞", [](SpecialCall& c) { c.query.set(0, 1, c.row(), 0, -kInfinity); }, true},
    {"a gradient of NaN", [](SpecialCall& c) { c.output_gradient.set(0, 1, c.row(), 0, kNaN); }},
    {"a gradient of ∞", [](SpecialCall& c) { c.output_gradient.set(0, 1, c.row(), 0, kInfinity); }, true},
    {"softcap, and a key of ∞",
     [](SpecialCall& c) {
       c.params.softcap = 2;
       c.key.set(0, 0, c.column(), 0, kInfinity);
     },
     true},
    {"dropout 1", [](SpecialCall& c) { c.params.dropout = 1; }},
};

const Shape kShapes[] = {{20, 70, 8}, {128, 64, 8}, {2, 130, 8}, {1, 1, 8},
                         {1, 1, 1},   {1, 70, 8},   {20, 1, 8},  {20, 70, 1}};

std::string text_of(double number) {
  return std::isnan(number) ? "NaN" : std::isinf(number) ? (number > 0 ? "∞" : "−∞") : std::to_string(number);
}

/// Where two results differ; empty if nowhere. only_finite: numbers that are not finite on the CPU may be any.
std::string difference(const std::vector<double>& ours, const std::vector<double>& cpu, double tolerance,
                       bool only_finite) {
  REQUIRE(ours.size() == cpu.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    if (ours[i] == cpu[i] || (std::isnan(ours[i]) && std::isnan(cpu[i]))) continue;
    if (only_finite && !std::isfinite(cpu[i])) continue;
    if (std::abs(ours[i] - cpu[i]) <= tolerance * size_of(cpu)) continue;
    return "number " + std::to_string(i) + ": " + text_of(ours[i]) + ", CPU " + text_of(cpu[i]);
  }
  return "";
}

/// CPU kernels have no float16: the call of reference is in float32.
template <class T, class Kernels = Width32>
void check(NumberType dtype, double tolerance) {
  for (const Shape& shape : kShapes)
    for (const Case& each : kCases) {
      CAPTURE(each.name);
      CAPTURE(shape.L);
      CAPTURE(shape.S);
      CAPTURE(shape.D);
      SpecialCall call(dtype, shape), reference(dtype == NumberType::kFloat16 ? NumberType::kFloat32 : dtype, shape);
      each.change(call);
      each.change(reference);
      Results ours = call.by_cuda<T, Kernels>(), cpu = reference.by_cpu<T>();
      if (std::is_same_v<T, float>)  // the lowest number that is added to a score; see scores.cuh
        for (double& number : cpu.at("log_sum_exp"))
          if (std::isfinite(number)) number = std::max(number, -0x1p127);
      for (const auto& [name, numbers] : ours) {
        CAPTURE(name);
        const bool is_gradient = name != "output" && name != "log_sum_exp";
        CHECK(difference(numbers, cpu.at(name), tolerance, each.has_infinity && is_gradient) == "");
      }
    }
}

}  // namespace attend::test::cuda_special_numbers_test

namespace {
using enum attend::NumberType;
using attend::test::cuda_special_numbers_test::check;
using attend::test::cuda_special_numbers_test::Width32InTf32;
}  // namespace

// The tolerances are of numbers of the type, rounded a few times on both sides.
TEST_CASE("cuda: masked rows, infinity, NaN and sizes of 1 give what the CPU kernels give, in float32") {
  check<float>(kFloat32, 0x1p-18);
}
TEST_CASE("cuda: masked rows, infinity, NaN and sizes of 1 give what the CPU kernels give, in tf32") {
  check<float, Width32InTf32>(kFloat32, 0x1p-8);
}
TEST_CASE("cuda: masked rows, infinity, NaN and sizes of 1 give what the CPU kernels give, in float64") {
  check<double>(kFloat64, 1e-12);
}
TEST_CASE("cuda: masked rows, infinity, NaN and sizes of 1 give what the CPU kernels give, in bfloat16") {
  check<float>(kBFloat16, 0x1p-6);
}
TEST_CASE("cuda: masked rows, infinity, NaN and sizes of 1 give what the CPU kernels give, in float16") {
  check<float>(kFloat16, 0x1p-9);
}
