// SPDX-License-Identifier: Apache-2.0
#include <moiety/dispatcher/row_exchange.hpp>

#include "dispatcher/exchanges.hpp"
#include "router/example.hpp"

#include <moiety/layer/deployment.hpp>
#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace {

using numbers = std::vector<std::int64_t>;

/// The experts of the worked example: tokens 0 … 2 on rank 0, 3 … 5 on rank 1.
exchanges::choices worked_choices() {
  mo::context<> ctx;
  mo::routing const r = mo::router<mo::softmax, mo::top_k<2>>{}.forward(ctx, example::make_logits<float>());
  exchanges::choices all{4, {{}, {}}};
  for (std::size_t t = 0; t < 6; ++t)
    all.of[t / 3].push_back({r.expert(static_cast<int>(t), 0), r.expert(static_cast<int>(t), 1)});
  return all;
}

/// An exchange that tells how many rows it sends to each of two ranks, and gets from them.
struct told : mo::row_exchange {
  using mo::row_exchange::row_exchange;
  numbers sent_to() const { return {sent(0).count, sent(1).count}; }
  numbers got_from() const { return {from(0), from(1)}; }
};

}  // namespace

TEST_CASE("the worked example on two ranks: counts, what each sends and gets, and the permutation by expert") {
  exchanges::choices const all = worked_choices();
  exchanges::shape const two{2, 1, 4};
  on_ranks(2, [&](mo::thread_communicator& ranks) {
    exchanges::rank_of<told> rank(ranks, two, all);
    bool const first = ranks.rank() == 0;
    numbers counts, totals;
    for (std::size_t e = 0; e < 4; ++e) counts.push_back(rank.mine.starts[e + 1] - rank.mine.starts[e]);
    for (std::int64_t e = 0; e < 2; ++e) totals.push_back(rank.rows.offsets()[e + 1] - rank.rows.offsets()[e]);
    expect(counts == (first ? numbers{2, 2, 2, 0} : numbers{3, 0, 1, 2}));
    expect(rank.rows.sent_to() == (first ? numbers{4, 2} : numbers{3, 3}));
    expect(rank.rows.got_from() == (first ? numbers{4, 3} : numbers{2, 3}));
    expect(totals == (first ? numbers{5, 2} : numbers{3, 2}));
    // each row says which of the rows of its receiver it is, those of rank 0 first
    numbers const numbered = first ? numbers{0, 1, 2, 3, 0, 1} : numbers{4, 5, 6, 2, 3, 4};
    numbers const there = rank.bring(mo::kernels::rows_of<std::int64_t>{numbered.data(), 1}, 1);
    expect(there == (first ? numbers{0, 1, 4, 5, 6, 2, 3} : numbers{0, 1, 2, 3, 4}));
    expect(rank.give_back(there, 1) == numbered);
  });
}

TEST_CASE("rows go straight to their experts and back") {
  exchanges::check_exchange<mo::row_exchange>(exchanges::all_shapes);
}

TEST_CASE("what copies return is added in the order of ranks") { exchanges::check_order_of_copies<mo::row_exchange>(); }
