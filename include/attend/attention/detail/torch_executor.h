// SPDX-License-Identifier: MIT
#pragma once

#include <attend/detail/torch/parallel.h>
#include <attend/kernels/executor.h>
#include <attend/version.h>

#include <ATen/Parallel.h>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The threads of LibTorch, or those of attend where they are faster (parallel.h).
class TorchExecutor final : public Executor {
 public:
  int threads() const override { return at::get_num_threads(); }
  void run(int parts, void (*work)(const void* context, int part), const void* context) override {
    parallel(parts, [&](int part) { work(context, part); });
  }
  using Executor::run;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
