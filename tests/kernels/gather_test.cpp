// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/gather.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>

namespace mo = moiety;
using mo::stores;

namespace {

/// A routing with masked and unroutable tokens.
mo::routing<float> make_routes(mo::context<>& ctx, std::int64_t tokens, std::int64_t experts) {
  auto logits = ctx.matrix(tokens, experts);
  mo::fill_normal(ctx, logits, mo::seed{1});
  auto routes = mo::router<mo::softmax, mo::top_k<3>>{}.forward(ctx, logits);
  for (std::int64_t t = 0; t < tokens; t += 9) routes.states[t] = mo::token_state::masked;
  if (tokens > 5) routes.states[5] = mo::token_state::unroutable;
  return routes;
}

template <class T> bool same(T const* a, T const* b, std::int64_t count) {
  return count == 0 || std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(T)) == 0;
}

/// Gathers into the columns [1, 1 + width) of a poisoned matrix with two rows too many, and checks all of it.
template <class T> void check(int threads, std::int64_t tokens, std::int64_t width, stores how) {
  mo::context<> ctx{mo::host{.threads = threads}};
  mo::routing<float> const routes = make_routes(ctx, tokens, 7);
  mo::permutation const order = mo::permute(ctx, routes);
  mo::matrix<T> x(tokens, width), out(order.rows() + 2, width + 2);
  mo::fill_normal(ctx, x, mo::seed{2});
  T const poison = static_cast<T>(-7.0f);
  std::fill(out.begin(), out.end(), poison);
  mo::matrix_view<T const> const from = x;
  mo::matrix_view<T> const to{out.data() + 1, order.rows(), width, width + 2};
  mo::kernels::gather(ctx.engine(), order.view(), from, to, how);
  bool rows = true, rest = true;
  for (std::int64_t r = 0; r < out.rows(); ++r) {
    if (r < order.rows()) rows = rows && same(to.row(r), x.row(order.source_token(r)), width);
    for (std::int64_t c = 0; c < width + 2; ++c)
      if (r >= order.rows() || c == 0 || c == width + 1) rest = rest && same(&out(r, c), &poison, 1);
  }
  CHECK(rows);
  CHECK(rest);
}

}  // namespace

TEST_CASE_TEMPLATE("every row is that of its token, at any width, address and number of threads", T, float, double,
                   mo::bf16, mo::fp16) {
  for (stores const how : {stores::cached, stores::streamed})
    for (int const threads : {1, 2, 4})
      for (std::int64_t const width : {1, 31, 64, 257}) check<T>(threads, 83, width, how);
}

TEST_CASE("no token, no column, and no token that is dispatched") {
  for (stores const how : {stores::cached, stores::streamed}) {
    check<float>(2, 0, 8, how);
    check<float>(2, 1, 8, how);
    check<float>(2, 40, 0, how);
  }
}

TEST_CASE("an output larger than the last cache is the same") {
  constexpr std::int64_t tokens = 2000, width = 2050;
  mo::context<> ctx{mo::host{.threads = 2}};
  mo::permutation const order = mo::permute(ctx, make_routes(ctx, tokens, 5));
  REQUIRE(order.rows() * width * 4 > mo::last_level_bytes);
  mo::matrix<float> x(tokens, width), out(order.rows(), width);
  mo::fill_normal(ctx, x, mo::seed{2});
  mo::kernels::gather(ctx.engine(), order.view(), mo::matrix_view<float const>(x), out.view());
  bool rows = true;
  for (std::int64_t r = 0; r < out.rows(); ++r) rows = rows && same(out.row(r), x.row(order.source_token(r)), width);
  CHECK(rows);
}
