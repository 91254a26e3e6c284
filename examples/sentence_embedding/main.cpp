// SPDX-License-Identifier: MIT

// Semantic search: texts become vectors, and texts of similar meaning have similar vectors.

#include "embedder.h"
#include "npy.h"
#include "support/command_line.h"

#include <CLI/CLI.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

struct Settings {
  std::string model = EXAMPLE_DATA;
  std::string file, query, output = "embeddings.npy";
  std::int64_t max_tokens = 256, top = 5;
  int threads = 0;
};

/// The lines of a file, or of the standard input if the path is "-".
std::vector<std::string> lines_of(const std::string& path) {
  std::ifstream file;
  if (path != "-") file.open(path);
  std::istream& stream = path == "-" ? std::cin : file;
  if (!stream) throw std::runtime_error("cannot read " + path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(std::move(line));
  if (lines.empty()) throw std::runtime_error(path + " has no lines");
  return lines;
}

/// Shows the progress in a terminal, and at the end one line.
class Progress {
 public:
  void operator()(std::size_t done, std::size_t all) const {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
    if (is_terminal_ || done == all)
      std::cerr << (is_terminal_ ? "\r" : "") << support::with_thousands(static_cast<std::int64_t>(done)) << " of "
                << support::with_thousands(static_cast<std::int64_t>(all)) << " texts, " << std::fixed
                << std::setprecision(1) << static_cast<double>(done) / seconds << " a second"
                << (done == all ? "\n" : " ") << std::flush;
  }

 private:
  bool is_terminal_ = isatty(STDERR_FILENO) != 0;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

int embed(const Settings& settings) {
  const std::filesystem::path folder = std::filesystem::path(settings.output).parent_path();
  if (access(folder.empty() ? "." : folder.c_str(), W_OK) != 0)  // an error now, and not after the work
    throw std::runtime_error("cannot write " + settings.output);
  Embedder embedder(settings.model, settings.max_tokens);
  const torch::Tensor vectors = embedder(lines_of(settings.file), Progress());
  if (settings.output.ends_with(".npy")) {
    save_npy(vectors, settings.output);
  } else {
    attend::StateDict tensors;
    tensors.insert("embeddings", vectors);
    attend::save_safetensors(tensors, settings.output);
  }
  std::cout << settings.output << ": " << vectors.size(0) << " vectors of " << vectors.size(1) << " numbers\n";
  return 0;
}

int tokens(const Settings& settings) {
  const Tokenizer tokenizer(settings.model + "/vocab.txt");
  for (const std::string& line : lines_of(settings.file)) {
    for (const std::int64_t id : tokenizer(line, static_cast<std::size_t>(settings.max_tokens))) std::cout << id << ' ';
    std::cout << '\n';
  }
  return 0;
}

int search(const Settings& settings) {
  Embedder embedder(settings.model, settings.max_tokens);
  const std::vector<std::string> lines = lines_of(settings.file);
  const torch::Tensor query = embedder({settings.query}, [](std::size_t, std::size_t) {});  // (1, E)
  const torch::Tensor scores = embedder(lines, Progress()).mv(query[0]);                    // (N)
  const auto [best, places] = scores.topk(std::min<std::int64_t>(settings.top, scores.size(0)));
  std::cout << std::fixed << std::setprecision(3);
  for (std::int64_t i = 0; i < best.size(0); ++i) {
    const auto line = places[i].item<std::int64_t>();
    std::cout << best[i].item<float>() << "  " << line + 1 << ": " << lines[static_cast<std::size_t>(line)] << '\n';
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  CLI::App app(
      "Turns each line of a file into a vector with the model all-MiniLM-L6-v2, or finds the lines whose meaning\n"
      "is nearest to a query.\n");
  app.option_defaults()->always_capture_default();
  app.add_option("--model", settings.model, "folder with config.json, model.safetensors and vocab.txt")->type_name("");
  app.add_option("--max-tokens", settings.max_tokens, "longer texts are cut to this number of tokens")
      ->type_name("N")
      ->check(support::whole<2>());
  app.add_option("--threads", settings.threads, "CPU threads; 0: LibTorch chooses")
      ->type_name("N")
      ->check(support::whole<0, 1024>());
  app.require_subcommand(1);
  app.fallthrough();
  CLI::App* embed_command = app.add_subcommand("embed", "writes the vectors of all lines to a file");
  CLI::App* search_command = app.add_subcommand("search", "prints the lines that are nearest to a query");
  CLI::App* tokens_command = app.add_subcommand("tokens", "prints the token ids of each line");
  for (CLI::App* command : {embed_command, search_command, tokens_command})
    command->add_option("FILE", settings.file, "a text in each line; - is the standard input")->required();
  embed_command->add_option("--output", settings.output, "a .npy or .safetensors file")
      ->type_name("")
      ->check(support::rule<std::string>("a name that ends in .npy or .safetensors", [](std::string name) {
        return name.ends_with(".npy") || name.ends_with(".safetensors");
      }));
  search_command->add_option("QUERY", settings.query, "the text to search for")->required();
  search_command->add_option("--top", settings.top, "number of lines to print")
      ->type_name("N")
      ->check(support::whole<1>());
  return support::run(app, argc, argv, "sentence_embedding", [&] {
    if (settings.threads > 0) torch::set_num_threads(settings.threads);
    return *embed_command ? embed(settings) : *search_command ? search(settings) : tokens(settings);
  });
}
