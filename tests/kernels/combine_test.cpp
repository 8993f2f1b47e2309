// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/combine.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace mo = moiety;

namespace {

template <class T> struct in : mo::deployment<> { using element = T; };

}  // namespace

TEST_CASE_TEMPLATE("each output is the chain over its slots, from its base, in the sum type", T, float, double,
                   mo::bf16, mo::fp16) {
  using S = mo::sum_t<T>;
  constexpr std::int64_t tokens = 41, k = 3;
  for (int const threads : {1, 2, 4})
    for (std::int64_t const width : {1, 300, 517}) {
      mo::context<in<T>> ctx{mo::host{.threads = threads}};
      mo::matrix<S> logits(tokens, 7), base(tokens, width);
      mo::fill_normal(ctx, logits, mo::seed{1});
      mo::fill_normal(ctx, base, mo::seed{2});
      mo::routing<S> r = mo::router<mo::softmax, mo::top_k<k>>{}.forward(ctx, logits);
      r.states[5] = r.states[tokens - 1] = mo::token_state::masked;
      mo::permutation const order = mo::permute(ctx, r);
      auto rows = ctx.matrix(order.rows(), width), y = ctx.matrix(tokens, width + 1);
      mo::fill_normal(ctx, rows, mo::seed{3});
      for (mo::stores const how : {mo::stores::cached, mo::stores::streamed})
        for (bool const with_weights : {true, false})
          for (bool const with_base : {true, false}) {
            std::fill(y.begin(), y.end(), static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
            mo::matrix_view<T> const to{y.data(), tokens, width, width + 1};
            mo::kernels::combine<T>(ctx.engine(), order.view(), rows, with_weights ? r.weights : nullptr,
                                    with_base ? base.data() : nullptr, to, how);
            bool same = true;
            for (std::int64_t t = 0; t < tokens; ++t) {
              for (std::int64_t c = 0; c < width; ++c) {
                S sum = with_base ? base(t, c) : S{0};
                for (std::int64_t j = 0; j < k && r.dispatched(t); ++j)
                  sum = mo::fma(with_weights ? r.weight(t, j) : S{1}, static_cast<S>(rows(order.row_of(t, j), c)), sum);
                same = same && static_cast<S>(y(t, c)) == static_cast<S>(static_cast<T>(sum));
              }
              same = same && std::isnan(static_cast<S>(y(t, width)));
            }
            CHECK(same);
          }
    }
}

TEST_CASE_TEMPLATE("sums stay unrounded, and may be their own base", T, float, mo::bf16) {
  using S = mo::sum_t<T>;
  mo::context<in<T>> ctx{mo::host{.threads = 2}};
  mo::matrix<S> logits(41, 7), sums(41, 300), wanted(41, 300);
  mo::fill_normal(ctx, logits, mo::seed{1});
  mo::fill_normal(ctx, sums, mo::seed{2});
  mo::routing<S> r = mo::router<mo::softmax, mo::top_k<3>>{}.forward(ctx, logits);
  r.states[5] = mo::token_state::masked;
  mo::permutation const order = mo::permute(ctx, r);
  auto rows = ctx.matrix(order.rows(), 300);
  mo::fill_normal(ctx, rows, mo::seed{3});
  for (std::int64_t t = 0; t < 41; ++t)
    for (std::int64_t c = 0; c < 300; ++c) {
      wanted(t, c) = sums(t, c);
      for (std::int64_t j = 0; j < 3 && r.dispatched(t); ++j)
        wanted(t, c) = mo::fma(r.weight(t, j), static_cast<S>(rows(order.row_of(t, j), c)), wanted(t, c));
    }
  mo::kernels::combine_sums<T>(ctx.engine(), order.view(), rows, r.weights, sums.data(), sums);
  CHECK(std::equal(sums.begin(), sums.end(), wanted.begin()));
}

TEST_CASE_TEMPLATE("an output larger than the last cache is the same", T, float, mo::bf16) {
  constexpr std::int64_t tokens = 4200, width = 2049 * (4 / sizeof(T)), k = 2, experts = 3;
  REQUIRE(tokens * width * static_cast<std::int64_t>(sizeof(T)) > mo::last_level_bytes);
  mo::context<in<T>> ctx{mo::host{.threads = 2}};
  mo::matrix<float> logits(tokens, experts);
  mo::fill_normal(ctx, logits, mo::seed{1});
  mo::routing<float> const r = mo::router<mo::softmax, mo::top_k<k>>{}.forward(ctx, logits);
  mo::permutation const order = mo::permute(ctx, r);
  mo::matrix<T> rows(1, width), streamed(tokens, width), cached(tokens, width);
  mo::fill_normal(ctx, rows, mo::seed{3});
  mo::matrix_view<T const> const all{rows.data(), order.rows(), width, 0};  // every row the same
  mo::kernels::combine<T>(ctx.engine(), order.view(), all, r.weights, nullptr, streamed.view());
  mo::kernels::combine<T>(ctx.engine(), order.view(), all, r.weights, nullptr, cached.view(), mo::stores::cached);
  CHECK(std::memcmp(streamed.data(), cached.data(), cached.size() * sizeof(T)) == 0);
}

TEST_CASE("no token, and no column") {
  mo::context<> ctx;
  mo::permutation const none = mo::permute(ctx, mo::routing<float>(0, 5, 2, ctx.memory()));
  mo::matrix<float> rows(0, 8), y(0, 8);
  CHECK_NOTHROW(mo::kernels::combine<float>(ctx.engine(), none.view(), rows, nullptr, nullptr, y.view()));
  mo::matrix<float> logits(3, 2), no_columns(6, 0), to(3, 0);
  mo::permutation const order = mo::permute(ctx, mo::router<mo::softmax, mo::top_k<2>>{}.forward(ctx, logits));
  CHECK_NOTHROW(mo::kernels::combine<float>(ctx.engine(), order.view(), no_columns, nullptr, nullptr, to.view()));
}

TEST_CASE("a sum of many slots is carried in float, not in bf16") {
  mo::context<in<mo::bf16>> ctx;
  constexpr std::int64_t k = 8;
  mo::matrix<float> logits(1, k);
  mo::routing<float> r = mo::router<mo::softmax, mo::top_k<k>>{}.forward(ctx, logits);
  mo::permutation const order = mo::permute(ctx, r);
  mo::matrix<mo::bf16> rows(k, 1), y(1, 1);
  rows(0, 0) = mo::bf16(1.0f);
  for (std::int64_t i = 1; i < k; ++i) rows(i, 0) = mo::bf16(0x1p-9f);  // each alone is lost beside 1 in bf16
  mo::kernels::combine<mo::bf16>(ctx.engine(), order.view(), rows, nullptr, nullptr, y.view());
  CHECK(static_cast<float>(y(0, 0)) == 1.015625f);
}
