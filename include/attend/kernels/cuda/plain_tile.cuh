// SPDX-License-Identifier: MIT
#pragma once

// A tile of 32 queries × 32 keys of the plain backward kernels, which use no tensor cores and are right for every
// number type, size and stride. They compute in float, or in double for float64.
//
// A block has 64 threads. Thread 8 y + x computes the scores of queries y + 8 a and keys x + 8 b, a, b = 0 … 3. The
// products read rows in chunks of 32 columns from shared memory, whose rows are padded by one number so that no two
// lanes of a load use the same bank: 8 loads for 16 multiply-adds.
//
// Shared memory holds two chunks of 32 × 33 numbers, or one of 32 × (kColumns + 1), and the weights and the gradients,
// 32 × 33 numbers each.

#include <attend/kernels/attention_params.h>
#include <attend/macros.h>
#include <attend/score/coordinate.h>
#include <attend/score/real.h>
#include <attend/version.h>
#include <attend/kernels/cuda/backward_call.cuh>
#include <attend/kernels/cuda/instructions.cuh>
#include <attend/kernels/cuda/number.cuh>
#include <attend/kernels/cuda/rotate.cuh>
#include <attend/kernels/cuda/scores.cuh>
#include <attend/kernels/cuda/sequence.cuh>

#include <cstdint>
#include <type_traits>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail {

/// Number `index` after `data`, computed in T: double for kFloat64, otherwise float.
template <class T>
ATTEND_HOST_DEVICE T load_number(NumberType type, const void* data, std::int64_t index) {
  if constexpr (std::is_same_v<T, double>) {
    return load_number<NumberType::kFloat64>(data, index);
  } else {
    if (type == NumberType::kFloat32) return load_number<NumberType::kFloat32>(data, index);
    return type == NumberType::kBFloat16 ? load_number<NumberType::kBFloat16>(data, index)
                                         : load_number<NumberType::kFloat16>(data, index);
  }
}

/// Sets number `index` after `data`.
template <class T>
ATTEND_HOST_DEVICE void store_number(NumberType type, void* data, std::int64_t index, T value) {
  if constexpr (std::is_same_v<T, double>) {
    store_number<NumberType::kFloat64>(data, index, value);
  } else {
    if (type == NumberType::kFloat32) return store_number<NumberType::kFloat32>(data, index, value);
    type == NumberType::kBFloat16 ? store_number<NumberType::kBFloat16>(data, index, value)
                                  : store_number<NumberType::kFloat16>(data, index, value);
  }
}

/// The value of a number in memory that is nearest to `value`.
template <class T>
ATTEND_HOST_DEVICE T rounded(NumberType type, T value) {
  if constexpr (std::is_same_v<T, double>) {
    return value;
  } else {
    constexpr NumberType kBFloat16 = NumberType::kBFloat16, kFloat16 = NumberType::kFloat16;
    if (type == NumberType::kFloat32) return value;
    return type == kBFloat16 ? value_of<kBFloat16>(stored_of<kBFloat16>(value))
                             : value_of<kFloat16>(stored_of<kFloat16>(value));
  }
}

/// Some rows of one head of a tensor.
template <class T>
struct HeadRows {
  NumberType type;
  const void* data;
  std::int64_t first, row_stride, column_stride;
  int rows, columns;
  // With a rotary embedding, load() takes columns in the order of the pairs: columns 2p and 2p + 1 are pair p, rotated.
  const Call* rotated_call = nullptr;
  const RotaryView* tables = nullptr;
  std::int32_t own_batch = 0, first_row = 0;

  ATTEND_HOST_DEVICE HeadRows(NumberType number_type, const ConstTensorView4d& tensor, std::int32_t batch,
                              std::int32_t head, const KeyRange& range, std::int32_t width)
      : type(number_type),
        data(tensor.data),
        first(row_place(tensor.strides, batch, head, range.begin)),
        row_stride(tensor.strides[2]),
        column_stride(tensor.strides[3]),
        rows(range.end - range.begin),
        columns(width) {}

  /// Queries or keys, rotated if the call has a rotary embedding.
  ATTEND_HOST_DEVICE HeadRows(const Call& call, const ConstTensorView4d& tensor, const RotaryView& rotary,
                              std::int32_t batch, std::int32_t head, const KeyRange& range)
      : HeadRows(call.dtype, tensor, batch, head, range, call.head_dim) {
    rotated_call = &call;
    tables = &rotary;
    own_batch = batch;
    first_row = range.begin;
  }

  /// The number, or 0 outside of the rows and columns.
  ATTEND_HOST_DEVICE T load(int row, int column) const {
    if (row >= rows || column >= columns) return T(0);
    if (rotated_call != nullptr && column < rotated_call->rotary_dim) return load_rotated(row, column);
    return load_in_memory(row, column);
  }

 private:
  ATTEND_HOST_DEVICE T load_in_memory(int row, int column) const {
    return load_number<T>(type, data, first + row * row_stride + column * column_stride);
  }
  ATTEND_HOST_DEVICE T load_rotated(int row, int column) const {
    const RotaryRows<T> rotary(*rotated_call, *tables, own_batch);
    const int pair = column / 2;
    Pair<T> numbers;
    numbers.first = load_in_memory(row, rotary.first_column(pair));
    numbers.second = load_in_memory(row, rotary.second_column(pair));
    numbers = rotary.rotated(numbers, first_row + row, pair);
    return rounded(type, column % 2 == 0 ? numbers.first : numbers.second);
  }
};

/// The shared memory of a block, and the products of its tile.
template <class T>
class PlainTile {
 public:
  static constexpr int kRows = 32, kThreads = 64, kEach = 4, kScores = kEach * kEach;
  static constexpr int kColumns = 256 / sizeof(T), kOutputs = kEach * kColumns / 8;  // of a chunk, of a thread
  static constexpr int kStride = kRows + 1, kWideStride = kColumns + 1;
  static constexpr int kChunks = 2 * kRows * kStride > kRows* kWideStride ? 2 * kRows* kStride : kRows* kWideStride;
  static constexpr int kSharedBytes = (kChunks + 2 * kRows * kStride) * static_cast<int>(sizeof(T));

  ATTEND_HOST_DEVICE PlainTile()
      : chunks_(shared_memory<T>(0, kChunks)),
        weights_(shared_memory<T>(kChunks * static_cast<int>(sizeof(T)), kRows * kStride)),
        gradients_(shared_memory<T>((kChunks + kRows * kStride) * static_cast<int>(sizeof(T)), kRows * kStride)),
        y_(thread_index() / 8),
        x_(thread_index() % 8) {}

  /// The query, the key or the row of this thread with this index, from the first of the tile on.
  ATTEND_HOST_DEVICE int row(int a) const { return y_ + 8 * a; }
  ATTEND_HOST_DEVICE int column(int b) const { return x_ + 8 * b; }

  /// The place in weights() and gradients() of the score of this thread with index k.
  ATTEND_HOST_DEVICE int place(int k) const { return row(k / kEach) * kStride + column(k % kEach); }

  /// For the scores of this thread: products[place(k)] = Σ_d left(row, d) · right(column, d).
  ATTEND_HOST_DEVICE void multiply(const HeadRows<T>& left, const HeadRows<T>& right, const Shared<T>& products) const {
    const Shared<T> rows = chunks_.sub(0, kRows * kStride), columns = chunks_.sub(kRows * kStride, kRows * kStride);
    T sums[kScores] = {};
    for (int begin = 0; begin < left.columns; begin += kRows) {
      barrier();  // the chunks may still be read
      for (int i = thread_index(); i < kRows * kRows; i += kThreads) {
        rows.store(i / kRows * kStride + i % kRows, left.load(i / kRows, begin + i % kRows));
        columns.store(i / kRows * kStride + i % kRows, right.load(i / kRows, begin + i % kRows));
      }
      barrier();
      for (int d = 0; d < kRows && begin + d < left.columns; ++d) {
        T of_row[kEach], of_column[kEach];
        ATTEND_UNROLL
        for (int a = 0; a < kEach; ++a) {
          of_row[a] = rows.load(row(a) * kStride + d);
          of_column[a] = columns.load(column(a) * kStride + d);
        }
        ATTEND_UNROLL
        for (int k = 0; k < kScores; ++k) sums[k] += of_row[k / kEach] * of_column[k % kEach];
      }
    }
    ATTEND_UNROLL
    for (int k = 0; k < kScores; ++k) products.store(place(k), sums[k]);
  }

  /// By query and key, in rows of kStride numbers. add() takes them as factors.
  ATTEND_HOST_DEVICE const Shared<T>& weights() const { return weights_; }
  ATTEND_HOST_DEVICE const Shared<T>& gradients() const { return gradients_; }

  /// sums[·] += Σ_s factor(row(a), s) · numbers(s, first_column + x + 8 b). kIsTransposed: the rows of the sums are
  /// keys. A product with a factor of 0 is 0, even if the other number is not finite.
  template <bool kIsTransposed>
  ATTEND_HOST_DEVICE void add(const Shared<T>& factors, const HeadRows<T>& numbers, int first_column,
                              T (&sums)[kOutputs]) const {
    barrier();  // the chunk may still be read, and the factors may be new
    for (int i = thread_index(); i < kRows * kColumns; i += kThreads)
      chunks_.store(i / kColumns * kWideStride + i % kColumns, numbers.load(i / kColumns, first_column + i % kColumns));
    barrier();
    for (int s = 0; s < kRows; ++s) {
      T chunk[kColumns / 8];
      ATTEND_UNROLL
      for (int b = 0; b < kColumns / 8; ++b) chunk[b] = chunks_.load(s * kWideStride + column(b));
      ATTEND_UNROLL
      for (int a = 0; a < kEach; ++a) {
        const T factor = factors.load(kIsTransposed ? s * kStride + row(a) : row(a) * kStride + s);
        if (factor == T(0)) continue;
        ATTEND_UNROLL
        for (int b = 0; b < kColumns / 8; ++b) sums[a * (kColumns / 8) + b] += factor * chunk[b];
      }
    }
  }

  /// Stores factor · sums to the rows of a tile, in columns first_column …, below `columns`.
  ATTEND_HOST_DEVICE void store(NumberType type, const TensorView4d& tensor, std::int32_t batch, std::int32_t head,
                                const KeyRange& rows, int first_column, int columns, T factor,
                                const T (&sums)[kOutputs]) const {
    ATTEND_UNROLL
    for (int a = 0; a < kEach; ++a) {
      ATTEND_UNROLL
      for (int b = 0; b < kColumns / 8; ++b) {
        const int i = rows.begin + row(a), c = first_column + column(b);
        if (i < rows.end && c < columns)
          store_number<T>(type, tensor.data, row_place(tensor.strides, batch, head, i) + c * tensor.strides[3],
                          factor * sums[a * (kColumns / 8) + b]);
      }
    }
  }

  /// The same for the gradient of queries or keys, rotated back. first_column counts as HeadRows::load() does, so that
  /// the two numbers of a pair are neighbours. All threads of the block call it.
  ATTEND_HOST_DEVICE void store_rotated_back(const Call& call, const RotaryView& tables, const TensorView4d& tensor,
                                             std::int32_t batch, std::int32_t head, const KeyRange& rows,
                                             int first_column, T factor, const T (&sums)[kOutputs]) const {
    barrier();  // the chunk may still be read
    ATTEND_UNROLL
    for (int k = 0; k < kOutputs; ++k)
      chunks_.store(row(k / (kColumns / 8)) * kWideStride + column(k % (kColumns / 8)), factor * sums[k]);
    barrier();
    const RotaryRows<T> rotary(call, tables, batch);
    ATTEND_NO_UNROLL
    for (int k = thread_index(); k < kRows * kColumns / 2; k += kThreads) {
      const int row = k / (kColumns / 2), column = k % (kColumns / 2) * 2;
      const int i = rows.begin + row, pair = (first_column + column) / 2;
      if (i >= rows.end || 2 * pair >= call.head_dim) continue;
      Pair<T> numbers;
      numbers.first = chunks_.load(row * kWideStride + column);
      numbers.second = chunks_.load(row * kWideStride + column + 1);
      numbers = rotary.rotated_back(numbers, i, pair);
      const std::int64_t first = row_place(tensor.strides, batch, head, i), step = tensor.strides[3];
      store_number<T>(call.dtype, tensor.data, first + rotary.first_column(pair) * step, numbers.first);
      if (2 * pair + 1 < call.head_dim)
        store_number<T>(call.dtype, tensor.data, first + rotary.second_column(pair) * step, numbers.second);
    }
  }

 private:
  Shared<T> chunks_, weights_, gradients_;
  int y_, x_;
};

/// A score of a tile.
template <class T>
struct PlainScore {
  DerivedScore<T> derived;
  T weight,      // before dropout; 0 if the score is masked
      gradient;  // of derived.value; 0 if the weight is 0
};

/// The scores of a tile. Rows of the tile outside of the sequence are masked.
template <class T, class Score, class Mask>
class PlainScores {
 public:
  /// Multiplies; q·k and dO·v are then in weights() and gradients() of the tile. Both may be overwritten where score()
  /// has been called.
  ATTEND_HOST_DEVICE PlainScores(const PlainTile<T>& tile, const BackwardCall& call,
                                 const HeadScores<T, Score, Mask>& scores, const KeyRange& queries,
                                 const KeyRange& keys)
      : tile_(tile), call_(call), scores_(scores), queries_(queries), keys_(keys) {
    const Call& forward = call.forward;
    const std::int32_t batch = scores.sequence().batch, head = scores.head(), kv_head = head / forward.group;
    tile.multiply({forward, forward.query, forward.query_rotary, batch, head, queries},
                  {forward, forward.key, forward.key_rotary, batch, kv_head, keys}, tile.weights());
    tile.multiply({forward.dtype, call.output_gradient, batch, head, queries, forward.value_dim},
                  {forward.dtype, forward.value, batch, kv_head, keys, forward.value_dim}, tile.gradients());
  }

  ATTEND_HOST_DEVICE ScorePlace place(int k) const {
    return {queries_.begin + tile_.row(k / PlainTile<T>::kEach), keys_.begin + tile_.column(k % PlainTile<T>::kEach)};
  }

  /// The score of this thread with index k, before the softmax.
  ATTEND_HOST_DEVICE DerivedScore<T> derived(int k) const {
    return scores_.derived(tile_.weights().load(tile_.place(k)), place(k), /*is_full=*/false);
  }
  /// The gradient of the weight before dropout.
  ATTEND_HOST_DEVICE T weight_gradient(int k) const {
    const T factor = scores_.dropout_factor(place(k));
    return factor == T(0) ? T(0) : factor * tile_.gradients().load(tile_.place(k));
  }
  /// The score with its weight and gradient.
  ATTEND_HOST_DEVICE PlainScore<T> score(int k) const {
    PlainScore<T> score{derived(k), T(0), T(0)};
    if (score.derived.value == scores_.kMasked) return score;
    const T* row = static_cast<const T*>(call_.plain_rows) +
                   3 * call_.forward.row(scores_.sequence().batch, scores_.head(), place(k).query);
    const T largest = load_global(row), inverse_sum = load_global(row + 1), delta = load_global(row + 2);
    score.weight = exp(Real<T>(score.derived.value - largest)).value * inverse_sum;
    if (score.weight != T(0)) score.gradient = score.weight * (weight_gradient(k) - delta);
    return score;
  }

 private:
  const PlainTile<T>& tile_;
  const BackwardCall& call_;
  const HeadScores<T, Score, Mask>& scores_;
  KeyRange queries_, keys_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cuda::detail
