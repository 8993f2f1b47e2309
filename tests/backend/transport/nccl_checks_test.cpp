// SPDX-License-Identifier: Apache-2.0
#include <moiety/backend/transport/nccl_checks.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mo = moiety;
namespace detail = moiety::detail;

namespace {

std::int64_t rows_between(int from, int to) { return (from + 2 * to) % 3 == 0 ? 0 : 10 * from + to + 1; }

std::size_t place(int of, int half, int peer, int size) {
  return static_cast<std::size_t>((2 * of + half) * size + peer);
}

/// Of ranks that all call what.
std::vector<detail::nccl_note> notes_of(mo::rank_operation const& what, int size) {
  std::vector<detail::nccl_note> notes(static_cast<std::size_t>(2 * size * size));
  for (int r = 0; r < size; ++r)
    for (int peer = 0; peer < size; ++peer) {
      notes[place(r, 0, peer, size)] = {what, rows_between(r, peer), 24, 6};
      notes[place(r, 1, peer, size)] = {what, rows_between(peer, r), 24, 6};
    }
  return notes;
}

mo::rank_operation const exchange{.name = "exchange", .width = 24, .count = 5};

void replace_calls(std::vector<detail::nccl_note>& notes, int rank, int size, mo::rank_operation const& by,
                   std::int64_t number) {
  for (int peer = 0; peer < size; ++peer) {
    notes[place(rank, 0, peer, size)] = {by, rows_between(rank, peer), 24, number};
    notes[place(rank, 1, peer, size)] = {by, rows_between(peer, rank), 24, number};
  }
}

}  // namespace

TEST_CASE("calls that fit have no disagreement") {
  for (int const size : {1, 2, 5}) CHECK(!detail::disagreement_in(notes_of(exchange, size), size));
  std::string const name(60, 'n');  // is cut
  CHECK(!detail::disagreement_in(notes_of({.name = name.c_str(), .width = 1}, 3), 3));
}

TEST_CASE("a rank whose call differs is named, with both calls") {
  constexpr int size = 4;
  mo::rank_operation const others[] = {{.name = "broadcast", .width = 24, .count = 5},
                                       {.name = "exchange", .width = 8, .count = 5},
                                       {.name = "exchange", .width = 24, .count = 6},
                                       {.name = "exchange", .width = 24, .count = 5, .root = 2}};
  for (mo::rank_operation const& other : others)
    for (int rank = 1; rank < size; ++rank) {
      auto notes = notes_of(exchange, size);
      replace_calls(notes, rank, size, other, 6);
      auto const found = detail::disagreement_in(notes, size);
      REQUIRE(found);
      CHECK(found->from == rank);
      CHECK(found->why.find(other.words() + ", call 7") != std::string::npos);
      CHECK(found->why.find(exchange.words() + ", call 7") != std::string::npos);
    }
  auto notes = notes_of(exchange, size);
  replace_calls(notes, 2, size, exchange, 7);
  auto const found = detail::disagreement_in(notes, size);
  REQUIRE(found);
  CHECK(found->from == 2);
  CHECK(found->why.find("call 8, and rank 0") != std::string::npos);
}

TEST_CASE("a block that is not as its receiver expects is named") {
  constexpr int size = 3;
  for (int from = 0; from < size; ++from)
    for (int to = 0; to < size; ++to) {
      auto notes = notes_of(exchange, size);
      notes[place(to, 1, from, size)] = {exchange, rows_between(from, to) + 1, 24, 6};
      auto const found = detail::disagreement_in(notes, size);
      REQUIRE(found);
      CHECK(found->from == from);
      CHECK(found->to == to);
      notes[place(to, 1, from, size)] = {exchange, rows_between(from, to), 12, 6};
      CHECK(detail::disagreement_in(notes, size).has_value() == (rows_between(from, to) > 0));
    }
}

TEST_CASE("blocks that NCCL cannot move are refused before anything is sent") {
  std::array<std::byte, 64> memory{};
  std::int32_t const index[] = {1, 0};
  mo::outgoing_rows const out{memory.data(), 2, 8, 8, nullptr};
  mo::incoming_rows const in{memory.data() + 32, 2, 8, 8, nullptr};
  auto check = [](std::vector<mo::outgoing_rows> const& to, std::vector<mo::incoming_rows> const& from) {
    detail::check_blocks({.name = "exchange"}, 1, 2, to, from);
  };
  CHECK_NOTHROW(check({out, out}, {in, in}));
  CHECK_NOTHROW(check({{memory.data(), 0, 8, 16, index}, out}, {{memory.data(), 1, 8, 16, nullptr}, in}));
  CHECK_THROWS_AS(check({{memory.data(), 2, 8, 16, nullptr}, out}, {in, in}), mo::data_error);
  CHECK_THROWS_AS(check({{memory.data(), 1, 8, 8, index}, out}, {in, in}), mo::data_error);
  CHECK_THROWS_AS(check({out, out}, {{memory.data(), 2, 8, 8, index}, in}), mo::data_error);
  CHECK_THROWS_AS(check({out}, {in, in}), mo::data_error);
  CHECK_THROWS_AS(check({out, out}, {in, in, in}), mo::data_error);
  CHECK_THROWS_AS(check({out, out}, {in, {memory.data() + 32, 1, 8, 8, nullptr}}), mo::data_error);
  CHECK_NOTHROW(check({out, out}, {{memory.data() + 32, 1, 8, 8, nullptr}, in}));  // only the sender knows
}

TEST_CASE("blocks of one size that do not lie side by side are refused") {
  std::array<std::byte, 64> memory{};
  auto const blocks = []<class Rows>(auto* first, std::int64_t bytes, std::int64_t apart, std::vector<Rows>) {
    return std::vector<Rows>{{first, 1, bytes, bytes, nullptr}, {first + apart, 1, bytes, bytes, nullptr}};
  };
  auto const check = [&](std::int64_t bytes, std::int64_t apart_out, std::int64_t apart_in, bool equal) {
    mo::rank_operation const what{.name = "exchange", .width = 8, .equal = equal};
    detail::check_blocks(what, 0, 2, blocks(memory.data(), bytes, apart_out, std::vector<mo::outgoing_rows>{}),
                         blocks(memory.data() + 32, bytes, apart_in, std::vector<mo::incoming_rows>{}));
  };
  CHECK_NOTHROW(check(8, 8, 8, true));
  CHECK_THROWS_AS(check(8, 16, 8, true), mo::data_error);
  CHECK_THROWS_AS(check(8, 8, 16, true), mo::data_error);
  CHECK_THROWS_AS(check(4, 8, 8, true), mo::data_error);
  CHECK_NOTHROW(check(8, 16, 16, false));
}

TEST_CASE("pieces of memory of one size overlap where they share a byte") {
  std::array<std::byte, 32> m{};
  CHECK(detail::overlap(m.data(), m.data(), 1));
  CHECK(!detail::overlap(m.data(), m.data(), 0));
  CHECK(detail::overlap(m.data(), m.data() + 7, 8));
  CHECK(detail::overlap(m.data() + 7, m.data(), 8));
  CHECK(!detail::overlap(m.data(), m.data() + 8, 8));
  CHECK(!detail::overlap(m.data() + 8, m.data(), 8));
}

TEST_CASE("messages go channel by channel, those of one in the order given") {
  std::vector<mo::outgoing_message> const given = {{1, nullptr, 10, 2}, {0, nullptr, 11, 0}, {1, nullptr, 12, 1},
                                                   {1, nullptr, 13, 0}, {0, nullptr, 14, 2}, {1, nullptr, 15, 1}};
  std::vector<std::int64_t> order;
  for (auto const& m : detail::by_channel(std::span(given), 2)) order.push_back(m.bytes);
  CHECK(order == std::vector<std::int64_t>{11, 13, 12, 15, 10, 14});
  for (int const peer : {-1, 2}) {
    std::vector<mo::outgoing_message> const wrong = {{peer, nullptr, 0, 0}};
    CHECK_THROWS_AS(detail::by_channel(std::span(wrong), 2), mo::data_error);
  }
}

TEST_CASE("a part has the ranks of one colour, in order of key, then rank") {
  std::vector<detail::nccl_choice> const all = {
      {-5, 1, 0, 30}, {2, 0, 1, 31}, {-5, 0, 2, 32}, {-5, 1, 3, 33}, {2, -1, 4, 34}};
  auto const first = detail::part_of(all, all[3]);
  CHECK(first.world_ranks == std::vector<int>{32, 30, 33});
  CHECK(first.place == 2);
  CHECK(first.colour == 0);
  auto const second = detail::part_of(all, all[1]);
  CHECK(second.world_ranks == std::vector<int>{34, 31});
  CHECK(second.place == 1);
  CHECK(second.colour == 1);
}

TEST_CASE("ranks that leave are others of the group, one at least") {
  CHECK(detail::leaving_ranks(std::array{5, 1, 5}, 2, 6) == std::vector<int>{1, 5});
  CHECK_THROWS_AS(detail::leaving_ranks({}, 2, 6), mo::data_error);
  CHECK_THROWS_AS(detail::leaving_ranks(std::array{1, 2}, 2, 6), mo::data_error);
  CHECK_THROWS_AS(detail::leaving_ranks(std::array{6}, 2, 6), mo::data_error);
  CHECK_THROWS_AS(detail::leaving_ranks(std::array{-1, 0}, 2, 6), mo::data_error);
}
