// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// The exception for files: the content of a file is wrong, or the operating system reports an error.
///
/// The message begins with the function and the path, and says what was expected and what was found:
/// `attend::SafetensorsFile: model.safetensors: tensor "weight": expected …, found …`. For wrong arguments, functions
/// throw c10::ValueError instead.
///
/// @code
/// try {
///   attend::StateDict weights = attend::load_safetensors("model.safetensors");
/// } catch (const attend::FileError& error) {
///   std::cerr << error.what() << "\nTry another file than " << error.path() << '\n';
/// }
/// @endcode
class FileError : public std::runtime_error {
 public:
  /// An exception whose message is made of these parts.
  ///
  /// @param function The function or class that the user called, with `attend::`.
  /// @param path The file.
  /// @param problem The rest of the message: what was expected, and what was found.
  /// @param is_damaged The result of is_damaged(). Default: false.
  FileError(const std::string& function, std::string path, const std::string& problem, bool is_damaged = false)
      : std::runtime_error(function + ": " + path + ": " + problem), path_(std::move(path)), is_damaged_(is_damaged) {}

  /// The path of the file.
  const std::string& path() const noexcept { return path_; }

  /// Whether load_checkpoint() found a damaged file: the first bytes are not those of a checkpoint, or the checksum is
  /// wrong.
  bool is_damaged() const noexcept { return is_damaged_; }

 private:
  std::string path_;
  bool is_damaged_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
