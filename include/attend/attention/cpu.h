// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/cpu/available_instruction_set.h>
#include <attend/attention/cpu/backward.h>
#include <attend/attention/cpu/forward.h>
#include <attend/attention/cpu/scores.h>
#include <attend/attention/detail/dropout.h>
#include <attend/attention/detail/problem.h>
#include <attend/attention/fused_function.h>
#include <attend/attention/modification.h>
#include <attend/detail/const_data.h>
#include <attend/detail/expanded.h>
#include <attend/detail/parallel.h>
#include <attend/detail/refused.h>
#include <attend/version.h>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// attend's own kernels for the CPU (attention/cpu/). They compute every call of attention() and flex_attention().
struct Cpu {
  static constexpr Backend kBackend = Backend::kCpu;

  static bool can_run(const Problem& problem, std::string* reason = nullptr) {
    if (!problem.query.is_cpu())
      return refused(reason, "kCpu runs on the CPU only; the tensors are on ", problem.query.device().type(), ".");
    if (problem.batch_size() == 0 || problem.query_length() == 0 || problem.key_length() == 0)
      return refused(reason, "kCpu needs at least one batch entry, one query and one key.");
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() / 2;
    if (std::max(problem.query_length(), problem.key_length()) > kMost)
      return refused(reason, "kCpu supports at most ", kMost, " queries and keys.");
    constexpr std::int64_t kWidest = 1 << 20;
    if (std::max(problem.head_width(), problem.value_width()) > kWidest)
      return refused(reason, "kCpu supports heads of a width of at most ", kWidest, ".");
    if (std::max(problem.batch_size(), problem.num_heads()) > kMost)
      return refused(reason, "kCpu supports at most ", kMost, " batch entries and heads.");
    return true;
  }

  static std::string copies(const Problem& problem) {
    if (problem.query.scalar_type() == at::kHalf) return "It converts float16 inputs to float32.";
    return problem.query.scalar_type() == at::kBFloat16 && !has_pairs()
               ? "It converts bfloat16 inputs to float32, tile by tile."
               : "";
  }

  static std::string how(const Problem& problem) {
    const bool is_double = problem.query.scalar_type() == at::kDouble;
    const cpu::InstructionSet set = is_double ? cpu::tile_operations<double>(available_instruction_set()).set
                                              : cpu::tile_operations<float>(available_instruction_set()).set;
    const bool is_bfloat16 = problem.query.scalar_type() == at::kBFloat16;
    return "kCpu runs attend's own CPU kernels " +
           std::string(set == cpu::InstructionSet::kBaseline ? "as portable code, without AVX2 or AVX-512 instructions."
                       : set == cpu::InstructionSet::kAvx2   ? "with AVX2 instructions."
                       : is_bfloat16 && has_pairs()          ? "with AVX-512 and AVX512_BF16 instructions."
                                                             : "with AVX-512 instructions.");
  }

  /// Whether products of bfloat16 need no conversion to float32.
  static bool has_pairs() { return available_instruction_set() >= cpu::InstructionSet::kAvx512Bf16; }

  /// The problem in a dtype that the kernels read: float16 as float32.
  static Problem readable(const Problem& given) {
    Problem problem = given;
    for (at::Tensor* tensor : {&problem.query, &problem.key, &problem.value, &problem.attn_mask})
      if (tensor->defined() && tensor->scalar_type() == at::kHalf)
        *tensor = ExpandedCast::apply_to(*tensor, at::kFloat);
    return problem;
  }

  static AttentionResult run(const Problem& problem) {
    const AttentionResult result = FusedAttention<Kernel>::run(readable(problem));
    return {result.output.to(problem.query.scalar_type()), result.log_sum_exp};
  }

  struct Kernel {
    static FusedResult forward(const Problem& problem, bool with_backward) {
      return problem.query.scalar_type() == at::kDouble ? Pass<double>(problem).forward(with_backward)
                                                        : Pass<float>(problem).forward(with_backward);
    }
    static std::vector<at::Tensor> backward(const Problem& problem, const FusedResult& result,
                                            const AttentionResult& gradients) {
      return problem.query.scalar_type() == at::kDouble ? Pass<double>(problem).backward(result, gradients)
                                                        : Pass<float>(problem).backward(result, gradients);
    }
  };

 private:
  /// The gradient of a tensor that the scores read, while threads add it up. If sums_copies, an expanded tensor has the
  /// gradient of one_copy() of it.
  class SummedGradient {
   public:
    SummedGradient(const at::Tensor& read, bool sums_copies, int threads) {
      if (!read.defined() || !read.requires_grad()) return;
      const at::Tensor copy = sums_copies ? one_copy(read) : read;
      sizes_ = copy.sizes().vec();
      const int rows = cpu::Sums::rows_for(copy.numel(), threads);
      rows_ = at::zeros({rows, copy.numel()}, read.options().dtype(at::kDouble));
      sums_ = {rows_.mutable_data_ptr<double>(), copy.numel(), rows, rows < threads};
    }

    /// Its data is null if no gradient is wanted.
    const cpu::Sums& sums() const { return sums_; }

    void set_to_zero() {
      if (rows_.defined()) rows_.zero_();
    }

    /// The gradient, to be called once; undefined if none is wanted. LibTorch casts it from this dtype to the tensor's.
    at::Tensor take(at::ScalarType dtype) {
      if (!rows_.defined()) return {};
      const at::Tensor rows = std::exchange(rows_, at::Tensor());
      const at::Tensor total = rows.select(0, 0);
      for (int row = 1; row < sums_.rows; ++row) total.add_(rows.select(0, row));
      return total.view(sizes_).to(dtype, /*non_blocking=*/false, /*copy=*/true);
    }

   private:
    std::vector<std::int64_t> sizes_;
    at::Tensor rows_;
    cpu::Sums sums_;
  };

  /// One pass over a problem, and what it keeps alive for the kernels.
  template <class T>
  class Pass {
   public:
    explicit Pass(const Problem& problem) : problem_(problem) {
      call_.operations = &cpu::tile_operations<T>(available_instruction_set());
      if (problem.query.scalar_type() == at::kBFloat16 && has_pairs()) call_.pairs = &cpu::kPairOperations;
      call_.query = rows(problem.query);
      call_.key = rows(problem.key);
      call_.value = rows(problem.value);
      call_.batch = static_cast<std::int32_t>(problem.batch_size());
      call_.heads = static_cast<std::int32_t>(problem.num_heads());
      call_.kv_heads = static_cast<std::int32_t>(problem.num_kv_heads());
      call_.queries = static_cast<std::int32_t>(problem.query_length());
      call_.keys = static_cast<std::int32_t>(problem.key_length());
      call_.width = static_cast<std::int32_t>(problem.head_width());
      call_.value_width = static_cast<std::int32_t>(problem.value_width());
      call_.scale = static_cast<T>(problem.scale);
      call_.may_rule_out = problem.may_rule_out();
      set_blocks();
      set_scores();
      call_.takes_keys_at_once = takes_keys_at_once();
    }

    /// Kept for a backward pass: the weights of a call with few keys. Of others the log-sum-exp, and what it has lost
    /// by rounding, and, for bfloat16, the output before it is rounded. Without the latter two the gradients would have
    /// several times the error of the dense formula: both concern all keys of a query alike.
    FusedResult forward(bool with_backward) {
      const auto N = problem_.batch_size(), H = problem_.num_heads(), L = problem_.query_length();
      const at::TensorOptions options = problem_.query.options();
      const bool keeps_output = with_backward && !call_.takes_keys_at_once && problem_.query.scalar_type() != kDtype;
      FusedResult result;
      result.output = at::empty_strided({N, H, L, problem_.value_width()}, output_strides(problem_),
                                        keeps_output ? options.dtype(kDtype) : options);
      if (with_backward && call_.takes_keys_at_once) {
        result.kept = {at::empty({call_.size_of_weights()}, options.dtype(kDtype))};
      } else if (with_backward) {
        result.kept = {at::empty({N, H, L}, options.dtype(kDtype))};
      }
      if (problem_.needs_log_sum_exp || (with_backward && !call_.takes_keys_at_once))
        result.log_sum_exp = at::empty({N, H, L}, options.dtype(kDtype));
      if (keeps_output) result.kept.push_back(result.output);
      set_result(result);
      const std::int64_t tasks = N * H * static_cast<std::int64_t>(call_.blocks.size());
      std::atomic<std::int64_t> next{0};
      parallel(threads_for(tasks), [&](int) {
        cpu::Workspace<T> memory(cpu::forward_workspace(call_));
        // From the end: under a causal mask the last blocks take longest.
        for (std::int64_t task; (task = next++) < tasks;)
          cpu::forward_block(call_, scores_, cpu::Place::at(call_, tasks - 1 - task), memory);
      });
      if (keeps_output) result.output = result.output.to(problem_.query.scalar_type());
      return result;
    }

    std::vector<at::Tensor> backward(const FusedResult& result, const AttentionResult& given) {
      set_result(result);
      const std::int64_t tasks =
          problem_.batch_size() * problem_.num_heads() * static_cast<std::int64_t>(call_.blocks.size());
      const int threads = threads_for(tasks);

      std::vector<at::Tensor> inputs;
      for (const at::Tensor& input : {problem_.query, problem_.key, problem_.value})
        inputs.push_back(at::empty(input.sizes(), input.options()));
      const at::Tensor output = given.output.defined() ? given.output : at::zeros_like(result.output);
      const at::Tensor log_sum_exp = given.log_sum_exp.defined() ? given.log_sum_exp.contiguous() : at::Tensor();
      cpu::Gradients<T> gradients;
      gradients.output = rows(output);
      if (log_sum_exp.defined()) gradients.log_sum_exp = const_data<T>(log_sum_exp);
      gradients.query = rows(inputs[0]);
      gradients.key = rows(inputs[1]);
      gradients.value = rows(inputs[2]);

      // What the scores read. Each query has entries of its own in a mask that is not broadcast: no two threads meet.
      const std::size_t score_tensors = modified_ == nullptr ? 0 : static_cast<std::size_t>(modified_->tensors());
      const at::Tensor& mask = problem_.attn_mask;
      const bool is_mask_full =
          mask.defined() && one_copy(mask).sizes().slice(0, 3) == problem_.query.sizes().slice(0, 3);
      std::vector<SummedGradient> summed;
      summed.emplace_back(mask, /*sums_copies=*/true, is_mask_full ? 1 : threads);
      summed.emplace_back(problem_.alibi_slopes, /*sums_copies=*/false, threads);
      for (std::size_t k = 0; k < score_tensors; ++k)
        summed.emplace_back(problem_.modification_tensors[k], /*sums_copies=*/true, threads);
      gradients.mask = summed[0].sums();
      gradients.slopes = summed[1].sums();
      for (std::size_t k = 0; k < score_tensors; ++k) gradients.modification.push_back(summed[2 + k].sums());
      const auto is_wanted = [](const cpu::Sums& sums) { return sums.data != nullptr; };
      if (std::none_of(gradients.modification.begin(), gradients.modification.end(), is_wanted))
        gradients.modification.clear();
      else
        modified_->prepare_gradients(threads);

      cpu::Backward<T> pass(call_, gradients, scores_, threads);
      parallel(threads, [&](int thread) { pass.work(thread, /*is_careful=*/false); });
      if (pass.must_begin_again()) {
        for (SummedGradient& each : summed) each.set_to_zero();
        parallel(threads, [&](int thread) { pass.work(thread, /*is_careful=*/true); });
      }
      parallel(threads, [&](int thread) { pass.finish(thread); });
      for (SummedGradient& each : summed) inputs.push_back(each.take(kDtype));
      return inputs;
    }

   private:
    static constexpr at::ScalarType kDtype = c10::CppTypeToScalarType<T>::value;

    static int threads_for(std::int64_t tasks) {
      return static_cast<int>(std::min<std::int64_t>(at::get_num_threads(), tasks));
    }

    static cpu::TensorRows<T> rows(const at::Tensor& tensor) {
      cpu::TensorRows<T> rows{tensor.data_ptr(), {}, tensor.scalar_type() == at::kBFloat16};
      std::copy_n(tensor.strides().begin(), 4, rows.strides);
      return rows;
    }

    /// Nothing of the scores is wanted again but what the softmax has made of them, and that is not too much.
    bool takes_keys_at_once() const {
      return call_.keys <= cpu::kFewKeys && scores_.standard.softcap == 0 && scores_.standard.dropout == 0 &&
             (scores_.modified == nullptr || !scores_.modified->changes_scores()) &&
             call_.size_of_weights() <= cpu::kMostWeights * (problem_.query.numel() + problem_.key.numel());
    }

    void set_result(const FusedResult& result) {
      call_.output = rows(result.kept.size() == 2 ? result.kept[1] : result.output);
      if (result.log_sum_exp.defined()) call_.log_sum_exp = result.log_sum_exp.template data_ptr<T>();
      if (!result.kept.empty())
        (call_.takes_keys_at_once ? call_.weights : call_.log_sum_exp_rest) = result.kept[0].template data_ptr<T>();
    }

    void set_blocks() {
      const auto add = [this](std::int32_t query_begin, std::int32_t query_end, std::int32_t key_begin,
                              std::int32_t key_end) {
        for (std::int32_t i = query_begin; i < query_end; i += cpu::kTileQueries)
          call_.blocks.push_back(
              {i, std::min(cpu::kTileQueries, query_end - i), key_begin, key_end, i + key_end - query_end});
      };
      if (!problem_.is_packed()) return add(0, call_.queries, 0, call_.keys);
      const auto queries = problem_.query_offsets.template accessor<std::int32_t, 1>(),
                 keys = problem_.key_offsets.template accessor<std::int32_t, 1>();
      for (std::int64_t b = 0; b + 1 < queries.size(0); ++b) add(queries[b], queries[b + 1], keys[b], keys[b + 1]);
    }

    void set_scores() {
      cpu::StandardScores<T>& standard = scores_.standard;
      standard.softcap = static_cast<T>(problem_.softcap);
      if (problem_.alibi_slopes.defined()) {
        slopes_ = problem_.alibi_slopes.to(kDtype);
        standard.alibi_slopes = const_data<T>(slopes_);
        standard.has_alibi_of_batch = slopes_.size(0) > 1;
        standard.alibi_strides[0] = standard.has_alibi_of_batch ? slopes_.stride(0) : 0;
        standard.alibi_strides[1] = slopes_.stride(1);
      }
      const at::Tensor& mask = problem_.attn_mask;
      if (mask.defined()) {
        using Kind = typename cpu::StandardScores<T>::Mask::Kind;
        standard.mask.kind = mask.scalar_type() == at::kBool       ? Kind::kBool
                             : mask.scalar_type() == at::kBFloat16 ? Kind::kAddedBFloat16
                                                                   : Kind::kAdded;
        standard.mask.data = mask.const_data_ptr();
        std::int64_t stride = 1;  // of the gradient
        for (int i = 3; i >= 0; --i) {
          standard.mask.strides[i] = mask.size(i) == 1 ? 0 : mask.stride(i);
          if (standard.mask.strides[i] == 0) continue;
          standard.mask.gradient_strides[i] = stride;
          stride *= mask.size(i);
        }
      }
      standard.window_left = static_cast<std::int32_t>(problem_.window.left);
      standard.window_right = static_cast<std::int32_t>(problem_.window.right);
      if (problem_.dropout > 0) {
        standard.dropout = static_cast<T>(problem_.dropout);
        standard.dropout_scale = problem_.dropout < 1 ? static_cast<T>(1 / (1 - problem_.dropout)) : T(0);
        standard.dropout_seed = static_cast<std::uint64_t>(*const_data<std::int64_t>(problem_.dropout_seed));
        standard.dropout_threshold = dropout_threshold(problem_.dropout);
      }
      if (problem_.modification == nullptr) return;
      read_ = problem_.modification->on_cpu(problem_.modification_tensors, kDtype);
      modified_ = problem_.modification->modified_scores(
          {problem_.batch_size(), problem_.num_heads(), problem_.query_length(), problem_.key_length()}, read_,
          available_instruction_set(), T());
      scores_.modified = modified_.get();
    }

    const Problem& problem_;
    cpu::Call<T> call_;
    cpu::Scores<T> scores_;
    at::Tensor slopes_;
    std::vector<at::Tensor> read_;
    std::unique_ptr<cpu::ModifiedScores<T>> modified_;
  };
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
