// SPDX-License-Identifier: Apache-2.0
#include <moiety/dispatcher/all_gather.hpp>

#include "dispatcher/exchanges.hpp"

#include <doctest/doctest.h>

#include <cstdint>

TEST_CASE("tokens go to all ranks, and results to those of the tokens") {
  exchanges::check_exchange<mo::token_exchange>(exchanges::all_shapes);
}

TEST_CASE("what copies return is added in the order of ranks") {
  exchanges::check_order_of_copies<mo::token_exchange>();
}

TEST_CASE("rows that are tokens come as the tokens of all ranks, each once") {
  using exchanges::width;
  exchanges::for_all<mo::token_exchange>(exchanges::all_shapes, [](auto& rank) {
    auto const tokens = rank.marked(width, true);
    mo::kernels::rows_of<std::int64_t> const own{tokens.data(), width, rank.mine.view().source_tokens};
    mo::buffer room;
    auto const there = rank.rows.bring(rank.through, own, width, room, exchanges::heap());
    std::int64_t next = 0;
    for (std::size_t r = 0; r < rank.all.of.size(); ++r)
      for (std::size_t t = 0; t < rank.all.of[r].size(); ++t, ++next)
        expect(there.data[next * width] ==
               exchanges::mark(static_cast<std::int64_t>(r), static_cast<std::int64_t>(t), 0));
    expect(room.bytes() == next * width * static_cast<std::int64_t>(sizeof(std::int64_t)));
  });
}
