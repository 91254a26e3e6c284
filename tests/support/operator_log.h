// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/record_function.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace attend::test {

/// Records the names of the operators that this thread calls until the end of the scope.
///
/// Example:
///   const attend::test::OperatorLog log;
///   work();
///   log.count("aten::linear");
class OperatorLog {
 public:
  OperatorLog() : handle_(at::addThreadLocalCallback(at::RecordFunctionCallback(&record))) { names_.clear(); }
  ~OperatorLog() { at::removeCallback(handle_); }
  OperatorLog(const OperatorLog&) = delete;
  OperatorLog& operator=(const OperatorLog&) = delete;

  const std::vector<std::string>& names() const { return names_; }
  std::ptrdiff_t count(const std::string& name) const { return std::count(names_.begin(), names_.end(), name); }

 private:
  static inline thread_local std::vector<std::string> names_;
  static std::unique_ptr<at::ObserverContext> record(const at::RecordFunction& function) {
    names_.emplace_back(function.name());
    return nullptr;
  }
  at::CallbackHandle handle_;
};

}  // namespace attend::test
