// SPDX-License-Identifier: MIT
#pragma once

#include <attend/attention/binder.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/mask_cover.h>
#include <attend/score/mask_mod.h>
#include <attend/score/mask_operators.h>
#include <attend/score/tensor_view.h>
#include <attend/version.h>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <cstdint>
#include <utility>

namespace attend::inline ATTEND_VERSION_NAMESPACE {

/// A mask_mod for several documents in one sequence: a query attends to the keys of its own document.
///
/// Each position has the number of its document, an integer within int32. The tensors are (L) for the queries and (S)
/// for the keys, or (N, L) and (N, S) if batch entries differ. In self-attention one tensor is enough. Blocks of keys
/// of other documents are not computed. They are found fastest if the numbers never decrease along the sequence.
///
/// The tensors are checked when attention is called; see bind().
///
/// @code
/// torch::Tensor document = torch::tensor({0, 0, 0, 1, 1}, torch::kInt);  // of each position
/// attend::flex_attention(q, k, v, attend::Unchanged{}, attend::Document(document) & attend::Causal{});
/// @endcode
class Document : public detail::MaskOperators {
 public:
  /// The same documents for queries and keys, which needs L = S.
  ///
  /// @param documents The document of each position, (L) or (N, L). Integers, on the device of query.
  explicit Document(const at::Tensor& documents) : Document(documents, documents) {}
  /// Documents of queries and keys.
  ///
  /// @param query_documents The document of each query, (L) or (N, L). Integers, on the device of query.
  /// @param key_documents The document of each key, (S) or (N, S). Integers, on the device of query.
  Document(at::Tensor query_documents, at::Tensor key_documents)
      : query_documents_(std::move(query_documents)), key_documents_(std::move(key_documents)) {}

  struct View : detail::MaskOperators {
    IntegerView query_documents, key_documents;
    IntegerView are_queries_sorted, are_keys_sorted;  // whether the numbers of a row never decrease
    std::int32_t query_row, key_row;                  // 0: the same for all batch entries; 1: one row for each

    ATTEND_HOST_DEVICE bool operator()(Coordinate at) const {
      return query_documents.read_unchecked(at.batch * query_row, at.query) ==
             key_documents.read_unchecked(at.batch * key_row, at.key);
    }
    ATTEND_HOST_DEVICE KeyRange keys(QueryBlock block) const {
      if (are_keys_sorted.read_unchecked(block.batch * key_row) == 0) return {0, block.key_length};
      const Range documents = of_queries(block);
      return {first_key(block, documents.smallest, false), first_key(block, documents.largest, true)};
    }
    ATTEND_HOST_DEVICE MaskCover cover(QueryBlock queries, KeyRange keys) const {
      const Range a = of_queries(queries), b = range_of(key_documents, are_keys_sorted, queries.batch * key_row, keys);
      return detail::cover_of(a.largest < b.smallest || b.largest < a.smallest,
                              a.smallest == b.largest && b.smallest == a.largest);
    }

   private:
    struct Range {
      std::int32_t smallest, largest;
    };

    ATTEND_HOST_DEVICE Range of_queries(const QueryBlock& block) const {
      return range_of(query_documents, are_queries_sorted, block.batch * query_row,
                      {block.query_begin, block.query_end});
    }

    ATTEND_HOST_DEVICE static Range range_of(const IntegerView& documents, const IntegerView& are_sorted,
                                             std::int32_t row, const KeyRange& positions) {
      const std::int32_t first = documents.read_unchecked(row, positions.begin);
      if (are_sorted.read_unchecked(row) != 0) return {first, documents.read_unchecked(row, positions.end - 1)};
      Range range{first, first};
      for (std::int32_t i = positions.begin + 1; i < positions.end; ++i) {
        const std::int32_t document = documents.read_unchecked(row, i);
        range.smallest = detail::smaller(range.smallest, document);
        range.largest = detail::larger(range.largest, document);
      }
      return range;
    }

    /// The first key whose document is not below this one, or is above it.
    ATTEND_HOST_DEVICE std::int32_t first_key(const QueryBlock& block, std::int32_t document, bool above) const {
      std::int32_t begin = 0, end = block.key_length;
      while (begin < end) {
        const std::int32_t middle = begin + (end - begin) / 2;
        const std::int32_t there = key_documents.read_unchecked(block.batch * key_row, middle);
        if (there < document || (above && there == document))
          begin = middle + 1;
        else
          end = middle;
      }
      return begin;
    }
  };

  /// Called by attention: checks the tensors against the sizes of the call.
  ///
  /// @param binder Gives the sizes of the call and the views.
  /// @return The struct that is called for each query and key.
  /// @throws c10::ValueError for a wrong shape, and for a tensor that is not on the device of query.
  /// @throws c10::TypeError for a floating-point tensor.
  View bind(Binder& binder) const {
    const AttentionSizes& sizes = binder.sizes();
    View view;
    view.query_documents = bind_one("query", query_documents_, sizes.query_length, "L", binder, view.query_row);
    view.key_documents = bind_one("key", key_documents_, sizes.key_length, "S", binder, view.key_row);
    view.are_keys_sorted = binder.integers(never_decrease(key_documents_));
    view.are_queries_sorted = query_documents_.is_same(key_documents_)
                                  ? view.are_keys_sorted
                                  : binder.integers(never_decrease(query_documents_));
    return view;
  }

 private:
  /// Whether the numbers of each row never decrease, (N) or (). It stays on the device, so that nothing waits for a
  /// GPU.
  static at::Tensor never_decrease(const at::Tensor& documents) {
    const at::Tensor wide = documents.to(at::kLong);  // torch does not compare all unsigned types
    return wide.slice(-1, 0, -1).le(wide.slice(-1, 1)).all(-1);
  }

  static IntegerView bind_one(const char* name, const at::Tensor& documents, std::int64_t length, const char* letter,
                              Binder& binder, std::int32_t& row) {
    TORCH_CHECK_VALUE(documents.defined() && (documents.dim() == 1 || documents.dim() == 2) &&
                          documents.size(-1) == length &&
                          (documents.dim() == 1 || documents.size(0) == binder.sizes().batch_size),
                      "attend::Document: the documents of the ", name, " must be (", letter, ") or (N, ", letter,
                      "), with N = ", binder.sizes().batch_size, " and ", letter, " = ", length, ", got ",
                      documents.defined() ? c10::str(documents.sizes()) : "an undefined tensor");
    row = documents.dim() == 2 ? 1 : 0;
    return binder.integers(documents.dim() == 2 ? documents : documents.unsqueeze(0));
  }

  at::Tensor query_documents_, key_documents_;
};

/// A mask_mod for padded batches: the first lengths[n] keys of batch entry n may be attended, the rest is padding.
///
/// A length below 0 counts as 0, a length above S counts as S.
///
/// The tensor is checked when attention is called; see bind().
///
/// @code
/// torch::Tensor lengths = torch::tensor({5, 3});
/// attend::flex_attention(q, k, v, attend::Unchanged{}, attend::KeyPadding(lengths));
/// @endcode
class KeyPadding : public detail::MaskOperators {
 public:
  /// The lengths of the batch entries.
  ///
  /// @param lengths The number of keys of each batch entry, (N). Integers, on the device of query.
  explicit KeyPadding(at::Tensor lengths) : lengths_(std::move(lengths)) {}

  struct View : detail::MaskOperators {
    IntegerView lengths;

    ATTEND_HOST_DEVICE bool operator()(Coordinate at) const { return at.key < lengths.read_unchecked(at.batch); }
    ATTEND_HOST_DEVICE KeyRange keys(QueryBlock block) const { return {0, lengths.read_unchecked(block.batch)}; }
    ATTEND_HOST_DEVICE MaskCover cover(QueryBlock queries, KeyRange keys) const {
      const std::int32_t length = lengths.read_unchecked(queries.batch);
      return detail::cover_of(keys.begin >= length, keys.end <= length);
    }
  };

  /// Called by attention: checks the tensors against the sizes of the call.
  ///
  /// @param binder Gives the sizes of the call and the views.
  /// @return The struct that is called for each query and key.
  /// @throws c10::ValueError for a wrong shape, and for a tensor that is not on the device of query.
  /// @throws c10::TypeError for a floating-point tensor.
  View bind(Binder& binder) const {
    TORCH_CHECK_VALUE(lengths_.defined() && lengths_.dim() == 1 && lengths_.size(0) == binder.sizes().batch_size,
                      "attend::KeyPadding: lengths must be (N), with N = ", binder.sizes().batch_size, ", got ",
                      lengths_.defined() ? c10::str(lengths_.sizes()) : "an undefined tensor");
    const bool is_whole = at::isIntegralType(lengths_.scalar_type(), /*includeBool=*/false);
    View view;
    view.lengths = binder.integers(is_whole ? lengths_.to(at::kLong).clamp(0, binder.sizes().key_length) : lengths_);
    return view;
  }

 private:
  at::Tensor lengths_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE
