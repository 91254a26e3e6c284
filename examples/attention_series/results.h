// SPDX-License-Identifier: MIT
#pragma once

#include "support/command_line.h"
#include "support/shape_net.h"

#include <attend/attend.h>
#include <attend/data.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

/// The share of a peak's attention on shapes of its own group: own / (own + other), as a mean over all shapes of all
/// samples that have both groups. Without a preference it is about one half.
///
/// The query is the position nearest to the centre of a shape. `own` is its weight on the positions of all shapes of
/// the same group, including the shape itself. `other` is its weight on the shapes of the other group. With several
/// heads the weights are averaged over the heads.
///
/// maps: (samples, heads, size, size) for the first samples of the data.
inline double own_share(const torch::Tensor& maps, const attend::ShapeDataset& data) {
  const torch::Tensor weights = maps.mean(1).to(torch::kCPU, torch::kDouble).contiguous();  // (samples, size, size)
  const auto at = weights.accessor<double, 3>();
  double sum = 0;
  std::int64_t peaks = 0;
  for (std::int64_t sample = 0; sample < weights.size(0); ++sample) {
    const std::vector<attend::DrawnShape> shapes = data.shapes(sample);
    for (const attend::DrawnShape& queried : shapes) {
      double own = 0, other = 0;
      bool has_other = false;
      for (const attend::DrawnShape& shape : shapes) {
        const auto first = static_cast<std::int64_t>(std::floor(shape.centre - shape.width / 2)) + 1;
        const auto end = static_cast<std::int64_t>(std::ceil(shape.centre + shape.width / 2));
        const bool is_own = shape.target_height == queried.target_height;
        has_other |= !is_own;
        for (std::int64_t key = first; key < std::min(end, weights.size(2)); ++key)
          (is_own ? own : other) += at[sample][std::lround(queried.centre)][key];
      }
      if (!has_other || own + other == 0) continue;
      sum += own / (own + other);
      ++peaks;
    }
  }
  return sum / static_cast<double>(peaks);
}

/// Writes the results of a trained net for held-out samples, for plot.py:
///
/// - samples.csv: input, target and output, one line for each position;
/// - shapes.csv: one line for each shape;
/// - map_I_H.csv: the attention map of sample I and head H, one line for each query position.
inline void write_results(const std::filesystem::path& folder, ShapeNet& net, const attend::ShapeDataset& held_out,
                          std::int64_t pictured, torch::Device device) {
  const torch::NoGradGuard no_grad;
  net->eval();
  const torch::Tensor inputs = held_out.inputs().slice(0, 0, pictured);  // (pictured, 1, size)
  const torch::Tensor outputs = net(inputs.to(device)).cpu();

  std::ofstream samples = support::open(folder / "samples.csv"), shapes = support::open(folder / "shapes.csv");
  samples << "sample,position,input,target,output\n";
  shapes << "sample,kind,centre,width,height,target_height\n";
  for (std::int64_t sample = 0; sample < pictured; ++sample) {
    for (std::int64_t position = 0; position < inputs.size(2); ++position) {
      samples << sample << ',' << position;
      for (const torch::Tensor& signals : {inputs, held_out.targets(), outputs})
        samples << ',' << signals[sample][0][position].item<float>();
      samples << '\n';
    }
    for (const attend::DrawnShape& shape : held_out.shapes(sample))
      shapes << sample << ',' << shape.kind << ',' << shape.centre << ',' << shape.width << ',' << shape.height << ','
             << shape.target_height << '\n';
  }
  support::close(samples, folder / "samples.csv");
  support::close(shapes, folder / "shapes.csv");
  if (!net->options.attention()) return;

  const torch::Tensor maps = net->attention_map(inputs.to(device)).cpu();  // (pictured, heads, size, size)
  for (std::int64_t sample = 0; sample < pictured; ++sample) {
    for (std::int64_t head = 0; head < maps.size(1); ++head)
      support::write_map(folder / ("map_" + std::to_string(sample) + "_" + std::to_string(head) + ".csv"),
                         maps[sample][head]);
  }
}
