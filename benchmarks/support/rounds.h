// SPDX-License-Identifier: MIT
#pragma once

// Peers that run in turn, and medians of their times.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace benchmark {

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// The time of each peer in milliseconds, and the median of its ratios to the first peer of the same round.
struct Medians {
  std::vector<double> milliseconds, ratios;
};

/// Runs all peers in every round, each round beginning with the next one, after one call of each to warm up. A
/// measurement repeats a call until it takes about `least` milliseconds.
inline Medians run_in_turn(const std::vector<std::function<void()>>& peers, std::int64_t rounds, double least = 20.0) {
  const auto time_of = [](const std::function<void()>& call, std::int64_t calls) {
    const auto begin = std::chrono::steady_clock::now();
    for (std::int64_t i = 0; i < calls; ++i) call();
    const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;
    return elapsed.count() / static_cast<double>(calls);
  };
  std::vector<std::int64_t> calls;
  for (const auto& peer : peers) {
    time_of(peer, 1);
    calls.push_back(std::max<std::int64_t>(1, static_cast<std::int64_t>(least / time_of(peer, 1))));
  }
  std::vector<std::vector<double>> times(peers.size()), ratios(peers.size());
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < peers.size(); ++i) {
      const std::size_t next = (i + static_cast<std::size_t>(round)) % peers.size();
      times[next].push_back(time_of(peers[next], calls[next]));
    }
    for (std::size_t i = 0; i < peers.size(); ++i) ratios[i].push_back(times[i].back() / times[0].back());
  }
  Medians medians;
  for (std::size_t i = 0; i < peers.size(); ++i) {
    medians.milliseconds.push_back(median(times[i]));
    medians.ratios.push_back(median(ratios[i]));
  }
  return medians;
}

}  // namespace benchmark
