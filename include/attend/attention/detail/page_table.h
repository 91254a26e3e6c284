// SPDX-License-Identifier: MIT
#pragma once

#include <attend/version.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

namespace attend::inline ATTEND_VERSION_NAMESPACE::detail {

/// Which pages of a pool hold the rows of which batch entry. Entries may share pages. It knows no tensors.
///
/// An entry has the pages of a range of its rows. The pages before the range may have been given back, and those after
/// it are not needed yet. All memory is allocated by the constructor.
class PageTable {
 public:
  PageTable(std::int64_t entries, std::int64_t columns, std::int64_t num_pages, std::int64_t page_size)
      : columns_(columns),
        page_size_(page_size),
        numbers_(static_cast<std::size_t>(entries * columns)),
        ranges_(static_cast<std::size_t>(entries)),
        users_(static_cast<std::size_t>(num_pages)) {
    for (std::int64_t page = num_pages - 1; page >= 0; --page) free_.push_back(static_cast<std::int32_t>(page));
  }

  std::int64_t page_size() const { return page_size_; }
  std::int64_t free_pages() const { return static_cast<std::int64_t>(free_.size()); }

  /// The pages of an entry, in order. Places without a page hold the number of some page.
  const std::int32_t* pages_of(std::int64_t entry) const { return numbers_.data() + entry * columns_; }

  /// The page that holds a row of an entry.
  std::int32_t page_of(std::int64_t entry, std::int64_t row) const { return at(entry, row / page_size_); }

  /// The first row of an entry that still has a page.
  std::int64_t first_row(std::int64_t entry) const { return range(entry).begin * page_size_; }

  /// Rows begin … end − 1 of an entry.
  struct Rows {
    std::int64_t begin, end;
  };

  /// A page whose contents must be copied.
  struct Copy {
    std::int32_t from, to;
  };

  /// Gives every entry pages of its own for these rows, which begin at or before the end of its pages. Returns the
  /// pages that must be copied before the rows are written, because other entries use them too. Returns nothing, and
  /// changes nothing, if there are too few pages.
  std::optional<std::vector<Copy>> prepare(const std::vector<Rows>& rows) {
    if (pages_needed(rows) > free_pages()) return std::nullopt;
    std::vector<Copy> copies;
    for (std::size_t n = 0; n < rows.size(); ++n) {
      const auto entry = static_cast<std::int64_t>(n);
      for_each_page(rows[n], [&](std::int64_t column) {
        std::int32_t& page = at(entry, column);
        if (column < range(entry).end && users_of(page) == 1) return;
        const std::int32_t own = free_.back();
        free_.pop_back();
        users_of(own) = 1;
        if (column < range(entry).end) {
          copies.push_back({page, own});
          --users_of(page);
        } else {
          range(entry).end = column + 1;
        }
        page = own;
      });
    }
    return copies;
  }

  /// Gives back the pages of an entry whose rows are all before `row`.
  void release_before(std::int64_t entry, std::int64_t row) {
    for (Range& own = range(entry); own.begin < own.end && (own.begin + 1) * page_size_ <= row; ++own.begin)
      release(entry, own.begin);
  }

  /// Gives back the pages of an entry whose rows are all from `row` on. `row` must not be beyond the entry's rows.
  void release_from(std::int64_t entry, std::int64_t row) {
    Range& own = range(entry);
    while (own.end > own.begin && (own.end - 1) * page_size_ >= row) release(entry, --own.end);
    if (own.begin == own.end) own.begin = own.end = (row + page_size_ - 1) / page_size_;
  }

  /// Makes entry n use the pages of entry indices[n].
  void reorder(const std::vector<std::int64_t>& indices) {
    const std::vector<std::int32_t> numbers = numbers_;
    const std::vector<Range> ranges = ranges_;
    for_each_use([this](std::int32_t page) { --users_of(page); });
    for (std::size_t n = 0; n < indices.size(); ++n) {
      const auto from = static_cast<std::size_t>(indices[n]);
      ranges_[n] = ranges[from];
      std::copy_n(numbers.begin() + static_cast<std::ptrdiff_t>(from) * columns_, columns_,
                  numbers_.begin() + static_cast<std::ptrdiff_t>(n) * columns_);
    }
    for_each_use([this](std::int32_t page) { ++users_of(page); });
    free_.clear();
    for (std::size_t page = users_.size(); page-- > 0;)
      if (users_[page] == 0) free_.push_back(static_cast<std::int32_t>(page));
  }

 private:
  /// The columns begin … end − 1 of an entry have pages.
  struct Range {
    std::int64_t begin = 0, end = 0;
  };

  Range& range(std::int64_t entry) { return ranges_[static_cast<std::size_t>(entry)]; }
  const Range& range(std::int64_t entry) const { return ranges_[static_cast<std::size_t>(entry)]; }
  std::int32_t& at(std::int64_t entry, std::int64_t column) {
    return numbers_[static_cast<std::size_t>(entry * columns_ + column)];
  }
  const std::int32_t& at(std::int64_t entry, std::int64_t column) const {
    return numbers_[static_cast<std::size_t>(entry * columns_ + column)];
  }
  std::int32_t& users_of(std::int32_t page) { return users_[static_cast<std::size_t>(page)]; }

  template <class Action>
  void for_each_page(const Rows& rows, const Action& action) const {
    if (rows.begin >= rows.end) return;
    for (std::int64_t column = rows.begin / page_size_; column * page_size_ < rows.end; ++column) action(column);
  }

  template <class Action>
  void for_each_use(const Action& action) const {
    for (std::size_t n = 0; n < ranges_.size(); ++n)
      for (std::int64_t column = ranges_[n].begin; column < ranges_[n].end; ++column)
        action(at(static_cast<std::int64_t>(n), column));
  }

  std::int64_t pages_needed(const std::vector<Rows>& rows) const {
    std::int64_t needed = 0;
    std::unordered_map<std::int32_t, std::int32_t> writers;
    for (std::size_t n = 0; n < rows.size(); ++n)
      for_each_page(rows[n], [&](std::int64_t column) {
        if (column < ranges_[n].end)
          ++writers[at(static_cast<std::int64_t>(n), column)];
        else
          ++needed;
      });
    for (const auto& [page, count] : writers)  // one of the users may keep the page
      needed += std::min(count, users_[static_cast<std::size_t>(page)] - 1);
    return needed;
  }

  void release(std::int64_t entry, std::int64_t column) {
    std::int32_t& page = at(entry, column);
    if (--users_of(page) == 0) free_.push_back(page);
    page = 0;
  }

  std::int64_t columns_, page_size_;
  std::vector<std::int32_t> numbers_;
  std::vector<Range> ranges_;
  std::vector<std::int32_t> users_;  // of each page
  std::vector<std::int32_t> free_;
};

}  // namespace attend::inline ATTEND_VERSION_NAMESPACE::detail
