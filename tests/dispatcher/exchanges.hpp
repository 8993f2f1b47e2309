// SPDX-License-Identifier: Apache-2.0
// What every exchange of rows must do, on groups of 1 to 6 ranks of threads: check_exchange<Exchange>(shapes).
#pragma once

#include "backend/transport/thread_ranks.hpp"

#include <moiety/backend/arena.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/grouped_gemm.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <numeric>
#include <random>
#include <vector>

namespace exchanges {

namespace mo = moiety;
using mo::kernels::rows_of;

inline mo::arena& heap() {
  static mo::arena all(*std::pmr::new_delete_resource());
  return all;
}

/// How tokens of all ranks choose experts: [rank][token][slot].
struct choices {
  std::int64_t experts;
  std::vector<std::vector<std::vector<std::int64_t>>> of;
};

enum class kind { random, one_expert, last_rank_empty, none };

/// 5 to 24 tokens a rank, each with 0 to 3 experts, where `how` does not say otherwise.
inline choices draw(int ranks, std::int64_t experts, kind how, unsigned seed) {
  std::mt19937 bits(seed);
  choices all{experts, {}};
  for (int r = 0; r < ranks; ++r) {
    std::size_t const tokens =
        how == kind::none || (how == kind::last_rank_empty && r + 1 == ranks) ? 0 : 5 + bits() % 20;
    all.of.emplace_back(tokens);
    for (auto& token : all.of.back()) {
      std::vector<std::int64_t> order(static_cast<std::size_t>(experts));
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), bits);
      order.resize(std::min<std::size_t>(order.size(), bits() % 4));
      token = how == kind::one_expert ? std::vector{experts - 1} : order;
    }
  }
  return all;
}

/// A rank's rows by expert, then token, and where they begin.
struct own_rows {
  std::int64_t token_count;
  std::vector<std::int64_t> starts;
  std::vector<std::int32_t> tokens;

  own_rows(choices const& all, int rank) : starts(static_cast<std::size_t>(all.experts + 1)) {
    auto const& mine = all.of[static_cast<std::size_t>(rank)];
    token_count = static_cast<std::int64_t>(mine.size());
    tokens.reserve(1);  // rows that are tokens have an index on every rank, on those without a row too
    for (std::int64_t e = 0; e < all.experts; ++e) {
      for (std::size_t t = 0; t < mine.size(); ++t)
        if (std::find(mine[t].begin(), mine[t].end(), e) != mine[t].end())
          tokens.push_back(static_cast<std::int32_t>(t));
      starts[static_cast<std::size_t>(e + 1)] = static_cast<std::int64_t>(tokens.size());
    }
  }
  mo::permutation_view view() {
    return {token_count, static_cast<std::int64_t>(starts.size()) - 1, 3, starts.data(), tokens.data(), nullptr};
  }
  std::int64_t count() const { return static_cast<std::int64_t>(tokens.size()); }
};

constexpr std::int64_t width = 3;

/// A value that says whose row it is: of which token of which rank, and the column.
inline std::int64_t mark(std::int64_t rank, std::int64_t token, std::int64_t column) {
  return 1'000'000 * (rank + 1) + 100 * token + column;
}

/// What the rank with these experts must get: by expert, then rank, then token.
inline std::vector<std::int64_t> expected(choices const& all, std::int64_t first, std::int64_t count) {
  std::vector<std::int64_t> rows;
  for (std::int64_t e = first; e < first + count; ++e)
    for (std::size_t r = 0; r < all.of.size(); ++r)
      for (std::size_t t = 0; t < all.of[r].size(); ++t)
        if (std::find(all.of[r][t].begin(), all.of[r][t].end(), e) != all.of[r][t].end())
          for (std::int64_t c = 0; c < width; ++c)
            rows.push_back(mark(static_cast<std::int64_t>(r), static_cast<std::int64_t>(t), c));
  return rows;
}

struct shape {
  int ranks, copies;
  std::int64_t experts;
};
inline std::vector<shape> const whole_experts{{1, 1, 5}, {2, 1, 6}, {3, 1, 6}, {4, 1, 8}, {4, 1, 4}, {6, 1, 12}};
inline std::vector<shape> const split_experts{{2, 2, 3}, {4, 2, 6}, {4, 4, 5}, {3, 3, 1}};
inline std::vector<shape> const all_shapes = [] {
  std::vector<shape> all = whole_experts;
  all.insert(all.end(), split_experts.begin(), split_experts.end());
  return all;
}();

/// One rank of a group, its rows, and an exchange of them.
template <class Exchange> struct rank_of {
  using links = typename Exchange::template links<mo::thread_communicator>;

  rank_of(mo::thread_communicator& group, shape const& of, choices const& drawn)
      : ranks(group),
        s(of),
        all(drawn),
        mine(drawn, group.rank()),
        through(group),
        rows(through, mine.view(), of.experts, of.copies, heap()) {}

  mo::thread_communicator& ranks;
  shape const& s;
  choices const& all;
  own_rows mine;
  links through;
  Exchange rows;

  std::int64_t share() const { return s.experts * s.copies / s.ranks; }
  std::vector<std::int64_t> wanted(std::int64_t experts) const {
    return expected(all, ranks.rank() / s.copies * share(), experts);
  }

  /// Rows of this rank's tokens by permutation, or its tokens.
  std::vector<std::int64_t> marked(std::int64_t stride, bool by_token) const {
    std::vector<std::int32_t> which = mine.tokens;
    if (by_token) {
      which.resize(static_cast<std::size_t>(mine.token_count));
      std::iota(which.begin(), which.end(), 0);
    }
    std::vector<std::int64_t> values;
    for (std::int32_t const t : which)
      for (std::int64_t c = 0; c < stride; ++c) values.push_back(c < width ? mark(ranks.rank(), t, c) : -8);
    return values;
  }

  template <class V> std::vector<V> bring(rows_of<V> const& from, std::int64_t columns) {
    mo::buffer room;
    rows_of<V> const there = rows.bring(through, from, columns, room, heap());
    if (from.index != nullptr) check_brought(there, rows.template brought<V>(room, columns));
    std::vector<V> values;
    for (std::int64_t r = 0; r < rows.rows(); ++r) values.insert(values.end(), there.row(r), there.row(r) + columns);
    return values;
  }
  template <class V> std::vector<V> give_back(std::vector<V> const& from, std::int64_t columns) {
    std::vector<V> back(static_cast<std::size_t>(mine.count() * columns), static_cast<V>(-1));
    rows.give_back(through, from.data(), columns, back.data(), heap());
    return back;
  }

 private:
  template <class V> void check_brought(rows_of<V> const& there, rows_of<V> const& again) const {
    expect(again.data == there.data && again.stride == there.stride && again.index == there.index);
  }
};

/// f(rank) on every rank of each shape, for tokens of every kind.
template <class Exchange, class F> void for_all(std::vector<shape> const& shapes, F const& f) {
  unsigned seed = 1;
  for (shape const& s : shapes)
    for (kind const how : {kind::random, kind::one_expert, kind::last_rank_empty, kind::none}) {
      INFO(s.ranks, " ranks, ", s.copies, " copies, ", s.experts, " experts, kind ", static_cast<int>(how));
      choices const all = draw(s.ranks, s.experts, how, seed++);
      on_ranks(s.ranks, [&](mo::thread_communicator& ranks) {
        rank_of<Exchange> rank(ranks, s, all);
        f(rank);
      });
    }
}

/// Every row arrives once, at the rank of its expert, in the order that one rank with all tokens has; wherever it lay.
template <class Exchange> void check_arrival(std::vector<shape> const& shapes) {
  for_all<Exchange>(shapes, [](rank_of<Exchange>& rank) {
    auto const wanted = rank.wanted(rank.share());
    expect(rank.rows.rows() * width == static_cast<std::int64_t>(wanted.size()));
    std::int32_t const* const index = rank.mine.tokens.data();
    for (std::int64_t const stride : {width, width + 2}) {
      auto const by_row = rank.marked(stride, false), by_token = rank.marked(stride, true);
      expect(rank.bring(rows_of<std::int64_t>{by_row.data(), stride}, width) == wanted, "rows");
      expect(rank.bring(rows_of<std::int64_t>{by_token.data(), stride, index}, width) == wanted, "tokens");
      std::vector<std::int64_t> to(wanted.size(), -1);
      rank.rows.bring_to(rank.through, rows_of<std::int64_t>{by_row.data(), stride}, width, to.data());
      expect(to == wanted, "rows to a place");
    }
  });
}

/// What is given back untouched is what was brought, times the copies that hold an expert.
template <class Exchange> void check_return(std::vector<shape> const& shapes) {
  for_all<Exchange>(shapes, [](rank_of<Exchange>& rank) {
    auto values = rank.marked(width, false);
    auto const back = rank.give_back(rank.bring(rows_of<std::int64_t>{values.data(), width}, width), width);
    for (auto& v : values) v *= rank.s.copies;
    expect(back == values);
  });
}

/// give_back is the transpose of bring, in whole numbers.
template <class Exchange> void check_transpose(std::vector<shape> const& shapes) {
  for_all<Exchange>(shapes, [](rank_of<Exchange>& rank) {
    std::mt19937 bits(static_cast<unsigned>(77 + rank.ranks.rank()));
    auto const draw_values = [&](std::int64_t n) {
      std::vector<std::int64_t> values(static_cast<std::size_t>(n));
      for (auto& v : values) v = static_cast<std::int64_t>(bits() % 2001) - 1000;
      return values;
    };
    auto const x = draw_values(rank.mine.count() * width), y = draw_values(rank.rows.rows() * width);
    auto const there = rank.bring(rows_of<std::int64_t>{x.data(), width}, width);
    auto const here = rank.give_back(y, width);
    std::int64_t products[] = {std::inner_product(there.begin(), there.end(), y.begin(), std::int64_t{0}),
                               std::inner_product(x.begin(), x.end(), here.begin(), std::int64_t{0})};
    rank.ranks.template all_reduce<std::int64_t>(products);
    expect(products[0] == products[1]);
  });
}

/// 16-bit rows travel as they are: of tokens to experts, and back.
template <class Exchange> void check_half_rows(std::vector<shape> const& shapes) {
  for_all<Exchange>(shapes, [](rank_of<Exchange>& rank) {
    if (rank.s.copies > 1) return;
    constexpr std::int64_t columns = 5;
    std::vector<mo::bf16> by_token(static_cast<std::size_t>(rank.mine.token_count * columns));
    for (std::size_t i = 0; i < by_token.size(); ++i)
      by_token[i] =
          static_cast<mo::bf16>(static_cast<float>(i) - 7.5f + 100.0f * static_cast<float>(rank.ranks.rank()));
    rows_of<mo::bf16> const from{by_token.data(), columns, rank.mine.view().source_tokens};
    auto const back = rank.give_back(rank.bring(from, columns), columns);
    for (std::int64_t r = 0; r < rank.mine.count(); ++r)
      for (std::int64_t c = 0; c < columns; ++c)
        expect(back[static_cast<std::size_t>(r * columns + c)].bits == from.row(r)[c].bits);
  });
}

template <class Exchange> void check_exchange(std::vector<shape> const& shapes) {
  check_arrival<Exchange>(shapes);
  check_return<Exchange>(shapes);
  check_transpose<Exchange>(shapes);
  check_half_rows<Exchange>(shapes);
}

/// What copies return is added in the order of ranks, in the element's type.
template <class Exchange> void check_order_of_copies() {
  choices const all{1, {{{0}, {0}}, {{0}}, {}}};
  shape const s{3, 3, 1};
  on_ranks(3, [&](mo::thread_communicator& ranks) {
    rank_of<Exchange> rank(ranks, s, all);
    float const part[] = {1.0f, 0x1p-24f, 0x1p-24f};  // (1 + u) + u is 1, and 1 + (u + u) is not
    std::vector<float> const there(static_cast<std::size_t>(rank.rows.rows()), part[ranks.rank()]);
    expect(rank.give_back(there, 1) == std::vector<float>(static_cast<std::size_t>(rank.mine.count()), 1.0f));
  });
}

}  // namespace exchanges
