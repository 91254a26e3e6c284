// SPDX-License-Identifier: MIT
#pragma once

#include <c10/util/Exception.h>
#include <doctest/doctest.h>

#include <exception>
#include <functional>
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

/// Checks that `call` throws exactly an Error whose message contains this text.
template <class Error, class Call>
void check_throws(const std::string& expected, const Call& call) {
  CAPTURE(expected);
  const std::string message = message_of<Error>(call);
  CAPTURE(message);
  CHECK(message.find(expected) != std::string::npos);
}

/// A call that must throw c10::TypeError or c10::ValueError with this text.
struct Refused {
  std::string expected;
  bool is_type_error;
  std::function<void()> call;

  void check() const {
    if (is_type_error)
      check_throws<c10::TypeError>(expected, call);
    else
      check_throws<c10::ValueError>(expected, call);
  }
};

}  // namespace attend::test
