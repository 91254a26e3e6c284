// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/file_error.h>
#include <doctest/doctest.h>

#include <exception>
#include <string>

namespace attend::test {

/// The message of the FileError that `action` throws. Without LibTorch; support/errors.h has one for all errors.
template <class Action>
std::string file_error_message(Action&& action) {
  try {
    action();
  } catch (const FileError& error) {
    return error.what();
  } catch (const std::exception& error) {
    FAIL_CHECK("another error was thrown: " << error.what());
    return "";
  }
  FAIL_CHECK("nothing was thrown");
  return "";
}

}  // namespace attend::test
