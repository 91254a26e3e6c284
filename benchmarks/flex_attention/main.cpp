// SPDX-License-Identifier: MIT

// attend's part of the benchmark flex_attention. It reads requests of measure.py, one in each line, and answers each
// with a line. So attend and PyTorch can take turns in one run, and the start-up of either is not timed.
//
//   prepare SLOT FUNCTION KIND DTYPE N H L D PASS BACKEND   → the text of explain()
//   run SLOT           → "done"; writes the output and, for PASS forward_backward, the gradients of q, k, v
//   time SLOT CALLS    → milliseconds of one call
//   clear              → "done"; all slots are empty
//
// Inputs and results are files of raw float32 in the folder: q, k, v, gradient; 0 (the output), 1, 2, 3.

#include <attend/attention.h>
#include <attend/flex_attention.h>

#include "support/program.h"

#include <ATen/ops/from_file.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/utils.h>
#include <torch/version.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

using benchmark::kCompiler;

namespace {

constexpr std::int32_t kWindow = 256;

/// An example of a user's score_mod, for which no backend is specialized.
struct SoftSign {
  float strength;
  template <class T>
  ATTEND_HOST_DEVICE T operator()(T score, attend::Coordinate at) const {
    return score / (T(1) + abs(score) * T(strength)) - T(0.01f) * T(at.query - at.key);
  }
};

/// 2^(−8/H), 2^(−16/H), …, as in Press et al.
at::Tensor slopes(std::int64_t heads) {
  return at::exp2(at::arange(1, heads + 1, at::kFloat) * (-8.0 / static_cast<double>(heads)));
}

struct Request {
  std::string function, kind, dtype;
  std::int64_t batch, heads, length, width;
  std::string pass, backend;

  friend std::istream& operator>>(std::istream& stream, Request& request) {
    return stream >> request.function >> request.kind >> request.dtype >> request.batch >> request.heads >>
           request.length >> request.width >> request.pass >> request.backend;
  }
};

template <class Value>
Value named(const std::map<std::string, Value>& values, const std::string& name) {
  const auto found = values.find(name);
  if (found == values.end()) throw std::invalid_argument("unknown name " + name);
  return found->second;
}

/// Calls `call` with the score_mod and mask_mod of a kind. Each pair is compiled into its own kernel.
template <class Call>
auto with_modification(const Request& request, const Call& call) {
  if (request.kind == "window") return call(attend::Unchanged{}, attend::SlidingWindow(kWindow, 0));
  if (request.kind == "alibi") return call(attend::Alibi(slopes(request.heads)), attend::Causal{});
  if (request.kind == "soft_sign") return call(SoftSign{0.5f}, attend::EveryKey{});
  throw std::invalid_argument("unknown kind of flex_attention(): " + request.kind);
}

class Slot {
 public:
  Slot(const Request& request, const std::string& folder)
      : request_(request),
        folder_(folder),
        with_backward_(named<bool>({{"forward", false}, {"forward_backward", true}}, request.pass)),
        is_flex_(named<bool>({{"attention", false}, {"flex_attention", true}}, request.function)),
        q_(input("q").requires_grad_(with_backward_)),
        k_(input("k").requires_grad_(with_backward_)),
        v_(input("v").requires_grad_(with_backward_)),
        gradient_(input("gradient")) {
    options_.backend(named<attend::Backend>(
        {{"kAuto", attend::Backend::kAuto}, {"kReference", attend::Backend::kReference}}, request.backend));
    if (is_flex_ || request.kind == "dense") return;
    options_.is_causal(true);
    if (request.kind == "window") {
      options_.window({kWindow, 0});
    } else if (request.kind == "alibi") {
      options_.alibi_slopes(slopes(request.heads));
    } else if (request.kind != "causal") {
      throw std::invalid_argument("unknown kind of attention(): " + request.kind);
    }
  }

  attend::Explanation explain() const {
    if (!is_flex_) return attend::explain(q_, k_, v_, options_);
    return with_modification(request_, [this](const auto& score, const auto& mask) {
      return attend::explain_flex(q_, k_, v_, score, mask, options_);
    });
  }

  void write_results() const {
    const std::vector<at::Tensor> results = run();
    for (std::size_t i = 0; i < results.size(); ++i)
      file(std::to_string(i), /*is_written=*/true).copy_(results[i].detach());
  }

  double milliseconds(std::int64_t calls) const {
    const auto begin = std::chrono::steady_clock::now();
    for (std::int64_t i = 0; i < calls; ++i) run();
    const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;
    return elapsed.count() / static_cast<double>(calls);
  }

 private:
  at::Tensor file(const std::string& name, bool is_written) const {
    const std::int64_t size = request_.batch * request_.heads * request_.length * request_.width;
    return at::from_file(folder_ + "/" + name, /*shared=*/is_written, size, at::kFloat)
        .view({request_.batch, request_.heads, request_.length, request_.width});
  }

  at::Tensor input(const std::string& name) const {
    const auto dtype = named<at::ScalarType>({{"float32", at::kFloat}, {"bfloat16", at::kBFloat16}}, request_.dtype);
    return file(name, /*is_written=*/false).to(dtype, /*non_blocking=*/false, /*copy=*/true);
  }

  at::Tensor forward() const {
    if (!is_flex_) return attend::attention(q_, k_, v_, options_);
    return with_modification(request_, [this](const auto& score, const auto& mask) {
      return attend::flex_attention(q_, k_, v_, score, mask, options_);
    });
  }

  std::vector<at::Tensor> run() const {
    const at::AutoGradMode mode(with_backward_);
    const at::Tensor y = forward();
    if (!with_backward_) return {y};
    std::vector<at::Tensor> results = torch::autograd::grad({y}, {q_, k_, v_}, {gradient_});
    results.insert(results.begin(), y);
    return results;
  }

  Request request_;
  std::string folder_;
  bool with_backward_, is_flex_;
  attend::AttentionOptions options_;
  at::Tensor q_, k_, v_, gradient_;
};

void serve(const std::string& folder) {
  std::map<std::string, Slot> slots;
  for (std::string command, name; std::cin >> command;) {
    if (command == "clear") {
      slots.clear();
      std::cout << "done" << std::endl;
    } else if (Request request; command == "prepare" && std::cin >> name >> request) {
      std::cout << slots.insert_or_assign(name, Slot(request, folder)).first->second.explain() << std::endl;
    } else if (command == "run" && std::cin >> name) {
      slots.at(name).write_results();
      std::cout << "done" << std::endl;
    } else if (std::int64_t calls = 0; command == "time" && std::cin >> name >> calls) {
      std::cout << slots.at(name).milliseconds(calls) << std::endl;
    } else {
      throw std::invalid_argument("invalid request " + command);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: flex_attention THREADS FOLDER (started by measure.py)\n";
    return 2;
  }
  try {
    torch::set_num_threads(std::stoi(argv[1]));
    std::cout << "LibTorch " << TORCH_VERSION << "; " << kCompiler << std::endl;
    serve(argv[2]);
  } catch (const c10::Error& error) {
    std::cerr << "flex_attention: " << error.what_without_backtrace() << '\n';
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "flex_attention: " << error.what() << '\n';
    return 1;
  }
}
