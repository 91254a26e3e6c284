// SPDX-License-Identifier: MIT

// The tokenizer of BERT for uncased models: WordPiece.
//
// Source: J. Devlin et al., BERT (2019), https://arxiv.org/abs/1810.04805; the results are those of the package
// tokenizers with BertNormalizer, BertPreTokenizer and WordPiece.
#pragma once

#include "unicode.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

/// Turns a text into the numbers of its tokens.
class Tokenizer {
 public:
  /// Reads a vocabulary: a token in each line, whose number is that of the line.
  explicit Tokenizer(const std::string& vocabulary_file) {
    std::ifstream file(vocabulary_file);
    std::int64_t number = 0;
    for (std::string line; std::getline(file, line); ++number) {
      if (line.ends_with('\r')) line.pop_back();
      ids_[std::move(line)] = number;  // of equal lines the last one counts
    }
    if (ids_.empty()) throw std::runtime_error("cannot read a vocabulary from " + vocabulary_file);
    for (const char* name : {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}) {
      const auto token = ids_.find(name);
      if (token == ids_.end()) throw std::runtime_error("the vocabulary " + vocabulary_file + " has no token " + name);
      special_.emplace_back(*token);
    }
  }

  /// The numbers of the tokens of a text, between [CLS] and [SEP]: at most `max_tokens`, of which the last is [SEP].
  std::vector<std::int64_t> operator()(std::string_view text, std::size_t max_tokens) const {
    std::vector<std::int64_t> ids{ids_.find("[CLS]")->second};
    while (!text.empty() && ids.size() < max_tokens) {  // the names of special tokens are those tokens
      const auto [begin, token] = next_special(text);
      append_words(text.substr(0, begin), ids);
      if (!token) break;
      ids.push_back(token->second);
      text.remove_prefix(begin + token->first.size());
    }
    ids.resize(std::min(ids.size(), max_tokens - 1));
    ids.push_back(ids_.find("[SEP]")->second);
    return ids;
  }

 private:
  using Token = std::pair<std::string, std::int64_t>;
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };

  std::pair<std::size_t, const Token*> next_special(std::string_view text) const {
    std::pair<std::size_t, const Token*> first{text.size(), nullptr};
    if (text.find('[') == text.npos) return first;
    for (const Token& token : special_)
      if (const std::size_t begin = text.find(token.first); begin < first.first) first = {begin, &token};
    return first;
  }

  /// Splits a text at spaces, and around punctuation and Chinese ideographs.
  void append_words(std::string_view text, std::vector<std::int64_t>& ids) const {
    unicode::PlainText plain;
    for (const char32_t c : unicode::decoded(text)) {
      if (unicode::is_dropped(c)) continue;
      const bool is_ideograph = unicode::is_ideograph(c);
      if (is_ideograph) plain.append(' ');
      plain.append(unicode::is_space(c) ? U' ' : c);
      if (is_ideograph) plain.append(' ');
    }
    std::vector<std::size_t> ends;  // of the characters of a word
    std::string word;
    const auto end_word = [&] {
      if (!word.empty()) append_pieces(word, ends, ids);
      word.clear();
      ends.clear();
    };
    for (const char32_t c : plain.text()) {
      const bool is_punctuation = unicode::is_punctuation(c);
      if (is_punctuation || unicode::is_space(c)) end_word();
      if (unicode::is_space(c)) continue;
      unicode::append_encoded(word, c);
      ends.push_back(word.size());
      if (is_punctuation) end_word();
    }
    end_word();
  }

  /// Splits a word into the longest pieces that the vocabulary has, from front to back. Pieces after the first one
  /// begin with ## there. If a piece is missing, the whole word is [UNK].
  void append_pieces(const std::string& word, const std::vector<std::size_t>& ends,
                     std::vector<std::int64_t>& ids) const {
    constexpr std::size_t kLongestWord = 100;
    const std::size_t first_piece = ids.size();
    bool is_known = ends.size() <= kLongestWord;
    std::string piece;
    for (std::size_t from = 0; from < ends.size() && is_known;) {  // from, to: characters
      const std::size_t begin = from == 0 ? 0 : ends[from - 1];
      piece = from == 0 ? "" : "##";
      const std::size_t prefix = piece.size();
      piece.append(word, begin);
      std::size_t to = ends.size();
      for (; to > from; --to) {
        piece.resize(prefix + ends[to - 1] - begin);
        if (const auto token = ids_.find(piece); token != ids_.end()) {
          ids.push_back(token->second);
          break;
        }
      }
      is_known = to > from;
      from = to;
    }
    if (is_known) return;
    ids.resize(first_piece);
    ids.push_back(ids_.find("[UNK]")->second);
  }

  std::unordered_map<std::string, std::int64_t, Hash, std::equal_to<>> ids_;
  std::vector<Token> special_;
};
