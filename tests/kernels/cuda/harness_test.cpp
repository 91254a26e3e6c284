// SPDX-License-Identifier: MIT

// The harness that runs the blocks of a CUDA kernel on the host: what its threads compute. planted_faults_test.cpp
// tests what it reports.

#include <doctest/doctest.h>

#include "support/cuda_block.h"

#include <attend/kernels/cuda/instructions.cuh>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace attend::test {
namespace {

using cuda::Shared;
using Numbers = std::vector<std::uint16_t>;

// ---- A kernel with all parts of the real ones: c (64, 64) = a (64, 64) · b (64, 64), `count` pairs of them ----------

// The places of the 8 chunks of a row of 64 numbers are mixed, so that 8 rows of one chunk lie in different banks.
int place(int row, int chunk) { return 64 * row + 8 * (chunk ^ row % 8); }

void start_copies(const Shared<std::uint16_t>& to, const std::uint16_t* from) {
  for (int i = cuda::thread_index(); i < 512; i += 128)
    cuda::copy_async_16(to.sub(place(i / 8, i % 8), 8), from + 8 * i);
}

template <NumberType kType>
void product_block(const std::uint16_t* a, const std::uint16_t* b, float* c, int count) {
  const int lane = cuda::lane_index(), warp = cuda::warp_index(), block = cuda::block_index().x;
  a += 4096 * count * block;
  b += 4096 * count * block;
  float sum[8][4] = {};
  const auto tile = [](int index) { return cuda::shared_memory<std::uint16_t>(8192 * index, 4096); };
  const auto start = [&](int i) {
    start_copies(tile(i % 2), a + 4096 * i);
    start_copies(tile(2 + i % 2), b + 4096 * i);
  };
  start(0);
  cuda::copy_async_commit();
  for (int i = 0; i < count; ++i) {
    if (i + 1 < count) start(i + 1);
    cuda::copy_async_commit();
    cuda::copy_async_wait<1>();
    cuda::barrier();
    for (int k = 0; k < 4; ++k) {
      std::uint32_t left[4];
      cuda::load_matrix_x4(left, tile(i % 2).sub(place(16 * warp + lane % 16, 2 * k + lane / 16), 8));
      for (int n = 0; n < 4; ++n) {
        std::uint32_t right[4];
        cuda::load_matrix_x4_transposed(right, tile(2 + i % 2).sub(place(16 * k + lane % 16, 2 * n + lane / 16), 8));
        cuda::multiply_add_16x8x16<kType>(sum[2 * n], left, {right[0], right[1]});
        cuda::multiply_add_16x8x16<kType>(sum[2 * n + 1], left, {right[2], right[3]});
      }
    }
    cuda::barrier();
  }
  for (int n = 0; n < 8; ++n)
    for (int i = 0; i < 4; ++i) {
      const int row = 16 * warp + lane / 4 + i / 2 * 8, column = 8 * n + lane % 4 * 2 + i % 2;
      cuda::store_global(c + 4096 * block + 64 * row + column, sum[n][i]);
    }
}

template <NumberType kType>
std::vector<float> product(const Numbers& a, const Numbers& b, int blocks, int count, std::uint64_t seed) {
  std::vector<float> c(static_cast<std::size_t>(4096 * blocks), std::numeric_limits<float>::quiet_NaN());
  GlobalMemory memory;
  memory.add_input(a.data(), static_cast<std::int64_t>(2 * a.size()), "a");
  memory.add_input(b.data(), static_cast<std::int64_t>(2 * b.size()), "b");
  memory.add_output(c.data(), static_cast<std::int64_t>(4 * c.size()), "c");
  const CudaReport report = run_on_host({.grid = {blocks, 1, 1}, .threads = 128, .shared_bytes = 32768, .seed = seed},
                                        memory, [&] { product_block<kType>(a.data(), b.data(), c.data(), count); });
  CHECK(report.text() == "");
  CHECK(report.multiply_adds == blocks * count * 128);
  CHECK(report.matrix_loads == blocks * count * 80);
  CHECK(report.wavefronts == 4 * report.matrix_loads);
  return c;
}

template <NumberType kType>
void check_product() {
  const int blocks = 2, count = 3;
  std::mt19937 generator(1);
  std::uniform_int_distribution<int> integer(-8, 8);
  Numbers a(static_cast<std::size_t>(4096 * blocks * count)), b(a.size());
  for (Numbers* numbers : {&a, &b})
    for (std::uint16_t& number : *numbers) number = cuda::round_number<kType>(static_cast<float>(integer(generator)));
  std::vector<float> expected(static_cast<std::size_t>(4096 * blocks));
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const std::size_t block = i / 4096, row = i % 4096 / 64, column = i % 64;
    for (std::size_t pair = 0; pair < count; ++pair)
      for (std::size_t k = 0; k < 64; ++k) {
        const std::size_t tile = 4096 * (count * block + pair);
        expected[i] += cuda::float_of<kType>(a[tile + 64 * row + k]) * cuda::float_of<kType>(b[tile + 64 * k + column]);
      }
  }
  for (const std::uint64_t seed : {0, 1, 2, 3}) {
    CAPTURE(seed);
    CHECK(product<kType>(a, b, blocks, count, seed) == expected);
  }
}

TEST_CASE("run_on_host: a product on tensor cores in every order of lanes, warps and blocks") {
  check_product<NumberType::kBFloat16>();
  check_product<NumberType::kFloat16>();
}

// ---- Threads --------------------------------------------------------------------------------------------------------

CudaReport run(int threads, const std::function<void()>& body, std::uint64_t seed = 0) {
  GlobalMemory memory;
  return run_on_host({.threads = threads, .shared_bytes = 4096, .seed = seed}, memory, body);
}

TEST_CASE("run_on_host: each thread of each block runs once") {
  for (const std::uint64_t seed : {0, 1, 2}) {
    std::vector<int> runs(2 * 3 * 4 * 64);
    GlobalMemory memory;
    const CudaReport report = run_on_host({.grid = {2, 3, 4}, .threads = 64, .seed = seed}, memory, [&] {
      const cuda::BlockIndex block = cuda::block_index();
      CHECK(cuda::thread_index() == 32 * cuda::warp_index() + cuda::lane_index());
      ++runs[static_cast<std::size_t>(((block.z * 3 + block.y) * 2 + block.x) * 64 + cuda::thread_index())];
    });
    CHECK(report.text() == "");
    CHECK(runs == std::vector<int>(runs.size(), 1));
  }
}

TEST_CASE("run_on_host: seeds give different orders, and each the same order again") {
  const auto order = [](std::uint64_t seed) {
    std::vector<int> threads;
    run(
        128,
        [&] {
          cuda::barrier();
          threads.push_back(cuda::thread_index());
          cuda::warp_barrier();
        },
        seed);
    return threads;
  };
  std::vector<int> by_index;
  for (int i = 0; i < 128; ++i) by_index.push_back(i);
  CHECK(order(0) == by_index);
  CHECK(order(1) != by_index);
  CHECK(order(1) != order(2));
  CHECK(order(1) == order(1));
}

TEST_CASE("run_on_host: number of threads") {
  for (const int threads : {0, 31, 1056}) CHECK_THROWS_AS(run(threads, [] {}), std::invalid_argument);
  int runs = 0;
  run(1024, [&] {
    cuda::barrier();
    ++runs;
  });
  CHECK(runs == 1024);
}

TEST_CASE("run_on_host: an exception of the kernel is thrown on, and all stacks are unwound") {
  const auto held = std::make_shared<int>(0);
  const auto kernel = [&](bool throws) {
    const std::shared_ptr<int> local = held;
    cuda::barrier();
    if (throws && cuda::thread_index() == 77) throw std::runtime_error("from thread 77");
    cuda::barrier();
  };
  CHECK_THROWS_WITH_AS(run(128, [&] { kernel(true); }), "from thread 77", std::runtime_error);
  CHECK(held.use_count() == 1);
  CHECK(run(128, [&] { kernel(false); }).text() == "");
  CHECK(held.use_count() == 1);
}

TEST_CASE("run_on_host: a fault after which a block cannot go on stops it, and the stacks are unwound") {
  const auto held = std::make_shared<int>(0);
  int runs = 0;
  GlobalMemory memory;
  const CudaReport report = run_on_host({.grid = {5, 1, 1}, .threads = 64}, memory, [&] {
    const std::shared_ptr<int> local = held;
    cuda::barrier();
    if (cuda::thread_index() == 3) cuda::load_global(held.get());
    ++runs;
  });
  CHECK(report.faults.size() == 1);
  CHECK(held.use_count() == 1);
  CHECK(runs == 3);
}

TEST_CASE("run_on_host: a report names the line of the call") {
  const int line = __LINE__ + 1;
  const std::string report = run(32, [] { cuda::shared_memory<float>(0, 8).load(cuda::lane_index()); }).text();
  const std::string place = "harness_test.cpp:" + std::to_string(line);
  CHECK(report == "read of an unwritten word at " + place + ", thread 0 of block (0, 0, 0): byte 0 [8 times]\n" +
                      "outside of a view at " + place + ", thread 8 of block (0, 0, 0): entries [8, 9) of 8\n");
}

TEST_CASE("device code outside of run_on_host: an error") {
  CHECK_THROWS_WITH_AS(cuda::thread_index(), "attend: device code was called on the host", std::logic_error);
  CHECK_THROWS_AS(cuda::barrier(), std::logic_error);
}

// ---- Instructions ---------------------------------------------------------------------------------------------------

TEST_CASE("shuffle, shuffle_xor, any_in_warp") {
  for (const std::uint64_t seed : {0, 1}) {
    const CudaReport report = run(
        64,
        [] {
          const int thread = cuda::thread_index(), lane = cuda::lane_index();
          CHECK(cuda::shuffle_xor(thread, 5) == (thread ^ 5));
          CHECK(cuda::shuffle_xor(static_cast<float>(thread), 16) == static_cast<float>(thread ^ 16));
          CHECK(cuda::shuffle_xor(1e-300 * thread, 1) == 1e-300 * (thread ^ 1));
          CHECK(cuda::shuffle(thread, 7) == thread - lane + 7);
          CHECK(cuda::shuffle(-1 - (std::int64_t{thread} << 40), (lane + 1) % 32) ==
                -1 - (std::int64_t{thread - lane + (lane + 1) % 32} << 40));
          CHECK(cuda::any_in_warp(thread == 40) == (thread >= 32));
        },
        seed);
    CHECK(report.text() == "");
  }
}

TEST_CASE("copy_async_16: what a wait waits for") {
  std::vector<cuda::Words4> from(3, cuda::Words4{{1, 2, 3, 4}});
  GlobalMemory memory;
  memory.add_input(from.data(), 48, "from");
  const CudaReport report = run_on_host({.threads = 32, .shared_bytes = 96}, memory, [&] {
    if (cuda::thread_index() != 0) return;
    const Shared<cuda::Words4> to = cuda::shared_memory<cuda::Words4>(0, 6);
    cuda::copy_async_16(to.sub(0, 1), from.data());
    cuda::copy_async_commit();
    cuda::copy_async_16(to.sub(1, 1), from.data() + 100, /*is_valid=*/false);
    cuda::copy_async_commit();
    cuda::copy_async_wait<1>();
    CHECK(to.load(0).words[3] == 4);
    CHECK(to.data()[1].words[0] == 0xFFFFFFFF);  // NaN until it arrives
    cuda::copy_async_wait<1>();
    CHECK(to.data()[1].words[0] == 0xFFFFFFFF);
    cuda::copy_async_commit();  // an empty group
    cuda::copy_async_wait<1>();
    CHECK(to.load(1).words[0] == 0);
  });
  CHECK(report.text() == "");
}

TEST_CASE("Shared: two threads store the halves of a word") {
  const CudaReport report = run(64, [] {
    const Shared<std::uint16_t> halves = cuda::shared_memory<std::uint16_t>(0, 64);
    halves.store(cuda::thread_index(), static_cast<std::uint16_t>(cuda::thread_index()));
    cuda::barrier();
    const std::uint32_t word = halves.as<const std::uint32_t>().load(cuda::lane_index());
    CHECK(word == (static_cast<std::uint32_t>(2 * cuda::lane_index() + 1) << 16 |
                   static_cast<std::uint32_t>(2 * cuda::lane_index())));
  });
  CHECK(report.text() == "");
}

TEST_CASE("load_global and store_global: 1 to 16 bytes") {
  std::vector<cuda::Words4> numbers(32, cuda::Words4{{0x04030201, 0, 0, 7}});
  GlobalMemory memory;
  memory.add_output(numbers.data(), 32 * 16, "numbers");
  const CudaReport report = run_on_host({.threads = 32}, memory, [&] {
    cuda::Words4* const own = numbers.data() + cuda::thread_index();
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(own);
    CHECK(cuda::load_global(bytes + 1) == 2);
    CHECK(cuda::load_global(reinterpret_cast<const std::uint16_t*>(own) + 1) == 0x0403);
    CHECK(cuda::load_global(own).words[3] == 7);
    cuda::store_global(reinterpret_cast<double*>(own) + 1, 0.5);
    cuda::store_global(reinterpret_cast<std::uint8_t*>(own), 9);
    CHECK(cuda::load_global(reinterpret_cast<const double*>(own) + 1) == 0.5);
    CHECK(cuda::load_global(own).words[0] == 0x04030209);
  });
  CHECK(report.text() == "");
}

TEST_CASE("exp2_fast and log2_fast: subnormal numbers are 0") {
  CHECK(cuda::exp2_fast(3) == 8);
  CHECK(cuda::exp2_fast(-126) == std::numeric_limits<float>::min());
  CHECK(cuda::exp2_fast(-126.5f) == 0);
  CHECK(cuda::exp2_fast(-std::numeric_limits<float>::infinity()) == 0);
  CHECK(cuda::log2_fast(8) == 3);
  CHECK(cuda::log2_fast(std::numeric_limits<float>::denorm_min()) == -std::numeric_limits<float>::infinity());
  CHECK(std::isnan(cuda::log2_fast(-1)));
}

// The number of a type with `fraction` bits of fraction and exponents from `least` on that is nearest to x, by the
// definition.
double nearest(double x, int fraction, int least, double largest) {
  if (x == 0 || std::isnan(x) || std::isinf(x)) return x;
  const double step = std::ldexp(1.0, std::max(std::ilogb(x), least) - fraction);
  const double rounded = std::nearbyint(x / step) * step;  // ties to even
  return std::fabs(rounded) > largest ? std::copysign(std::numeric_limits<double>::infinity(), x) : rounded;
}

TEST_CASE("float_of and round_number: every number of float16 and bfloat16") {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto number = static_cast<std::uint16_t>(bits);
    const float half = cuda::float_of<NumberType::kFloat16>(number);
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const double fraction = static_cast<double>(bits & 1023) / 1024;
    const double magnitude = exponent == 0   ? std::ldexp(fraction, -14)
                             : exponent < 31 ? std::ldexp(1 + fraction, exponent - 15)
                             : fraction == 0 ? std::numeric_limits<double>::infinity()
                                             : std::numeric_limits<double>::quiet_NaN();
    if (std::isnan(magnitude)) {
      wrong += std::isnan(half) && cuda::round_number<NumberType::kFloat16>(half) == 0x7FFF ? 0 : 1;
    } else {
      wrong += half == static_cast<float>(bits < 32768 ? magnitude : -magnitude) ? 0 : 1;
      wrong += cuda::round_number<NumberType::kFloat16>(half) == number ? 0 : 1;
    }
    const float brain = cuda::float_of<NumberType::kBFloat16>(number);
    wrong += std::isnan(brain) || cuda::round_number<NumberType::kBFloat16>(brain) == number ? 0 : 1;
  }
  CHECK(wrong == 0);
}

TEST_CASE("round_number and pack: floats between numbers of float16 and bfloat16, ties to even") {
  std::mt19937 generator(1);
  int wrong = 0;
  for (int i = 0; i < 200000; ++i) {
    std::uint32_t bits = generator();
    if (i % 2 == 0) bits &= 0xFFFFF000;                       // ties of float16 are frequent
    if (i % 3 == 0) bits = (bits & 0x87FFFFFF) | 0x30000000;  // of its magnitude
    const float x = __builtin_bit_cast(float, bits);
    if (std::isnan(x)) continue;
    const double half = nearest(x, 10, -14, 65504), brain = nearest(x, 7, -126, 3.3895313892515355e38);
    wrong += cuda::float_of<NumberType::kFloat16>(cuda::round_number<NumberType::kFloat16>(x)) == half ? 0 : 1;
    wrong += cuda::float_of<NumberType::kBFloat16>(cuda::round_number<NumberType::kBFloat16>(x)) == brain ? 0 : 1;
  }
  CHECK(wrong == 0);
  const std::uint32_t packed = cuda::pack<NumberType::kFloat16>(1, -2);
  CHECK(packed == 0xC0003C00);
  CHECK(cuda::low_of<NumberType::kFloat16>(packed) == 1);
  CHECK(cuda::high_of<NumberType::kFloat16>(packed) == -2);
  CHECK(cuda::pack<NumberType::kBFloat16>(1, -2) == 0xC0003F80);
}

TEST_CASE("round_to_tf32: 10 bits of fraction, ties away from zero") {
  const auto rounded = [](float x) { return __builtin_bit_cast(float, cuda::round_to_tf32(x)); };
  const float step = std::ldexp(1.0f, -10);
  CHECK(rounded(1 + 0.49f * step) == 1);
  CHECK(rounded(1 + 0.5f * step) == 1 + step);
  CHECK(rounded(-1 - 0.5f * step) == -1 - step);
  CHECK(rounded(1 + 1.5f * step) == 1 + 2 * step);
  CHECK(rounded(std::numeric_limits<float>::infinity()) == std::numeric_limits<float>::infinity());
}

}  // namespace
}  // namespace attend::test
