// SPDX-License-Identifier: Apache-2.0
#include <moiety/dispatcher/all_gather.hpp>

#include "dispatcher/exchanges.hpp"

#include <moiety/backend/host.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

using exchanges::mark;
using exchanges::width;

double weight_of(std::int64_t expert) { return static_cast<double>(2 * expert + 1); }

/// Rows here of which each says whose it is, and the weights of their experts.
struct marked_rows {
  std::vector<double> rows, weights;

  explicit marked_rows(exchanges::rank_of<mo::token_sums>& rank) {
    auto const marks = rank.wanted(rank.share());
    rows.assign(marks.begin(), marks.end());
    std::int64_t const first = rank.ranks.rank() / rank.s.copies * rank.share();
    std::int64_t const* const offsets = rank.rows.offsets();
    for (std::int64_t e = 0; e < rank.share(); ++e)
      weights.insert(weights.end(), static_cast<std::size_t>(offsets[e + 1] - offsets[e]), weight_of(first + e));
  }
};

}  // namespace

TEST_CASE("tokens go to all ranks, and results to those of the tokens") {
  exchanges::check_exchange<mo::token_exchange>(exchanges::all_shapes);
}

TEST_CASE("what copies return is added in the order of ranks") {
  exchanges::check_order_of_copies<mo::token_exchange>();
}

TEST_CASE("rows that are tokens come as the tokens of all ranks, each once") {
  exchanges::for_all<mo::token_exchange>(exchanges::all_shapes, [](auto& rank) {
    auto const tokens = rank.marked(width, true);
    mo::kernels::rows_of<std::int64_t> const own{tokens.data(), width, rank.mine.view().source_tokens};
    mo::buffer room;
    auto const there = rank.rows.bring(rank.through, own, width, room, exchanges::heap());
    std::int64_t next = 0;
    for (std::size_t r = 0; r < rank.all.of.size(); ++r)
      for (std::size_t t = 0; t < rank.all.of[r].size(); ++t, ++next)
        expect(there.data[next * width] == mark(static_cast<std::int64_t>(r), static_cast<std::int64_t>(t), 0));
    expect(room.bytes() == next * width * static_cast<std::int64_t>(sizeof(std::int64_t)));
  });
}

TEST_CASE("the exchange of sums brings and gives back as the other does") {
  exchanges::check_exchange<mo::token_sums>({{1, 1, 5}, {3, 1, 6}, {4, 2, 6}});
}

TEST_CASE("sums by token of weighted rows, or of rows, come home from all ranks, copies too") {
  exchanges::for_all<mo::token_sums>(exchanges::all_shapes, [](auto& rank) {
    mo::host_engine engine{mo::host{.threads = 1}};
    marked_rows const here(rank);
    for (bool const weighted : {true, false}) {
      mo::buffer const sums = rank.rows.template sum<double>(
          engine, rank.through, here.rows.data(), weighted && !here.weights.empty() ? here.weights.data() : nullptr,
          width, exchanges::heap());
      double const* const own = rank.rows.template own<double>(sums, width);
      auto const& tokens = rank.all.of[static_cast<std::size_t>(rank.ranks.rank())];
      for (std::int64_t t = 0; t < rank.mine.token_count; ++t)
        for (std::int64_t c = 0; c < width; ++c) {
          double wanted = 0;  // of whole numbers, so in any order
          for (std::int64_t const e : tokens[static_cast<std::size_t>(t)])
            wanted +=
                (weighted ? weight_of(e) : 1) * static_cast<double>(rank.s.copies * mark(rank.ranks.rank(), t, c));
          expect(own[t * width + c] == wanted, weighted ? "weighted" : "not weighted");
        }
    }
  });
}

TEST_CASE("sums of 16-bit rows are of floats") {
  exchanges::choices const all{4, {{{0, 1, 2, 3}}, {}}};
  exchanges::shape const s{2, 1, 4};
  on_ranks(2, [&](mo::thread_communicator& ranks) {
    exchanges::rank_of<mo::token_sums> rank(ranks, s, all);
    mo::host_engine engine{mo::host{.threads = 1}};
    std::vector<mo::bf16> const from(2, static_cast<mo::bf16>(1.0f));
    std::vector<float> const weights(2, ranks.rank() == 0 ? 1.0f : 0x1p-10f);  // beside 2 these are lost in 16 bits
    mo::buffer const sums =
        rank.rows.sum<mo::bf16>(engine, rank.through, from.data(), weights.data(), 1, exchanges::heap());
    if (ranks.rank() == 0) expect(*rank.rows.own<float>(sums, 1) == 2 + 0x1p-9f);
  });
}

TEST_CASE("rows that stay are those behind the rows that travel") {
  exchanges::choices const all{2, {{{0, 1}, {1}}}};
  exchanges::shape const s{1, 1, 2};
  on_ranks(1, [&](mo::thread_communicator& ranks) {
    exchanges::rank_of<mo::token_sums> rank(ranks, s, all);  // three rows travel
    std::vector<std::int32_t> places{2, -1, 3, 0, 4, 1};
    mo::permutation_view order{2, 3, 3};
    order.positions = places.data();
    expect(rank.rows.staying(order) == std::vector<std::int32_t>{-1, -1, 3, -1, 4, -1});
  });
}
