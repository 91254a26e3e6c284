// SPDX-License-Identifier: MIT
#pragma once

#include <attend/io/detail/mapped_file.h>
#include <attend/version.h>

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <memory>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// The context of the storage of a tensor that make_file_view() has made.
struct FileView {
  InputFile file;
  std::uint64_t position;
  std::shared_ptr<char> memory;

  static void destroy(void* view) { delete static_cast<FileView*>(view); }
};

/// A contiguous tensor whose memory is a map of the file from `position` on. It must have elements.
inline at::Tensor make_file_view(const InputFile& file, std::uint64_t position, at::IntArrayRef sizes,
                                 c10::ScalarType dtype) {
  std::size_t size = c10::elementSize(dtype);
  for (const std::int64_t each : sizes) size *= static_cast<std::size_t>(each);
  auto view = std::make_unique<FileView>(FileView{file, position, file.map(position, size)});
  char* const memory = view->memory.get();
  return at::for_blob(memory, sizes).context(view.release(), &FileView::destroy).options(dtype).make_tensor();
}

/// Reads the elements of `source` again from the file into `target`. It does so only if `source` is a make_file_view()
/// or a contiguous part of one, and both tensors are contiguous CPU tensors of the same dtype and sizes. Returns
/// whether it did.
///
/// A read takes less time than a copy from the map, because each new page of a map causes a page fault. The pages of a
/// map also count as memory of the process. Call it only if no user can have written to the elements of `source`.
inline bool read_from_file(const at::Tensor& source, const at::Tensor& target) {
  const bool is_alike = source.has_storage() && source.is_cpu() && target.is_cpu() && source.is_contiguous() &&
                        target.is_contiguous() && source.scalar_type() == target.scalar_type() &&
                        source.sizes() == target.sizes() && !target.is_conj() && !target.is_neg();
  if (!is_alike || source.storage().data_ptr().get_deleter() != &FileView::destroy) return false;
  const auto& view = *static_cast<const FileView*>(source.storage().data_ptr().get_context());
  const auto offset = static_cast<std::uint64_t>(source.storage_offset()) * source.element_size();
  view.file.read(view.position + offset, target.mutable_data_ptr(), target.nbytes());
  target.unsafeGetTensorImpl()->bump_version();
  return true;
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
