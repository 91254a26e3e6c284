// SPDX-License-Identifier: MIT
#pragma once

#include "memory.h"

#include <attend/kernels.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace attend::test {

/// A call in float32 with all its memory, every number of it a valid one.
struct Call {
  std::int64_t N, H, G, L, S, D, Dv;
  Tensor query, key, value, output, log_sum_exp, output_gradient, query_gradient, key_gradient, value_gradient;
  std::vector<float> saved;
  AttentionParams params;
  AttentionOutputs outputs;
  AttentionGradients gradients;

  Call(std::int64_t N, std::int64_t H, std::int64_t G, std::int64_t L, std::int64_t S, std::int64_t D, std::int64_t Dv)
      : N(N), H(H), G(G), L(L), S(S), D(D), Dv(Dv) {
    Random random(1);
    const auto tensor = [&](std::int64_t heads, std::int64_t rows, std::int64_t columns, bool is_random) {
      Tensor made(Element::kFloat32, {N, heads, rows, columns});
      if (is_random) made.fill([&] { return random.normal(); });
      return made;
    };
    query = tensor(H, L, D, true);
    key = tensor(G, S, D, true);
    value = tensor(G, S, Dv, true);
    output_gradient = tensor(H, L, Dv, true);
    output = tensor(H, L, Dv, false);
    log_sum_exp = tensor(H, L, 1, false);
    query_gradient = tensor(H, L, D, false);
    key_gradient = tensor(G, S, D, false);
    value_gradient = tensor(G, S, Dv, false);
    params.batch_size = N;
    params.num_heads = H;
    params.num_kv_heads = G;
    params.query_length = L;
    params.key_length = S;
    params.head_dim = D;
    params.value_dim = Dv;
    params.query = query.view();
    params.key = key.view();
    params.value = value.view();
    outputs.output = output.view();
    outputs.log_sum_exp = log_sum_exp.view().data;
    gradients.output = output_gradient.view();
    gradients.query = query_gradient.view();
    gradients.key = key_gradient.view();
    gradients.value = value_gradient.view();
    // For any options: the larger of what is saved with and without a single pass.
    AttentionParams with_softcap = params;
    with_softcap.softcap = 1;
    saved.resize(static_cast<std::size_t>(kernels::saved_bytes(params) + kernels::saved_bytes(with_softcap)) / 4);
    outputs.saved = saved.data();
    outputs.saved_bytes = static_cast<std::int64_t>(saved.size() * sizeof(float));
  }

  // The views point into the tensors.
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  void forward(Executor& executor = default_executor()) { kernels::attention_forward(params, outputs, executor); }
  void backward(Executor& executor = default_executor()) {
    kernels::attention_backward(params, outputs, gradients, executor);
  }

  /// All that was written.
  std::vector<std::vector<double>> written() const {
    return {output.values(), log_sum_exp.values(), query_gradient.values(), key_gradient.values(),
            value_gradient.values()};
  }
};

}  // namespace attend::test
