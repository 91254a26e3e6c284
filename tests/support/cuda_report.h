// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cuda/host_block.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace attend::test {

/// What a kernel did wrong.
enum class FaultKind {
  kRace,                ///< two warps access a word of shared memory, one writes, and no barrier is between them
  kLaneRace,            ///< the same for two lanes of a warp
  kReadBeforeWait,      ///< a word is read that an asynchronous copy may still write
  kWriteOverCopy,       ///< the same for a word that is written
  kUnwritten,           ///< a word of shared memory is read that nobody has written
  kOutsideView,         ///< an entry outside of a view of shared memory
  kOutsideShared,       ///< more shared memory than the launch has
  kOutsideGlobal,       ///< an access to global memory outside of all ranges
  kReadOnly,            ///< a store to a range that is only read
  kMisaligned,          ///< an address that is no multiple of the size
  kGlobalRace,          ///< two threads access a word of global memory, one writes, and no barrier is between them
  kBankConflict,        ///< an ldmatrix that takes more wavefronts of shared memory than its four
  kDivergedCollective,  ///< lanes of a warp wait for each other in different calls
  kDivergedBarrier,     ///< threads wait for each other in different barriers
  kDeadlock,            ///< all threads wait
  kCopyNotAwaited,      ///< an asynchronous copy that was never waited for
};

inline const char* name_of(FaultKind kind) {
  constexpr const char* kNames[] = {"race between warps",
                                    "race between lanes",
                                    "read before wait",
                                    "write over a copy in flight",
                                    "read of an unwritten word",
                                    "outside of a view",
                                    "outside of shared memory",
                                    "outside of global memory",
                                    "store to an input",
                                    "misaligned",
                                    "race in global memory",
                                    "bank conflict",
                                    "diverged collective",
                                    "diverged barrier",
                                    "deadlock",
                                    "copy not waited for"};
  return kNames[static_cast<int>(kind)];
}

inline bool same_place(cuda::Place a, cuda::Place b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

inline std::string text_of(cuda::Place place) {
  const char* slash = std::strrchr(place.file, '/');
  return std::string(slash == nullptr ? place.file : slash + 1) + ":" + std::to_string(place.line);
}

/// One fault, with all others of the same kind at the same place.
struct Fault {
  FaultKind kind;
  cuda::Place place;
  int thread;  ///< the first that did it
  cuda::BlockIndex block;
  std::string detail;
  std::int64_t count;

  std::string text() const {
    return std::string(name_of(kind)) + " at " + text_of(place) + ", thread " + std::to_string(thread) + " of block (" +
           std::to_string(block.x) + ", " + std::to_string(block.y) + ", " + std::to_string(block.z) + ")" +
           (detail.empty() ? "" : ": " + detail) + (count > 1 ? " [" + std::to_string(count) + " times]" : "");
  }
};

/// What was observed while blocks ran.
struct CudaReport {
  std::vector<Fault> faults;
  std::int64_t matrix_loads = 0;   ///< ldmatrix instructions, per warp
  std::int64_t wavefronts = 0;     ///< of shared memory, for them: 4 each if no banks conflict
  std::int64_t multiply_adds = 0;  ///< mma instructions, per warp
  std::int64_t switches = 0;       ///< from one thread to another

  /// All faults, a line each. Empty if there is none.
  std::string text() const {
    std::string lines;
    for (const Fault& fault : faults) lines += fault.text() + "\n";
    return lines;
  }

  void add(Fault fault) {
    for (Fault& known : faults)
      if (known.kind == fault.kind && same_place(known.place, fault.place)) {
        ++known.count;
        return;
      }
    faults.push_back(std::move(fault));
  }
};

}  // namespace attend::test
