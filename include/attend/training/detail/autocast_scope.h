// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <ATen/autocast_mode.h>
#include <c10/core/DeviceType.h>
#include <c10/core/ScalarType.h>

#include <optional>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Enables autocast to a dtype until the end of the scope, like Python's torch.autocast. Does nothing for nullopt.
class AutocastScope {
 public:
  AutocastScope(std::optional<c10::ScalarType> dtype, c10::DeviceType device) : device_(device), is_on_(dtype) {
    if (!is_on_) return;
    was_enabled_ = at::autocast::is_autocast_enabled(device_);
    previous_dtype_ = at::autocast::get_autocast_dtype(device_);
    was_caching_ = at::autocast::is_autocast_cache_enabled();
    // An outer autocast may have cached casts of weights. The weights have changed since, and a captured step must make
    // its own casts.
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(device_, true);
    at::autocast::set_autocast_dtype(device_, *dtype);
    at::autocast::set_autocast_cache_enabled(true);
    at::autocast::increment_nesting();
  }
  ~AutocastScope() {
    if (!is_on_) return;
    at::autocast::decrement_nesting();
    at::autocast::clear_cache();
    at::autocast::set_autocast_cache_enabled(was_caching_);
    at::autocast::set_autocast_dtype(device_, previous_dtype_);
    at::autocast::set_autocast_enabled(device_, was_enabled_);
  }
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  c10::DeviceType device_;
  bool is_on_;
  bool was_enabled_ = false, was_caching_ = false;
  c10::ScalarType previous_dtype_ = c10::ScalarType::Undefined;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
