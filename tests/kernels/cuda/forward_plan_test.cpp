// SPDX-License-Identifier: MIT

// Which kernels of the forward pass a call on a GPU uses, and how many blocks they have.

#include <attend/kernels/cuda/forward_plan.cuh>

#include <doctest/doctest.h>

#include <cstdint>
#include <stdexcept>
#include <string>

using attend::NumberType;
using attend::cuda::Call;
using attend::cuda::ForwardKernel;

namespace {

alignas(16) unsigned char memory[16];

attend::AttentionParams params_of(NumberType dtype, std::int64_t queries, std::int64_t keys, std::int64_t width) {
  attend::AttentionParams params;
  params.dtype = dtype;
  params.query_length = queries;
  params.key_length = keys;
  params.head_dim = params.value_dim = width;
  const auto view = [&](std::int64_t rows) {
    return attend::contiguous(static_cast<const void*>(memory), 1, rows, width);
  };
  params.query = view(queries);
  params.key = params.value = view(keys);
  return params;
}

attend::AttentionParams with_rotary(NumberType dtype, std::int64_t rotary_dim, const attend::RotaryView& tables) {
  attend::AttentionParams params = params_of(dtype, 64, 64, 64);
  params.rotary_dim = rotary_dim;
  params.query_rotary = params.key_rotary = tables;
  return params;
}

/// Nothing is read through the pointers.
Call call_of(const attend::AttentionParams& params) {
  return attend::cuda::call_of(
      params, {attend::contiguous(static_cast<void*>(memory), 1, params.query_length, params.value_dim)});
}

struct InTf32 : attend::cuda::EveryKernel {
  using Float32 = attend::cuda::Widths<64>;
};

struct OnlyWidth64 {
  using BFloat16 = attend::cuda::Widths<64>;
  using Float16 = attend::cuda::Widths<>;
};

}  // namespace

TEST_CASE("cuda forward_kernel_of: the kernel and its reason") {
  struct Case {
    const char* reason;
    ForwardKernel kernel;
    attend::AttentionParams params;
  };
  attend::AttentionParams columns = params_of(NumberType::kBFloat16, 64, 64, 64), offset = columns, row = columns;
  columns.key.strides[3] = 2;
  offset.value.data = memory + 2;
  row.query.strides[2] = 68;
  const char* const kAligned = "a tensor has columns that are not neighbours, or rows that are not aligned to 16 bytes";
  const Case cases[] = {
      {"the tensors are of 16-bit numbers with aligned rows", ForwardKernel::kTensorCores,
       params_of(NumberType::kBFloat16, 64, 64, 64)},
      {"there are at most 8 queries, and at least 128 keys", ForwardKernel::kDecode,
       params_of(NumberType::kFloat16, 8, 128, 256)},
      {"the tensors are float64", ForwardKernel::kPlain, params_of(NumberType::kFloat64, 64, 64, 64)},
      {"the tensors are float32, and no kernels in tf32 are compiled", ForwardKernel::kPlain,
       params_of(NumberType::kFloat32, 64, 64, 64)},
      {"head_dim or value_dim is above 256", ForwardKernel::kPlain, params_of(NumberType::kFloat16, 64, 64, 264)},
      {"head_dim or value_dim is not a multiple of 8", ForwardKernel::kPlain,
       params_of(NumberType::kFloat16, 64, 64, 60)},
      {kAligned, ForwardKernel::kPlain, columns},
      {kAligned, ForwardKernel::kPlain, offset},
      {kAligned, ForwardKernel::kPlain, row},
      {"the tensors are of 16-bit numbers with aligned rows", ForwardKernel::kTensorCores,
       with_rotary(NumberType::kBFloat16, 48, {memory, memory, {0, 24}})},
      {"rotary_dim is not a multiple of 16", ForwardKernel::kPlain,
       with_rotary(NumberType::kBFloat16, 24, {memory, memory, {0, 12}})},
      {"the tables of the rotary embedding have rows that are not aligned to 16 bytes", ForwardKernel::kPlain,
       with_rotary(NumberType::kBFloat16, 48, {memory, memory, {0, 25}})},
      {"the tables of the rotary embedding have rows that are not aligned to 16 bytes", ForwardKernel::kPlain,
       with_rotary(NumberType::kFloat16, 48, {memory, memory + 8, {0, 24}})},
  };
  for (const Case& each : cases) {
    CAPTURE(each.reason);
    const attend::cuda::ForwardChoice choice = attend::cuda::forward_kernel_of(call_of(each.params));
    CHECK(choice.kernel == each.kernel);
    CHECK(std::string(choice.reason) == each.reason);
  }
}

TEST_CASE("cuda forward_kernel_of: a type or width that is not compiled uses the kernel without tensor cores") {
  const auto kernel_of = [](NumberType dtype, std::int64_t width) {
    return attend::cuda::forward_kernel_of<OnlyWidth64>(call_of(params_of(dtype, 64, 64, width)));
  };
  CHECK(kernel_of(NumberType::kBFloat16, 40).kernel == ForwardKernel::kTensorCores);
  for (const auto& choice : {kernel_of(NumberType::kBFloat16, 32), kernel_of(NumberType::kFloat16, 64)}) {
    CHECK(choice.kernel == ForwardKernel::kPlain);
    CHECK(std::string(choice.reason) == "the kernels on tensor cores of this type and width are not compiled");
  }
}

TEST_CASE("cuda forward_kernel_of: float32 uses tensor cores only with Kernels::Float32") {
  const auto choice_of = [](std::int64_t queries, std::int64_t width, std::int64_t row_stride) {
    attend::AttentionParams params = params_of(NumberType::kFloat32, queries, 128, width);
    params.key.strides[2] = row_stride;
    return attend::cuda::forward_kernel_of<InTf32>(call_of(params));
  };
  struct Case {
    const char* reason;
    ForwardKernel kernel;
    std::int64_t queries, width, row_stride;
  };
  const Case cases[] = {
      {"the tensors are float32 with aligned rows, and tf32 is asked for", ForwardKernel::kTensorCores, 64, 60, 60},
      {"there are at most 8 queries, and at least 128 keys", ForwardKernel::kDecode, 8, 64, 64},
      {"head_dim or value_dim is not a multiple of 4", ForwardKernel::kPlain, 64, 62, 64},
      {"the kernels on tensor cores of this type and width are not compiled", ForwardKernel::kPlain, 64, 96, 96},
      {"a tensor has columns that are not neighbours, or rows that are not aligned to 16 bytes", ForwardKernel::kPlain,
       64, 60, 62},
  };
  for (const Case& each : cases) {
    CAPTURE(each.reason);
    const attend::cuda::ForwardChoice choice = choice_of(each.queries, each.width, each.row_stride);
    CHECK(choice.kernel == each.kernel);
    CHECK(std::string(choice.reason) == each.reason);
  }
  CHECK(attend::cuda::forward_kernel_of<InTf32>(call_of(params_of(NumberType::kBFloat16, 64, 64, 128))).kernel ==
        ForwardKernel::kTensorCores);
}

TEST_CASE("cuda decode: the parts of the keys have at least 128 keys, and are fewer the more heads there are") {
  Call call = call_of(params_of(NumberType::kBFloat16, 1, 100, 64));
  CHECK(attend::cuda::detail::decode_splits(call) == 1);
  CHECK(attend::cuda::forward_workspace_bytes(call) == 0);
  call.keys = 16384;
  CHECK(attend::cuda::detail::decode_splits(call) == 129);
  CHECK(attend::cuda::forward_workspace_bytes(call) == 129 * (64 + 2) * 4);
  call.batch_size = 64;
  call.kv_heads = call.heads = 8;
  CHECK(attend::cuda::detail::decode_splits(call) == 4);
}

TEST_CASE("cuda forward: a grid may have more than 65,535 heads, and at most 2^31 - 1 blocks") {
  using attend::cuda::detail::launch_checked;
  using Kernel = attend::cuda::detail::TensorCoreForward<NumberType::kBFloat16, 64, false>;
  Call call = call_of(params_of(NumberType::kBFloat16, 1024, 1024, 64));
  call.batch_size = 1000;
  call.heads = 100;
  std::int64_t blocks = 0;
  launch_checked(Kernel(), call, [&](auto kernel, const Call& launched) { blocks = kernel.blocks(launched); });
  CHECK(blocks == 1000 * 100 * 1024 / 128);
  call.batch_size = 1 << 20;
  call.heads = 1 << 10;
  CHECK_THROWS_WITH_AS(
      launch_checked(Kernel(), call, [](auto, const Call&) {}),
      "attend::kernels: N · H · L must be such that a grid has at most 2147483647 blocks, got 8589934592",
      std::invalid_argument);
  call.batch_size = 0;
  launch_checked(Kernel(), call, [](auto, const Call&) { FAIL("an empty grid was launched"); });
}

TEST_CASE("cuda call_of: errors of a rotary embedding") {
  const auto check = [](const char* text, const attend::AttentionParams& params) {
    CHECK_THROWS_WITH_AS(call_of(params), text, std::invalid_argument);
  };
  const attend::RotaryView tables{memory, memory, {0, 24}};
  check("attend::kernels: AttentionParams::rotary_dim must be from 0 to 64, got 66",
        with_rotary(NumberType::kFloat16, 66, tables));
  check("attend::kernels: AttentionParams::rotary_dim must be from 0 to 64, got -2",
        with_rotary(NumberType::kFloat16, -2, tables));
  check("attend::kernels: AttentionParams::rotary_dim must be even, got 7",
        with_rotary(NumberType::kFloat16, 7, tables));
  check("attend::kernels: AttentionParams::query_rotary.cos must be set, got a null pointer",
        with_rotary(NumberType::kFloat32, 48, {nullptr, memory, {0, 24}}));
  attend::AttentionParams params = with_rotary(NumberType::kFloat32, 48, tables);
  params.key_rotary.sin = nullptr;
  check("attend::kernels: AttentionParams::key_rotary.sin must be set, got a null pointer", params);
  params = with_rotary(NumberType::kFloat32, 48, tables);
  params.rotary_layout = static_cast<attend::RotaryLayout>(2);
  check("attend::kernels: AttentionParams::rotary_layout must be from 0 to 1, got 2", params);
}

TEST_CASE("cuda call_of: numbers in memory are not read, and a small `saved` is an error") {
  attend::AttentionParams params = params_of(NumberType::kBFloat16, 3, 5, 8);
  CHECK(attend::cuda::saved_bytes(params) == 2 * 16 + 3 * 8 * 2);  // twice 3 float32, aligned to 16, and output_rest
  params.dtype = NumberType::kFloat64;
  CHECK(attend::cuda::saved_bytes(params) == 32 + 3 * 8);                            // and log_sum_exp_rest
  params.key_lengths = reinterpret_cast<const std::int32_t*>(std::uintptr_t{4096});  // memory of a GPU
  attend::AttentionOutputs outputs{attend::contiguous(static_cast<void*>(memory), 1, 3, 8)};
  CHECK(attend::cuda::call_of(params, outputs).key_lengths == params.key_lengths);
  outputs.saved = memory;
  outputs.saved_bytes = 8;
  CHECK_THROWS_WITH_AS(attend::cuda::call_of(params, outputs),
                       "attend::kernels: AttentionOutputs::saved_bytes must be at least 56, got 8",
                       std::invalid_argument);
}
