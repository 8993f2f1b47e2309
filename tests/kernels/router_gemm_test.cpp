// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/router_gemm.hpp>

#include <moiety/core/math.hpp>
#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

TEST_CASE_TEMPLATE("products of a router are chains over ascending indices", T, float, double, mo::bf16) {
  using S = mo::sum_t<T>;
  constexpr std::int64_t tokens = 37, experts = 11, hidden = 23;
  mo::context<> ctx;
  mo::matrix<T> x(tokens, hidden);
  mo::matrix<S> w(experts, hidden), dlogits(tokens, experts), logits(tokens, experts), dx(tokens, hidden),
      dw(experts, hidden);
  mo::fill_normal(ctx, x, mo::seed{1});
  mo::fill_normal(ctx, w, mo::seed{2});
  mo::fill_normal(ctx, dlogits, mo::seed{3});
  mo::matrix_view<S const> const dz = dlogits, weights = w;
  mo::kernels::router_logits<T>(ctx.engine(), x, weights, logits);
  mo::kernels::router_input_gradient<S>(ctx.engine(), dz, weights, dx.data());
  std::vector<std::int32_t> const list{0, 5, 6, 36};
  x(7, 3) = static_cast<T>(std::numeric_limits<float>::quiet_NaN());  // not in the list
  std::array<std::int64_t, 2> const offsets{0, 4};
  for (bool const accumulate : {false, true})
    mo::kernels::router_weight_gradient<T>(ctx.engine(), dz, x, list.data(), offsets.data(), dw, accumulate);

  auto const chain = [](std::int64_t count, S sum, auto const& a, auto const& b) {
    for (std::int64_t i = 0; i < count; ++i) sum = mo::fma(a(i), b(i), sum);
    return sum;
  };
  for (std::int64_t e = 0; e < experts; ++e) {
    S const z = chain(
        hidden, 0, [&](auto h) { return static_cast<S>(x(2, h)); }, [&](auto h) { return w(e, h); });
    CHECK(logits(2, e) == z);
  }
  for (std::int64_t h = 0; h < hidden; ++h) {
    CHECK(dx(4, h) == chain(
                          experts, 0, [&](auto e) { return dlogits(4, e); }, [&](auto e) { return w(e, h); }));
    auto const at = [&](std::int64_t i) { return list[static_cast<std::size_t>(i)]; };
    auto const a = [&](std::int64_t i) { return dlogits(at(i), 3); };
    auto const b = [&](std::int64_t i) { return static_cast<S>(x(at(i), h)); };
    CHECK(dw(3, h) == chain(4, chain(4, 0, a, b), a, b));
  }
}

TEST_CASE("two products are one sum: the chain of the second goes on where the first ends") {
  mo::context<> ctx;
  mo::matrix<float> dz(2, 3), da(2, 3), w(3, 5), v(3, 5), dx(2, 5);
  std::uint64_t number = 0;
  for (mo::matrix<float>* m : {&dz, &da, &w, &v}) mo::fill_normal(ctx, *m, mo::seed{++number});
  using pair = std::array<mo::matrix_view<float const>, 2>;
  mo::kernels::router_input_gradient<float>(ctx.engine(), pair{dz, da}, pair{w, v}, dx.data());
  for (std::int64_t h = 0; h < 5; ++h) {
    float sum = 0;
    for (std::int64_t e = 0; e < 3; ++e) sum = mo::fma(dz(1, e), w(e, h), sum);
    for (std::int64_t e = 0; e < 3; ++e) sum = mo::fma(da(1, e), v(e, h), sum);
    CHECK(dx(1, h) == sum);
  }
}
