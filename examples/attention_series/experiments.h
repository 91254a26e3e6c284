// SPDX-License-Identifier: MIT
#pragma once

#include "support/shape_net.h"

#include <attend/attend.h>

#include <string>
#include <vector>

/// One experiment of the series: a net and the task that it is trained on.
struct Experiment {
  std::string name;
  std::string title;
  attend::GroupBy group_by;
  ShapeNetOptions net;
};

/// The experiments in order. `positions` is the positional encoding of "location_positions".
inline std::vector<Experiment> series(Positions positions = Positions::kBinary) {
  using attend::GroupBy;
  return {
      {"conv", "convolution", GroupBy::kKind, ShapeNetOptions().attention(false)},
      {"attention", "attention", GroupBy::kKind, ShapeNetOptions()},
      {"location", "attention, by location", GroupBy::kLocation, ShapeNetOptions()},
      {"location_positions", "attention and positions, by location", GroupBy::kLocation,
       ShapeNetOptions().positions(positions)},
      // The notebook scales by 1/√(channels of all heads).
      {"heads", "attention, four heads", GroupBy::kKind,
       ShapeNetOptions().num_heads(4).scale(0.125).activation(attend::kGELUTanh)},
  };
}
