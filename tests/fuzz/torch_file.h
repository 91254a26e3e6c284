// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/detail/torch_archive.h>
#include <attend/io/file_error.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <string_view>

/// Reads the saved dict and its entry "model". Aborts unless all tensors lie in their storages, and these in the file.
inline void check_torch_file(std::string_view file) {
  using attend::detail::TorchArchive, attend::detail::TorchEntry;
  for (const std::string_view key : {"", "model"}) {
    try {
      for (const TorchEntry& entry : TorchArchive::read(file, "fuzz", key)) {
        const auto size = static_cast<std::int64_t>(entry.storage.size());
        const std::less_equal<> is_before_or_at;
        if (!is_before_or_at(file.data(), entry.storage.data()) ||
            !is_before_or_at(entry.storage.data() + size, file.data() + file.size()))
          std::abort();
        std::int64_t last = entry.offset;
        bool is_empty = false;
        for (std::size_t d = 0; d < entry.sizes.size(); ++d) {
          is_empty = is_empty || entry.sizes[d] == 0;
          last += entry.sizes[d] == 0 ? 0 : (entry.sizes[d] - 1) * entry.strides[d];
        }
        if (entry.offset < 0 || (!is_empty && last >= size / entry.dtype->size)) std::abort();
      }
    } catch (const attend::FileError&) {
    }
  }
}
