// SPDX-License-Identifier: MIT

// Arithmetic for ptx_test.py, which runs it on the host, and as PTX in the interpreter, and compares the results.

#include <attend/macros.h>

#include <cmath>
#include <cstdint>

namespace {

struct Numbers {
  std::int32_t i, j;
  std::uint64_t u, v;
  float x, y;
  double d;
};

/// Results that must be equal, and results that may differ by rounding.
struct Results {
  std::uint64_t exact[12];
  double close[10];
};

ATTEND_HOST_DEVICE Results arithmetic(const Numbers& n) {
  Results r{};
  const auto i = static_cast<std::uint32_t>(n.i), j = static_cast<std::uint32_t>(n.j);
  r.exact[0] = static_cast<std::uint32_t>(n.i / (n.j == 0 ? 7 : n.j));
  r.exact[1] = static_cast<std::uint32_t>(n.i % 13) + (static_cast<std::uint64_t>(i % 10) << 32);
  r.exact[2] = (n.u * n.v) ^ (n.u / (n.v | 1));
  r.exact[3] = static_cast<std::uint64_t>(i) * j + (n.u >> (i % 64)) + (n.v << (j % 64));
  r.exact[4] = static_cast<std::uint64_t>(static_cast<std::int64_t>(n.i) * n.j);
  r.exact[5] = static_cast<std::uint64_t>(static_cast<std::int64_t>(n.u) >> (i % 64));
  r.exact[6] = ((i & j) | (~i & 0x0F0F0F0Fu)) ^ ((i << 7) | (i >> 25));
  r.exact[7] = (n.x < n.y ? 1 : 0) + (n.x >= n.y ? 2 : 0) + (n.x != n.x ? 4 : 0) + (!(n.x > n.y) ? 8 : 0) +
               (n.i < n.j && n.x < 1 ? 16 : 0) + (i < j || n.d > 0 ? 32 : 0);
  r.exact[8] = static_cast<std::uint64_t>(static_cast<std::int16_t>(n.i)) + static_cast<std::int8_t>(n.j);
  r.exact[9] = static_cast<std::uint32_t>(static_cast<int>(std::isfinite(n.x) ? std::fmod(n.x, 1000.0f) : 0));
  std::uint32_t steps = 0;
  for (std::uint32_t k = i % 97; k != 1 && steps < 200; ++steps) k = k % 2 == 0 ? k / 2 : 3 * k + 1;  // lanes part
  r.exact[10] = steps;
  switch (i % 6) {
    case 0:
      r.exact[11] = j * 3;
      break;
    case 1:
      r.exact[11] = j ^ i;
      break;
    case 2:
      r.exact[11] = j + i;
      break;
    case 3:
      r.exact[11] = j / 3;
      break;
    case 4:
      r.exact[11] = steps * j;
      break;
    default:
      r.exact[11] = 5;
  }
  const float x = n.x;
  const float y = n.y;
  r.close[0] = x / y + std::fmin(x, y) - std::fmax(x, y);
  r.close[1] = std::exp(x * 0.1f);
  r.close[2] = std::log(std::fabs(x) + 1);
  r.close[3] = std::tanh(x);
  r.close[4] = std::exp(n.d);
  r.close[5] = std::sqrt(std::fabs(n.d)) / (n.d * n.d + 1) + std::tanh(n.d);
  r.close[6] = std::log(n.d * n.d + 1e-3);
  r.close[7] = static_cast<double>(n.i) * 0.5 + static_cast<float>(n.u % 1000);
  r.close[8] = std::rint(x) + std::floor(y) + std::fabs(x) * std::copysign(1.0f, y);
  r.close[9] = std::pow(std::fabs(y), 0.25f);
  return r;
}

}  // namespace

#if defined(__CUDACC__)
extern "C" __global__ void arithmetic_kernel(const Numbers* numbers, Results* results, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) results[i] = arithmetic(numbers[i]);
}
#else
extern "C" void arithmetic_on_host(const Numbers* numbers, Results* results, int count) {
  for (int i = 0; i < count; ++i) results[i] = arithmetic(numbers[i]);
}
#endif
