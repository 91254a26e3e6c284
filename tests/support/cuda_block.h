// SPDX-License-Identifier: MIT
#pragma once

#include "cuda_copies.h"
#include "cuda_global_memory.h"
#include "cuda_lanes.h"
#include "cuda_report.h"
#include "cuda_shared_memory.h"
#include "cuda_threads.h"

#include <attend/kernels/cuda/host_block.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace attend::test {

/// How a kernel is launched.
struct Launch {
  cuda::BlockIndex grid = {1, 1, 1};
  int threads = 128;              ///< of a block: a multiple of 32
  std::int64_t shared_bytes = 0;  ///< dynamic shared memory of a block
  std::uint64_t seed = 0;         ///< 0: blocks, warps and lanes take turns by their index; else: in a random order
};

/// Runs the blocks of a kernel on the host, one after the other.
///
/// A block stops at the first fault after which it cannot go on. The blocks after it do not run then.
class CudaBlock final : public cuda::HostBlock {
 public:
  CudaBlock(const Launch& launch, GlobalMemory& memory)
      : launch_(checked(launch)),
        global_(memory),
        threads_(launch.threads, launch.seed),
        lanes_(static_cast<std::size_t>(launch.threads)),
        warps_(static_cast<std::size_t>(launch.threads / cuda::kWarpSize)) {}

  /// Calls `body` in each thread of each block. Throws what it throws.
  CudaReport run(const std::function<void()>& body) {
    CurrentBlock current(this);
    const auto until_end = [&] {
      body();
      const std::vector<CudaCopies::Copy>& copies = lane().copies.under_way();
      if (!copies.empty()) report(FaultKind::kCopyNotAwaited, copies[0].place, "");
    };
    global_.reset();
    const cuda::BlockIndex grid = launch_.grid;
    const std::int64_t blocks = std::int64_t{grid.x} * grid.y * grid.z;
    const auto first = static_cast<std::int64_t>(CudaRandom(launch_.seed)() % static_cast<std::uint64_t>(blocks));
    for (std::int64_t i = 0; i < blocks; ++i) {
      const std::int64_t at = launch_.seed == 0 ? i : (first + i) % blocks;
      block_ = {static_cast<int>(at % grid.x), static_cast<int>(at / grid.x % grid.y),
                static_cast<int>(at / grid.x / grid.y)};
      block_number_ = static_cast<std::uint32_t>(at + 1);
      start_block();
      if (!threads_.run(until_end, [&] { report_deadlock(); })) break;
    }
    return report_;
  }

  int thread_index() override { return threads_.current(); }
  cuda::BlockIndex block_index() override { return block_; }

  void barrier(cuda::Place place) override { meet(Meeting::kBarrier, place); }
  void warp_barrier(cuda::Place place) override { meet(Meeting::kWarpBarrier, place); }
  std::uint32_t exchange(cuda::Exchange exchange, std::uint32_t value, int from, cuda::Place place) override {
    Lane& lane = this->lane();
    lane.value = value;
    lane.from = from;
    meet(exchange == cuda::Exchange::kXor ? Meeting::kShuffleXor : Meeting::kShuffle, place);
    return lane.result;
  }
  bool any(bool condition, cuda::Place place) override {
    Lane& lane = this->lane();
    lane.value = condition ? 1 : 0;
    meet(Meeting::kAny, place);
    return lane.result != 0;
  }
  void load_matrix_x4(std::uint32_t* registers, const void* row, bool is_transposed, cuda::Place place) override {
    check_shared(row, 16, place);
    Lane& lane = this->lane();
    lane.registers = registers;
    lane.row = row;
    meet(is_transposed ? Meeting::kLoadTransposed : Meeting::kLoad, place);
  }
  void multiply_add(NumberType type, float* c, const std::uint32_t* a, const std::uint32_t* b,
                    cuda::Place place) override {
    MultiplyAddArguments& arguments = warp().multiply_add;
    const int lane = threads_.current() % cuda::kWarpSize;
    arguments.c[lane] = c;
    arguments.a[lane] = a;
    arguments.b[lane] = b;
    meet(type == NumberType::kFloat16    ? Meeting::kMultiplyAddFloat16
         : type == NumberType::kBFloat16 ? Meeting::kMultiplyAddBFloat16
                                         : Meeting::kMultiplyAddTf32,
         place);
  }

  void copy_async_16(void* to, const void* from, bool is_valid, cuda::Place place) override {
    check_shared(to, 16, place);
    if (is_valid) access_global(from, 16, cuda::Access::kRead, place);
    const std::int64_t offset = shared_.offset_of(to);
    const Accessor who = accessor(place);
    report(shared_.start_copy(offset, 16, who), who);
    lane().copies.start({offset, is_valid ? from : nullptr, place});
  }
  void copy_async_commit(cuda::Place) override { lane().copies.commit(); }
  void copy_async_wait(int pending, cuda::Place) override {
    lane().copies.wait(pending, [&](const CudaCopies::Copy& copy) {
      shared_.end_copy(copy.offset, 16, copy.from, accessor(copy.place));
    });
  }

  void* shared_memory(std::int64_t offset, std::int64_t bytes, cuda::Place place) override {
    if (offset < 0 || bytes < 0 || offset + bytes > launch_.shared_bytes)
      stop(FaultKind::kOutsideShared, place, run_of("bytes", offset, bytes, launch_.shared_bytes));
    if (offset % 16 != 0) stop(FaultKind::kMisaligned, place, "offset " + std::to_string(offset));
    return shared_.data() + offset;
  }
  [[noreturn]] void outside_view(std::int64_t first, std::int64_t count, std::int64_t size,
                                 cuda::Place place) override {
    stop(FaultKind::kOutsideView, place, run_of("entries", first, count, size));
  }
  void access_shared(const void* address, int bytes, cuda::Access access, cuda::Place place) override {
    check_shared(address, bytes, place);
    const std::int64_t offset = shared_.offset_of(address);
    const Accessor who = accessor(place);
    report(access == cuda::Access::kRead ? shared_.read(offset, bytes, who) : shared_.write(offset, bytes, who), who);
  }
  void access_global(const void* address, int bytes, cuda::Access access, cuda::Place place) override {
    GlobalMemory::Range* const range = global_.find(address, bytes);
    if (range == nullptr) stop(FaultKind::kOutsideGlobal, place, global_.text_of(address));
    if (access == cuda::Access::kWrite && !range->can_write)
      stop(FaultKind::kReadOnly, place, global_.text_of(address));
    if (reinterpret_cast<std::uintptr_t>(address) % static_cast<std::uintptr_t>(bytes) != 0)
      stop(FaultKind::kMisaligned, place, std::to_string(bytes) + " bytes at " + global_.text_of(address));
    if (!range->can_write) return;
    const GlobalMemory::Store now = {block_number_, threads_.current(), epoch_, warp().epoch};
    if (const GlobalMemory::Store* last = GlobalMemory::unordered_store(*range, address, bytes, now); last != nullptr)
      report(FaultKind::kGlobalRace, place,
             global_.text_of(address) + ", written by thread " + std::to_string(last->thread) + " of block number " +
                 std::to_string(last->block));
    if (access == cuda::Access::kWrite) GlobalMemory::note_store(*range, address, bytes, now);
  }

 private:
  // What the lanes of a warp, or the threads of a block, wait for together.
  enum class Meeting {
    kBarrier,
    kWarpBarrier,
    kShuffleXor,
    kShuffle,
    kAny,
    kLoad,
    kLoadTransposed,
    kMultiplyAddFloat16,
    kMultiplyAddBFloat16,
    kMultiplyAddTf32,
  };

  static const char* name_of(Meeting meeting) {
    constexpr const char* kNames[] = {"barrier",
                                      "warp_barrier",
                                      "shuffle_xor",
                                      "shuffle",
                                      "any_in_warp",
                                      "load_matrix_x4",
                                      "load_matrix_x4_transposed",
                                      "multiply_add_16x8x16 (float16)",
                                      "multiply_add_16x8x16 (bfloat16)",
                                      "multiply_add_16x8x8_tf32"};
    return kNames[static_cast<int>(meeting)];
  }

  // What a thread has passed to the call in which it waits, and its copies.
  struct Lane {
    std::uint32_t value = 0, result = 0;
    int from = 0;
    std::uint32_t* registers = nullptr;
    const void* row = nullptr;
    CudaCopies copies;
  };

  struct Warp {
    int arrived = 0;  // lanes that wait, all in the same call
    Meeting meeting = Meeting::kBarrier;
    cuda::Place place = {"", 0};
    int first_thread = 0;     // that has arrived
    std::uint32_t epoch = 1;  // barriers of this warp so far
    MultiplyAddArguments multiply_add = {};
  };

  // Makes a block the one that device code calls, until the end of the scope.
  class CurrentBlock {
   public:
    explicit CurrentBlock(cuda::HostBlock* block) : outer_(std::exchange(cuda::host_block, block)) {}
    CurrentBlock(const CurrentBlock&) = delete;
    CurrentBlock& operator=(const CurrentBlock&) = delete;
    ~CurrentBlock() { cuda::host_block = outer_; }

   private:
    cuda::HostBlock* outer_;
  };

  static const Launch& checked(const Launch& launch) {
    if (launch.threads <= 0 || launch.threads % cuda::kWarpSize != 0 || launch.threads > 1024)
      throw std::invalid_argument("a block has 32, 64, … or 1024 threads, got " + std::to_string(launch.threads));
    return launch;
  }

  void start_block() {
    shared_.reset(launch_.shared_bytes);
    epoch_ = 1;
    warps_arrived_ = 0;
    for (Lane& lane : lanes_) lane.copies.clear();
    for (Warp& warp : warps_) {
      warp.arrived = 0;
      warp.epoch = 1;
    }
  }

  Lane& lane() { return lanes_[static_cast<std::size_t>(threads_.current())]; }
  Warp& warp() { return warps_[static_cast<std::size_t>(threads_.current() / cuda::kWarpSize)]; }

  Accessor accessor(cuda::Place place) {
    const int thread = threads_.current();
    return {thread, thread / cuda::kWarpSize, 1u << thread % cuda::kWarpSize, epoch_, warp().epoch, place};
  }

  // ---- Faults -------------------------------------------------------------------------------------------------------

  void report(FaultKind kind, cuda::Place place, std::string detail) {
    report_.add({kind, place, threads_.current(), block_, std::move(detail), 1});
  }

  void report(const Conflict& conflict, const Accessor& who) {
    if (conflict.offset < 0) return;
    std::string detail = "byte " + std::to_string(conflict.offset);
    if (conflict.thread >= 0)
      detail += std::string(", ") + conflict.what + " by thread " + std::to_string(conflict.thread) + " at " +
                text_of(conflict.place);
    report_.add({conflict.kind, who.place, who.thread, block_, std::move(detail), 1});
  }

  [[noreturn]] void stop(FaultKind kind, cuda::Place place, std::string detail) {
    report(kind, place, std::move(detail));
    throw CudaThreads::Stopped();
  }

  static std::string run_of(const char* what, std::int64_t first, std::int64_t count, std::int64_t size) {
    return std::string(what) + " [" + std::to_string(first) + ", " + std::to_string(first + count) + ") of " +
           std::to_string(size);
  }

  void check_shared(const void* address, int bytes, cuda::Place place) {
    const std::int64_t offset = shared_.offset_of(address);
    if (!shared_.holds(address, bytes))
      stop(FaultKind::kOutsideShared, place, run_of("bytes", offset, bytes, shared_.bytes()));
    if (offset % bytes != 0)
      stop(FaultKind::kMisaligned, place,
           std::to_string(bytes) + " bytes at byte " + std::to_string(offset) + " of shared memory");
  }

  // ---- Threads meet -------------------------------------------------------------------------------------------------

  void meet(Meeting meeting, cuda::Place place) {
    Warp& warp = this->warp();
    if (warp.arrived == 0) {
      warp.meeting = meeting;
      warp.place = place;
      warp.first_thread = threads_.current();
    } else if (warp.meeting != meeting || !same_place(warp.place, place)) {
      stop_diverged(meeting, place, warp.first_thread, warp.meeting, warp.place);
    }
    if (++warp.arrived < cuda::kWarpSize) return threads_.suspend();
    if (meeting == Meeting::kBarrier) return meet_block(place);
    warp.arrived = 0;
    finish(warp, meeting, place);
    threads_.make_ready(threads_.current() / cuda::kWarpSize);
    threads_.suspend();
  }

  // The last lane of a warp has come to the barrier of the block.
  void meet_block(cuda::Place place) {
    if (warps_arrived_ == 0) {
      barrier_place_ = place;
      barrier_thread_ = threads_.current();
    } else if (!same_place(barrier_place_, place)) {
      stop_diverged(Meeting::kBarrier, place, barrier_thread_, Meeting::kBarrier, barrier_place_);
    }
    if (++warps_arrived_ < static_cast<int>(warps_.size())) return threads_.suspend();
    warps_arrived_ = 0;
    ++epoch_;
    for (std::size_t i = 0; i < warps_.size(); ++i) {
      warps_[i].arrived = 0;
      threads_.make_ready(static_cast<int>(i));
    }
    threads_.suspend();
  }

  [[noreturn]] void stop_diverged(Meeting meeting, cuda::Place place, int other, Meeting others,
                                  cuda::Place others_place) {
    const bool is_barrier = meeting == Meeting::kBarrier || others == Meeting::kBarrier;
    stop(is_barrier ? FaultKind::kDivergedBarrier : FaultKind::kDivergedCollective, place,
         std::string(name_of(meeting)) + ", but thread " + std::to_string(other) + " waits in " + name_of(others) +
             " at " + text_of(others_place));
  }

  // Some threads wait, and nobody is left that could come. The cause is a warp of which only some lanes wait, if any.
  void report_deadlock() {
    const auto is_whole = [](const Warp& warp) { return warp.arrived == cuda::kWarpSize; };
    const auto waits = [](const Warp& warp) { return warp.arrived > 0; };
    const bool has_part =
        std::any_of(warps_.begin(), warps_.end(), [&](const Warp& w) { return waits(w) && !is_whole(w); });
    for (const Warp& warp : warps_) {
      if (!waits(warp) || (has_part && is_whole(warp))) continue;
      const FaultKind kind = !has_part                           ? FaultKind::kDeadlock
                             : warp.meeting == Meeting::kBarrier ? FaultKind::kDivergedBarrier
                                                                 : FaultKind::kDivergedCollective;
      report_.add({kind, warp.place, warp.first_thread, block_,
                   std::string(name_of(warp.meeting)) + " with " + std::to_string(warp.arrived) +
                       " lanes of a warp, and " + std::to_string(threads_.ended()) + " threads have ended",
                   1});
    }
  }

  // All lanes have come: does what they have asked for.
  void finish(Warp& warp, Meeting meeting, cuda::Place place) {
    Lane* const lanes = &lanes_[static_cast<std::size_t>(threads_.current() / cuda::kWarpSize * cuda::kWarpSize)];
    switch (meeting) {
      case Meeting::kBarrier:
        break;
      case Meeting::kWarpBarrier:
        ++warp.epoch;
        break;
      case Meeting::kShuffleXor:
      case Meeting::kShuffle:
        for (int i = 0; i < cuda::kWarpSize; ++i) {
          const int from = meeting == Meeting::kShuffle ? lanes[i].from : i ^ lanes[i].from;
          lanes[i].result = lanes[from & (cuda::kWarpSize - 1)].value;
        }
        break;
      case Meeting::kAny: {
        std::uint32_t any = 0;
        for (int i = 0; i < cuda::kWarpSize; ++i) any |= lanes[i].value;
        for (int i = 0; i < cuda::kWarpSize; ++i) lanes[i].result = any;
        break;
      }
      case Meeting::kLoad:
      case Meeting::kLoadTransposed:
        finish_load(lanes, meeting == Meeting::kLoadTransposed, place);
        break;
      case Meeting::kMultiplyAddFloat16:
      case Meeting::kMultiplyAddBFloat16:
      case Meeting::kMultiplyAddTf32:
        ++report_.multiply_adds;
        test::multiply_add(meeting == Meeting::kMultiplyAddFloat16    ? NumberType::kFloat16
                           : meeting == Meeting::kMultiplyAddBFloat16 ? NumberType::kBFloat16
                                                                      : NumberType::kFloat32,
                           warp.multiply_add);
        break;
    }
  }

  void finish_load(const Lane* lanes, bool is_transposed, cuda::Place place) {
    const void* rows[cuda::kWarpSize];
    std::uint32_t* registers[cuda::kWarpSize];
    std::int64_t offsets[cuda::kWarpSize];
    Accessor who = accessor(place);
    const int first_thread = who.warp * cuda::kWarpSize;
    who.lanes = ~0u;  // all lanes get a part of each row
    for (int i = 0; i < cuda::kWarpSize; ++i) {
      rows[i] = lanes[i].row;
      registers[i] = lanes[i].registers;
      offsets[i] = shared_.offset_of(rows[i]);
      who.thread = first_thread + i;
      report(shared_.read(offsets[i], 16, who), who);
    }
    test::load_matrix_x4(rows, registers, is_transposed);
    const int wavefronts = wavefronts_of(offsets);
    if (wavefronts > 4)
      report_.add({FaultKind::kBankConflict, place, first_thread, block_,
                   std::to_string(wavefronts) + " wavefronts of shared memory, not 4", 1});
    ++report_.matrix_loads;
    report_.wavefronts += wavefronts;
  }

  const Launch launch_;
  GlobalMemory& global_;
  SharedMemory shared_;
  CudaReport report_;
  CudaThreads threads_;
  std::vector<Lane> lanes_;
  std::vector<Warp> warps_;
  cuda::BlockIndex block_ = {0, 0, 0};
  std::uint32_t block_number_ = 0;
  std::uint32_t epoch_ = 1;  // barriers of this block so far
  int warps_arrived_ = 0;    // at the barrier
  int barrier_thread_ = 0;   // the first that completed its warp there
  cuda::Place barrier_place_ = {"", 0};
};

/// Calls `body` in each thread of each block of the launch. `body` calls the kernel with its arguments.
///
/// @code
/// GlobalMemory memory;
/// memory.add_input(key.data(), key_bytes, "key");
/// memory.add_output(output.data(), output_bytes, "output");
/// const CudaReport report = run_on_host({.grid = {tiles, heads, 1}, .threads = 128, .shared_bytes = 40960}, memory,
///                                       [&] { forward_block<Traits>(call, score, mask); });
/// CHECK(report.text() == "");
/// @endcode
inline CudaReport run_on_host(const Launch& launch, GlobalMemory& memory, const std::function<void()>& body) {
  return CudaBlock(launch, memory).run(body);
}

}  // namespace attend::test
