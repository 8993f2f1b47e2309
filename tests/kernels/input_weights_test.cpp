// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/input_weights.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

/// A routing some of whose tokens are padding, and some of whose slots are empty.
struct example {
  mo::context<> ctx;
  mo::routing<float> routes;
  mo::permutation order;

  explicit example(std::int64_t tokens, int threads = 1)
      : ctx{mo::host{.threads = threads}}, routes(make(tokens)), order(mo::permute(ctx, routes)) {}

  mo::routing<float> make(std::int64_t tokens) {
    auto logits = ctx.matrix(tokens, 5);
    mo::fill_normal(ctx, logits, mo::seed{1});
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(tokens), 1);
    for (std::size_t t = 0; t < mask.size(); t += 9) mask[t] = 0;
    return mo::router<mo::softmax, mo::top_p<3>>{}.forward(ctx, logits, {.mask = mask});
  }
};

}  // namespace

TEST_CASE_TEMPLATE("rows are those of their tokens times the weight of the slot", T, float, mo::bf16) {
  for (std::int64_t const tokens : {0, 1, 83})
    for (std::int64_t const width : {1, 31, 64}) {
      example of(tokens, 3);
      mo::matrix<T> x(tokens, width), out(of.order.rows() + 2, width);
      mo::fill_normal(of.ctx, x, mo::seed{2});
      for (T& v : out) v = static_cast<T>(-7.0f);
      mo::kernels::gather_weighted<T>(of.ctx.engine(), of.order, of.routes.weights, x, out);
      for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t j = 0; j < 3; ++j)
          for (std::int64_t c = 0; of.order.row_of(t, j) >= 0 && c < width; ++c)
            CHECK(static_cast<float>(out(of.order.row_of(t, j), c)) ==
                  static_cast<float>(static_cast<T>(of.routes.weight(t, j) * static_cast<float>(x(t, c)))));
      for (std::int64_t r = of.order.rows(); r < out.rows(); ++r)
        for (std::int64_t c = 0; c < width; ++c) CHECK(static_cast<float>(out(r, c)) == -7);
    }
}

TEST_CASE_TEMPLATE("the gradient of a weight is the product of its row's gradient with x, 0 without a row", T, float,
                   mo::bf16) {
  for (std::int64_t const tokens : {0, 1, 83})
    for (std::int64_t const width : {1, 31, 64, 257}) {
      example of(tokens), again(tokens, 4);
      mo::matrix<T> x(tokens, width), rows(of.order.rows(), width);
      mo::fill_normal(of.ctx, x, mo::seed{2});
      mo::fill_normal(of.ctx, rows, mo::seed{3});
      std::vector<float> by_slot(static_cast<std::size_t>(tokens * 3), -7.0f), on_four = by_slot;
      mo::kernels::input_weight_gradients<T>(of.ctx.engine(), of.order, rows, x, by_slot.data());
      mo::kernels::input_weight_gradients<T>(again.ctx.engine(), again.order, rows, x, on_four.data());
      CHECK(by_slot == on_four);
      for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t j = 0; j < 3; ++j) {
          double sum = 0, size = 1e-6;
          std::int64_t const row = of.order.row_of(t, j);
          for (std::int64_t c = 0; row >= 0 && c < width; ++c) {
            double const term = static_cast<double>(static_cast<float>(rows(row, c))) *
                                static_cast<double>(static_cast<float>(x(t, c)));
            sum += term, size += std::abs(term);
          }
          float const got = by_slot[static_cast<std::size_t>(t * 3 + j)];
          CHECK(std::abs(static_cast<double>(got) - sum) <= 1e-6 * size);
          if (row < 0) CHECK(got == 0);
        }
    }
}
