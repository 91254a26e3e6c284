// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/bias.h>
#include <attend/detail/nn/archive.h>
#include <attend/detail/torch/checks.h>
#include <attend/flex_attention.h>
#include <attend/layers/position_bias.h>
#include <attend/version.h>

#include <c10/util/Exception.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/init.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <ostream>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// Options of T5PositionBias.
///
/// Each option is set by `.name(value)`, which returns the options, and read by `.name()`.
///
/// @code
/// attend::T5PositionBiasOptions(8).bidirectional(false)
/// @endcode
struct T5PositionBiasOptions {
  /// Sets the option that has no default.
  ///
  /// @param num_heads As the option num_heads.
  explicit T5PositionBiasOptions(std::int64_t num_heads) : num_heads_(num_heads) {}

  /// The number of query heads H, at least 1. No default.
  TORCH_ARG(std::int64_t, num_heads);
  /// The number of buckets: at least 2. With bidirectional: even, and at least 4. Default: 32.
  TORCH_ARG(std::int64_t, num_buckets) = 32;
  /// The distance from which on all keys share the last bucket. It must exceed the number of distances that have a
  /// bucket of their own: num_buckets / 4, or num_buckets / 2 without bidirectional. At most 2²⁰. Default: 128.
  TORCH_ARG(std::int64_t, max_distance) = 128;
  /// Whether keys after the query have buckets of their own, as in encoders. Otherwise they share the bucket of
  /// distance 0, as in decoders. Default: true.
  TORCH_ARG(bool, bidirectional) = true;
};

/// The bucket of each relative position of T5.
///
/// Half of the buckets of a direction have one distance each. The others have ranges of distances that grow
/// exponentially up to max_distance, and the last one has all larger distances.
///
/// @param relative_position Key position − query position, int64 of any shape.
/// @param options The options num_buckets, max_distance and bidirectional. They are not checked here.
/// @return The bucket, int64 of the same shape.
///
/// The numbers are those of Hugging Face's T5Attention._relative_position_bucket, whose logarithms are float32.
///
/// Source: Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer", 2020.
///
/// @code
/// torch::Tensor buckets = attend::t5_buckets(torch::arange(-3, 4), attend::T5PositionBiasOptions(1));
/// // 3, 2, 1, 0, 17, 18, 19
/// @endcode
inline torch::Tensor t5_buckets(const torch::Tensor& relative_position, const T5PositionBiasOptions& options) {
  const std::int64_t buckets = options.bidirectional() ? options.num_buckets() / 2 : options.num_buckets();
  const std::int64_t exact = buckets / 2;  // so many distances have a bucket of their own
  const torch::Tensor distance =
      options.bidirectional() ? relative_position.abs() : relative_position.clamp_max(0).neg();
  const double log_range = std::log(static_cast<double>(options.max_distance()) / static_cast<double>(exact));
  const torch::Tensor logarithm = distance.to(torch::kFloat).div(exact).log();
  const torch::Tensor large =
      (logarithm / log_range * (buckets - exact)).clamp_min(0).to(torch::kLong).add(exact).clamp_max(buckets - 1);
  const torch::Tensor bucket = torch::where(distance < exact, distance, large);
  return options.bidirectional() ? bucket + (relative_position > 0).to(torch::kLong) * buckets : bucket;
}

/// The relative position bias of T5: a learned number for each head and each bucket of distances.
///
/// weight[t5_buckets(j − p)][h] for head h, key j and the query's position p = i + S − L. On the CPU, the kernel of
/// attention computes it: no (L, S) tensor is allocated. In a packed batch, p and j count through all sequences, so the
/// bias fits self-attention only.
///
/// Parameter: `weight` (num_buckets, H), as in Hugging Face's relative_attention_bias. The initial values are normal
/// with mean 0 and standard deviation 0.02.
///
/// T5 has one bias for all layers of a stack: pass the same object to each call. T5 does not scale its scores: use the
/// scale 1.
///
/// Source: Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer", 2020.
///
/// @code
/// attend::T5PositionBias bias(8);
/// torch::Tensor y = bias->attention(q, k, v, attend::AttentionOptions().scale(1.0));  // q: (N, 8, L, D)
/// @endcode
class T5PositionBiasImpl : public torch::nn::Cloneable<T5PositionBiasImpl>, public PositionBias {
 public:
  /// The bias with default values of all other options.
  ///
  /// @param num_heads As the option num_heads.
  /// @throws c10::ValueError for options out of range.
  explicit T5PositionBiasImpl(std::int64_t num_heads) : T5PositionBiasImpl(T5PositionBiasOptions(num_heads)) {}

  /// The bias with these options.
  ///
  /// @param options_ The options.
  /// @throws c10::ValueError for options out of range.
  explicit T5PositionBiasImpl(const T5PositionBiasOptions& options_) : options(options_) { reset(); }

  /// Creates a new weight according to the options, with initial values. Constructors call it.
  ///
  /// @throws c10::ValueError for options out of range.
  void reset() override {
    const char* const kName = "attend::T5PositionBias";
    detail::check_positive(kName, "num_heads", options.num_heads());
    TORCH_CHECK_VALUE(options.num_buckets() >= (options.bidirectional() ? 4 : 2) &&
                          (!options.bidirectional() || options.num_buckets() % 2 == 0),
                      kName, ": num_buckets (", options.num_buckets(), ") must be ",
                      options.bidirectional() ? "even and at least 4 with bidirectional" : "at least 2");
    const std::int64_t exact = options.num_buckets() / (options.bidirectional() ? 4 : 2);
    TORCH_CHECK_VALUE(options.max_distance() > exact && options.max_distance() <= (1 << 20), kName, ": max_distance (",
                      options.max_distance(), ") must be from ", exact + 1, " to ", 1 << 20, " for ",
                      options.num_buckets(), " buckets");
    weight = register_parameter("weight", torch::empty({options.num_buckets(), options.num_heads()}));
    reset_parameters();
  }

  /// Draws new initial values of the weight.
  void reset_parameters() { torch::nn::init::normal_(weight, 0.0, 0.02); }

  /// Loads the weight, and checks that it has the shape of this module.
  ///
  /// @param archive The archive, as torch::load opens it.
  /// @throws c10::ValueError if the archive was saved with other options. The module is then unchanged.
  /// @throws c10::TypeError if it was saved with another dtype. The module is then unchanged.
  void load(torch::serialize::InputArchive& archive) override {
    detail::check_archive("attend::T5PositionBias", *this, archive, {{"weight", {"num_buckets", "num_heads"}}});
    torch::nn::Module::load(archive);
  }

  /// Writes the name and the options, as `std::cout << layer` shows them.
  void pretty_print(std::ostream& stream) const override {
    stream << "attend::T5PositionBias(" << options.num_heads() << ", num_buckets=" << options.num_buckets()
           << ", max_distance=" << options.max_distance() << std::boolalpha
           << ", bidirectional=" << options.bidirectional() << ")";
  }

  std::int64_t num_heads() const override { return options.num_heads(); }

  /// The bias as a score_mod for flex_attention(). It can be combined with another score_mod or with a mask.
  RelativeBias score_mod() const { return RelativeBias(by_distance(-options.max_distance(), options.max_distance())); }

  /// As PositionBias::attention().
  ///
  /// @throws c10::Error of the same kinds as flex_attention().
  torch::Tensor attention(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
                          const AttentionOptions& attention_options = {}) override {
    return flex_attention(query, key, value, score_mod(), EveryKey{}, attention_options);
  }

  Explanation explain(const torch::Tensor& query, const torch::Tensor& key, const torch::Tensor& value,
                      const AttentionOptions& attention_options = {}) override {
    return explain_flex(query, key, value, score_mod(), EveryKey{}, attention_options);
  }

  torch::Tensor dense(std::int64_t query_length, std::int64_t key_length) override {
    detail::check_positive("attend::T5PositionBias", "query_length", query_length);
    detail::check_positive("attend::T5PositionBias", "key_length", key_length);
    const torch::TensorOptions indices = torch::dtype(torch::kLong).device(weight.device());
    const torch::Tensor query = torch::arange(key_length - query_length, key_length, indices).unsqueeze(1);
    const torch::Tensor buckets = t5_buckets(torch::arange(key_length, indices) - query, options);  // (L, S)
    return weight.index_select(0, buckets.flatten()).t().unflatten(1, {query_length, key_length});
  }

  /// The options that the module was made with.
  T5PositionBiasOptions options;

  /// The learned parameter: (num_buckets, H).
  torch::Tensor weight;

 private:
  /// The bias of the relative positions first … last: (H, last − first + 1).
  torch::Tensor by_distance(std::int64_t first, std::int64_t last) const {
    const torch::TensorOptions indices = torch::dtype(torch::kLong).device(weight.device());
    return weight.index_select(0, t5_buckets(torch::arange(first, last + 1, indices), options)).t();
  }
};

TORCH_MODULE(T5PositionBias);

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
