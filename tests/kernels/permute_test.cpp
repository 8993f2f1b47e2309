// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/permute.hpp>

#include "router/example.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;

TEST_CASE("the worked example: offsets, source tokens, positions") {
  mo::context<> ctx;
  mo::routing const r = mo::router<mo::softmax, mo::top_k<2>>{}.forward(ctx, example::make_logits<float>());
  mo::permutation const order = mo::permute(ctx, r);
  CHECK(std::vector(order.offsets(), order.offsets() + 5) == std::vector<std::int64_t>{0, 5, 7, 10, 12});
  std::vector<std::int32_t> sources, positions;
  for (std::int64_t row = 0; row < 12; ++row) sources.push_back(order.source_token(row));
  for (std::int64_t slot = 0; slot < 12; ++slot) positions.push_back(order.row_of(slot / 2, slot % 2));
  CHECK(sources == std::vector<std::int32_t>{0, 1, 3, 4, 5, 0, 2, 1, 2, 4, 3, 5});
  CHECK(positions == std::vector<std::int32_t>{0, 5, 1, 7, 6, 8, 10, 2, 9, 3, 4, 11});
}

TEST_CASE("rows are a bijection of dispatched slots, in token order inside an expert") {
  mo::context<> ctx;
  for (std::int64_t const experts : {3, 40, 60}) {
    auto logits = ctx.matrix(257, experts);
    mo::fill_normal(ctx, logits, mo::seed{experts});
    mo::routing<float> r = mo::router<mo::softmax, mo::top_k<3>>{}.forward(ctx, logits);
    r.states[11] = mo::token_state::masked;
    r.states[200] = mo::token_state::unroutable;
    r.states[201] = mo::token_state::sanitised;  // dispatched
    mo::permutation const order = mo::permute(ctx, r);
    CHECK(order.rows() == 3 * 255);
    std::vector<int> used(static_cast<std::size_t>(order.rows()));
    for (std::int64_t t = 0; t < 257; ++t)
      for (std::int64_t j = 0; j < 3; ++j) {
        std::int64_t const row = order.row_of(t, j);
        if (t == 11 || t == 200) {
          CHECK(row == -1);
          continue;
        }
        ++used[static_cast<std::size_t>(row)];
        CHECK(order.source_token(row) == t);
        CHECK(order.offsets()[r.expert(t, j)] <= row);
        CHECK(row < order.offsets()[r.expert(t, j) + 1]);
      }
    for (int const times : used) CHECK(times == 1);
    for (std::int64_t e = 0; e < experts; ++e)
      for (std::int64_t row = order.offsets()[e] + 1; row < order.offsets()[e + 1]; ++row)
        CHECK(order.source_token(row - 1) < order.source_token(row));
  }
}

TEST_CASE("so many rows that threads share them: the same, and in the order of a plain loop") {
  constexpr std::int64_t tokens = 40'003, experts = 9, k = 3;
  static_assert(tokens * k >= mo::kernels::detail::rows_for_threads);
  mo::context<> one{mo::host{.threads = 1}};
  mo::matrix<float> logits(tokens, experts);
  mo::fill_normal(one, logits, mo::seed{7});
  mo::routing<float> r = mo::router<mo::softmax, mo::top_k<k>>{}.forward(one, logits);
  for (std::int64_t t = 0; t < tokens; t += 13) r.states[t] = mo::token_state::masked;
  std::vector<std::vector<std::int32_t>> tokens_of(experts);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t j = 0; j < k && r.dispatched(t); ++j)
      tokens_of[static_cast<std::size_t>(r.expert(t, j))].push_back(static_cast<std::int32_t>(t));
  for (int const threads : {1, 2, 3, 4}) {
    mo::context<> ctx{mo::host{.threads = threads}};
    mo::permutation const order = mo::permute(ctx, r);
    bool same = true;
    for (std::int64_t e = 0; e < experts; ++e)
      same =
          same && std::vector(order.source_tokens + order.offsets()[e], order.source_tokens + order.offsets()[e + 1]) ==
                      tokens_of[static_cast<std::size_t>(e)];
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t j = 0; j < k; ++j) {
        std::int64_t const row = order.row_of(t, j);
        same = same && (row < 0) == !r.dispatched(t);
        if (row >= 0)
          same = same && order.source_token(row) == t && order.offsets()[r.expert(t, j)] <= row &&
                 row < order.offsets()[r.expert(t, j) + 1];
      }
    CHECK(same);
  }
}

TEST_CASE("no token, and all tokens to one expert") {
  mo::context<> ctx;
  mo::routing<float> none(0, 5, 2, ctx.memory());
  CHECK(mo::permute(ctx, none).rows() == 0);
  mo::matrix<float> logits(9, 4);
  for (std::int64_t t = 0; t < 9; ++t) logits(t, 2) = 1;
  mo::permutation const order = mo::permute(ctx, mo::router<mo::softmax, mo::top_k<1>>{}.forward(ctx, logits));
  CHECK(std::vector(order.offsets(), order.offsets() + 5) == std::vector<std::int64_t>{0, 0, 0, 9, 9});
}

TEST_CASE("more rows than a 32-bit index holds are refused before memory is touched") {
  mo::context<> ctx;
  mo::routing_view<float> const huge{std::int64_t{1} << 28, 8, 8};  // no memory behind it
  mo::permutation_view const nowhere{};
  CHECK_THROWS_WITH_AS(mo::kernels::build_permutation(ctx.engine(), huge, nowhere), doctest::Contains("32 bits"),
                       mo::data_error);
}

TEST_CASE("a routing of a caller is checked before it is used") {
  mo::context<> ctx;
  mo::routing<float> r = mo::router<mo::softmax, mo::top_k<2>>{}.forward(ctx, example::make_logits<float>());
  r.ids[9] = 4'000'000;
  CHECK_THROWS_WITH_AS(mo::permute(ctx, r), "the routing gives token 4 in slot 1 expert 4000000, outside 0 … 3.",
                       mo::data_error);
  r.ids[9] = r.ids[8];
  CHECK_THROWS_WITH_AS(mo::permute(ctx, r), "the routing gives token 4 in slot 1 expert 2, which an earlier slot has.",
                       mo::data_error);
  CHECK_THROWS_AS(mo::permute(ctx, mo::routing_view<float>{3, 4, 0}), mo::data_error);
}
