// SPDX-License-Identifier: Apache-2.0
#include <moiety/dispatcher/local.hpp>

#include "router/example.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

namespace mo = moiety;

TEST_CASE("rows of experts are the tokens themselves, found by index") {
  mo::context<> ctx;
  auto x = ctx.matrix(6, 4);
  mo::fill_normal(ctx, x, mo::seed{1});
  mo::permutation const order =
      mo::permute(ctx, mo::router<mo::softmax, mo::top_k<2>>{}.forward(ctx, example::make_logits<float>()));
  mo::matrix_view<float const> const view = x;
  auto const rows = mo::local::dispatch(view, order);
  for (std::int64_t row = 0; row < order.rows(); ++row) CHECK(rows.row(row) == x.row(order.source_token(row)));
  auto const part = mo::local::dispatch(mo::matrix_view<float const>(x.data(), 6, 2, 4), order);
  CHECK(part.row(5) == x.row(order.source_token(5)));
}
