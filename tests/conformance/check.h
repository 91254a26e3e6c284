// SPDX-License-Identifier: MIT
#pragma once

#include <c10/util/Exception.h>
#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <iostream>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

namespace conformance {

/// The first line of a message. LibTorch appends a stack trace.
inline std::string first_line(const std::string& message) { return message.substr(0, message.find('\n')); }

/// Runs named checks and counts the right ones.
///
/// The name is printed before the check runs, so that a crash can be traced to its check.
class Checks {
 public:
  /// A check is right if it calls require() at least once, every require() holds, and nothing is thrown.
  void check(const std::string& name, const std::function<void()>& body) {
    std::cout << name << ": " << std::flush;
    requirements_ = 0;
    wrong_.clear();
    torch::manual_seed(1);
    try {
      body();
    } catch (const std::exception& exception) {
      wrong_.push_back("threw: " + first_line(exception.what()));
    }
    if (requirements_ == 0 && wrong_.empty()) wrong_.push_back("nothing was required");
    std::cout << (wrong_.empty() ? "right" : "WRONG") << '\n';
    for (const std::string& each : wrong_) std::cout << "  " << each << '\n';
    ++checks_;
    if (!wrong_.empty()) names_of_wrong_.push_back(name);
  }

  /// States a requirement of the running check, and the complaint if it does not hold.
  static void require(bool holds, const std::string& complaint) {
    ++requirements_;
    if (!holds) wrong_.push_back(complaint);
  }

  /// Prints the result; returns the exit status of the program.
  int finish() const {
    for (const std::string& name : names_of_wrong_) std::cout << "wrong: " << name << '\n';
    std::cout << checks_ - names_of_wrong_.size() << " of " << checks_ << " checks are right" << std::endl;
    return names_of_wrong_.empty() && checks_ > 0 ? 0 : 1;
  }

 private:
  static inline int requirements_ = 0;
  static inline std::vector<std::string> wrong_;
  std::size_t checks_ = 0;
  std::vector<std::string> names_of_wrong_;
};

inline void require(bool holds, const std::string& complaint) { Checks::require(holds, complaint); }

/// Requires that an action throws exactly this type, with a message that contains `part`.
template <class Error>
void require_throws(const std::string& what, const std::string& part, const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    const std::string message = first_line(error.what());
    require(typeid(error) == typeid(Error), what + " throws another type: " + message);
    require(message.find(part) != std::string::npos, what + " throws another message: " + message);
    return;
  } catch (const std::exception& error) {
    require(false, what + " throws another type: " + first_line(error.what()));
    return;
  }
  require(false, what + " throws nothing");
}

/// The largest difference of two tensors, in float64. It is infinite if the shapes differ, or if one tensor has a NaN
/// or an infinity where the other has none.
inline double difference(const torch::Tensor& a, const torch::Tensor& b) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (!a.defined() || !b.defined() || a.sizes() != b.sizes()) return kInfinity;
  if (a.numel() == 0) return 0.0;
  const torch::Tensor x = a.detach().to(torch::kDouble), y = b.detach().to(torch::kDouble);
  const torch::Tensor is_finite = x.isfinite();
  if (!is_finite.equal(y.isfinite()) || !x.isneginf().equal(y.isneginf()) || !x.isnan().equal(y.isnan()))
    return kInfinity;
  return (x - y).masked_fill(is_finite.logical_not(), 0.0).abs().max().item<double>();
}

/// The largest finite number of a tensor, or 1 if that is more.
inline double size_of(const torch::Tensor& tensor) {
  if (tensor.numel() == 0) return 1.0;
  const torch::Tensor numbers = tensor.detach().to(torch::kDouble).abs();
  return std::max(1.0, numbers.masked_fill(numbers.isfinite().logical_not(), 0.0).max().item<double>());
}

/// The rule of equality for float64: 1e-12 of the largest number.
inline void require_equal(const std::string& what, const torch::Tensor& result, const torch::Tensor& exact) {
  const double error = difference(result, exact), most = 1e-12 * size_of(exact);
  std::ostringstream complaint;
  complaint << what << " is wrong by " << error << ", and " << most << " is allowed";
  require(result.scalar_type() == torch::kDouble && error <= most, complaint.str());
}

/// The rule of equality for float32 and lower: the error against the exact (float64) result is at most twice that of
/// the dense formula in the same dtype, plus 1e-6.
///
/// If a result has few numbers, the dense formula's error may be close to zero by chance. Results with fewer than 64
/// numbers are therefore compared over all calls, by the largest and the mean relative error of their kind and dtype.
class Accuracy {
 public:
  /// The second factor is for gradients of ATen's fused kernels. PyTorch's own tests allow it.
  static constexpr double kOurFactor = 2.0, kAtensFactor = 5.0;

  void require_as_accurate(const std::string& what, const std::string& kind, const torch::Tensor& dense,
                           const torch::Tensor& result, const torch::Tensor& exact, double factor) {
    const double ours = difference(result, exact), theirs = difference(dense, exact);
    std::ostringstream complaint;
    complaint << what << " is wrong by " << ours << ", and the dense formula by " << theirs;
    const bool can_be_compared = result.defined() && result.scalar_type() == dense.scalar_type() &&
                                 theirs < std::numeric_limits<double>::infinity();
    if (result.defined() && result.numel() >= 64) {
      require(can_be_compared && ours <= factor * theirs + 1e-6, complaint.str());
      return;
    }
    require(can_be_compared && ours < std::numeric_limits<double>::infinity(), complaint.str());
    Errors& errors = few_[{kind, c10::toString(dense.scalar_type())}];
    const double size = size_of(exact);
    errors.ours = std::max(errors.ours, ours / size);
    errors.theirs = std::max(errors.theirs, theirs / size);
    errors.sum_of_ours += ours / size;
    errors.sum_of_theirs += theirs / size;
    ++errors.count;
    errors.factor = std::max(errors.factor, factor);
  }

  /// Must be called after the last call.
  void require_of_few_numbers() const {
    require(!few_.empty(), "no result had few numbers");
    for (const auto& [kind, errors] : few_) {
      std::ostringstream complaint;
      complaint << kind.first << " in " << kind.second << " is wrong by at most " << errors.ours
                << " and on average by " << errors.sum_of_ours / errors.count << ", and the dense formula by "
                << errors.theirs << " and " << errors.sum_of_theirs / errors.count;
      require(errors.ours <= errors.factor * errors.theirs + 1e-6 &&
                  errors.sum_of_ours <= errors.factor * errors.sum_of_theirs + 1e-6 * errors.count,
              complaint.str());
    }
  }

 private:
  struct Errors {
    double ours = 0.0, theirs = 0.0, sum_of_ours = 0.0, sum_of_theirs = 0.0, factor = 0.0;
    int count = 0;
  };
  std::map<std::pair<std::string, std::string>, Errors> few_;
};

/// The FNV-1a hash of the bytes of a contiguous tensor.
inline std::uint64_t hash_of(const torch::Tensor& tensor) {
  std::uint64_t hash = 0xcbf29ce484222325;
  const auto* bytes = static_cast<const unsigned char*>(tensor.const_data_ptr());
  for (std::size_t i = 0; i < tensor.nbytes(); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  return hash;
}

}  // namespace conformance
