// SPDX-License-Identifier: MIT

// The C++ of docs/kernels.md, as it is there (readme_test.py compares), and that it does what the page says.

#include <attend/kernels.h>

#include <doctest/doctest.h>

#include <cmath>
#include <tuple>
#include <vector>

// clang-format off: the lines are the page's

#define main program_of_the_page
#include <attend/kernels.h>

#include <cstdio>
#include <vector>

int main() {
  const int H = 8, L = 512, D = 64;
  std::vector<float> q(H * L * D, 0.1f), k(q), v(q), dy(q);            // inputs, (1, H, L, D)
  std::vector<float> y(q.size()), dq(q.size()), dk(q.size()), dv(q.size());

  attend::AttentionParams params;
  params.num_heads = params.num_kv_heads = H;
  params.query_length = params.key_length = L;
  params.head_dim = params.value_dim = D;
  params.query = attend::contiguous(q.data(), H, L, D);
  params.key = attend::contiguous(k.data(), H, L, D);
  params.value = attend::contiguous(v.data(), H, L, D);
  params.window_right = 0;                                              // causal: no later key

  std::vector<double> saved(attend::kernels::saved_bytes(params) / 8 + 1);  // for the backward pass
  attend::AttentionOutputs outputs;
  outputs.output = attend::contiguous(y.data(), H, L, D);
  outputs.saved = saved.data();                                         // null if there is no backward pass
  outputs.saved_bytes = 8 * saved.size();
  attend::kernels::attention_forward(params, outputs);

  attend::AttentionGradients gradients;
  gradients.output = attend::contiguous(dy.data(), H, L, D);            // read
  gradients.query = attend::contiguous(dq.data(), H, L, D);             // written, as key and value
  gradients.key = attend::contiguous(dk.data(), H, L, D);
  gradients.value = attend::contiguous(dv.data(), H, L, D);
  attend::kernels::attention_backward(params, outputs, gradients);

  std::printf("%s: %g %g\n", attend::kernels::instruction_set(), y[0], dv[0]);
  return 0;
}
#undef main

namespace {

/// Pieces on a board: a bias for each pair of squares. Only squares with a piece are attended.
struct BoardBias {
  attend::TensorView bias;  // (64, 64), learned
  template <class T>
  T operator()(T score, attend::Coordinate at) const {
    return score + bias.read<T>(at.query, at.key);
  }
  auto tensors() { return std::tie(bias); }  // those that have gradients
};
struct Occupied {
  const bool* squares;  // (N, 64)
  bool operator()(attend::Coordinate at) const { return squares[64 * at.batch + at.key]; }
};

struct Engine {
  int count = 0;
  int workers() const { return 3; }
  template <class Work>
  void for_each(int parts, const Work& work) {
    for (int part = parts - 1; part >= 0; --part, ++count) work(part);
  }
};
struct EngineThreads : attend::Executor {
  Engine& engine;
  explicit EngineThreads(Engine& own) : engine(own) {}
  int threads() const override { return engine.workers(); }
  void run(int parts, void (*work)(const void*, int), const void* context) override {
    engine.for_each(parts, [=](int part) { work(context, part); });  // returns when all are done
  }
};

/// A call with N boards of 64 squares.
struct Boards {
  std::vector<float> q, k, v, dy, y, dq, dk, dv;
  attend::AttentionParams params;
  attend::AttentionOutputs outputs;
  attend::AttentionGradients gradients;

  Boards() {
    const int N = 2, H = 3, D = 16;
    for (int i = 0; i < N * H * 64 * D; ++i) q.push_back(std::sin(static_cast<float>(i)));
    k = v = dy = y = dq = dk = dv = q;
    params.batch_size = N;
    params.num_heads = params.num_kv_heads = H;
    params.query_length = params.key_length = 64;
    params.head_dim = params.value_dim = D;
    params.query = attend::contiguous(q.data(), H, 64, D);
    params.key = attend::contiguous(k.data(), H, 64, D);
    params.value = attend::contiguous(v.data(), H, 64, D);
    outputs.output = attend::contiguous(y.data(), H, 64, D);
    gradients.output = attend::contiguous(dy.data(), H, 64, D);
    gradients.query = attend::contiguous(dq.data(), H, 64, D);
    gradients.key = attend::contiguous(dk.data(), H, 64, D);
    gradients.value = attend::contiguous(dv.data(), H, 64, D);
  }
};

}  // namespace

TEST_CASE("docs/kernels.md: the complete program") { CHECK(program_of_the_page() == 0); }

TEST_CASE("docs/kernels.md: a score_mod with a learned table, and a mask_mod with a raw pointer") {
  Boards boards;
  auto& [q, k, v, dy, y, dq, dk, dv, params, outputs, gradients] = boards;
  const std::vector<float> bias(64 * 64, 0.5f);
  std::vector<double> bias_gradient(64 * 64, 7);
  bool squares[2 * 64] = {};
  squares[3] = squares[8] = squares[64 + 5] = true;

  BoardBias score_mod{attend::TensorView(bias.data(), {64, 64})};
  Occupied mask_mod{squares};
  std::vector<double> saved(attend::kernels::flex_saved_bytes(params, score_mod, mask_mod) / 8 + 1);
  outputs.saved = saved.data();
  outputs.saved_bytes = 8 * saved.size();
  attend::kernels::flex_attention_forward(params, score_mod, mask_mod, outputs);
  gradients.score_tensors = {{bias_gradient.data(), 64 * 64}};  // in the order of tensors()
  attend::kernels::flex_attention_backward(params, score_mod, mask_mod, outputs, gradients);

  CHECK(y[(3 * 64) * 16] == doctest::Approx(v[(3 * 64 + 5) * 16]));  // board 1 has a single piece
  CHECK(bias_gradient[0] == 0);                                      // square 0 is empty on both
  CHECK(bias_gradient[3] != 0);
  CHECK(bias_gradient[3] == doctest::Approx(-bias_gradient[8]));  // of a softmax over two keys
}

TEST_CASE("docs/kernels.md: a mask given as data") {
  Boards boards;
  auto& [q, k, v, dy, y, dq, dk, dv, params, outputs, gradients] = boards;

  std::vector<std::int32_t> table = {1};  // 0 is an empty block, 1 a partial and 2 a full one
  attend::BlockMaskView mask(attend::IntegerView(table.data(), {1, 1, 1, 1}), attend::Causal{});  // for partial blocks
  attend::kernels::flex_attention_forward(params, attend::Unchanged{}, mask, outputs);

  const std::vector<float> by_table = y;
  params.window_right = 0;
  attend::kernels::attention_forward(params, outputs);
  for (std::size_t i = 0; i < y.size(); ++i) CHECK(by_table[i] == doctest::Approx(y[i]));
}

TEST_CASE("docs/kernels.md: the threads of an engine") {
  Boards boards;
  auto& [q, k, v, dy, y, dq, dk, dv, params, outputs, gradients] = boards;
  Engine engine;

  EngineThreads executor(engine);
  attend::kernels::attention_forward(params, outputs, executor);

  CHECK(engine.count == 3);
  const std::vector<float> by_engine = y;
  attend::kernels::attention_forward(params, outputs);
  CHECK(by_engine == y);
}

// clang-format on
