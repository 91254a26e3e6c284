// SPDX-License-Identifier: MIT

// Common parts of the example programs: checks of options, exit status, output files.
#pragma once

#include <c10/util/Exception.h>
#include <torch/cuda.h>
#include <torch/nn/module.h>
#include <torch/types.h>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace support {

/// The rule of a numeric option; `phrase` describes it in the error message.
template <class Number>
CLI::Validator rule(const std::string& phrase, bool (*is_kept)(Number)) {
  return CLI::Validator(
      [=](const std::string& text) {
        std::istringstream stream(text);
        Number value{};
        const bool is_good = stream >> value && stream.eof() && is_kept(value);
        return is_good ? std::string() : "Value " + text + " must be " + phrase;
      },
      "");
}

template <std::int64_t least, std::int64_t most = 1'000'000'000>
CLI::Validator whole() {
  return rule<std::int64_t>("a whole number from " + std::to_string(least) + " to " + std::to_string(most),
                            [](std::int64_t value) { return value >= least && value <= most; });
}

/// The device with this name, or an error that says which devices exist.
inline torch::Device device_of(const std::string& name) {
  if (name == "auto") return torch::cuda::is_available() ? torch::kCUDA : torch::kCPU;
  if (!std::regex_match(name, std::regex("cpu|cuda(:[0-9]{1,2})?")))
    throw CLI::ValidationError("--device", name + " must be auto, cpu, cuda or cuda:N");
  const torch::Device device(name);
  const auto devices = static_cast<int>(torch::cuda::device_count());
  if (device.is_cuda() && std::max<int>(device.index(), 0) >= devices)
    throw CLI::ValidationError("--device",
                               name + " does not exist: this machine has " + std::to_string(devices) + " CUDA devices");
  return device;
}

/// Creates the folder of --output. Throws an error of the command line if it is not writable.
inline void make_output_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  const std::filesystem::path probe = folder / ".writable";
  if (!std::ofstream(probe)) throw CLI::ValidationError("--output", "cannot write to the folder " + folder.string());
  std::filesystem::remove(probe, error);
}

/// Opens a file for writing. Throws if it cannot.
inline std::ofstream open(const std::filesystem::path& path) {
  std::ofstream file(path);
  if (!file) throw std::runtime_error("cannot write " + path.string());
  file.precision(9);
  return file;
}

/// Closes a file of open(). Throws if not everything was written.
inline void close(std::ofstream& file, const std::filesystem::path& path) {
  file.close();
  if (!file) throw std::runtime_error("cannot write " + path.string());
}

inline std::string with_thousands(std::int64_t number) {
  std::string digits = std::to_string(number);
  for (int i = static_cast<int>(digits.size()) - 3; i > 0; i -= 3) digits.insert(i, ",");
  return digits;
}

inline std::string duration(double seconds) {
  return seconds < 90 ? std::to_string(std::llround(std::ceil(seconds))) + " s"
                      : std::to_string(std::llround(seconds / 60)) + " minutes";
}

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Writes an attention map (queries, keys), one line for each query position and one column for each key position.
inline void write_map(const std::filesystem::path& path, const torch::Tensor& map) {
  std::ofstream file = open(path);
  for (std::int64_t query = 0; query < map.size(0); ++query)
    for (std::int64_t key = 0; key < map.size(1); ++key)
      file << map[query][key].item<float>() << (key + 1 < map.size(1) ? ',' : '\n');
  close(file, path);
}

/// The number of trainable numbers in a model.
inline std::int64_t parameter_count(const torch::nn::Module& model) {
  std::int64_t count = 0;
  for (const torch::Tensor& parameter : model.parameters()) count += parameter.numel();
  return count;
}

/// Parses the arguments and runs a program. Returns the exit status: the result of `program`, 1 for a failed run, or 2
/// for invalid arguments.
template <class Program>
int run(CLI::App& app, int argc, char** argv, const std::string& name, const Program& program) {
  try {
    app.parse(argc, argv);
    return program();
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::Error& error) {
    std::cerr << name << ": " << error.what() << "\nRun with --help for the options.\n";
    return 2;
  } catch (const c10::Error& error) {
    std::cerr << name << ": " << error.what_without_backtrace() << '\n';
    return 1;
  } catch (const std::exception& error) {
    std::cerr << name << ": " << error.what() << '\n';
    return 1;
  }
}

}  // namespace support
