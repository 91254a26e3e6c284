// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/binder.h>
#include <attend/attention/variant.h>
#include <attend/detail/torch/parallel.h>
#include <attend/score/block_mask.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/score/mask_mod.h>
#include <attend/score/mask_operators.h>
#include <attend/score/score_mod.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A mask_mod given as lists of blocks, like the BlockMask of PyTorch's flex_attention.
///
/// A score is allowed if its block is listed as full, or if its block is listed as partial and `mask_mod` allows the
/// score. On the CPU, other blocks are not computed.
///
/// All tensors hold integers. They are copied, so later changes in place have no effect. If N or H is 1, all batch
/// entries or heads share the lists.
///
/// @throws c10::ValueError for other shapes, for indices of blocks that do not exist, and for a block size that is not
/// a multiple of 64.
/// @throws c10::TypeError for tensors that are not integers.
///
/// @code
/// torch::Tensor num_blocks = torch::tensor({1, 2}).view({1, 1, 2});                 // of 2 blocks of queries
/// torch::Tensor indices = torch::tensor({{0, 0}, {0, 1}}).view({1, 1, 2, 2});       // block-causal
/// attend::BlockMask mask(num_blocks, indices, {}, {}, {64, 64});
/// torch::Tensor y = attend::flex_attention(q, k, v, attend::Unchanged{}, mask);     // L = S = 128
/// @endcode
template <class Mask = EveryKey>
class BlockMask : public detail::MaskOperators {
 public:
  /// @param kv_num_blocks The number of partial blocks for each block of queries, (N, H, ⌈L / block⌉).
  /// @param kv_indices The indices of the partial blocks of keys, from 0, (N, H, ⌈L / block⌉, ⌈S / block⌉). Of each
  /// row, only the first kv_num_blocks numbers are used.
  /// @param full_kv_num_blocks The same for full blocks. Default: none.
  /// @param full_kv_indices The same for full blocks. Default: none.
  /// @param block_size The number of queries and of keys in a block, both multiples of 64. Default: 128 each.
  /// @param mask_mod Decides in partial blocks. Default: every key.
  BlockMask(const at::Tensor& kv_num_blocks, const at::Tensor& kv_indices, const at::Tensor& full_kv_num_blocks = {},
            const at::Tensor& full_kv_indices = {}, std::array<std::int64_t, 2> block_size = {128, 128},
            Mask mask_mod = {})
      : block_size_(block_size), mask_mod_(std::move(mask_mod)) {
    check_block_size(block_size);
    check_lists("kv", kv_num_blocks, kv_indices);
    blocks_ = {kv_indices.size(2), kv_indices.size(3)};
    const auto height = block_size[0] / kBlock, width = block_size[1] / kBlock;
    table_ = at::zeros({kv_indices.size(0), kv_indices.size(1), blocks_[0] * height, blocks_[1] * width}, at::kInt);
    mark("kv", kv_num_blocks, kv_indices, MaskCover::kPartial);
    if (full_kv_num_blocks.defined() || full_kv_indices.defined()) {
      check_lists("full_kv", full_kv_num_blocks, full_kv_indices);
      TORCH_CHECK_VALUE(full_kv_indices.sizes() == kv_indices.sizes(),
                        "attend::BlockMask: full_kv_indices must have "
                        "the sizes of kv_indices, ",
                        kv_indices.sizes(), ", got ", full_kv_indices.sizes());
      mark("full_kv", full_kv_num_blocks, full_kv_indices, MaskCover::kFull);
    }
    table_ = table_.to(kv_indices.device());
  }

  /// The MaskCover of each block of 64 queries and 64 keys, as int32 (N, H, rows, columns). The table consists of
  /// whole blocks of block_size, so it may reach beyond L and S.
  const at::Tensor& table() const { return table_; }

  /// Called by attention: checks the tensors against the sizes of the call.
  ///
  /// @param binder Gives the sizes of the call and the views.
  /// @return The struct that is called for each query and key.
  /// @throws c10::ValueError for lists that do not fit the sizes, or are not on the device of query.
  auto bind(Binder& binder) const {
    const AttentionSizes& sizes = binder.sizes();
    const auto fits = [&](int d, std::int64_t size) { return table_.size(d) == 1 || table_.size(d) == size; };
    const auto covers = [&](int d, std::int64_t length) {
      return (length + block_size_[d] - 1) / block_size_[d] == blocks_[d];
    };
    TORCH_CHECK_VALUE(fits(0, sizes.batch_size) && fits(1, sizes.num_heads) && covers(0, sizes.query_length) &&
                          covers(1, sizes.key_length),
                      "attend::BlockMask: ", blocks_[0], " × ", blocks_[1], " blocks of ", block_size_[0], " × ",
                      block_size_[1], " scores, for N ", table_.size(0), " and H ", table_.size(1), ", do not fit N ",
                      sizes.batch_size, ", H ", sizes.num_heads, ", L ", sizes.query_length, ", S ", sizes.key_length);
    const IntegerView table =
        binder.integers(table_.expand({sizes.batch_size, sizes.num_heads, table_.size(2), table_.size(3)}));
    return BlockMaskView<detail::Bound<Mask>>(table, detail::bound(mask_mod_, binder));
  }

  /// A mask with a table in the form of table(). block_mask_of() calls this constructor.
  BlockMask(at::Tensor table, std::array<std::int64_t, 2> blocks, std::array<std::int64_t, 2> block_size, Mask mask_mod)
      : table_(std::move(table)), blocks_(blocks), block_size_(block_size), mask_mod_(std::move(mask_mod)) {}

  /// Throws c10::ValueError unless both sizes are multiples of 64.
  static void check_block_size(const std::array<std::int64_t, 2>& size) {
    TORCH_CHECK_VALUE(size[0] > 0 && size[1] > 0 && size[0] % kBlock == 0 && size[1] % kBlock == 0,
                      "attend::BlockMask: both sizes of a block must be multiples of ", kBlock, ", got ", size[0],
                      " × ", size[1]);
  }

 private:
  static constexpr std::int64_t kBlock = BlockMaskView<>::kBlock;

  static void check_lists(const char* name, const at::Tensor& num_blocks, const at::Tensor& indices) {
    TORCH_CHECK_VALUE(num_blocks.defined() && indices.defined() && num_blocks.dim() == 3 && indices.dim() == 4 &&
                          indices.sizes().slice(0, 3) == num_blocks.sizes(),
                      "attend::BlockMask: ", name, "_num_blocks must be (N, H, rows) and ", name,
                      "_indices (N, H, rows, columns), got ", text(num_blocks), " and ", text(indices));
    TORCH_CHECK_TYPE(at::isIntegralType(num_blocks.scalar_type(), /*includeBool=*/false) &&
                         at::isIntegralType(indices.scalar_type(), /*includeBool=*/false),
                     "attend::BlockMask: ", name, "_num_blocks and ", name, "_indices must be integers, got ",
                     num_blocks.scalar_type(), " and ", indices.scalar_type());
  }

  static std::string text(const at::Tensor& tensor) {
    return tensor.defined() ? c10::str(tensor.sizes()) : "an undefined tensor";
  }

  void mark(const char* name, const at::Tensor& given_num_blocks, const at::Tensor& given_indices, MaskCover cover) {
    // Numbers outside of int32 become −1 or the largest int32. Both are refused below.
    const auto on_cpu = [](const at::Tensor& given) {
      return given.to(at::kCPU, at::kLong)
          .clamp(-1, std::numeric_limits<std::int32_t>::max())
          .to(at::kInt)
          .contiguous();
    };
    const at::Tensor num_blocks = on_cpu(given_num_blocks), indices = on_cpu(given_indices);
    for (std::int64_t head = 0; head < indices.size(0) * indices.size(1); ++head) {
      const KeyBlockLists lists{num_blocks.const_data_ptr<std::int32_t>() + head * blocks_[0],
                                indices.const_data_ptr<std::int32_t>() + head * blocks_[0] * blocks_[1], blocks_[0],
                                blocks_[1]};
      std::int32_t* const table = table_.mutable_data_ptr<std::int32_t>() + head * table_.size(2) * table_.size(3);
      TORCH_CHECK_VALUE(mark_blocks(lists, block_size_[0], block_size_[1], cover, table), "attend::BlockMask: ", name,
                        "_num_blocks must be from 0 to ", blocks_[1], ", and the listed ", name, "_indices from 0 to ",
                        blocks_[1] - 1);
    }
  }

  at::Tensor table_;
  std::array<std::int64_t, 2> blocks_;  // of queries and keys
  std::array<std::int64_t, 2> block_size_;
  Mask mask_mod_;
};

/// Makes a BlockMask from any mask_mod, like PyTorch's create_block_mask.
///
/// It calls the mask at most once for each score. For blocks that the mask's own `cover` calls empty or full, it does
/// not call the mask. Use it for a mask that is expensive to call, has no `cover`, and is passed to many calls.
///
/// @param mask_mod A struct as MaskMod describes. Its tensors must be on the CPU.
/// @param sizes N, H, L and S. Pass N = 1 or H = 1 if all batch entries or heads have the same mask.
/// @param block_size The number of queries and of keys in a block, both multiples of 64. Default: 128 each.
/// @return The mask.
/// @throws c10::ValueError for a block size that is not a multiple of 64, for a negative size, and for tensors of the
/// mask_mod that do not fit the sizes.
///
/// @code
/// auto mask = attend::block_mask_of(attend::SlidingWindow(256, 0) | attend::PrefixLM(8), {1, 1, 1024, 1024});
/// @endcode
template <MaskMod Mask>
BlockMask<Mask> block_mask_of(const Mask& mask_mod, const AttentionSizes& sizes,
                              std::array<std::int64_t, 2> block_size = {128, 128}) {
  BlockMask<Mask>::check_block_size(block_size);
  TORCH_CHECK_VALUE(sizes.batch_size >= 0 && sizes.num_heads >= 0 && sizes.query_length >= 0 && sizes.key_length >= 0,
                    "attend::block_mask_of: sizes must not be negative, got (", sizes.batch_size, ", ", sizes.num_heads,
                    ", ", sizes.query_length, ", ", sizes.key_length, ")");
  detail::TypedVariant<Unchanged, Mask> variant({}, mask_mod);
  const std::vector<at::Tensor> tensors = variant.on_cpu(variant.tensors(sizes, c10::kCPU), at::kFloat);
  Binder binder(sizes, tensors);
  const auto mask = detail::bound(mask_mod, binder);

  const std::array<std::int64_t, 2> lengths{sizes.query_length, sizes.key_length};
  std::array<std::int64_t, 2> blocks{}, factors{};
  for (std::size_t d = 0; d < 2; ++d) {
    blocks[d] = (lengths[d] + block_size[d] - 1) / block_size[d];
    factors[d] = block_size[d] / BlockMaskView<>::kBlock;
  }
  const std::int64_t rows = sizes.batch_size * sizes.num_heads * blocks[0];
  at::Tensor covers = at::zeros({sizes.batch_size, sizes.num_heads, blocks[0], blocks[1]}, at::kInt);
  std::int32_t* const cover = covers.mutable_data_ptr<std::int32_t>();
  const int threads = static_cast<int>(std::clamp<std::int64_t>(rows, 1, at::get_num_threads()));
  detail::parallel(threads, [&](int thread) {
    for (std::int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; ++row)
      for (std::int64_t j = 0; j < blocks[1]; ++j) {
        const std::int64_t head = row / blocks[0], i = row % blocks[0];
        const auto end = [&](std::size_t d, std::int64_t block) {
          return static_cast<std::int32_t>(std::min(lengths[d], (block + 1) * block_size[d]));
        };
        const QueryBlock queries{static_cast<std::int32_t>(head / sizes.num_heads),
                                 static_cast<std::int32_t>(head % sizes.num_heads),
                                 static_cast<std::int32_t>(i * block_size[0]),
                                 end(0, i),
                                 static_cast<std::int32_t>(lengths[0]),
                                 static_cast<std::int32_t>(lengths[1])};
        cover[row * blocks[1] + j] = static_cast<std::int32_t>(
            exact_cover(mask, queries, {static_cast<std::int32_t>(j * block_size[1]), end(1, j)}));
      }
  });
  const at::Tensor table = covers.repeat_interleave(factors[0], 2).repeat_interleave(factors[1], 3);
  return {table, blocks, block_size, mask_mod};
}

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
