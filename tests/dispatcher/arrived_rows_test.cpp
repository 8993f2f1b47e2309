// SPDX-License-Identifier: Apache-2.0
#include <moiety/dispatcher/arrived_rows.hpp>
#include <moiety/dispatcher/row_exchange.hpp>

#include "dispatcher/exchanges.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace {

using exchanges::width;

void check_mismatch(outcomes const& all) {
  for (auto const& outcome : all) {
    auto const error = thrown<mo::comm_error>(outcome);
    REQUIRE(error);
    CHECK(error->fault == mo::comm_fault::mismatch);
  }
}

}  // namespace

TEST_CASE("rows of each local expert begin where those of the ones before it end") {
  unsigned seed = 20;
  for (exchanges::shape const& s : exchanges::all_shapes) {
    exchanges::choices const all = exchanges::draw(s.ranks, s.experts, exchanges::kind::random, seed++);
    on_ranks(s.ranks, [&](mo::thread_communicator& ranks) {
      exchanges::own_rows mine(all, ranks.rank());
      mo::arrived_rows const rows(ranks, mine.view(), s.experts, s.copies, exchanges::heap());
      std::int64_t const share = s.experts * s.copies / s.ranks;
      expect(rows.experts() == share);
      expect(rows.own_rows() == mine.count());
      for (std::int64_t e = 0; e <= share; ++e) {
        auto const before = exchanges::expected(all, ranks.rank() / s.copies * share, e);
        expect(rows.offsets()[e] * width == static_cast<std::int64_t>(before.size()));
      }
      expect(rows.rows() == rows.offsets()[share]);
    });
  }
}

TEST_CASE("offsets of some experts give these their rows and others none") {
  exchanges::choices const all = exchanges::draw(2, 10, exchanges::kind::random, 8);
  on_ranks(2, [&](mo::thread_communicator& ranks) {
    exchanges::own_rows mine(all, ranks.rank());
    mo::arrived_rows const rows(ranks, mine.view(), 10, 1, exchanges::heap());
    expect(rows.rows() > 0);
    for (std::int64_t first = 0; first <= 5; ++first)
      for (std::int64_t count = 0; first + count <= 5; ++count) {
        std::vector<std::int64_t> const some = rows.offsets(mo::range_of{first, count});
        expect(some.size() == 6);
        for (std::int64_t e = 0; e < 5; ++e) {
          auto const at = static_cast<std::size_t>(e);
          if (e >= first && e < first + count)
            expect(some[at] == rows.offsets()[e] && some[at + 1] == rows.offsets()[e + 1]);
          else
            expect(some[at] == some[at + 1]);
        }
      }
  });
}

TEST_CASE("experts after those with an MLP have no rows that travel") {
  exchanges::choices const all = exchanges::draw(2, 6, exchanges::kind::random, 4);
  on_ranks(2, [&](mo::thread_communicator& ranks) {
    exchanges::own_rows mine(all, ranks.rank());
    mo::arrived_rows const rows(ranks, mine.view(), 4, 1, exchanges::heap());
    expect(mine.starts[4] < mine.count());
    expect(rows.own_rows() == mine.starts[4]);
    expect(rows.rows() * width == static_cast<std::int64_t>(exchanges::expected(all, 2 * ranks.rank(), 2).size()));
  });
}

TEST_CASE("a number of rows that is negative, or larger than an index of a row, is a mismatch on all") {
  for (std::int64_t const rows : {std::int64_t{-3}, std::int64_t{1} << 31, std::int64_t{1} << 62}) {
    INFO(rows);
    check_mismatch(thread_ranks(2).run([&](mo::thread_communicator& ranks) {
      std::vector<std::int64_t> starts{0, 0, ranks.rank() == 0 ? rows : 0};
      mo::permutation_view const order{0, 2, 1, starts.data(), nullptr, nullptr};
      mo::arrived_rows(ranks, order, 2, 1, exchanges::heap());
      ranks.barrier();
    }));
  }
}

TEST_CASE("more rows announced than the sender then has, or fewer, are a mismatch on all") {
  for (std::int64_t const announced : {7, 2}) {
    INFO(announced);
    check_mismatch(thread_ranks(2).run([&](mo::thread_communicator& ranks) {
      std::vector<std::int64_t> room(8, -1);
      if (ranks.rank() == 0) {
        std::vector<std::int64_t> const counts{0, announced};
        std::vector<std::int64_t> from(2);
        ranks.all_to_all<std::int64_t>(counts, from);
        std::vector<mo::outgoing_rows> const to{mo::detail::rows_from(room.data(), 1, nullptr, {0, 0}, 1),
                                                mo::detail::rows_from(room.data(), 1, nullptr, {0, 3}, 1)};
        std::vector<mo::incoming_rows> const none(2, mo::detail::rows_to(room.data(), nullptr, {0, 0}, 1));
        ranks.finish(ranks.start({.name = "dispatch", .width = 8}, to, none));
      } else {
        std::vector<std::int64_t> starts{0, 0, 0};
        mo::permutation_view const order{0, 2, 1, starts.data(), nullptr, nullptr};
        mo::row_exchange::links<mo::thread_communicator> through(ranks);
        mo::row_exchange const rows(through, order, 2, 1, exchanges::heap());
        expect(rows.rows() == announced);
        rows.bring_to(through, mo::kernels::rows_of<std::int64_t>{room.data(), 1}, 1, room.data());
      }
    }));
  }
}
