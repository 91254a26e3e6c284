// SPDX-License-Identifier: MIT
#include <attend/attention/binder.h>
#include <attend/attention/materialize.h>
#include <attend/attention/sequence_masks.h>

#include "support/errors.h"
#include "support/grid.h"
#include "support/key_ranges.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

using attend::AttentionSizes;
using attend::Document;
using attend::KeyPadding;
using attend::materialize;
using attend::test::check_key_ranges;
using attend::test::Grid;
using attend::test::message_of;

namespace {

/// Random document numbers (rows, length); sorted along each row on request.
torch::Tensor random_documents(std::int64_t rows, std::int64_t length, bool is_sorted) {
  const torch::Tensor documents = torch::randint(-1, 3, {rows, length});
  return is_sorted ? std::get<0>(documents.sort(-1)) : documents;
}

}  // namespace

TEST_CASE("Document: queries attend to keys of their document; one row or one per batch entry, sorted or not") {
  torch::manual_seed(1);
  for (const auto dtype : {torch::kInt, torch::kLong, torch::kShort, torch::kChar}) {
    for (const bool is_sorted : {true, false}) {
      for (const std::int64_t query_rows : {1, 2}) {
        for (const std::int64_t key_rows : {1, 2}) {
          CAPTURE(dtype);
          CAPTURE(is_sorted);
          CAPTURE(query_rows);
          CAPTURE(key_rows);
          const auto of_rows = [&](std::int64_t rows, std::int64_t length) {
            const torch::Tensor documents = random_documents(rows, length, is_sorted).to(dtype);
            return rows == 1 ? documents.squeeze(0) : documents;
          };
          const torch::Tensor queries = of_rows(query_rows, 7), keys = of_rows(key_rows, 11);
          const torch::Tensor expected =
              (queries.view({-1, 1, 7, 1}) == keys.view({-1, 1, 1, 11})).expand({2, 3, 7, 11});
          CHECK(materialize(Document(queries, keys), {2, 3, 7, 11}).equal(expected));
        }
      }
    }
  }
}

TEST_CASE("Document: one tensor of documents serves for queries and keys") {
  const torch::Tensor documents = torch::tensor({0, 0, 4, 4, 4, 5});
  CHECK(
      materialize(Document(documents), {1, 1, 6, 6}).equal(materialize(Document(documents, documents), {1, 1, 6, 6})));
  CHECK(materialize(Document(documents), {1, 1, 6, 6})[0][0].equal(documents.unsqueeze(1) == documents));
}

TEST_CASE("KeyPadding: allows the first lengths[n] keys of batch entry n; lengths are limited to 0 and S") {
  for (const auto dtype : {torch::kInt, torch::kLong}) {
    const torch::Tensor lengths = torch::tensor({3, 0, 6, 100, -2}).to(dtype);
    const torch::Tensor expected = Grid(5, 2, 4, 6).key < lengths.view({5, 1, 1, 1});
    CHECK(materialize(KeyPadding(lengths), {5, 2, 4, 6}).equal(expected.expand({5, 2, 4, 6})));
  }
}

TEST_CASE("KeyPadding, Document: lengths beyond int32 count as S, documents beyond int32 are an error") {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  CHECK(materialize(KeyPadding(torch::tensor({kMost})), {1, 1, 2, 3}).all().item<bool>());
  const torch::Tensor documents = torch::tensor({std::int64_t{0}, std::int64_t{1} << 32});
  CHECK(message_of<c10::ValueError>([&] {
          materialize(Document(documents), {1, 1, 2, 2});
        }) == "attend::Binder: integers must fit into int32, got 0 to 4294967296");
}

TEST_CASE("Document: unsigned documents equal int64 documents, and documents beyond int32 are an error") {
  const torch::Tensor documents = torch::tensor({0, 0, 4, 4, 200, 200}, torch::kLong);
  for (const auto dtype : {torch::kByte, torch::kUInt16, torch::kUInt32, torch::kUInt64}) {
    CAPTURE(dtype);
    CHECK(
        materialize(Document(documents.to(dtype)), {1, 1, 6, 6}).equal(materialize(Document(documents), {1, 1, 6, 6})));
  }
  const auto message = [](const torch::Tensor& given) {
    return message_of<c10::ValueError>([&] { materialize(Document(given), {1, 1, 2, 2}); });
  };
  const torch::Tensor large = torch::tensor({std::int64_t{1}, std::int64_t{4294967295}});
  CHECK(message(large.to(torch::kUInt32)) == "attend::Binder: integers must fit into int32, got 1 to 4294967295");
  CHECK(message(large.to(torch::kUInt64)) == "attend::Binder: integers must fit into int32, got 1 to 4294967295");
  CHECK(message(torch::tensor({1, -1}, torch::kLong).view(torch::kUInt64))
            .starts_with("attend::Binder: integers must fit into int32, got -1"));
}

TEST_CASE("Document: keys() uses the current values of documents that were changed in place") {
  const torch::Tensor documents = torch::tensor({0, 0, 1, 1});
  const Document mask(documents);
  documents.copy_(torch::tensor({0, 1, 0, 1}));
  std::mt19937 random(3);
  check_key_ranges(mask, {1, 1, 4, 4}, /*is_tight=*/false, random);
}

TEST_CASE("Document, KeyPadding: keys() contains every allowed key, and is exact if documents are sorted") {
  torch::manual_seed(2);
  std::mt19937 random(2);
  for (int repeat = 0; repeat < 40; ++repeat) {
    const std::int64_t queries = 1 + random() % 30, keys = 1 + random() % 30;
    CAPTURE(queries);
    CAPTURE(keys);
    const AttentionSizes sizes{2, 3, queries, keys}, square{2, 3, keys, keys};
    const torch::Tensor lengths = torch::randint(-1, keys + 4, {2});
    check_key_ranges(KeyPadding(lengths), sizes, /*is_tight=*/true, random);
    const torch::Tensor sorted = random_documents(2, keys, true), unsorted = random_documents(2, keys, false);
    check_key_ranges(Document(sorted), square, /*is_tight=*/true, random);
    check_key_ranges(Document(sorted[0]) & attend::Causal{}, square, /*is_tight=*/true, random);
    check_key_ranges(Document(unsorted), square, /*is_tight=*/false, random);
    const torch::Tensor others = random_documents(2, queries, repeat % 2 == 0);
    check_key_ranges(Document(others, sorted), sizes, /*is_tight=*/false, random);
    check_key_ranges(Document(others, unsorted), sizes, /*is_tight=*/false, random);
    check_key_ranges(Document(others, sorted) & KeyPadding(lengths), sizes, /*is_tight=*/false, random);
    check_key_ranges(Document(others, sorted) | KeyPadding(lengths), sizes, /*is_tight=*/false, random);
    check_key_ranges(attend::SlidingWindow(1, 0) | !Document(others, sorted), sizes, /*is_tight=*/false, random);
  }
}

TEST_CASE("Document: keys() is exact for the batch entries whose documents are sorted") {
  const torch::Tensor documents = torch::tensor({0, 0, 1, 1, 1, 0, 1, 0}).view({2, 4});
  const AttentionSizes sizes{2, 1, 4, 4};
  const Document mask(documents);
  std::mt19937 random(3);
  for (int repeat = 0; repeat < 10; ++repeat) check_key_ranges(mask, sizes, false, random);
  attend::Binder binder(sizes, torch::kCPU);
  mask.bind(binder);
  std::vector<torch::Tensor> tensors;
  for (const torch::Tensor& tensor : binder.tensors()) tensors.push_back(tensor.to(torch::kInt));
  attend::Binder bound(sizes, tensors);
  const Document::View view = mask.bind(bound);
  for (const std::int32_t batch : {0, 1}) {
    const attend::KeyRange keys = view.keys({batch, 0, 2, 4, 4, 4});
    CHECK(keys.begin == (batch == 0 ? 2 : 0));
    CHECK(keys.end == 4);
  }
}

TEST_CASE("Document: bind() reads no number on the host, so it does not wait for a GPU") {
  const auto documents = [](std::int64_t length) {
    return torch::empty({length}, torch::TensorOptions(torch::kMeta).dtype(torch::kInt));
  };
  attend::Binder binder({1, 1, 4, 5}, torch::kMeta);
  CHECK_NOTHROW(Document(documents(4), documents(5)).bind(binder));
}

TEST_CASE("Document, KeyPadding: type and text of errors") {
  const AttentionSizes sizes{2, 3, 4, 5};
  const torch::Tensor four = torch::arange(4), five = torch::arange(5);
  const auto ask = [&](const auto& mask) { return [=] { materialize(mask, sizes); }; };
  const std::string
      of_query = "attend::Document: the documents of the query must be (L) or (N, L), with N = 2 and L = 4, got ",
      of_key = "attend::Document: the documents of the key must be (S) or (N, S), with N = 2 and S = 5, got ";
  const attend::test::Refused cases[] = {
      {of_query + "[5]", false, ask(Document(five, five))},
      {of_query + "[3, 4]", false, ask(Document(four.expand({3, 4}), five))},
      {of_query + "[1, 2, 4]", false, ask(Document(four.expand({1, 2, 4}), five))},
      {of_query + "[]", false, ask(Document(torch::tensor(1), five))},
      {of_query + "an undefined tensor", false, ask(Document(torch::Tensor(), five))},
      {of_key + "[4]", false, ask(Document(four))},
      {of_key + "[1, 5]", false, ask(Document(four, five.unsqueeze(0)))},
      {of_key + "an undefined tensor", false, ask(Document(four, torch::Tensor()))},
      {"attend::Binder: integers() needs an integer or bool tensor, got Float", true,
       ask(Document(four.to(torch::kFloat), five))},
      {"attend::Binder: integers() needs an integer or bool tensor, got Double", true,
       ask(Document(four, five.to(torch::kDouble)))},
      {"attend::Binder: a tensor of a score_mod or mask_mod (meta) must be on the device of query (cpu)", false,
       ask(KeyPadding(torch::empty({2}, torch::TensorOptions(torch::kMeta).dtype(torch::kInt))))},
      {"attend::KeyPadding: lengths must be (N), with N = 2, got [3]", false, ask(KeyPadding(torch::arange(3)))},
      {"attend::KeyPadding: lengths must be (N), with N = 2, got [2, 1]", false, ask(KeyPadding(torch::ones({2, 1})))},
      {"attend::KeyPadding: lengths must be (N), with N = 2, got []", false, ask(KeyPadding(torch::tensor(1)))},
      {"attend::KeyPadding: lengths must be (N), with N = 2, got an undefined tensor", false,
       ask(KeyPadding(torch::Tensor()))},
      {"attend::Binder: integers() needs an integer or bool tensor, got Float", true,
       ask(KeyPadding(torch::ones({2})))},
  };
  for (const attend::test::Refused& each : cases) each.check();
}
