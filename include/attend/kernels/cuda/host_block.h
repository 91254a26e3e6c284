// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/version.h>

#include <cstdint>
#include <stdexcept>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

/// A line of the source code, which a report names.
struct Place {
  const char* file;  ///< as the compiler was given it
  int line;          ///< from 1
};

/// The line of the call. As a default argument it is the line of the call of that function.
ATTEND_HOST_DEVICE constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return {file, line};
}

/// The place of a block in its grid.
struct BlockIndex {
  int x, y, z;
};

/// How many threads a warp has.
inline constexpr int kWarpSize = 32;

/// What a memory access does.
enum class Access { kRead, kWrite };

/// How the lanes of a warp exchange numbers.
enum class Exchange {
  kXor,   ///< with the lane whose index differs in these bits
  kFrom,  ///< from the lane with this index
};

/// A block whose threads run on the host, seen by the thread that runs now.
///
/// Device code that is compiled for the host calls it: each function of instructions.cuh and shared.cuh has a device
/// branch and a host branch, and the host branch calls a function of this class. The tests of the kernels implement it.
class HostBlock {
 public:
  virtual ~HostBlock() = default;

  virtual int thread_index() = 0;
  virtual BlockIndex block_index() = 0;

  virtual void barrier(Place place) = 0;
  virtual void warp_barrier(Place place) = 0;
  virtual std::uint32_t exchange(Exchange exchange, std::uint32_t value, int lane, Place place) = 0;
  /// True if the condition holds in a lane of the warp.
  virtual bool any(bool condition, Place place) = 0;

  /// ldmatrix: four matrices of 8 × 8 numbers of 16 bits. `row` is the row of 16 bytes that this lane points to.
  virtual void load_matrix_x4(std::uint32_t* registers, const void* row, bool is_transposed, Place place) = 0;
  /// mma: c += a b. m16n8k16 for float16 and bfloat16; m16n8k8 with tf32 for kFloat32.
  virtual void multiply_add(NumberType type, float* c, const std::uint32_t* a, const std::uint32_t* b, Place place) = 0;

  /// cp.async of 16 bytes, of zeros if `is_valid` is false.
  virtual void copy_async_16(void* to, const void* from, bool is_valid, Place place) = 0;
  virtual void copy_async_commit(Place place) = 0;
  virtual void copy_async_wait(int pending, Place place) = 0;

  /// `bytes` bytes of the block's shared memory, from byte `offset` on.
  virtual void* shared_memory(std::int64_t offset, std::int64_t bytes, Place place) = 0;
  /// Throws: entries `first` to `first + count - 1` were asked of a view of shared memory with `size` entries.
  [[noreturn]] virtual void outside_view(std::int64_t first, std::int64_t count, std::int64_t size, Place place) = 0;
  /// Must be called before each access.
  virtual void access_shared(const void* address, int bytes, Access access, Place place) = 0;
  /// Must be called before each access.
  virtual void access_global(const void* address, int bytes, Access access, Place place) = 0;
};

/// The block whose thread runs now on this thread of the host, or null.
inline thread_local HostBlock* host_block = nullptr;

namespace detail {

/// The block that runs now.
///
/// @throws std::logic_error if there is none.
inline HostBlock& running_block() {
  if (host_block == nullptr) throw std::logic_error("attend: device code was called on the host");
  return *host_block;
}

}  // namespace detail
}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
