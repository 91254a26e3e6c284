// SPDX-License-Identifier: MIT
#pragma once

#include "support/cuda_global_memory.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace attend::test {

/// Copies of a kernel's global memory on a device.
///
/// Ranges of the same name are one allocation, which ends where the last of them ends. Their addresses have the same
/// remainders by kAlignment as on the host, because the kernel that is chosen depends on them. So each tensor must have
/// a name of its own.
///
/// `Device` has static functions allocate(bytes), copy(to, from, bytes) and free(memory).
template <class Device>
class MovedMemory {
 public:
  /// @throws std::invalid_argument if the ranges of two names overlap.
  explicit MovedMemory(const GlobalMemory& memory) {
    std::map<std::string, Copy> by_name;
    for (const GlobalMemory::Range& range : memory.ranges()) {
      if (range.begin == range.end) continue;
      Copy& copy = by_name.try_emplace(range.name, Copy{range.begin, range.end}).first->second;
      copy.begin = std::min(copy.begin, range.begin);
      copy.end = std::max(copy.end, range.end);
      copy.can_write = copy.can_write || range.can_write;
    }
    for (const auto& [name, copy] : by_name)
      for (const auto& [other, its] : by_name)
        if (name < other && copy.begin < its.end && its.begin < copy.end)
          throw std::invalid_argument("MovedMemory: the ranges of " + name + " and " + other + " overlap");
    for (auto& [name, copy] : by_name) {
      copy.allocated = Device::allocate(copy.offset() + copy.bytes());
      copies_.push_back(copy);
      Device::copy(copy.there(), copy.here(), copy.bytes());
    }
  }
  MovedMemory(const MovedMemory&) = delete;
  MovedMemory& operator=(const MovedMemory&) = delete;
  ~MovedMemory() {
    for (const Copy& copy : copies_) Device::free(copy.allocated);
  }

  /// The arguments of a kernel, with pointers to the copies. All 8 bytes that hold the address of a copied byte count
  /// as a pointer: no size, stride or float has such a value.
  template <class Arguments>
  Arguments moved(const Arguments& arguments) const {
    static_assert(std::is_trivially_copyable_v<Arguments>);
    Arguments result = arguments;
    for (std::size_t at = 0; at + sizeof(std::uintptr_t) <= sizeof result; at += sizeof(std::uintptr_t)) {
      char* const place = reinterpret_cast<char*>(&result) + at;
      std::uintptr_t address = 0;
      std::memcpy(&address, place, sizeof address);
      for (const Copy& copy : copies_) {
        if (address < copy.begin || address >= copy.end) continue;
        address += reinterpret_cast<std::uintptr_t>(copy.there()) - copy.begin;
        std::memcpy(place, &address, sizeof address);
        break;
      }
    }
    return result;
  }

  /// Copies what the kernel may write to the host.
  void copy_back() const {
    for (const Copy& copy : copies_)
      if (copy.can_write) Device::copy(copy.here(), copy.there(), copy.bytes());
  }

 private:
  static constexpr std::size_t kAlignment = 256;  // of each allocation on a GPU

  struct Copy {
    std::uintptr_t begin, end;
    bool can_write = false;
    void* allocated = nullptr;

    std::size_t bytes() const { return end - begin; }
    std::size_t offset() const { return begin % kAlignment; }
    void* here() const { return reinterpret_cast<void*>(begin); }
    void* there() const { return static_cast<char*>(allocated) + offset(); }
  };

  std::vector<Copy> copies_;
};

}  // namespace attend::test
