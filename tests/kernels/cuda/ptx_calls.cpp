// SPDX-License-Identifier: MIT

// The calls that ptx_test.py runs in the interpreter: a library that makes their memory, says which kernels run with
// which arguments, and compares the results with float64. It runs in the process of the interpreter, so the kernels
// read and write its memory.

#include "kernels/support/configuration.h"
#include "kernels/support/naive.h"
#include "kernels/support/pages.h"
#include "kernels/support/user_structs.h"

#include <attend/kernels/attention_params.h>
#include <attend/kernels/cuda/backward_plan.cuh>
#include <attend/kernels/cuda/call.cuh>
#include <attend/kernels/cuda/forward_plan.cuh>

#include <cxxabi.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iomanip>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

namespace {

using attend::AttentionParams;
using attend::MaskType;
using attend::NumberType;
using attend::cuda::Call;
using attend::test::Element;
using attend::test::Naive;
using attend::test::Results;
using attend::test::Rounding;
using attend::test::Sizes;
using attend::test::Tensor;

/// What a call is. The other options are set by `change`, packed(), with_lengths(), rotated() and in_pages().
struct Wanted {
  const char* name;
  NumberType dtype;
  std::int64_t N, H, G, L, S, D, Dv;
  int structs;
  bool has_backward;
  MaskType mask_type = MaskType::kNone;
  bool has_slopes = false;
  std::function<void(AttentionParams&)> change = [](AttentionParams&) {};
  std::vector<std::int32_t> query_offsets = {}, key_offsets = {}, key_lengths = {};
  bool has_pages = false, is_tf32 = false;
  std::int64_t rotary_dim = 0;
  attend::RotaryLayout rotary_layout = attend::RotaryLayout::kHalfSplit;
};

/// The kernels of a call in tf32.
struct InTf32 {
  using BFloat16 = attend::cuda::Widths<>;
  using Float16 = BFloat16;
  using Float32 = attend::cuda::Widths<32, 64, 96, 128, 192, 256>;
};

/// The call as a packed batch.
Wanted packed(Wanted wanted, std::vector<std::int32_t> query_offsets, std::vector<std::int32_t> key_offsets) {
  wanted.query_offsets = std::move(query_offsets);
  wanted.key_offsets = std::move(key_offsets);
  return wanted;
}
Wanted with_lengths(Wanted wanted, std::vector<std::int32_t> key_lengths) {
  wanted.key_lengths = std::move(key_lengths);
  return wanted;
}
/// The call in tf32.
Wanted in_tf32(Wanted wanted) {
  wanted.is_tf32 = true;
  return wanted;
}
/// The call with a rotary embedding.
Wanted rotated(Wanted wanted, std::int64_t rotary_dim, attend::RotaryLayout layout) {
  wanted.rotary_dim = rotary_dim;
  wanted.rotary_layout = layout;
  return wanted;
}
/// The call with keys and values in pages.
Wanted in_pages(Wanted wanted) {
  wanted.has_pages = true;
  return wanted;
}

const std::vector<Wanted>& wanted_calls() {
  using enum NumberType;
  using enum attend::RotaryLayout;
  const auto causal = [](AttentionParams& p) { p.window_right = 0; };
  const auto dropout = [](AttentionParams& p) {
    p.dropout = 0.25;
    p.dropout_seed = 11;
  };
  const auto softcap = [](AttentionParams& p) { p.softcap = 3; };
  static const std::vector<Wanted> calls{
      {"plain float32", kFloat32, 2, 32, 4, 5, 21, 24, 24, 0, true, MaskType::kAdded, true, dropout},
      {"plain float32, structs 5", kFloat32, 1, 2, 2, 33, 40, 16, 16, 5, true, MaskType::kBool, false, softcap},
      {"plain float64", kFloat64, 1, 2, 1, 17, 30, 20, 12, 4, true},
      {"plain bfloat16", kBFloat16, 1, 2, 1, 20, 37, 20, 20, 0, true},
      {"bfloat16, D 64", kBFloat16, 1, 2, 1, 70, 100, 64, 64, 0, true},
      {"bfloat16, D 64, causal", kBFloat16, 1, 1, 1, 130, 130, 64, 64, 0, true, MaskType::kNone, false, causal},
      {"bfloat16, D 64, structs 4", kBFloat16, 1, 2, 2, 65, 65, 64, 64, 4, true},
      {"bfloat16, D 128, structs 5", kBFloat16, 1, 2, 1, 40, 70, 128, 128, 5, true},
      {"bfloat16, D 256", kBFloat16, 1, 1, 1, 40, 50, 256, 200, 0, true},
      {"float16, D 32", kFloat16, 1, 2, 2, 33, 50, 32, 32, 0, true},
      {"float16, D 96, options", kFloat16, 1, 2, 1, 40, 70, 96, 96, 0, true, MaskType::kAdded, true, dropout},
      {"float16, D 80", kFloat16, 1, 2, 1, 33, 70, 80, 72, 0, true, MaskType::kNone, false, dropout},
      {"float16, D 160", kFloat16, 1, 2, 1, 33, 40, 160, 160, 0, true},
      packed({"plain float32, packed", kFloat32, 2, 2, 1, 40, 60, 24, 24, 0, true, MaskType::kNone, false, causal},
             {0, 3, 3, 40}, {0, 5, 20, 60}),
      packed({"bfloat16, D 64, packed", kBFloat16, 1, 2, 1, 140, 90, 64, 64, 0, true}, {0, 3, 3, 140}, {0, 5, 20, 90}),
      packed({"bfloat16, D 64, packed, dropout", kBFloat16, 1, 2, 1, 75, 90, 64, 64, 0, true, MaskType::kNone, false,
              dropout},
             {0, 5, 75}, {0, 6, 90}),
      with_lengths({"plain float32, key_lengths", kFloat32, 3, 2, 1, 20, 70, 24, 24, 0, true}, {50, 70, 0}),
      with_lengths({"bfloat16, D 64, key_lengths", kBFloat16, 3, 2, 1, 70, 100, 64, 64, 0, true}, {70, 3, 0}),
      in_pages({"plain float32, pages", kFloat32, 2, 2, 1, 17, 40, 24, 24, 0, false}),
      in_pages(with_lengths({"bfloat16, D 64, pages", kBFloat16, 2, 2, 1, 65, 130, 64, 64, 0, false}, {130, 70})),
      in_pages(with_lengths({"bfloat16, decode, pages", kBFloat16, 2, 8, 2, 3, 300, 64, 64, 0, false}, {300, 40})),
      with_lengths({"bfloat16, decode, key_lengths", kBFloat16, 3, 8, 2, 3, 300, 64, 64, 0, false}, {300, 129, 0}),
      in_tf32({"tf32, D 64", kFloat32, 1, 2, 1, 70, 100, 64, 64, 0, true}),
      in_tf32({"tf32, D 64, structs 4", kFloat32, 1, 2, 2, 65, 65, 64, 64, 4, true}),
      in_tf32({"tf32, D 96, options", kFloat32, 1, 2, 1, 40, 70, 96, 92, 0, true, MaskType::kAdded, true, dropout}),
      in_tf32({"tf32, D 192", kFloat32, 1, 1, 1, 40, 50, 192, 164, 0, true, MaskType::kNone, false, causal}),
      in_tf32({"tf32, D 256", kFloat32, 1, 1, 1, 40, 50, 256, 200, 0, false}),
      in_tf32(in_pages(with_lengths({"tf32, D 64, pages", kFloat32, 2, 2, 1, 65, 130, 64, 64, 0, false}, {130, 70}))),
      in_tf32({"tf32, decode", kFloat32, 2, 8, 2, 3, 300, 64, 64, 0, false, MaskType::kNone, false, causal}),
      in_tf32({"tf32, decode, D 128", kFloat32, 1, 4, 1, 2, 200, 128, 128, 0, false, MaskType::kBool}),
      {"bfloat16, decode", kBFloat16, 2, 8, 2, 3, 300, 64, 64, 0, false, MaskType::kNone, false, causal},
      {"float16, decode, structs 4", kFloat16, 1, 4, 1, 2, 200, 128, 128, 4, false, MaskType::kBool},
      rotated({"plain float32, rotary", kFloat32, 2, 2, 1, 7, 20, 20, 12, 0, true}, 12, kHalfSplit),
      rotated({"bfloat16, D 64, rotary", kBFloat16, 1, 2, 1, 40, 70, 64, 64, 0, true}, 64, kHalfSplit),
      rotated({"float16, D 32, rotary", kFloat16, 1, 1, 1, 20, 70, 32, 32, 0, true}, 16, kInterleaved),
      rotated({"bfloat16, decode, rotary", kBFloat16, 1, 4, 1, 3, 140, 64, 64, 0, false}, 32, kHalfSplit),
  };
  return calls;
}

struct Buffer {
  const void* data;
  std::int64_t bytes;
  bool is_output;
};

struct Launch {
  std::string function, kernel, call, score,
      mask;  // the __global__ template and the types that it is instantiated with
  std::int64_t blocks;
  int threads;
  std::int64_t shared_bytes;
  std::vector<std::string> arguments;  // their bytes
};

template <class T>
std::string bytes_of(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

template <class T>
std::string name_of() {
  char* const name = abi::__cxa_demangle(typeid(T).name(), nullptr, nullptr, nullptr);
  const std::string copy = name;
  std::free(name);
  return copy;
}

/// A call with all its memory.
class Run {
 public:
  virtual ~Run() = default;
  virtual std::string plan() = 0;
  virtual std::string errors() const = 0;
};

template <class T>
class TypedRun : public Run, attend::test::CallMemory {
 public:
  explicit TypedRun(const Wanted& wanted) : wanted_(wanted), random_(3), structs_(make_structs()) {
    params.dtype = wanted.dtype;
    params.batch_size = wanted.N;
    params.num_heads = wanted.H;
    params.num_kv_heads = wanted.G;
    params.query_length = wanted.L;
    params.key_length = wanted.S;
    params.head_dim = wanted.D;
    params.value_dim = wanted.Dv;
    query = random_tensor(number(), {wanted.N, wanted.H, wanted.L, wanted.D});
    key = random_tensor(number(), {wanted.N, wanted.G, wanted.S, wanted.D});
    value = random_tensor(number(), {wanted.N, wanted.G, wanted.S, wanted.Dv});
    output_gradient = random_tensor(number(), {wanted.N, wanted.H, wanted.L, wanted.Dv});
    log_sum_exp_gradient = random_tensor(computed(), {wanted.N, wanted.H, wanted.L, 1});
    params.query = query.view();
    params.key = key.view();
    params.value = value.view();
    if (!wanted.query_offsets.empty()) {
      params.num_sequences = static_cast<std::int64_t>(wanted.query_offsets.size()) - 1;
      params.query_offsets = add_numbers(wanted.query_offsets);
      params.key_offsets = add_numbers(wanted.key_offsets);
    }
    if (!wanted.key_lengths.empty()) params.key_lengths = add_numbers(wanted.key_lengths);
    if (wanted.has_slopes) {
      slopes = random_tensor(computed(), {wanted.N, wanted.H, 1, 1});
      params.alibi_slopes = slopes.view().data;
      params.alibi_strides[0] = wanted.H;
    }
    if (wanted.mask_type != MaskType::kNone) {
      const bool is_bool = wanted.mask_type == MaskType::kBool;
      mask = Tensor(is_bool ? Element::kBool : computed(), {wanted.N, wanted.H, wanted.L, wanted.S});
      mask.broadcast(1);
      mask.fill([&] { return is_bool ? static_cast<double>(random_.chance(70)) : random_.normal(); });
      add_buffer(mask, is_bool ? Element::kBool : computed(), false);
      params.mask_type = wanted.mask_type;
      params.attn_mask = mask.view();
    }
    if (wanted.rotary_dim > 0) set_rotary();
    wanted.change(params);
    if (wanted.has_pages) {
      const CallMemory& call = *this;
      pages_.emplace(call, random_, /*has_whole_rows=*/true);
      add_buffer(pages_->key(), number(), false);
      add_buffer(pages_->value(), number(), false);
      add_numbers(pages_->table());
      add_numbers(pages_->lengths());
    }
    output_ = result_tensor(number(), {wanted.N, wanted.H, wanted.L, wanted.Dv});
    log_sum_exp_ = result_tensor(computed(), {wanted.N, wanted.H, wanted.L, 1});
    saved_ = memory(attend::cuda::saved_bytes(params));
    query_gradient_ = result_tensor(number(), query.sizes());
    key_gradient_ = result_tensor(number(), key.sizes());
    value_gradient_ = result_tensor(number(), value.sizes());
    gradients_.output = output_gradient.view();
    gradients_.log_sum_exp = log_sum_exp_gradient.view().data;
    gradients_.query = query_gradient_.view();
    gradients_.key = key_gradient_.view();
    gradients_.value = value_gradient_.view();
    const bool is_added = params.mask_type == MaskType::kAdded || params.mask_type == MaskType::kAddedBFloat16;
    if (is_added) gradients_.attn_mask = sum("mask", mask_gradient_size());
    if (params.alibi_slopes != nullptr) gradients_.alibi_slopes = sum("slopes", wanted.N * wanted.H);
    int k = 0;
    for (const std::int64_t size : structs_.tensor_sizes())
      gradients_.score_tensors.push_back(sum("tensor" + std::to_string(k++), size));
  }

  /// What the interpreter needs, as JSON.
  std::string plan() override {
    attend::AttentionOutputs outputs{output_.view(), log_sum_exp_.view().data};
    if (wanted_.has_backward) {
      outputs.saved = saved_.data();
      outputs.saved_bytes = static_cast<std::int64_t>(saved_.size());
    }
    const Call call = attend::cuda::call_of(pages_ ? pages_->params() : params, outputs);
    const auto plan_kernels = [&](const auto& score, const auto& mask) {
      wanted_.is_tf32 ? plan_kernels_of<InTf32>(call, score, mask)
                      : plan_kernels_of<attend::cuda::EveryKernel>(call, score, mask);
    };
    if (wanted_.structs == 0)
      plan_kernels(attend::Unchanged{}, attend::EveryKey{});
    else
      structs_.visit(plan_kernels);

    std::ostringstream json;
    json << "{\"name\": \"" << wanted_.name << "\", \"buffers\": [";
    const char* separator = "";
    for (const Buffer& buffer : buffers_) {
      json << separator << "[" << reinterpret_cast<std::uintptr_t>(buffer.data) << ", " << buffer.bytes << ", "
           << buffer.is_output << "]";
      separator = ", ";
    }
    json << "], \"launches\": [";
    separator = "";
    for (const Launch& launch : launches_) {
      json << separator << "{\"function\": \"" << launch.function << "\", \"kernel\": \"" << launch.kernel
           << "\", \"call\": \"" << launch.call << "\", \"score\": \"" << launch.score << "\", \"mask\": \""
           << launch.mask << "\", \"blocks\": " << launch.blocks << ", \"threads\": " << launch.threads
           << ", \"shared_bytes\": " << launch.shared_bytes << ", \"arguments\": [";
      separator = "";
      for (const std::string& argument : launch.arguments) {
        json << separator << "\"" << std::hex << std::setfill('0');
        for (const unsigned char byte : argument) json << std::setw(2) << static_cast<int>(byte);
        json << std::dec << "\"";
        separator = ", ";
      }
      json << "]}";
      separator = ", ";
    }
    json << "]}";
    return json.str();
  }

  /// A line for each result: its name, how many numbers it has, the largest errors of the kernels and of the dense
  /// formula in the same dtype, and the largest number.
  std::string errors() const override {
    const Results exact = Naive<double>(*this, structs_).results();
    const Results dense =
        wanted_.is_tf32                          ? Naive<float, Rounding::kTf32>(*this, structs_).results()
        : wanted_.dtype == NumberType::kBFloat16 ? Naive<float, Rounding::kBFloat16>(*this, structs_).results()
        : wanted_.dtype == NumberType::kFloat16  ? Naive<float, Rounding::kFloat16>(*this, structs_).results()
                                                 : Naive<T>(*this, structs_).results();
    std::ostringstream lines;
    Results results = sums_;
    results["output"] = output_.values();
    results["log_sum_exp"] = log_sum_exp_.values();
    results["query"] = query_gradient_.values();
    results["key"] = key_gradient_.values();
    results["value"] = value_gradient_.values();
    for (const auto& [name, numbers] : results) {
      if (!wanted_.has_backward && name != "output" && name != "log_sum_exp") continue;
      double size = 1;
      for (const double number : exact.at(name))
        if (std::isfinite(number)) size = std::max(size, std::abs(number));
      lines << name << " " << numbers.size() << " " << max_difference(numbers, exact.at(name)) << " "
            << max_difference(dense.at(name), exact.at(name)) << " " << size << "\n";
    }
    return lines.str();
  }

 private:
  void set_rotary() {
    params.rotary_dim = wanted_.rotary_dim;
    params.rotary_layout = wanted_.rotary_layout;
    const std::int64_t pairs = params.rotary_dim / 2;
    const auto make = [&](std::int64_t rows, Tensor& cos, Tensor& sin) -> attend::RotaryView {
      cos = random_tensor(computed(), {wanted_.N, 1, rows, pairs});
      sin = random_tensor(computed(), {wanted_.N, 1, rows, pairs});
      Tensor::for_each(cos.sizes(), [&](auto n, auto, auto i, auto k) {
        const double angle = 3 * cos.get(n, 0, i, k);
        cos.set(n, 0, i, k, std::cos(angle));
        sin.set(n, 0, i, k, std::sin(angle));
      });
      return {cos.view().data, sin.view().data, {rows * pairs, pairs}};
    };
    params.query_rotary = make(wanted_.L, query_cos, query_sin);
    params.key_rotary = make(wanted_.S, key_cos, key_sin);
  }
  Tensor random_tensor(Element element, const Sizes& sizes) {
    Tensor tensor(element, sizes);
    tensor.fill([this] { return random_.normal(); });
    add_buffer(tensor, element, false);
    return tensor;
  }
  Tensor result_tensor(Element element, const Sizes& sizes) {
    Tensor tensor(element, sizes);
    add_buffer(tensor, element, true);
    return tensor;
  }
  void add_buffer(Tensor& tensor, Element element, bool is_output) {
    const std::int64_t bytes = element == Element::kFloat64   ? 8
                               : element == Element::kFloat32 ? 4
                               : element == Element::kBool    ? 1
                                                              : 2;
    buffers_.push_back({tensor.view().data, tensor.numel() * bytes, is_output});
  }
  template <class Number>
  const Number* add_numbers(const std::vector<Number>& numbers) {
    buffers_.push_back({numbers.data(), static_cast<std::int64_t>(numbers.size() * sizeof numbers[0]), false});
    return numbers.data();
  }
  std::vector<unsigned char> memory(std::int64_t bytes) {
    std::vector<unsigned char> made(static_cast<std::size_t>(bytes), 0xFF);
    buffers_.push_back({made.data(), bytes, true});
    return made;
  }
  attend::SummedGradient sum(const std::string& name, std::int64_t size) {
    std::vector<double>& numbers = sums_[name];
    numbers.resize(static_cast<std::size_t>(size), std::numeric_limits<double>::quiet_NaN());
    buffers_.push_back({numbers.data(), size * 8, true});
    return {numbers.data(), size};
  }
  /// Tables of a user's structs.
  attend::test::UserStructs<T> make_structs() {
    for (int i = 0; i < 96; ++i) bias_.push_back(static_cast<T>(static_cast<float>(random_.normal())));
    for (int i = 0; i < 6; ++i) gates_.push_back(static_cast<T>(static_cast<float>(1 + 0.2 * random_.normal())));
    for (std::int32_t now = 0; static_cast<std::int64_t>(document_.size()) < std::max(wanted_.L, wanted_.S);
         now += random_.chance(5))
      document_.push_back(now);
    return {wanted_.structs, {add_numbers(bias_), add_numbers(gates_), add_numbers(document_)}};
  }

  /// The kernels of a forward pass, and of a backward pass if one is wanted.
  template <class Kernels, class Score, class Mask>
  void plan_kernels_of(const Call& call, const Score& score, const Mask& mask) {
    const auto launch = [&](auto kernel, const auto& kernel_call) {
      using Kernel = decltype(kernel);
      using KernelCall = std::remove_cvref_t<decltype(kernel_call)>;
      if (Kernel::blocks(kernel_call) == 0) return;
      launches_.push_back({std::is_same_v<KernelCall, Call> ? "forward_kernel" : "backward_kernel",
                           name_of<Kernel>(),
                           name_of<KernelCall>(),
                           name_of<Score>(),
                           name_of<Mask>(),
                           Kernel::blocks(kernel_call),
                           Kernel::kThreads,
                           Kernel::kSharedBytes,
                           {bytes_of(kernel_call), bytes_of(score), bytes_of(mask)}});
    };
    forward_workspace_ = memory(attend::cuda::forward_workspace_bytes<Kernels>(call));
    attend::cuda::launch_forward<Kernels>(call, forward_workspace_.data(), launch);
    if (!wanted_.has_backward) return;
    workspace_ = memory(attend::cuda::backward_workspace_bytes(call, gradients_));
    const auto marked = [&](int k, attend::detail::TensorReads* reads) {
      Score copy = score;
      int i = 0;
      std::apply([&](auto&... views) { ((i++ == k ? views.differentiate(reads) : void()), ...); },
                 attend::detail::tensors_of(copy));
      return copy;
    };
    attend::cuda::launch_backward<Score, Mask, Kernels>(call, gradients_, marked, workspace_.data(),
                                                        static_cast<std::int64_t>(workspace_.size()), launch);
  }

  static double max_difference(const std::vector<double>& a, const std::vector<double>& b) {
    double largest = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (a[i] == b[i]) continue;
      const double difference = std::abs(a[i] - b[i]);
      largest = std::isnan(difference) ? std::numeric_limits<double>::infinity() : std::max(largest, difference);
    }
    return largest;
  }

  const Wanted& wanted_;
  attend::test::Random random_;
  std::vector<Buffer> buffers_;
  std::vector<Launch> launches_;
  std::vector<T> bias_, gates_;
  std::vector<std::int32_t> document_;
  attend::test::UserStructs<T> structs_;
  std::optional<attend::test::Pages> pages_;
  Tensor output_, log_sum_exp_, query_gradient_, key_gradient_, value_gradient_;
  std::vector<unsigned char> saved_, forward_workspace_, workspace_;
  attend::AttentionGradients gradients_;
  Results sums_;  // the gradients that are sums over many scores
};

std::unique_ptr<Run> run;
std::string text;

}  // namespace

extern "C" {

int ptx_calls() { return static_cast<int>(wanted_calls().size()); }

/// Makes a call and its memory. The text is valid until the next call of a function.
const char* ptx_plan(int call) {
  const Wanted& wanted = wanted_calls()[static_cast<std::size_t>(call)];
  if (wanted.dtype == NumberType::kFloat64)
    run = std::make_unique<TypedRun<double>>(wanted);
  else
    run = std::make_unique<TypedRun<float>>(wanted);
  text = run->plan();
  return text.c_str();
}

/// Compares the results of this call.
const char* ptx_errors() {
  text = run->errors();
  return text.c_str();
}
}
