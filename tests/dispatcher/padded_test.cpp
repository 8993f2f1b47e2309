// SPDX-License-Identifier: Apache-2.0
#include <moiety/dispatcher/padded.hpp>

#include "dispatcher/exchanges.hpp"

#include <moiety/dispatcher/all_to_all.hpp>
#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <ratio>
#include <span>
#include <vector>

namespace {

using exchanges::width;

/// Room for the 24 tokens that a rank has at most, of 6 ranks. Rows without a value tell how many come.
struct roomy : mo::padded_exchange {
  template <mo::communicator C>
  roomy(links<C>& through, mo::permutation_view const& order, std::int64_t experts, int copies, mo::arena& memory)
      : padded_exchange(through, order, experts, copies, memory, {24, 144}) {
    bring_to<C, char>(through, {}, 0, nullptr);
  }
};

using narrow = mo::capacity<std::ratio<5, 4>>;
using by_sequence = mo::capacity<std::ratio<5, 4>, mo::per::sequence>;

struct small : mo::layer_spec<mo::dims{.hidden = 12, .ffn = 7, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using capacity = by_sequence;
};
struct padded : mo::deployment<mo::layout{.data = 2, .expert = 2}> {
  using dispatcher = mo::padded_all_to_all<8, 2>;
};

}  // namespace

TEST_CASE("rows go to their experts and back in blocks of one size") {
  exchanges::check_exchange<roomy>(exchanges::all_shapes);
}

TEST_CASE("what copies return is added in the order of ranks") { exchanges::check_order_of_copies<roomy>(); }

TEST_CASE("the first rows tell how many they are; until then it is as many as may come") {
  for (bool const exactly : {true, false})
    for (exchanges::shape const& s : exchanges::all_shapes) {
      exchanges::choices const all = exchanges::draw(s.ranks, s.experts, exchanges::kind::random, 40);
      std::int64_t most = 0;
      for (int r = 0; r < s.ranks; ++r) {
        exchanges::own_rows const own(all, r);
        for (std::size_t e = 1; e < own.starts.size(); ++e) most = std::max(most, own.starts[e] - own.starts[e - 1]);
      }
      if (!exactly) most += 3;
      on_ranks(s.ranks, [&](mo::thread_communicator& ranks) {
        exchanges::own_rows mine(all, ranks.rank());
        mo::padded_exchange::links<mo::thread_communicator> through(ranks);
        mo::padded_exchange rows(through, mine.view(), s.experts, s.copies, exchanges::heap(), {most, s.ranks * most});
        std::int64_t const share = s.experts * s.copies / s.ranks;
        auto const wanted = exchanges::expected(all, ranks.rank() / s.copies * share, share);
        expect(rows.rows() == 0);
        expect(rows.most_rows() == share * s.ranks * most);
        std::vector<std::int64_t> values;
        for (std::int32_t const t : mine.tokens)
          for (std::int64_t c = 0; c < width; ++c) values.push_back(exchanges::mark(ranks.rank(), t, c));
        std::vector<std::int64_t> to(static_cast<std::size_t>(rows.most_rows() * width), -1);
        rows.bring_to(through, mo::kernels::rows_of<std::int64_t>{values.data(), width}, width, to.data());
        expect(rows.rows() * width == static_cast<std::int64_t>(wanted.size()));
        expect(std::equal(wanted.begin(), wanted.end(), to.begin()));
        expect(std::all_of(to.begin() + static_cast<std::ptrdiff_t>(wanted.size()), to.end(),
                           [](std::int64_t v) { return v == -1; }),
               "padding is not unpacked");
      });
    }
}

TEST_CASE("more rows than a block has room for are refused where they are, before they are packed") {
  exchanges::choices const all{2, {{{0}, {0}, {0}}, {{1}}}};
  auto const all_ends = thread_ranks(2).run([&](mo::thread_communicator& ranks) {
    exchanges::own_rows mine(all, ranks.rank());
    mo::padded_exchange::links<mo::thread_communicator> through(ranks);
    mo::padded_exchange rows(through, mine.view(), 2, 1, exchanges::heap(), {2, 4});
    std::int64_t to[4] = {}, from[4] = {};
    rows.bring_to(through, mo::kernels::rows_of<std::int64_t>{from, 1}, 1, to);
  });
  CHECK(thrown<mo::data_error>(all_ends[0]));
  CHECK(thrown<mo::comm_error>(all_ends[1]));
}

TEST_CASE("more rows than have an index of 32 bits are refused, whether they come or not") {
  exchanges::choices const all{2, {{{0}}, {{1}}}};
  std::int64_t const most = std::int64_t{1} << 31;
  auto const all_ends = thread_ranks(2).run([&](mo::thread_communicator& ranks) {
    exchanges::own_rows mine(all, ranks.rank());
    mo::padded_exchange::links<mo::thread_communicator> through(ranks);
    mo::padded_exchange const fits(through, mine.view(), 2, 1, exchanges::heap(), {2, most - 1});
    mo::padded_exchange const rows(through, mine.view(), 2, 1, exchanges::heap(), {2, most});
  });
  for (auto const& end : all_ends) CHECK(thrown<mo::resource_error>(end));
}

TEST_CASE("what an expert gets at most follows from the capacity and the number of ranks") {
  constexpr auto of_batch = mo::padded_all_to_all<16>::limits<narrow>(2, 8, 4, 4, 1);  // C(64) = 64 · 2 · 5 / (8 · 4)
  CHECK(of_batch.from_rank == 16);
  CHECK(of_batch.from_all == 20);
  constexpr auto many_experts = mo::padded_all_to_all<16>::limits<narrow>(2, 64, 4, 2, 2);
  CHECK(many_experts.from_rank == 3);
  CHECK(many_experts.from_all == 3);
  constexpr auto sequences = mo::padded_all_to_all<16, 3>::limits<by_sequence>(2, 8, 4, 2, 1);  // C(16) = 5
  CHECK(sequences.from_rank == 15);
  CHECK(sequences.from_all == 30);
}

TEST_CASE("ranks that share a sequence have its capacity together, and one of them may have it alone") {
  using parts_of_16 = mo::padded_all_to_all<16, 3>;
  constexpr auto of_two = parts_of_16::limits<by_sequence>(2, 8, 4, 4, 2);  // C(32) = 10
  CHECK(of_two.from_rank == 30);
  CHECK(of_two.from_all == 60);  // of two times 3 sequences
  constexpr auto in_one = parts_of_16::limits<by_sequence>(2, 8, 4, 1, 2);
  CHECK(in_one.from_rank == 30);
  CHECK(in_one.from_all == 30);
  constexpr auto of_all = parts_of_16::limits<by_sequence>(2, 8, 4, 4, 4);  // C(64) = 20
  CHECK(of_all.from_rank == 48);
  CHECK(of_all.from_all == 60);
}

TEST_CASE("rows are kept with the tape on top of it") {
  using kept = mo::keep_rows<mo::padded_all_to_all<8>>;
  CHECK(kept::keeps_rows);
  CHECK(kept::most_tokens == 8);
  CHECK(mo::padded_all_to_all<8, 3>::most_tokens == 24);
  CHECK_FALSE(mo::padded_all_to_all<8>::keeps_rows);
}

TEST_CASE("more tokens or sequences than there is room for are refused on all ranks, which go on with fewer") {
  struct wrong {
    std::vector<std::int64_t> sequences;
    char const* words;
  };
  std::vector<wrong> const cases{{{0, 8, 17}, "given 17 tokens, and has room for 16"},
                                 {{0, 9, 16}, "given 9 tokens in a sequence, and has room for 8"},
                                 {{}, "given 16 tokens in a sequence, and has room for 8"},
                                 {{0, 5, 10, 15}, "given 3 sequences, and has room for 2"}};
  for (wrong const& w : cases) {
    std::int64_t const tokens = w.sequences.empty() ? 16 : w.sequences.back();
    int const told = mo::run<padded>(
        [&](mo::context<padded>& ctx) {
          mo::moe_layer<small, padded> layer{ctx};
          auto const weights = layer.make_weights(mo::seed{1});
          bool const at_fault = ctx.stage().rank() == 1;
          auto x = ctx.matrix(at_fault ? tokens : 4, 12), y = ctx.matrix(at_fault ? tokens : 4, 12);
          mo::fill_normal(ctx, x, mo::seed{1});
          int heard = 0;
          try {
            layer.infer(weights, x, y, at_fault ? mo::batch{.sequences = w.sequences} : mo::batch{});
          } catch (mo::data_error const& e) {
            heard = std::strstr(e.what(), w.words) != nullptr;
          }
          auto fewer = ctx.matrix(at_fault ? 0 : 8, 12), results = ctx.matrix(at_fault ? 0 : 8, 12);
          mo::fill_normal(ctx, fewer, mo::seed{1});
          layer.infer(weights, fewer, results);
          ctx.world().all_reduce(std::span(&heard, 1));
          return heard;
        },
        {}, padded::shape, {.threads = 1});
    CAPTURE(w.words);
    CHECK(told == 2);
  }
}
