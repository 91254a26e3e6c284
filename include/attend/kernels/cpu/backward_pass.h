// SPDX-License-Identifier: MIT
#pragma once

// How a backward pass is divided among threads.
//
// The work items of all heads form one sequence. It is cut into pieces of equal cost, one for each thread. Heads that
// share a key head are neighbours; the thread adds up their dK and dV in a buffer of its own, and writes it. If a cut
// goes through such a group, each side keeps its part, and the parts are added in the order of the threads: the same
// number of threads gives the same bits. The gradients of the tensors that the scores read (an added mask, slopes, the
// tensors of a score_mod) are added up in float64 (sums.h).

#include <attend/kernels/cpu/backward.h>
#include <attend/kernels/cpu/head_view.h>
#include <attend/kernels/cpu/plan.h>
#include <attend/kernels/cpu/scores.h>
#include <attend/version.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu {

/// A whole backward pass: work(t) for every thread t in any order, again if must_begin_again(), and then finish(t) for
/// every thread.
template <class T>
class BackwardPass {
 public:
  BackwardPass(const AttentionPlan<T>& plan, const Scores<T>& scores, const AttentionResults<T>& results,
               const Gradients<T>& gradients, int threads)
      : plan_(plan),
        scores_(scores),
        results_(results),
        gradients_(gradients),
        items_of_a_group_(static_cast<std::int64_t>(plan.tiles.size()) * (plan.heads / plan.kv_heads)),
        pieces_(static_cast<std::size_t>(threads)) {
    const std::int64_t items = plan.num_items();
    std::vector<std::int64_t> cost{0};  // of all items before this one
    cost.reserve(static_cast<std::size_t>(items) + 1);
    KeyTiles keys;
    for (std::int64_t i = 0; i < items; ++i) {
      scores.find_tiles(plan, plan.item(i), keys);
      cost.push_back(cost.back() + 1 + static_cast<std::int64_t>(keys.tiles.size()));
    }
    std::int64_t begin = 0;
    for (int t = 0; t < threads; ++t) {
      const std::int64_t target = cost.back() * (t + 1) / threads;
      const std::int64_t end = std::lower_bound(cost.begin(), cost.end(), target) - cost.begin();
      Piece& piece = piece_of(t);
      piece.begin = begin;
      piece.end = begin = t + 1 == threads ? items : end;
    }
  }

  /// All items of a thread. is_careful as in TileProducts.
  void work(int thread, bool is_careful) {
    Piece& piece = piece_of(thread);
    piece.parts.clear();
    if (piece.begin == piece.end) return;
    BackwardItems<T> items(plan_, scores_, results_, gradients_, thread);
    KeyValueGradients<T> sums(plan_);
    for (std::int64_t i = piece.begin; i < piece.end; ++i) {
      if (!is_careful && must_begin_again_) return;
      if (!items.run(plan_.item(i), is_careful, sums)) {
        must_begin_again_ = true;
        return;
      }
      const bool is_last_of_group = (i + 1) % items_of_a_group_ == 0;
      if (!is_last_of_group && i + 1 < piece.end) continue;
      const std::int64_t group = i / items_of_a_group_;
      if (is_last_of_group && group * items_of_a_group_ >= piece.begin) {
        write(group, 0, plan_.keys, sums);
        sums.set_to_zero();
      } else {
        piece.parts.push_back({group, std::move(sums)});
        sums = i + 1 < piece.end ? KeyValueGradients<T>(plan_) : KeyValueGradients<T>();
      }
    }
  }

  /// Whether a thread that was not careful met numbers that are not finite and may be masked. Then all
  /// results are invalid: set all sums to zero again, and let all threads work carefully.
  bool must_begin_again() const { return must_begin_again_; }

  /// Adds up the parts of groups that several threads have worked on. Each thread does some of the keys.
  void finish(int thread) {
    const auto threads = static_cast<std::int64_t>(pieces_.size());
    const std::int64_t keys = plan_.keys, begin = keys * thread / threads, end = keys * (thread + 1) / threads;
    KeyValueGradients<T>* total = nullptr;
    std::int64_t group = -1;
    for (Piece& piece : pieces_)
      for (Part& part : piece.parts) {
        if (part.group != group) {
          if (total != nullptr) write(group, begin, end, *total);
          group = part.group;
          total = &part.sums;
          continue;
        }
        add(part.sums.key.data(), total->key.data(), begin * total->key_row, end * total->key_row);
        add(part.sums.value.data(), total->value.data(), begin * total->value_row, end * total->value_row);
      }
    if (total != nullptr) write(group, begin, end, *total);
  }

 private:
  /// The sums of one thread for a group that others work on too.
  struct Part {
    std::int64_t group;
    KeyValueGradients<T> sums;
  };
  struct Piece {
    std::int64_t begin = 0, end = 0;
    std::vector<Part> parts;
  };

  Piece& piece_of(int thread) { return pieces_[static_cast<std::size_t>(thread)]; }

  static void add(const T* from, T* to, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) to[i] += from[i];
  }

  void write(std::int64_t group, std::int64_t begin, std::int64_t end, const KeyValueGradients<T>& sums) const {
    const std::int64_t batch = group / plan_.kv_heads, head = group % plan_.kv_heads;
    const HeadView<T> keys = gradients_.key.of(batch, head), values = gradients_.value.of(batch, head);
    keys.write(begin, end - begin, plan_.head_dim, plan_.scale, sums.key.data() + begin * sums.key_row, sums.key_row);
    values.write(begin, end - begin, plan_.value_dim, T(1), sums.value.data() + begin * sums.value_row, sums.value_row);
  }

  const AttentionPlan<T>& plan_;
  const Scores<T>& scores_;
  const AttentionResults<T>& results_;
  const Gradients<T>& gradients_;
  std::int64_t items_of_a_group_;
  std::vector<Piece> pieces_;
  std::atomic<bool> must_begin_again_{false};
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::cpu
