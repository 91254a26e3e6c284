// SPDX-License-Identifier: MIT
#pragma once

#include <c10/util/Exception.h>
#include <doctest/doctest.h>

#include <exception>
#include <string>
#include <type_traits>
#include <typeinfo>

namespace attend::test {

/// The message of the exception if `action` throws exactly an Error. Otherwise a check fails and the message is empty.
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
