// SPDX-License-Identifier: MIT

// Writes the four examples of docs/flex_attention.md as tables of numbers, which plot.py draws.

#include "scores.h"

#include <attend/flex_attention.h>

#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

/// Writes a table with one line for each query and one column for each key.
void write(const std::filesystem::path& path, const torch::Tensor& table) {
  const torch::Tensor values = table.to(torch::kFloat).contiguous();  // (rows, columns)
  std::ofstream file(path);
  for (std::int64_t i = 0; i < values.size(0); ++i)
    for (std::int64_t j = 0; j < values.size(1); ++j)
      file << values[i][j].item<float>() << (j + 1 < values.size(1) ? ',' : '\n');
  if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
}

/// What happens to each score if `block_size` queries are computed at a time. 0: outside of the key range of the mask,
/// never computed. 1: computed and masked. 2: attended.
template <class Mask>
torch::Tensor computed(const Mask& mask, std::int32_t length, std::int32_t block_size) {
  torch::Tensor result = attend::materialize(mask, {1, 1, length, length})[0][0].to(torch::kInt);  // (L, S)
  for (std::int32_t begin = 0; begin < length; begin += block_size) {
    const attend::KeyRange keys = mask.keys({0, 0, begin, std::min(begin + block_size, length), length, length});
    result.slice(0, begin, begin + block_size).slice(1, std::max(keys.begin, 0), std::min(keys.end, length)) += 1;
  }
  return result;
}

void write_all(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);

  const torch::Tensor penalty = attend::materialize(DistancePenalty{}, torch::zeros({1, 8, 48, 48}));
  const torch::Tensor causal = attend::materialize(attend::Causal{}, {1, 8, 48, 48});
  for (int head : {0, 2, 4})
    write(folder / ("distance_penalty_" + std::to_string(head) + ".csv"),
          torch::where(causal, penalty, -INFINITY)[0][head]);

  write(folder / "near.csv", computed(Near{12}, 64, 16));
  write(folder / "causal.csv", computed(attend::Causal{}, 64, 16));
  write(folder / "near_and_causal.csv", computed(Near{12} & attend::Causal{}, 64, 16));

  const torch::Tensor lengths = torch::tensor({8, 20, 12, 24});      // of a prompt and three documents
  const torch::Tensor document = torch::repeat_interleave(lengths);  // 0, … 0, 1, … 1, …
  const attend::Document same_document(document);
  const auto coloured = [&](const torch::Tensor& allowed) { return allowed[0][0] * (document.unsqueeze(1) + 1); };
  write(folder / "documents.csv", coloured(attend::materialize(same_document & attend::Causal{}, {1, 1, 64, 64})));
  write(folder / "documents_and_prompt.csv",
        coloured(attend::materialize((FirstKeys{8} | same_document) & attend::Causal{}, {1, 1, 64, 64})));

  torch::manual_seed(1);
  const torch::Tensor table = learn_neighbours(6, 6, 100);
  const torch::Tensor bias = attend::materialize(GridBias{table}, torch::zeros({1, 2, 36, 36}));
  for (int head : {0, 1}) {
    write(folder / ("grid_bias_" + std::to_string(head) + ".csv"), bias[0][head]);
    write(folder / ("grid_table_" + std::to_string(head) + ".csv"), table[head]);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: flex_attention FOLDER (the folder for the tables)\n";
    return 2;
  }
  try {
    write_all(arguments[1]);
  } catch (const std::exception& error) {
    std::cerr << "flex_attention: " << error.what() << '\n';
    return 1;
  }
}
