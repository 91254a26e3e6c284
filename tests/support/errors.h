// SPDX-License-Identifier: MIT
#pragma once

#include <c10/util/Exception.h>
#include <doctest/doctest.h>

#include <exception>
#include <string>
#include <type_traits>
#include <typeinfo>

namespace attend::test {

/// The message with which `action` throws exactly an Error; a failed check, and an empty message, if it does anything
/// else.
template <class Error, class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    const bool is_exactly_that_type = typeid(error) == typeid(Error);
    CHECK(is_exactly_that_type);
    if constexpr (std::is_base_of_v<c10::Error, Error>)
      return error.what_without_backtrace();
    else
      return error.what();
  } catch (const std::exception& error) {
    FAIL_CHECK("another error was thrown: " << std::string(error.what()));
    return "";
  }
  FAIL_CHECK("nothing was thrown");
  return "";
}

}  // namespace attend::test
