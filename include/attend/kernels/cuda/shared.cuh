// SPDX-License-Identifier: MIT
#pragma once

#include <attend/kernels/cuda/host_block.h>
#include <attend/macros.h>
#include <attend/version.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda {

/// 8 bytes that are loaded and stored at once.
struct alignas(8) Words2 {
  std::uint32_t words[2];
};

/// 16 bytes that are loaded and stored at once.
struct alignas(16) Words4 {
  std::uint32_t words[4];
};

namespace detail {

#if defined(__CUDA_ARCH__)
// 8 and 16 bytes go through CUDA's own vectors, which are one instruction for sure.
template <class T>
__device__ std::remove_const_t<T> load_memory(T* from) {
  if constexpr (sizeof(T) == 16)
    return __builtin_bit_cast(std::remove_const_t<T>, *reinterpret_cast<const uint4*>(from));
  else if constexpr (sizeof(T) == 8)
    return __builtin_bit_cast(std::remove_const_t<T>, *reinterpret_cast<const uint2*>(from));
  else
    return *from;
}

template <class T>
__device__ void store_memory(T* to, T value) {
  if constexpr (sizeof(T) == 16)
    *reinterpret_cast<uint4*>(to) = __builtin_bit_cast(uint4, value);
  else if constexpr (sizeof(T) == 8)
    *reinterpret_cast<uint2*>(to) = __builtin_bit_cast(uint2, value);
  else
    *to = value;
}
#endif

}  // namespace detail

/// A part of the shared memory of a block: `size()` entries of type T.
///
/// A view knows its size, so that the host finds each access outside of it. Give each tile a view of its own. T has 2,
/// 4, 8 or 16 bytes. A view of T converts to a view of const T.
template <class T>
class Shared {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Shared() = default;
  /// `size` entries from `data` on. Kernels call shared_memory().
  ATTEND_HOST_DEVICE Shared(T* data, int size) : data_(data), size_(size) {}
  /// The same view, to be read.
  template <class Written, class = std::enable_if_t<std::is_same_v<const Written, T>>>
  ATTEND_HOST_DEVICE Shared(Shared<Written> view) : data_(view.data()), size_(view.size()) {}

  /// How many entries there are.
  ATTEND_HOST_DEVICE int size() const { return size_; }
  /// The first entry.
  ATTEND_HOST_DEVICE T* data() const { return data_; }

  /// The `count` entries from `first` on.
  ATTEND_HOST_DEVICE Shared sub(int first, int count, [[maybe_unused]] Place place = here()) const {
    check(first, count, place);
    return {data_ + first, count};
  }

  /// The same memory as entries of type U.
  template <class U>
  ATTEND_HOST_DEVICE Shared<U> as() const {
    return {reinterpret_cast<U*>(data_), size_ * static_cast<int>(sizeof(T)) / static_cast<int>(sizeof(U))};
  }

  /// Entry i.
  ATTEND_HOST_DEVICE std::remove_const_t<T> load(int i, [[maybe_unused]] Place place = here()) const {
    check(i, 1, place);
#if defined(__CUDA_ARCH__)
    return detail::load_memory(data_ + i);
#else
    detail::running_block().access_shared(data_ + i, sizeof(T), Access::kRead, place);
    std::remove_const_t<T> value;
    std::memcpy(&value, data_ + i, sizeof value);
    return value;
#endif
  }

  /// Sets entry i.
  ATTEND_HOST_DEVICE void store(int i, T value, [[maybe_unused]] Place place = here()) const {
    check(i, 1, place);
#if defined(__CUDA_ARCH__)
    detail::store_memory(data_ + i, value);
#else
    detail::running_block().access_shared(data_ + i, sizeof(T), Access::kWrite, place);
    std::memcpy(data_ + i, &value, sizeof value);
#endif
  }

 private:
  ATTEND_HOST_DEVICE void check([[maybe_unused]] int first, [[maybe_unused]] int count,
                                [[maybe_unused]] Place place) const {
#if !defined(__CUDA_ARCH__)
    if (first < 0 || count < 0 || first + count > size_)
      detail::running_block().outside_view(first, count, size_, place);
#endif
  }

  T* data_;
  int size_;
};

/// The number at `from` in global memory: 1, 2, 4, 8 or 16 bytes, aligned to their size.
template <class T>
ATTEND_HOST_DEVICE T load_global(const T* from, [[maybe_unused]] Place place = here()) {
#if defined(__CUDA_ARCH__)
  return detail::load_memory(from);
#else
  detail::running_block().access_global(from, sizeof(T), Access::kRead, place);
  T value;
  std::memcpy(&value, static_cast<const void*>(from), sizeof value);
  return value;
#endif
}

/// Sets the number at `to` in global memory: 1, 2, 4, 8 or 16 bytes, aligned to their size.
template <class T>
ATTEND_HOST_DEVICE void store_global(T* to, std::type_identity_t<T> value, [[maybe_unused]] Place place = here()) {
#if defined(__CUDA_ARCH__)
  detail::store_memory(to, value);
#else
  detail::running_block().access_global(to, sizeof(T), Access::kWrite, place);
  std::memcpy(static_cast<void*>(to), &value, sizeof value);
#endif
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda
