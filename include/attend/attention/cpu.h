// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/attention_node.h>
#include <attend/attention/backend.h>
#include <attend/attention/detail/cpu_call.h>
#include <attend/attention/detail/instruction_set.h>
#include <attend/attention/detail/kernel_limits.h>
#include <attend/attention/detail/problem.h>
#include <attend/detail/torch/expanded.h>
#include <attend/detail/torch/refused.h>
#include <attend/simd/dispatch.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>

#include <algorithm>
#include <cstdint>
#include <string>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The backend kCpu: attend's own kernels for the CPU, with all options of attention() and flex_attention(). can_run()
/// has the exceptions.
class Cpu final : public KernelBackend {
 public:
  Backend name() const override { return Backend::kCpu; }

  bool can_run(const Problem& problem, std::string* reason = nullptr) const override {
    if (!problem.query.is_cpu())
      return refused(reason, "kCpu runs on the CPU only; the tensors are on ", problem.query.device().type(), ".");
    return fits_kernels("kCpu", problem, reason);
  }

  std::string copies(const Problem& problem) const override {
    if (problem.query.scalar_type() == at::kHalf) return "It converts float16 inputs to float32.";
    return problem.query.scalar_type() == at::kBFloat16 && !simd::has_bf16_dot(available_instruction_set())
               ? "It converts bfloat16 inputs to float32, tile by tile."
               : "";
  }

  std::string how(const Problem& problem) const override {
    return "kCpu runs attend's own CPU kernels " + with_instructions(problem.query.scalar_type());
  }

  /// The kernels read float16 as float32.
  Problem readable(const Problem& given) const override {
    Problem problem = given;
    if (problem.has_pages() && problem.key.scalar_type() == at::kHalf) keep_used_pages(problem);
    for (at::Tensor* tensor : {&problem.query, &problem.key, &problem.value, &problem.attn_mask})
      if (tensor->defined() && tensor->scalar_type() == at::kHalf)
        *tensor = ExpandedCast::apply_to(*tensor, at::kFloat);
    return problem;
  }

  KernelResult forward(const Problem& problem, bool with_backward) const override {
    return problem.query.scalar_type() == at::kDouble ? CpuCall<double>(problem).forward(with_backward)
                                                      : CpuCall<float>(problem).forward(with_backward);
  }

  AttentionTensors backward(const Problem& problem, const KernelResult& result,
                            const AttentionResult& gradients) const override {
    return problem.query.scalar_type() == at::kDouble ? CpuCall<double>(problem).backward(result, gradients)
                                                      : CpuCall<float>(problem).backward(result, gradients);
  }

 private:
  /// Takes only the pages that the call reads, if they are fewer than all: a pool of pages serves many sequences.
  static void keep_used_pages(Problem& problem) {
    const std::int64_t num_pages = problem.key.size(0), page_size = problem.key.size(2),
                       longest = problem.key_lengths.max().item<std::int64_t>(),
                       columns = std::max<std::int64_t>((longest + page_size - 1) / page_size, 1);
    const at::Tensor used = problem.block_table.narrow(1, 0, std::min(columns, problem.block_table.size(1)));
    if (used.numel() >= num_pages) return;
    const at::Tensor pages = used.flatten().clamp(0, num_pages - 1);  // an unneeded page may have any number
    problem.key = problem.key.index_select(0, pages);
    problem.value = problem.value.index_select(0, pages);
    problem.block_table = at::arange(used.numel(), used.options()).view(used.sizes());
  }
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
