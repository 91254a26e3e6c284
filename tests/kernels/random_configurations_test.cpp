// SPDX-License-Identifier: MIT

// Random calls against a naive loop in float64, on every instruction set of this processor and on every vector width.
//
// A failure names its configuration n. ATTEND_TEST_CONFIGURATION=n runs it alone, and ATTEND_TEST_ISA=avx2 runs one
// instruction set (tests/support/environment.h).

#include "support/configuration.h"
#include "support/house_rule.h"
#include "support/instruction_sets.h"
#include "support/naive.h"
#include "support/pages.h"
#include "support/results.h"
#include "support/user_structs.h"

#include <attend/kernels.h>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

using attend::test::Accuracy;
using attend::test::Configuration;
using attend::test::max_difference;
using attend::test::Naive;
using attend::test::Results;
using attend::test::size_of;
using attend::test::UserStructs;
using attend::test::wanted_calls;

namespace {

constexpr std::uint32_t kConfigurations = 500;

/// A configuration whose numbers are computed in T.
template <class T>
class Run {
 public:
  explicit Run(std::uint32_t number)
      : c_(number),
        bias_(c_.bias.begin(), c_.bias.end()),
        gates_(c_.gates.begin(), c_.gates.end()),
        structs_(c_.structs, {bias_.data(), gates_.data(), c_.document.data()}) {
    std::ostringstream text;
    text << "configuration " << number << ": " << c_ << "; " << attend::test::replay(number);
    description_ = text.str();
  }

  const std::string& description() const { return description_; }
  bool has_few_errors() const {
    return c_.has_large_scores || c_.params.batch_size * c_.params.num_heads * c_.params.query_length < 64;
  }
  bool is_bfloat16() const { return c_.params.dtype == attend::NumberType::kBFloat16; }

  Results exact() const { return Naive<double>(c_, structs_).results(); }
  Results dense() const {
    return is_bfloat16() ? Naive<float, attend::test::Rounding::kBFloat16>(c_, structs_).results()
                         : Naive<T>(c_, structs_).results();
  }

  /// By the kernels of an instruction set.
  Results computed_by(const attend::test::NamedTables<T>& isa) {
    if (c_.structs == 0) return computed_by(attend::cpu::AttentionPass<T>(c_.params, isa.tables));
    Results results;
    structs_.visit([&](const auto& score_mod, const auto& mask_mod) {
      const auto variant = attend::detail::PlainVariant(score_mod, mask_mod).template make<T>(isa.set);
      results = computed_by(attend::cpu::AttentionPass<T>(c_.params, isa.tables, variant.get()));
    });
    return results;
  }

  bool may_have_pages() const { return c_.params.num_sequences == 0; }

  /// The output and the log-sum-exp with keys and values in memory as they are, or in pages.
  Results forward_by(const attend::test::NamedTables<T>& isa, const attend::AttentionParams& params) {
    if (c_.structs == 0) return forward_of(attend::cpu::AttentionPass<T>(params, isa.tables));
    Results results;
    structs_.visit([&](const auto& score_mod, const auto& mask_mod) {
      const auto variant = attend::detail::PlainVariant(score_mod, mask_mod).template make<T>(isa.set);
      results = forward_of(attend::cpu::AttentionPass<T>(params, isa.tables, variant.get()));
    });
    return results;
  }

  const attend::test::CallMemory& call() const { return c_; }

  /// By the public functions.
  Results computed() {
    namespace kernels = attend::kernels;
    if (c_.structs == 0)
      return computed(
          kernels::saved_bytes<T>(c_.params),
          [&](const auto& outputs, auto& executor) { kernels::attention_forward<T>(c_.params, outputs, executor); },
          [&](const auto& outputs, const auto& gradients, auto& executor) {
            kernels::attention_backward<T>(c_.params, outputs, gradients, executor);
          });
    Results results;
    structs_.visit([&](const auto& score_mod, const auto& mask_mod) {
      results = computed(
          kernels::flex_saved_bytes<T>(c_.params, score_mod, mask_mod),
          [&](const auto& outputs, auto& executor) {
            kernels::flex_attention_forward<T>(c_.params, score_mod, mask_mod, outputs, executor);
          },
          [&](const auto& outputs, const auto& gradients, auto& executor) {
            kernels::flex_attention_backward<T>(c_.params, score_mod, mask_mod, outputs, gradients, executor);
          });
    });
    return results;
  }

 private:
  Results computed_by(const attend::cpu::AttentionPass<T>& pass) {
    return computed(
        pass.saved_bytes(), [&](const auto& outputs, auto& executor) { pass.forward(outputs, executor); },
        [&](const auto& outputs, const auto& gradients, auto& executor) {
          pass.backward(outputs, gradients, executor);
        });
  }

  Results forward_of(const attend::cpu::AttentionPass<T>& pass) {
    const attend::AttentionParams& p = c_.params;
    attend::test::Tensor output(c_.number(), {p.batch_size, p.num_heads, p.query_length, p.value_dim}),
        log_sum_exp(c_.computed(), {p.batch_size, p.num_heads, p.query_length, 1});
    attend::ThreadPoolExecutor executor(c_.threads);
    pass.forward({output.view(), log_sum_exp.view().data}, executor);
    return {{"output", output.values()}, {"log_sum_exp", log_sum_exp.values()}};
  }

  template <class Forward, class Backward>
  Results computed(std::int64_t saved_bytes, const Forward& forward, const Backward& backward) {
    attend::ThreadPoolExecutor executor(c_.threads);
    return attend::test::results_of<T>(
        c_, [this](const auto& sizes) { return c_.output_tensor(sizes); }, structs_.tensor_sizes(), saved_bytes,
        /*also_without_saved=*/true, [&](const auto& outputs) { forward(outputs, executor); },
        [&](const auto& outputs, const auto& gradients) { backward(outputs, gradients, executor); });
  }

  Configuration c_;
  std::vector<T> bias_, gates_;
  UserStructs<T> structs_;
  std::string description_;
};

bool is_float64(std::uint64_t number) { return Configuration(number).params.dtype == attend::NumberType::kFloat64; }

/// Runs all configurations in T.
template <class T>
void check_all() {
  const auto [begin, end, are_all] = wanted_calls(kConfigurations);
  const auto isas = attend::test::instruction_sets<T>();
  REQUIRE_FALSE(isas.empty());
  std::map<std::string, Accuracy> accuracy;  // of each instruction set
  int checked = 0;
  for (std::uint32_t n = begin; n < end; ++n) {
    if (is_float64(n) != std::is_same_v<T, double>) continue;
    Run<T> run(n);
    CAPTURE(run.description());
    const Results exact = run.exact(), dense = run.dense();
    for (const auto& isa : isas) {
      CAPTURE(isa.name);
      const Results results = run.computed_by(isa);
      REQUIRE(results.size() == exact.size() + 2);
      for (const auto& [full_name, numbers] : results) {
        const std::string name = full_name.substr(0, full_name.find(','));
        CAPTURE(full_name);
        if (std::is_same_v<T, double>)
          CHECK(max_difference(numbers, exact.at(name)) <= 1e-12 * size_of(exact.at(name)));
        else
          accuracy[isa.name].check(full_name + (run.is_bfloat16() ? " bfloat16" : " float32"), run.has_few_errors(),
                                   dense.at(name), numbers, exact.at(name));
      }
    }
    ++checked;
  }
  if (are_all) CHECK(checked > 50);
  for (const auto& [isa, errors] : accuracy) {
    CAPTURE(isa);
    if (are_all) errors.check_results_of_few_numbers();
  }
}

}  // namespace

TEST_CASE("kernels: random configurations in float32 and bfloat16 are as exact as the dense formula") {
  check_all<float>();
}

TEST_CASE("kernels: random configurations in float64 are exact to 1e-12") { check_all<double>(); }

TEST_CASE("kernels: the public functions give the bits of the best instruction set") {
  if (std::getenv("ATTEND_TEST_ISA") != nullptr) return;
  const auto [begin, end, are_all] = wanted_calls(kConfigurations);
  const auto check = [](auto run, const auto& isas) {
    CAPTURE(run.description());
    const Results ours = run.computed_by(isas.back()), theirs = run.computed();
    REQUIRE(ours.size() == theirs.size());
    for (const auto& [name, numbers] : ours) {
      CAPTURE(name);
      CHECK(max_difference(numbers, theirs.at(name)) == 0);
    }
  };
  for (std::uint32_t n = begin; n < std::min(end, begin + 60); ++n) {
    if (is_float64(n))
      check(Run<double>(n), attend::test::instruction_sets<double>());
    else
      check(Run<float>(n), attend::test::instruction_sets<float>());
  }
}

TEST_CASE("kernels: with block_table the results have the bits of contiguous keys and values") {
  const auto [begin, end, are_all] = wanted_calls(kConfigurations);
  int checked = 0;
  const auto check = [&](auto run, const auto& isas, std::uint32_t n) {
    if (!run.may_have_pages()) return;
    CAPTURE(run.description());
    attend::test::Random random(n);
    const attend::test::Pages pages(run.call(), random);
    CAPTURE(pages.params().page_size);
    for (const auto& isa : isas) {
      CAPTURE(isa.name);
      const Results contiguous = run.forward_by(isa, run.call().params), paged = run.forward_by(isa, pages.params());
      for (const auto& [name, numbers] : contiguous) {
        CAPTURE(name);
        CHECK(max_difference(numbers, paged.at(name)) == 0);
      }
    }
    ++checked;
  };
  for (std::uint32_t n = begin; n < end; ++n) {
    if (is_float64(n))
      check(Run<double>(n), attend::test::instruction_sets<double>(), n);
    else
      check(Run<float>(n), attend::test::instruction_sets<float>(), n);
  }
  if (are_all) CHECK(checked > 300);
}
