// SPDX-License-Identifier: MIT
#pragma once

#include "cuda_report.h"

#include <attend/kernels/cuda/host_block.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace attend::test {

/// Who accesses shared memory, and when.
struct Accessor {
  int thread, warp;
  std::uint32_t lanes;       ///< those of the warp that see the value
  std::uint32_t epoch;       ///< barriers of the block so far
  std::uint32_t warp_epoch;  ///< barriers of the warp so far
  cuda::Place place;
};

/// What is wrong with an access.
struct Conflict {
  FaultKind kind = FaultKind::kRace;
  std::int64_t offset = -1;  ///< in bytes from the start of the shared memory; -1: nothing is wrong
  const char* what = "";     ///< what another thread did before
  int thread = -1;           ///< that thread; -1: there is none
  cuda::Place place = {"", 0};
};

/// The shared memory of a block, and what happened to each word of it.
class SharedMemory {
 public:
  /// Memory for a new block: NaN in every number type, and written by nobody.
  void reset(std::int64_t bytes) {
    const auto words = static_cast<std::size_t>((bytes + 15) / 16 * 4);
    memory_.assign(words / 4, Line{{~0u, ~0u, ~0u, ~0u}});
    words_.assign(words, Word());
    upper_halves_.resize(words);
    bytes_ = bytes;
  }

  unsigned char* data() { return reinterpret_cast<unsigned char*>(memory_.data()); }
  std::int64_t bytes() const { return bytes_; }
  std::int64_t offset_of(const void* address) { return static_cast<const unsigned char*>(address) - data(); }
  bool holds(const void* address, std::int64_t bytes) {
    const std::int64_t offset = offset_of(address);
    return offset >= 0 && offset + bytes <= bytes_;
  }

  Conflict read(std::int64_t offset, int bytes, const Accessor& who) {
    Conflict found;
    for_each(offset, bytes, [&](Word& word, std::int64_t at) {
      if (word.is_in_flight) {
        note(found, FaultKind::kReadBeforeWait, at, "copied", word.writer, word.write_place);
      } else if (!word.is_written) {
        if (found.offset < 0) found = {FaultKind::kUnwritten, at};
      } else {
        find_earlier_write(found, word, at, who);
      }
      const bool is_same_epoch = word.read_epoch == who.epoch;
      const bool is_same_warp = is_same_epoch && word.read_warp == who.warp && word.read_warp_epoch == who.warp_epoch;
      word.read_warps = (is_same_epoch ? word.read_warps : 0) | 1u << who.warp;
      word.read_lanes = (is_same_warp ? word.read_lanes : 0) | who.lanes;
      word.read_epoch = who.epoch;
      word.read_warp_epoch = who.warp_epoch;
      word.read_warp = static_cast<std::uint8_t>(who.warp);
      word.read_place = index_of(who.place);
    });
    return found;
  }

  Conflict write(std::int64_t offset, int bytes, const Accessor& who) {
    return write_words(offset, bytes, who, /*is_copy=*/false);
  }

  /// An asynchronous copy starts, which may write at any time from now on. Until it has arrived there is NaN.
  Conflict start_copy(std::int64_t offset, int bytes, const Accessor& who) {
    const Conflict found = write_words(offset, bytes, who, /*is_copy=*/true);
    std::memset(data() + offset, 0xFF, static_cast<std::size_t>(bytes));
    return found;
  }

  /// The copy has arrived, and its thread has waited for it.
  void end_copy(std::int64_t offset, int bytes, const void* from, const Accessor& who) {
    if (from == nullptr)
      std::memset(data() + offset, 0, static_cast<std::size_t>(bytes));
    else
      std::memcpy(data() + offset, from, static_cast<std::size_t>(bytes));
    for_each(offset, bytes, [&](Word& word, std::int64_t) {
      word.is_in_flight = false;
      word.is_written = true;
      word.write_epoch = who.epoch;
      word.write_warp_epoch = who.warp_epoch;
      word.writer = static_cast<std::uint16_t>(who.thread);
    });
  }

 private:
  struct alignas(16) Line {
    std::uint32_t words[4];
  };

  // The last accesses to 4 bytes, or to 2 if the word is split: another thread may write the other half.
  struct Word {
    std::uint32_t write_epoch = 0, write_warp_epoch = 0;
    std::uint32_t read_epoch = 0, read_warp_epoch = 0;  // of the last reader
    std::uint32_t read_warps = 0;                       // in this epoch
    std::uint32_t read_lanes = 0;                       // of the last reader's warp in this epoch of the warp
    std::uint16_t writer = 0, write_place = 0, read_place = 0;
    std::uint8_t read_warp = 0;
    bool is_written : 1 = false, is_in_flight : 1 = false, is_split : 1 = false;
  };

  template <class Function>
  void for_each(std::int64_t offset, int bytes, const Function& function) {
    const auto first = static_cast<std::size_t>(offset / 4);
    if (bytes < 4) {
      Word& word = words_[first];
      if (!word.is_split) {
        word.is_split = true;
        upper_halves_[first] = word;
      }
      function(offset % 4 == 0 ? word : upper_halves_[first], offset);
      return;
    }
    for (std::size_t i = first; i < first + static_cast<std::size_t>(bytes) / 4; ++i) {
      function(words_[i], static_cast<std::int64_t>(4 * i));
      if (words_[i].is_split) function(upper_halves_[i], static_cast<std::int64_t>(4 * i + 2));
    }
  }

  Conflict write_words(std::int64_t offset, int bytes, const Accessor& who, bool is_copy) {
    Conflict found;
    for_each(offset, bytes, [&](Word& word, std::int64_t at) {
      if (word.is_in_flight)
        note(found, FaultKind::kWriteOverCopy, at, "copied", word.writer, word.write_place);
      else if (word.is_written)
        find_earlier_write(found, word, at, who);
      find_earlier_read(found, word, at, who);
      word.is_written = true;
      word.is_in_flight = word.is_in_flight || is_copy;
      word.write_epoch = who.epoch;
      word.write_warp_epoch = who.warp_epoch;
      word.writer = static_cast<std::uint16_t>(who.thread);
      word.write_place = index_of(who.place);
      word.read_epoch = 0;  // later writes race with this one, if they race with the reads before it
    });
    return found;
  }

  // The last write of the word, if nothing orders it before this access.
  void find_earlier_write(Conflict& found, const Word& word, std::int64_t at, const Accessor& who) const {
    if (word.write_epoch != who.epoch) return;
    const int warp = word.writer / cuda::kWarpSize;
    const std::uint32_t lane = 1u << word.writer % cuda::kWarpSize;
    if (warp != who.warp)
      note(found, FaultKind::kRace, at, "written", word.writer, word.write_place);
    else if (word.write_warp_epoch == who.warp_epoch && (who.lanes & ~lane) != 0)
      note(found, FaultKind::kLaneRace, at, "written", word.writer, word.write_place);
  }

  // The reads of the word, if nothing orders them before this write.
  void find_earlier_read(Conflict& found, const Word& word, std::int64_t at, const Accessor& who) const {
    if (word.read_epoch != who.epoch) return;
    const std::uint32_t other_warps = word.read_warps & ~(1u << who.warp), other_lanes = word.read_lanes & ~who.lanes;
    if (other_warps != 0)
      note(found, FaultKind::kRace, at, "read", __builtin_ctz(other_warps) * cuda::kWarpSize, word.read_place);
    else if (word.read_warp_epoch == who.warp_epoch && other_lanes != 0)
      note(found, FaultKind::kLaneRace, at, "read", who.warp * cuda::kWarpSize + __builtin_ctz(other_lanes),
           word.read_place);
  }

  void note(Conflict& found, FaultKind kind, std::int64_t at, const char* what, int thread, std::uint16_t place) const {
    if (found.offset < 0) found = {kind, at, what, thread, places_[place]};
  }

  std::uint16_t index_of(cuda::Place place) {
    if (last_place_ < places_.size() && same_place(places_[last_place_], place)) return last_place_;
    const auto known =
        std::find_if(places_.begin(), places_.end(), [&](cuda::Place p) { return same_place(p, place); });
    last_place_ = static_cast<std::uint16_t>(known - places_.begin());
    if (known == places_.end()) places_.push_back(place);
    return last_place_;
  }

  std::vector<Line> memory_;
  std::vector<Word> words_, upper_halves_;
  std::vector<cuda::Place> places_;
  std::uint16_t last_place_ = 0;
  std::int64_t bytes_ = 0;
};

}  // namespace attend::test
