// SPDX-License-Identifier: MIT
#pragma once

#include "cuda_fiber.h"
#include "cuda_global_memory.h"
#include "cuda_lanes.h"
#include "cuda_report.h"
#include "cuda_shared_memory.h"

#include <attend/kernels/cuda/host_block.h>

#include <cstddef>
#include <cstdint>
#include <exception>
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

/// Runs the blocks of a kernel on the host, one by one, each thread as a fiber.
///
/// A thread runs until it has to wait for others. A block stops at the first fault after which it cannot go on.
class CudaBlock final : public cuda::HostBlock {
 public:
  CudaBlock(const Launch& launch, GlobalMemory& memory, const std::function<void()>& body)
      : launch_(launch),
        global_(memory),
        body_(body),
        threads_(static_cast<std::size_t>(launch.threads)),
        warps_(static_cast<std::size_t>(launch.threads / cuda::kWarpSize)),
        random_(launch.seed) {
    if (launch.threads <= 0 || launch.threads % cuda::kWarpSize != 0 || launch.threads > 1024)
      throw std::invalid_argument("a block has 32, 64, … or 1024 threads, got " + std::to_string(launch.threads));
  }
  CudaBlock(const CudaBlock&) = delete;
  CudaBlock& operator=(const CudaBlock&) = delete;

  /// Runs all blocks. Throws what the kernel throws.
  CudaReport run() {
    const std::int64_t blocks = std::int64_t{launch_.grid.x} * launch_.grid.y * launch_.grid.z;
    const std::int64_t first = launch_.seed == 0 ? 0 : static_cast<std::int64_t>(next_random() % blocks);
    for (std::int64_t i = 0; i < blocks && !is_stopping_; ++i) {
      const std::int64_t at = (first + i) % blocks;
      block_ = {static_cast<int>(at % launch_.grid.x), static_cast<int>(at / launch_.grid.x % launch_.grid.y),
                static_cast<int>(at / launch_.grid.x / launch_.grid.y)};
      run_block();
    }
    return std::move(report_);
  }

  int thread_index() override { return current_; }
  cuda::BlockIndex block_index() override { return block_; }

  void barrier(cuda::Place place) override { meet(Meeting::kBarrier, place); }
  void warp_barrier(cuda::Place place) override { meet(Meeting::kWarpBarrier, place); }
  std::uint32_t exchange(cuda::Exchange exchange, std::uint32_t value, int lane, cuda::Place place) override {
    Thread& thread = running();
    thread.value = value;
    thread.lane = lane;
    meet(exchange == cuda::Exchange::kXor ? Meeting::kShuffleXor : Meeting::kShuffle, place);
    return thread.result;
  }
  bool any(bool condition, cuda::Place place) override {
    running().value = condition ? 1 : 0;
    meet(Meeting::kAny, place);
    return running().result != 0;
  }
  void load_matrix_x4(std::uint32_t* registers, const void* row, bool is_transposed, cuda::Place place) override {
    check_shared(row, 16, place);
    Thread& thread = running();
    thread.registers = registers;
    thread.address = row;
    meet(is_transposed ? Meeting::kLoadTransposed : Meeting::kLoad, place);
  }
  void multiply_add(NumberType type, float* c, const std::uint32_t* a, const std::uint32_t* b,
                    cuda::Place place) override {
    MultiplyAddArguments& arguments = warp().multiply_add;
    const int lane = current_ % cuda::kWarpSize;
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
    if (is_valid) check_global(from, 16, cuda::Access::kRead, place);
    const std::int64_t offset = shared_.offset_of(to);
    note(shared_.start_copy(offset, 16, accessor(place)), place);
    running().copies.push_back({offset, is_valid ? from : nullptr, place});
  }
  void copy_async_commit(cuda::Place) override { running().groups.push_back(running().copies.size()); }
  void copy_async_wait(int pending, cuda::Place) override {
    Thread& thread = running();
    if (thread.groups.size() <= static_cast<std::size_t>(pending)) return;
    const std::size_t groups = thread.groups.size() - static_cast<std::size_t>(pending);
    const std::size_t arrived = thread.groups[groups - 1];
    for (std::size_t i = 0; i < arrived; ++i) {
      const Copy& copy = thread.copies[i];
      shared_.end_copy(copy.offset, 16, copy.from, accessor(copy.place));
    }
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<std::ptrdiff_t>(arrived));
    thread.groups.erase(thread.groups.begin(), thread.groups.begin() + static_cast<std::ptrdiff_t>(groups));
    for (std::size_t& end : thread.groups) end -= arrived;
  }

  void* shared_memory(std::int64_t offset, std::int64_t bytes, cuda::Place place) override {
    if (offset < 0 || bytes < 0 || offset + bytes > launch_.shared_bytes)
      stop(FaultKind::kOutsideShared, place,
           "bytes " + std::to_string(offset) + " to " + std::to_string(offset + bytes) + " of " +
               std::to_string(launch_.shared_bytes));
    if (offset % 16 != 0) stop(FaultKind::kMisaligned, place, "offset " + std::to_string(offset));
    return shared_.data() + offset;
  }
  [[noreturn]] void outside_view(std::int64_t first, std::int64_t count, std::int64_t size,
                                 cuda::Place place) override {
    stop(FaultKind::kOutsideView, place,
         count == 1 ? "entry " + std::to_string(first) + " of " + std::to_string(size)
                    : "entries " + std::to_string(first) + " to " + std::to_string(first + count) + " of " +
                          std::to_string(size));
  }
  void access_shared(const void* address, int bytes, cuda::Access access, cuda::Place place) override {
    check_shared(address, bytes, place);
    const std::int64_t offset = shared_.offset_of(address);
    note(access == cuda::Access::kRead ? shared_.read(offset, bytes, accessor(place))
                                       : shared_.write(offset, bytes, accessor(place)),
         place);
  }
  void access_global(const void* address, int bytes, cuda::Access access, cuda::Place place) override {
    check_global(address, bytes, access, place);
  }

 private:
  // What lanes of a warp, or threads of a block, wait for together.
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
                                      "multiply_add_16x8x16 of float16",
                                      "multiply_add_16x8x16 of bfloat16",
                                      "multiply_add_16x8x8_tf32"};
    return kNames[static_cast<int>(meeting)];
  }

  // Unwinds the stack of a fiber.
  struct Stopped {};

  struct Copy {
    std::int64_t offset;
    const void* from;  // null: zeros
    cuda::Place place;
  };

  struct Thread {
    Fiber fiber;
    bool has_started = false, has_ended = false;
    std::uint32_t value = 0, result = 0;  // of a shuffle
    int lane = 0;
    std::uint32_t* registers = nullptr;  // of an ldmatrix
    const void* address = nullptr;
    std::vector<Copy> copies;         // under way
    std::vector<std::size_t> groups;  // where each group of them ends
  };

  struct Warp {
    int arrived = 0;
    Meeting meeting = Meeting::kBarrier;
    cuda::Place place = {"", 0};
    int first_thread = 0;  // the first that arrived
    std::uint32_t epoch = 1;
    MultiplyAddArguments multiply_add;
    int ready[cuda::kWarpSize];  // lanes that can run, the next one last
    int ready_count = 0;
  };

  Thread& running() { return threads_[static_cast<std::size_t>(current_)]; }
  Warp& warp() { return warps_[static_cast<std::size_t>(current_ / cuda::kWarpSize)]; }

  Accessor accessor(cuda::Place place) {
    return {current_, current_ / cuda::kWarpSize, 1u << current_ % cuda::kWarpSize, epoch_, warp().epoch, place};
  }

  // ---- Faults -------------------------------------------------------------------------------------------------------

  void report(FaultKind kind, cuda::Place place, int thread, std::string detail) {
    report_.add({kind, place, thread, block_, std::move(detail), 1});
  }

  [[noreturn]] void stop(FaultKind kind, cuda::Place place, std::string detail) {
    report(kind, place, current_, std::move(detail));
    throw Stopped();
  }

  void note(const Conflict& conflict, cuda::Place place) {
    if (conflict.offset < 0) return;
    report(conflict.kind, place, current_,
           "byte " + std::to_string(conflict.offset) + (conflict.with.empty() ? "" : ", " + conflict.with));
  }

  void check_shared(const void* address, int bytes, cuda::Place place) {
    if (!shared_.holds(address, bytes))
      stop(FaultKind::kOutsideShared, place, "byte " + std::to_string(shared_.offset_of(address)));
    if (shared_.offset_of(address) % bytes != 0)
      stop(
          FaultKind::kMisaligned, place,
          std::to_string(bytes) + " bytes at byte " + std::to_string(shared_.offset_of(address)) + " of shared memory");
  }

  void check_global(const void* address, int bytes, cuda::Access access, cuda::Place place) {
    const GlobalMemory::Range* range = global_.find(address, bytes);
    if (range == nullptr) stop(FaultKind::kOutsideGlobal, place, global_.text_of(address));
    if (access == cuda::Access::kWrite && !range->can_write)
      stop(FaultKind::kReadOnly, place, global_.text_of(address));
    if (reinterpret_cast<std::uintptr_t>(address) % static_cast<std::uintptr_t>(bytes) != 0)
      stop(FaultKind::kMisaligned, place, std::to_string(bytes) + " bytes at " + global_.text_of(address));
  }

  // ---- Fibers -------------------------------------------------------------------------------------------------------

  void run_block() {
    static thread_local FiberStacks stacks;
    shared_.reset(launch_.shared_bytes);
    epoch_ = 1;
    ended_ = 0;
    warps_arrived_ = 0;
    ready_count_ = 0;
    for (std::size_t i = 0; i < threads_.size(); ++i) {
      Thread& thread = threads_[i];
      thread.has_started = thread.has_ended = false;
      thread.copies.clear();
      thread.groups.clear();
      stacks.give(thread.fiber, i, threads_.size());
      prepare_fiber(thread.fiber, [] { static_cast<CudaBlock*>(cuda::host_block)->run_thread(); });
    }
    for (std::size_t i = 0; i < warps_.size(); ++i) {
      warps_[i].arrived = 0;
      warps_[i].epoch = 1;
      warps_[i].ready_count = 0;
      make_ready(static_cast<int>(i), -1);
    }
    cuda::HostBlock* const outer = std::exchange(cuda::host_block, this);
    current_ = 0;
    current_ = take_ready();
    running().has_started = true;
    switch_fiber(main_, running().fiber);
    cuda::host_block = outer;
    if (exception_ != nullptr) std::rethrow_exception(exception_);
  }

  // What a fiber does.
  void run_thread() {
    enter_fiber(main_);
    try {
      body_();
      if (!running().copies.empty()) report(FaultKind::kCopyNotAwaited, running().copies.front().place, current_, "");
      running().has_ended = true;
      ++ended_;
      if (ended_ < static_cast<int>(threads_.size()) && !has_ready()) report_deadlock();
    } catch (const Stopped&) {
      is_stopping_ = true;
    } catch (...) {
      if (exception_ == nullptr) exception_ = std::current_exception();
      is_stopping_ = true;
    }
    running().has_ended = true;
    Fiber& from = running().fiber;
    switch_fiber(from, is_stopping_ ? next_to_unwind() : next_to_run(), /*ends=*/true);
  }

  Fiber& next_to_run() {
    if (ended_ == static_cast<int>(threads_.size())) return main_;
    ++report_.switches;
    current_ = 0;
    current_ = take_ready();
    running().has_started = true;
    return running().fiber;
  }

  // After a stop each fiber that waits throws, so that it ends.
  Fiber& next_to_unwind() {
    for (std::size_t i = 0; i < threads_.size(); ++i)
      if (threads_[i].has_started && !threads_[i].has_ended) {
        current_ = static_cast<int>(i);
        return threads_[i].fiber;
      }
    return main_;
  }

  void suspend() {
    if (!has_ready()) {
      report_deadlock();
      throw Stopped();
    }
    Fiber& from = running().fiber;
    switch_fiber(from, next_to_run());
    if (is_stopping_) throw Stopped();
  }

  // ---- Who runs next ------------------------------------------------------------------------------------------------

  std::uint64_t next_random() {  // splitmix64
    std::uint64_t x = random_ += 0x9E3779B97F4A7C15;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
  }

  // All lanes of a warp but one.
  void make_ready(int warp_index, int except_lane) {
    Warp& warp = warps_[static_cast<std::size_t>(warp_index)];
    const std::uint64_t random = launch_.seed == 0 ? 0 : next_random();
    const int factor = static_cast<int>(random & 31) | 1, flip = static_cast<int>(random >> 5 & 31);
    for (int i = cuda::kWarpSize; i-- > 0;) {
      const int lane = (i ^ flip) * factor & 31;
      if (lane != except_lane) warp.ready[warp.ready_count++] = lane;
    }
    ready_count_ += warp.ready_count;
  }

  bool has_ready() const { return ready_count_ > 0; }

  // A thread of the warp that runs, or else of another one.
  int take_ready() {
    const int count = static_cast<int>(warps_.size());
    int index = current_ / cuda::kWarpSize % count;
    if (warps_[static_cast<std::size_t>(index)].ready_count == 0) {
      index = launch_.seed == 0 ? 0 : static_cast<int>(next_random() % static_cast<std::uint64_t>(count));
      while (warps_[static_cast<std::size_t>(index)].ready_count == 0) index = (index + 1) % count;
    }
    Warp& warp = warps_[static_cast<std::size_t>(index)];
    --ready_count_;
    return index * cuda::kWarpSize + warp.ready[--warp.ready_count];
  }

  // ---- Threads meet -------------------------------------------------------------------------------------------------

  void meet(Meeting meeting, cuda::Place place) {
    Warp& warp = this->warp();
    if (warp.arrived == 0) {
      warp.meeting = meeting;
      warp.place = place;
      warp.first_thread = current_;
    } else if (warp.meeting != meeting || !same_place(warp.place, place)) {
      diverged(meeting, place, warp.first_thread, warp.meeting, warp.place);
    }
    if (++warp.arrived < cuda::kWarpSize) return suspend();
    if (meeting == Meeting::kBarrier) return meet_block(place);
    warp.arrived = 0;
    finish(warp, meeting, place);
    make_ready(current_ / cuda::kWarpSize, current_ % cuda::kWarpSize);
  }

  // The last lane of a warp has come to the barrier of the block.
  void meet_block(cuda::Place place) {
    if (warps_arrived_ == 0) {
      barrier_place_ = place;
      barrier_thread_ = current_;
    } else if (!same_place(barrier_place_, place)) {
      diverged(Meeting::kBarrier, place, barrier_thread_, Meeting::kBarrier, barrier_place_);
    }
    if (++warps_arrived_ < static_cast<int>(warps_.size())) return suspend();
    warps_arrived_ = 0;
    ++epoch_;
    for (std::size_t i = 0; i < warps_.size(); ++i) {
      warps_[i].arrived = 0;
      const bool is_own = static_cast<int>(i) == current_ / cuda::kWarpSize;
      make_ready(static_cast<int>(i), is_own ? current_ % cuda::kWarpSize : -1);
    }
  }

  [[noreturn]] void diverged(Meeting meeting, cuda::Place place, int other, Meeting others, cuda::Place others_place) {
    const bool is_barrier = meeting == Meeting::kBarrier || others == Meeting::kBarrier;
    stop(is_barrier ? FaultKind::kDivergedBarrier : FaultKind::kDivergedCollective, place,
         std::string(name_of(meeting)) + "; thread " + std::to_string(other) + " waits in " + name_of(others) + " at " +
             text_of(others_place));
  }

  // Some threads wait, and nobody is left that could come.
  void report_deadlock() {
    is_stopping_ = true;
    for (const Warp& warp : warps_) {
      if (warp.arrived == 0) continue;
      const bool is_whole = warp.arrived == cuda::kWarpSize;
      const int in_warp = warp.first_thread / cuda::kWarpSize * cuda::kWarpSize;
      int ended = 0;
      for (int i = 0; i < cuda::kWarpSize; ++i) ended += threads_[static_cast<std::size_t>(in_warp + i)].has_ended;
      report(is_whole                            ? FaultKind::kDeadlock
             : warp.meeting == Meeting::kBarrier ? FaultKind::kDivergedBarrier
                                                 : FaultKind::kDivergedCollective,
             warp.place, warp.first_thread,
             std::string(name_of(warp.meeting)) + "; " + std::to_string(warp.arrived) + " lanes of its warp wait, " +
                 std::to_string(ended) + " have ended; of the block " + std::to_string(ended_) + " threads have ended");
    }
  }

  // All lanes have come: does what they have asked for.
  void finish(Warp& warp, Meeting meeting, cuda::Place place) {
    Thread* const lanes = &threads_[static_cast<std::size_t>(current_ / cuda::kWarpSize * cuda::kWarpSize)];
    switch (meeting) {
      case Meeting::kBarrier:
        break;
      case Meeting::kWarpBarrier:
        ++warp.epoch;
        break;
      case Meeting::kShuffleXor:
      case Meeting::kShuffle:
        for (int lane = 0; lane < cuda::kWarpSize; ++lane) {
          const int other = meeting == Meeting::kShuffle ? lanes[lane].lane : lane ^ lanes[lane].lane;
          lanes[lane].result = lanes[other % cuda::kWarpSize].value;
        }
        break;
      case Meeting::kAny: {
        std::uint32_t any = 0;
        for (int lane = 0; lane < cuda::kWarpSize; ++lane) any |= lanes[lane].value;
        for (int lane = 0; lane < cuda::kWarpSize; ++lane) lanes[lane].result = any;
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

  void finish_load(Thread* lanes, bool is_transposed, cuda::Place place) {
    const void* rows[cuda::kWarpSize];
    std::uint32_t* registers[cuda::kWarpSize];
    std::int64_t offsets[cuda::kWarpSize];
    const int last = current_;
    for (int lane = 0; lane < cuda::kWarpSize; ++lane) {
      rows[lane] = lanes[lane].address;
      registers[lane] = lanes[lane].registers;
      offsets[lane] = shared_.offset_of(rows[lane]);
      current_ = last / cuda::kWarpSize * cuda::kWarpSize + lane;
      Accessor who = accessor(place);
      who.lanes = ~0u;  // all lanes get a part of the row
      note(shared_.read(offsets[lane], 16, who), place);
    }
    current_ = last;
    test::load_matrix_x4(rows, registers, is_transposed);
    ++report_.matrix_loads;
    report_.wavefronts += wavefronts_of(offsets);
  }

  const Launch launch_;
  GlobalMemory& global_;
  const std::function<void()>& body_;
  SharedMemory shared_;
  CudaReport report_;
  Fiber main_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  cuda::BlockIndex block_ = {0, 0, 0};
  int current_ = 0, ended_ = 0, ready_count_ = 0, warps_arrived_ = 0, barrier_thread_ = 0;
  std::uint32_t epoch_ = 1;
  cuda::Place barrier_place_ = {"", 0};
  bool is_stopping_ = false;
  std::exception_ptr exception_;
  std::uint64_t random_;
};

/// Calls `body` for each thread of each block of the launch. `body` calls the kernel with its arguments.
///
/// @code
/// GlobalMemory memory;
/// memory.add_input(key.data(), key_bytes, "key");
/// memory.add_output(output.data(), output_bytes, "output");
/// const CudaReport report = run_on_host({.grid = {tiles, heads, 1}, .threads = 128, .shared_bytes = 40960}, memory,
///                                       [&] { cuda::detail::forward_block<Traits>(call, score, mask); });
/// CHECK(report.text() == "");
/// @endcode
inline CudaReport run_on_host(const Launch& launch, GlobalMemory& memory, const std::function<void()>& body) {
  return CudaBlock(launch, memory, body).run();
}

}  // namespace attend::test
