// SPDX-License-Identifier: MIT

// The harness's own test: small kernels, each with one fault that can be switched on. The harness must name its kind,
// its place and its thread, and must report nothing if the fault is switched off. mutants_test.py plants faults
// in the kernels of the library.

#include <doctest/doctest.h>

#include "support/cuda_block.h"

#include <attend/kernels/cuda/instructions.cuh>

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

namespace attend::test {
namespace {

using cuda::Place;
using cuda::Shared;

// Global memory of the kernels: 4 rows of 32 numbers each.
struct Numbers {
  alignas(16) float input[128] = {};
  float gap[32] = {};
  alignas(16) float output[128] = {};
};

// The place that a fault must be reported at.
constexpr Place kHere = {"here", 1};
constexpr Place kThere = {"there", 2};

struct PlantedFault {
  std::string name;
  /// How a line of the report must begin, in order.
  std::string expected;
  void (*kernel)(bool has_fault, Numbers& numbers);
};

Shared<float> tile() { return cuda::shared_memory<float>(0, 128); }
Shared<float> second_tile() { return cuda::shared_memory<float>(512, 128); }
Shared<std::uint16_t> rows() { return cuda::shared_memory<std::uint16_t>(0, 4096); }
float* quarter(float* numbers, int warp) { return numbers + 32 * warp; }

// Starts the copy of 128 numbers to a tile, 4 by each thread of the first warp.
void copy_tile(const Shared<float>& to, const Numbers& numbers, Place place = cuda::here()) {
  if (cuda::thread_index() < 32)
    cuda::copy_async_16(to.sub(4 * cuda::thread_index(), 4), numbers.input + 4 * cuda::thread_index(), true, place);
}

const PlantedFault kPlantedFaults[] = {
    // ---- Races
    {"no barrier between a store and a load of another warp", "race between warps at here:1, thread 32",
     [](bool has_fault, Numbers&) {
       tile().store(cuda::thread_index(), 1);
       if (!has_fault) cuda::barrier();
       if (cuda::warp_index() == 1) tile().load(cuda::lane_index(), kHere);
     }},
    {"no barrier at the end of a loop", "race between warps at here:1, thread 64",
     [](bool has_fault, Numbers&) {
       for (int round = 0; round < 3; ++round) {
         tile().store(cuda::thread_index(), 1, kHere);
         cuda::barrier();
         tile().load(127 - cuda::thread_index());
         if (!has_fault) cuda::barrier();
       }
     }},
    {"no barrier after a wait", "race between warps at here:1, thread 32",
     [](bool has_fault, Numbers& numbers) {
       copy_tile(tile(), numbers);
       cuda::copy_async_commit();
       cuda::copy_async_wait<0>();
       if (!has_fault) cuda::barrier();
       if (cuda::warp_index() == 1) tile().load(cuda::lane_index(), kHere);
     }},
    {"a copy into a tile that another warp still reads", "race between warps at here:1, thread 32",
     [](bool has_fault, Numbers& numbers) {
       tile().store(cuda::thread_index(), 1);
       cuda::barrier();
       if (cuda::warp_index() > 0) tile().load(127 - cuda::thread_index(), kHere);
       if (!has_fault) cuda::barrier();
       copy_tile(tile(), numbers);
       cuda::copy_async_commit();
       cuda::copy_async_wait<0>();
     }},
    {"all warps store to one word", "race between warps at here:1, thread 32",
     [](bool has_fault, Numbers&) {
       if (cuda::lane_index() == 0) tile().store(has_fault ? 0 : cuda::warp_index(), 1, kHere);
     }},
    {"all lanes store to one word", "race between lanes at here:1, thread 1",
     [](bool has_fault, Numbers&) { tile().store(has_fault ? cuda::warp_index() : cuda::thread_index(), 1, kHere); }},
    {"no warp_barrier between a store and a load of another lane", "race between lanes at here:1, thread 1",
     [](bool has_fault, Numbers&) {
       tile().store(cuda::thread_index(), 1);
       if (!has_fault) cuda::warp_barrier();
       tile().load(cuda::thread_index() & ~1, kHere);
     }},
    {"no warp_barrier between a load and a store of another lane", "race between lanes at here:1, thread 1",
     [](bool has_fault, Numbers&) {
       tile().store(cuda::thread_index(), 1);
       cuda::warp_barrier();
       const float value = tile().load(cuda::thread_index() ^ 1);
       if (!has_fault) cuda::warp_barrier();
       tile().store(cuda::thread_index(), value, kHere);
     }},
    {"no warp_barrier before load_matrix_x4", "race between lanes at here:1, thread 0",
     [](bool has_fault, Numbers&) {
       const Shared<std::uint16_t> row = rows().sub(8 * cuda::thread_index(), 8);
       row.as<cuda::Words4>().store(0, {});
       if (!has_fault) cuda::warp_barrier();
       std::uint32_t registers[4];
       cuda::load_matrix_x4(registers, row, kHere);
     }},
    {"a shuffle in place of a warp_barrier", "race between lanes at here:1, thread 1",
     [](bool has_fault, Numbers&) {
       tile().store(cuda::thread_index(), 1);
       if (has_fault)
         cuda::shuffle_xor(1.0f, 1);
       else
         cuda::warp_barrier();
       tile().load(cuda::thread_index() & ~1, kHere);
     }},
    {"two blocks store to one number", "race in global memory at here:1, thread 0 of block (1, 0, 0)",
     [](bool has_fault, Numbers& numbers) {
       if (cuda::thread_index() == 0)
         cuda::store_global(numbers.output + (has_fault ? 0 : cuda::block_index().x), 1, kHere);
     }},
    {"a number is stored by one lane and loaded by another", "race in global memory at here:1, thread 1",
     [](bool has_fault, Numbers& numbers) {
       if (cuda::block_index().x > 0) return;
       cuda::store_global(numbers.output + cuda::thread_index(), 1);
       if (!has_fault) cuda::warp_barrier();
       cuda::load_global(numbers.output + (cuda::thread_index() & ~1), kHere);
     }},
    {"a number is stored by one warp and loaded by another", "race in global memory at here:1, thread 32",
     [](bool has_fault, Numbers& numbers) {
       if (cuda::block_index().x > 0) return;
       cuda::store_global(numbers.output + cuda::thread_index(), 1);
       if (!has_fault) cuda::barrier();
       cuda::load_global(numbers.output + cuda::lane_index(), kHere);
     }},

    // ---- Copies
    {"no wait", "read before wait at here:1, thread 0",
     [](bool has_fault, Numbers& numbers) {
       copy_tile(tile(), numbers);
       cuda::copy_async_commit();
       if (!has_fault) cuda::copy_async_wait<0>();
       cuda::barrier();
       tile().load(cuda::thread_index(), kHere);
       cuda::barrier();
       cuda::copy_async_wait<0>();
     }},
    {"a wait for one group too few", "read before wait at here:1, thread 0",
     [](bool has_fault, Numbers& numbers) {
       for (const Shared<float>& to : {tile(), second_tile()}) {
         copy_tile(to, numbers);
         cuda::copy_async_commit();
       }
       if (has_fault)
         cuda::copy_async_wait<1>();
       else
         cuda::copy_async_wait<0>();
       cuda::barrier();
       second_tile().load(cuda::thread_index(), kHere);
       cuda::barrier();
       cuda::copy_async_wait<0>();
     }},
    {"no commit", "read before wait at here:1, thread 0",
     [](bool has_fault, Numbers& numbers) {
       copy_tile(tile(), numbers);
       if (!has_fault) cuda::copy_async_commit();
       cuda::copy_async_wait<0>();
       cuda::barrier();
       tile().load(cuda::thread_index(), kHere);
       cuda::barrier();
       cuda::copy_async_commit();
       cuda::copy_async_wait<0>();
     }},
    {"a wait after the barrier", "race between warps at here:1, thread 32",
     [](bool has_fault, Numbers& numbers) {
       copy_tile(tile(), numbers);
       cuda::copy_async_commit();
       if (has_fault) cuda::barrier();
       cuda::copy_async_wait<0>();
       if (!has_fault) cuda::barrier();
       if (cuda::warp_index() == 1) tile().load(cuda::lane_index(), kHere);
     }},
    {"a copy over a copy in flight", "write over a copy in flight at here:1, thread 0",
     [](bool has_fault, Numbers& numbers) {
       copy_tile(tile(), numbers);
       cuda::copy_async_commit();
       copy_tile(has_fault ? tile() : second_tile(), numbers, kHere);
       cuda::copy_async_commit();
       cuda::copy_async_wait<0>();
     }},
    {"a store over a copy in flight", "write over a copy in flight at here:1, thread 5",
     [](bool has_fault, Numbers& numbers) {
       copy_tile(tile(), numbers);
       cuda::copy_async_commit();
       if (!has_fault) cuda::copy_async_wait<0>();
       cuda::barrier();
       if (cuda::thread_index() == 5) tile().store(9, 1, kHere);
       cuda::barrier();
       cuda::copy_async_wait<0>();
     }},
    {"a copy that nobody waits for", "copy not waited for at here:1, thread 0",
     [](bool has_fault, Numbers& numbers) {
       copy_tile(tile(), numbers, kHere);
       cuda::copy_async_commit();
       if (!has_fault) cuda::copy_async_wait<0>();
     }},

    // ---- Bounds
    {"a word that nobody has stored", "read of an unwritten word at here:1, thread 7",
     [](bool has_fault, Numbers&) {
       if (!has_fault || cuda::thread_index() != 7) tile().store(cuda::thread_index(), 1);
       tile().load(cuda::thread_index(), kHere);
     }},
    {"a half of a word that nobody has stored", "read of an unwritten word at here:1, thread 0",
     [](bool has_fault, Numbers&) {
       if (cuda::thread_index() != 0) return;
       rows().store(0, 1);
       if (!has_fault) rows().store(1, 1);
       rows().as<float>().load(0, kHere);
     }},
    {"a load past the end of shared memory", "outside of a view at here:1, thread 127",
     [](bool has_fault, Numbers&) {
       const Shared<float> all = cuda::shared_memory<float>(0, 2048);
       for (int i = cuda::thread_index(); i < 2048; i += 128) all.store(i, 1);
       cuda::barrier();
       for (int i = cuda::thread_index(); i < 2048; i += 128) all.load(has_fault ? i + 1 : i, kHere);
     }},
    {"a load from the neighbour's tile", "outside of a view at here:1, thread 0",
     [](bool has_fault, Numbers&) {
       tile().store(cuda::thread_index(), 1);
       second_tile().store(cuda::thread_index(), 1);
       cuda::barrier();
       tile().load(has_fault ? 128 : 127, kHere);
     }},
    {"a negative index", "outside of a view at here:1, thread 0",
     [](bool has_fault, Numbers&) { tile().store(cuda::thread_index() - (has_fault ? 1 : 0), 1, kHere); }},
    {"a part that ends after its view", "outside of a view at here:1, thread 0",
     [](bool has_fault, Numbers&) { tile().sub(64, has_fault ? 65 : 64, kHere); }},
    {"a row of load_matrix_x4 with too few numbers", "outside of a view at here:1, thread 0",
     [](bool has_fault, Numbers&) {
       const Shared<std::uint16_t> row = rows().sub(8 * cuda::thread_index(), 8);
       row.as<cuda::Words4>().store(0, {});
       cuda::warp_barrier();
       std::uint32_t registers[4];
       cuda::load_matrix_x4(registers, row.sub(0, has_fault ? 7 : 8), kHere);
     }},
    {"more shared memory than the launch has", "outside of shared memory at here:1, thread 0",
     [](bool has_fault, Numbers&) { cuda::shared_memory<float>(0, has_fault ? 2049 : 2048, kHere); }},
    {"a store past the last row", "outside of global memory at here:1, thread 96",
     [](bool has_fault, Numbers& numbers) {
       if (cuda::block_index().x > 0) return;
       const int row = cuda::warp_index() + (has_fault ? 1 : 0);
       cuda::store_global(quarter(numbers.output, row) + cuda::lane_index(), 1, kHere);
     }},
    {"a load past the last row", "outside of global memory at here:1, thread 31",
     [](bool has_fault, Numbers& numbers) {
       cuda::load_global(numbers.input + cuda::thread_index() + (has_fault ? 97 : 0), kHere);
     }},
    {"a copy past the last row", "outside of global memory at here:1, thread 31",
     [](bool has_fault, Numbers& numbers) {
       if (cuda::warp_index() > 0) return;
       const int from = 4 * cuda::lane_index() + 4;
       cuda::copy_async_16(tile().sub(from - 4, 4), numbers.input + from, has_fault || from < 128, kHere);
       cuda::copy_async_commit();
       cuda::copy_async_wait<0>();
     }},
    {"a store to an input", "store to an input at here:1, thread 0",
     [](bool has_fault, Numbers& numbers) {
       if (cuda::block_index().x > 0) return;
       cuda::store_global((has_fault ? numbers.input : numbers.output) + cuda::thread_index(), 1, kHere);
     }},
    {"a copy from an address that is no multiple of 16", "misaligned at here:1, thread 0",
     [](bool has_fault, Numbers& numbers) {
       if (cuda::warp_index() > 0) return;
       cuda::copy_async_16(tile().sub(4 * cuda::lane_index(), 4), numbers.input + (has_fault ? 2 : 4), true, kHere);
       cuda::copy_async_commit();
       cuda::copy_async_wait<0>();
     }},
    {"a load of 16 bytes from an address that is no multiple of 16", "misaligned at here:1, thread 0",
     [](bool has_fault, Numbers& numbers) {
       cuda::load_global(reinterpret_cast<const cuda::Words4*>(numbers.input + (has_fault ? 1 : 4)), kHere);
     }},
    {"a row of load_matrix_x4 that is not aligned", "misaligned at here:1, thread 0",
     [](bool has_fault, Numbers&) {
       rows().as<cuda::Words4>().store(cuda::thread_index(), {});
       cuda::warp_barrier();
       std::uint32_t registers[4];
       cuda::load_matrix_x4(registers, rows().sub(8 * cuda::thread_index() + (has_fault ? 4 : 0), 8), kHere);
     }},
    {"rows of 128 bytes without a swizzle", "bank conflict at here:1, thread 0",
     [](bool has_fault, Numbers&) {
       for (int i = cuda::thread_index(); i < 512; i += 128) rows().as<cuda::Words4>().store(i, {});
       cuda::barrier();
       const int row = cuda::lane_index(), chunk = has_fault ? 0 : row % 8;
       std::uint32_t registers[4];
       cuda::load_matrix_x4(registers, rows().sub(64 * row + 8 * chunk, 8), kHere);
     }},

    // ---- Divergence
    {"a barrier in a branch of some lanes", "diverged barrier at here:1, thread 0",
     [](bool has_fault, Numbers&) {
       if (!has_fault || cuda::lane_index() < 16) cuda::barrier(kHere);
     }},
    {"a barrier in a branch of some warps", "deadlock at here:1, thread 0",
     [](bool has_fault, Numbers&) {
       if (!has_fault || cuda::warp_index() < 2) cuda::barrier(kHere);
     }},
    {"two barriers in two branches", "diverged barrier at here:1, thread 63",
     [](bool has_fault, Numbers&) { cuda::barrier(has_fault && cuda::warp_index() == 1 ? kHere : kThere); }},
    {"a lane that returns before a barrier", "diverged barrier at here:1, thread 32",
     [](bool has_fault, Numbers&) {
       if (has_fault && cuda::thread_index() == 40) return;
       cuda::barrier(kHere);
     }},
    {"a warp that takes one round more", "deadlock at here:1, thread 0",
     [](bool has_fault, Numbers&) {
       const int rounds = has_fault && cuda::warp_index() == 0 ? 3 : 2;
       for (int round = 0; round < rounds; ++round) cuda::barrier(kHere);
     }},
    {"a shuffle in a branch", "diverged collective at here:1, thread 0",
     [](bool has_fault, Numbers&) {
       if (!has_fault || cuda::lane_index() < 16) cuda::shuffle_xor(1.0f, 1, kHere);
     }},
    {"two shuffles in two branches", "diverged collective at here:1, thread 16",
     [](bool has_fault, Numbers&) {
       cuda::shuffle_xor(1.0f, 1, has_fault && cuda::lane_index() >= 16 ? kHere : kThere);
     }},
    {"multiply_add_16x8x16 in a branch", "diverged collective at here:1, thread 0",
     [](bool has_fault, Numbers&) {
       float c[4] = {};
       if (!has_fault || cuda::lane_index() % 4 == 0)
         cuda::multiply_add_16x8x16<NumberType::kBFloat16>(c, {0, 0, 0, 0}, {0, 0}, kHere);
     }},
    {"load_matrix_x4 in some lanes, load_matrix_x4_transposed in others", "diverged collective at here:1, thread 16",
     [](bool has_fault, Numbers&) {
       const Shared<std::uint16_t> row = rows().sub(8 * cuda::thread_index(), 8);
       row.as<cuda::Words4>().store(0, {});
       cuda::warp_barrier();
       std::uint32_t registers[4];
       if (has_fault && cuda::lane_index() >= 16)
         cuda::load_matrix_x4_transposed(registers, row, kHere);
       else
         cuda::load_matrix_x4(registers, row, kHere);
     }},
    {"a warp_barrier in a branch, a barrier in the other", "diverged barrier at here:1, thread 20",
     [](bool has_fault, Numbers&) {
       if (has_fault && cuda::lane_index() < 20)
         cuda::warp_barrier(kThere);
       else
         cuda::barrier(kHere);
     }},
    {"a lane that skips a round", "diverged collective at here:1, thread 0",
     [](bool has_fault, Numbers&) {
       for (int round = 0; round < 4; ++round)
         if (!has_fault || round != 1 || cuda::lane_index() != 5) cuda::shuffle_xor(1.0f, 1, kHere);
     }},
    {"any_in_warp after a break", "diverged collective at here:1, thread 1",
     [](bool has_fault, Numbers&) {
       for (int round = 0; round < 4; ++round) {
         if (has_fault && round == cuda::lane_index()) break;
         cuda::any_in_warp(true, kHere);
       }
     }},
};

CudaReport run(const PlantedFault& planted, bool has_fault, std::uint64_t seed) {
  Numbers numbers;
  GlobalMemory memory;
  for (int row = 0; row < 4; ++row) {
    memory.add_input(quarter(numbers.input, row), 128, "input");
    memory.add_output(quarter(numbers.output, row), 128, "output");
  }
  return run_on_host({.grid = {2, 1, 1}, .threads = 128, .shared_bytes = 8192, .seed = seed}, memory,
                     [&] { planted.kernel(has_fault, numbers); });
}

// Whether a line of the report begins so and contains the rest.
bool has_line(const std::string& report, const std::string& begin, const std::string& rest) {
  std::istringstream lines(report);
  for (std::string line; std::getline(lines, line);)
    if (line.rfind(begin, 0) == 0 && line.find(rest) != std::string::npos) return true;
  return false;
}

TEST_CASE("planted faults: each is found, and named by kind, place and thread") {
  for (const PlantedFault& planted : kPlantedFaults) {
    CAPTURE(planted.name);
    const std::string report = run(planted, /*has_fault=*/true, /*seed=*/0).text();
    CAPTURE(report);
    CHECK(has_line(report, planted.expected, ""));
  }
}

TEST_CASE("planted faults: each is found in every order of lanes, warps and blocks") {
  for (const PlantedFault& planted : kPlantedFaults)
    for (std::uint64_t seed = 1; seed <= 10; ++seed) {
      CAPTURE(planted.name);
      CAPTURE(seed);
      const std::string report = run(planted, /*has_fault=*/true, seed).text();
      CAPTURE(report);
      const std::string kind = planted.expected.substr(0, planted.expected.find(" at "));
      CHECK(has_line(report, kind, "here:1"));  // of a race either side may be the second
    }
}

TEST_CASE("planted faults: without the fault nothing is reported, in any order") {
  for (const PlantedFault& planted : kPlantedFaults)
    for (std::uint64_t seed = 0; seed <= 10; ++seed) {
      CAPTURE(planted.name);
      CAPTURE(seed);
      CHECK(run(planted, /*has_fault=*/false, seed).text() == "");
    }
}

}  // namespace
}  // namespace attend::test
