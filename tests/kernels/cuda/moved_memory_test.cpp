// SPDX-License-Identifier: MIT

// MovedMemory, by which tests/cuda runs kernels on a GPU. Here the device is the host, and the harness runs the kernels
// on the copies. It reports each pointer that was not moved.

#include "kernels/support/moved_memory.h"

#include "kernels/cuda/small_backward.h"
#include "kernels/cuda/small_decode.h"
#include "kernels/cuda/small_forward.h"
#include "support/cuda_block.h"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace attend::test {
namespace {

struct HostDevice {
  static void* allocate(std::size_t bytes) { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); }
  static void copy(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
  static void free(void* memory) { std::free(memory); }
};

using Moved = MovedMemory<HostDevice>;

template <class Pass>
void check_pass() {
  Pass pass(/*L=*/20, /*S=*/150, /*is_causal=*/true, /*dropout=*/0.3);
  pass.launch_all([&](auto kernel, const auto& call) {
    using Kernel = decltype(kernel);
    const Moved moved(pass.memory);
    GlobalMemory there;
    for (const GlobalMemory::Range& range : pass.memory.ranges()) {
      void* const data = moved.moved(reinterpret_cast<void*>(range.begin));
      const auto bytes = static_cast<std::int64_t>(range.end - range.begin);
      range.can_write ? there.add_output(data, bytes, range.name) : there.add_input(data, bytes, range.name);
    }
    const auto moved_call = moved.moved(call);
    const CudaReport report = run_on_host({.grid = {static_cast<int>(Kernel::blocks(call)), 1, 1},
                                           .threads = Kernel::kThreads,
                                           .shared_bytes = Kernel::kSharedBytes},
                                          there, [&] { Kernel::run(moved_call, Unchanged{}, EveryKey{}); });
    CHECK(report.text() == "");
    moved.copy_back();
  });
  CHECK(pass.check());
}

}  // namespace

TEST_CASE("MovedMemory: kernels that run on copies give the same results") {
  check_pass<SmallForward>();
  check_pass<SmallDecode>();
  check_pass<SmallBackward>();
}

TEST_CASE("MovedMemory: moves each pointer into a range, keeps its alignment, and leaves all else") {
  alignas(256) static char bytes[512];
  GlobalMemory memory;
  memory.add_input(bytes + 8, 100, "one tensor");
  memory.add_input(bytes + 208, 100, "one tensor");
  memory.add_input(bytes + 400, 8, "another");
  memory.add_input(bytes + 500, 0, "an empty one");
  const Moved moved(memory);
  struct Arguments {
    char *first, *last, *between, *outside, *nothing, *another;
    std::int64_t size;
  };
  const Arguments here{bytes + 8, bytes + 307, bytes + 150, bytes + 308, nullptr, bytes + 404, 512};
  const Arguments there = moved.moved(here);
  CHECK(bool(there.first != here.first));
  CHECK(reinterpret_cast<std::uintptr_t>(there.first) % 256 == 8);
  CHECK(there.last - there.first == 299);
  CHECK(there.between - there.first == 142);
  CHECK(bool(there.outside == here.outside));
  CHECK(bool(there.nothing == nullptr));
  CHECK(reinterpret_cast<std::uintptr_t>(there.another) % 256 == 148);
  CHECK(there.size == 512);
}

TEST_CASE("MovedMemory: ranges of two tensors with the same name are refused if another lies between them") {
  char bytes[12];
  GlobalMemory memory;
  memory.add_input(bytes, 4, "key");
  memory.add_input(bytes + 4, 4, "value");
  memory.add_input(bytes + 8, 4, "key");
  CHECK_THROWS_WITH_AS(Moved{memory}, "MovedMemory: the ranges of key and value overlap", std::invalid_argument);
}

TEST_CASE("MovedMemory: copy_back copies only what a kernel may write") {
  std::vector<int> read{1, 2}, written{3, 4};
  GlobalMemory memory;
  memory.add_input(read.data(), 8, "read");
  memory.add_output(written.data(), 8, "written");
  const Moved moved(memory);
  for (std::vector<int>* numbers : {&read, &written}) {
    int* const there = moved.moved(numbers->data());
    there[0] = 7;
  }
  moved.copy_back();
  CHECK(read == std::vector<int>{1, 2});
  CHECK(written == std::vector<int>{7, 4});
}

}  // namespace attend::test
