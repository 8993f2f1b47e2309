// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/route.hpp>

#include <moiety/core/random.hpp>
#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace mo = moiety;

namespace {

using router = mo::router<mo::sigmoid, mo::top_k<3>, mo::renormalised>;
constexpr std::int64_t tokens = 333, experts = 11;

struct results {
  std::vector<std::int32_t> ids;
  std::vector<float> weights, gradient;
  std::vector<mo::routing_statistics> units;
  mo::token_counts states;
  bool operator==(results const&) const = default;
};

results run(int threads, std::vector<std::int64_t> const& sequences, std::vector<std::uint8_t> const& mask) {
  mo::context<> ctx{mo::host{.threads = threads}};
  auto logits = ctx.matrix(tokens, experts), dlogits = ctx.matrix(tokens, experts);
  mo::fill_normal(ctx, logits, mo::seed{6});
  mo::routing<float> routing(tokens, experts, 3, ctx.memory());
  mo::kernels::route(ctx.engine(), router{}, mo::matrix_view<float const>(logits), {.mask = mask},
                     mo::non_finite::reject, routing.view());
  mo::statistics_table table(experts, sequences, experts);
  mo::batch_statistics const all = table.view();
  mo::kernels::accumulate(ctx.engine(), router{}, mo::matrix_view<float const>(logits), routing.view(), all);
  std::vector<mo::routing_statistics> units;
  for (std::int64_t u = 0; u < all.count; ++u) units.emplace_back(all.unit(u));
  std::vector<float> dweights(tokens * 3);
  for (std::size_t i = 0; i < dweights.size(); ++i) dweights[i] = static_cast<float>(i % 7) - 3;
  mo::kernels::route_backward(
      ctx.engine(), router{}, mo::matrix_view<float const>(logits), routing.view(),
      static_cast<float const*>(dweights.data()),
      [](std::int64_t t, auto z, auto dp, auto dz) { dp[t % experts] += 2, dz[0] += z[0]; }, dlogits.view(), false);
  return {{routing.ids, routing.ids + tokens * 3},
          {routing.weights, routing.weights + tokens * 3},
          {dlogits.begin(), dlogits.end()},
          units,
          *all.states};
}

/// Scores are the logits; rows are said to be probabilities, whatever they are.
struct unchanged {
  static constexpr bool rows_are_probabilities = true;
  void forward(mo::score_row auto&) const {}
  void backward(mo::score_row auto const&, mo::score_row auto&) const {}
};

/// No score is a number where a logit is above 0.
struct nan_if_raised {
  void forward(mo::score_row auto& row) const {
    if (row.max() > 0) row.map([](auto v) { return v * std::numeric_limits<decltype(v)>::quiet_NaN(); });
  }
  void backward(mo::score_row auto const&, mo::score_row auto&) const {}
};

}  // namespace

TEST_CASE("no result depends on the number of threads") {
  std::vector<std::int64_t> const sequences{0, 1, 100, 100, 333};
  std::vector<std::uint8_t> mask(tokens, 1);
  for (std::size_t t = 5; t < tokens; t += 17) mask[t] = 0;
  for (bool const with_mask : {false, true}) {
    auto const& m = with_mask ? mask : std::vector<std::uint8_t>{};
    results const one = run(1, sequences, m);
    CHECK(run(2, sequences, m) == one);
    CHECK(run(4, sequences, m) == one);
  }
}

TEST_CASE("the list of routed tokens leaves out padding and tokens without finite logits") {
  using enum mo::token_state;
  std::vector<mo::token_state> const states{routed, masked, sanitised, routed, unroutable, routed};
  std::vector<std::int32_t> list(6, -7);
  std::array<std::int64_t, 2> offsets{-1, -1};
  mo::host_engine engine{mo::host{}};
  mo::kernels::list_routed(engine, states.data(), 6, list.data(), offsets.data());
  CHECK(offsets == std::array<std::int64_t, 2>{0, 3});
  CHECK(list == std::vector<std::int32_t>{0, 3, 5, -7, -7, -7});
  mo::kernels::list_routed(engine, states.data(), 0, list.data(), offsets.data());
  CHECK(offsets == std::array<std::int64_t, 2>{0, 0});
}

TEST_CASE("statistics of sequences add up to those of the batch, to the last bit; masked tokens are in none") {
  std::vector<std::uint8_t> mask(tokens, 1);
  for (std::size_t t = 0; t < 40; ++t) mask[t] = 0;
  results const cut = run(2, {0, 1, 100, 100, 333}, mask);
  std::vector<mo::routing_statistics> const parts(cut.units.begin() + 1, cut.units.end());
  auto const whole = run(2, {}, mask).units;
  mo::routing_statistics sum(experts, 3, experts);
  for (auto const& part : parts) sum += part;
  CHECK(sum == whole[0]);
  CHECK(cut.units[0] == whole[0]);
  CHECK(whole[0].tokens() == tokens - 40);
  CHECK(cut.states == mo::token_counts{tokens - 40, 0, 0, 40});
  CHECK(parts[0].tokens() == 0);
  CHECK(parts[1].tokens() == 60);
  CHECK(parts[2].tokens() == 0);
  std::int64_t slots = 0;
  double probability = 0;
  for (std::int64_t const c : whole[0].counts()) slots += c;
  for (double const p : whole[0].probabilities()) probability += p;
  CHECK(slots == 3 * (tokens - 40));
  CHECK(probability == doctest::Approx(tokens - 40));
}

TEST_CASE("a group of experts counts each token that it is sent once; padding is sent nowhere") {
  mo::context<> ctx{mo::host{.threads = 2}};
  std::vector<std::int32_t> ids;
  std::vector<mo::token_state> states;
  std::vector<std::int64_t> wanted(4), sequence(4);
  for (std::int32_t t = 0; t < 150; ++t) {
    std::int32_t const slots[3] = {t % 8, (t + 1 + t % 3) % 8, (t + 5) % 8};
    ids.insert(ids.end(), slots, slots + 3);
    states.push_back(t % 7 == 2 ? mo::token_state::masked : mo::token_state::routed);
    for (std::int32_t g = 0; g < 4 && states.back() == mo::token_state::routed; ++g)
      if (slots[0] / 2 == g || slots[1] / 2 == g || slots[2] / 2 == g)
        ++wanted[static_cast<std::size_t>(g)], sequence[static_cast<std::size_t>(g)] += t >= 70;
  }
  std::vector<float> weights(450);
  mo::matrix<float> const logits(150, 8);
  mo::routing_view<float> const routes{150, 8, 3, ids.data(), weights.data(), states.data()};
  mo::statistics_table table(8, std::vector<std::int64_t>{0, 70, 150}, 4);
  mo::kernels::accumulate(ctx.engine(), router{}, mo::matrix_view<float const>(logits), routes, table.view());
  CHECK(mo::routing_statistics(table.view().unit(0)).reached() == wanted);
  CHECK(mo::routing_statistics(table.view().unit(2)).reached() == sequence);
  mo::statistics_table plain(8);
  mo::kernels::accumulate(ctx.engine(), router{}, mo::matrix_view<float const>(logits), routes, plain.view());
  CHECK(mo::routing_statistics(plain.view().unit(0)).groups() == 0);
  for (std::size_t e = 0; e < 8; ++e) CHECK(plain.view().unit(0).experts[e].reached == 0);
}

TEST_CASE_TEMPLATE("sums of probabilities are those of exact_sum, to the last bit, whatever the values", S, float,
                   double) {
  constexpr std::int64_t count = 150, width = 13;
  using rule = mo::router<unchanged, mo::top_k<2>>;
  for (bool const wild : {false, true}) {
    mo::context<> ctx{mo::host{.threads = 2}};
    mo::matrix<S> rows(count, width);
    std::uint64_t next = 0;
    for (S& v : rows) {
      std::uint32_t const word = mo::random_word(mo::seed{8}, 0, next++);
      v = static_cast<S>(word >> 9) * static_cast<S>(0x1p-23);
      if (word % 4 == 0) v = std::ldexp(v, -static_cast<int>(word / 4 % 70));  // halves of a unit, and far below one
      if (wild && word % 97 == 0) v = -3 * v;
      if (wild && word % 101 == 0) v = static_cast<S>(1e30);
    }
    mo::routing<S> routes(count, width, 2, ctx.memory());
    mo::matrix_view<S const> const logits = rows;
    mo::kernels::route(ctx.engine(), rule{}, logits, {}, mo::non_finite::reject, routes.view());
    mo::statistics_table sums(width);
    mo::kernels::accumulate(ctx.engine(), rule{}, logits, routes.view(), sums.view());
    for (std::int64_t e = 0; e < width; ++e) {
      mo::exact_sum expected;
      for (std::int64_t t = 0; t < count; ++t) expected.add(rows(t, e));
      CHECK(sums.view().expert_units[e].probability == expected);
    }
  }
}

TEST_CASE("masked tokens get ids in range, weight 0 and no gradient") {
  std::vector<std::uint8_t> mask(tokens, 1);
  mask[7] = 0;
  results const r = run(1, {}, mask);
  for (std::size_t j = 0; j < 3; ++j) {
    CHECK(r.ids[21 + j] == static_cast<std::int32_t>(j));
    CHECK(r.weights[21 + j] == 0);
  }
  for (std::size_t e = 0; e < experts; ++e) CHECK(r.gradient[7 * experts + e] == 0);
}

TEST_CASE("a gradient is overwritten, or added to") {
  mo::context<> ctx;
  auto logits = ctx.matrix(2, experts), once = ctx.matrix(2, experts), added = ctx.matrix(2, experts);
  mo::fill_normal(ctx, logits, mo::seed{6});
  mo::routing<float> const routing = router{}.forward(ctx, logits);
  std::fill(once.begin(), once.end(), std::numeric_limits<float>::quiet_NaN());
  std::fill(added.begin(), added.end(), 1.0f);
  std::array<float, 6> const dweights{1, 2, 3, 4, 5, 6};
  auto const nothing = [](auto...) {};
  mo::kernels::route_backward(ctx.engine(), router{}, mo::matrix_view<float const>(logits), routing.view(),
                              dweights.data(), nothing, once.view(), false);
  mo::kernels::route_backward(ctx.engine(), router{}, mo::matrix_view<float const>(logits), routing.view(),
                              dweights.data(), nothing, added.view(), true);
  for (std::size_t i = 0; i < once.size(); ++i) CHECK(added.data()[i] == 1 + once.data()[i]);
}

TEST_CASE("the first rejected token is named, whichever thread found it") {
  for (int const threads : {1, 4}) {
    mo::context<> ctx{mo::host{.threads = threads}};
    auto logits = ctx.matrix(tokens, experts);
    for (std::int64_t t = 70; t < tokens; t += 5) logits(t, t % experts) = std::numeric_limits<float>::infinity();
    CHECK_THROWS_WITH_AS(router{}.forward(ctx, logits), "the router logits of token 70 are not all finite.",
                         mo::data_error);
  }
}

TEST_CASE("the first token without enough experts is named, whichever thread found it") {
  for (int const threads : {1, 4}) {
    mo::context<> ctx{mo::host{.threads = threads}};
    auto logits = ctx.matrix(tokens, experts);
    for (std::int64_t t = 70; t < tokens; t += 5) logits(t, 0) = 1;
    CHECK_THROWS_WITH_AS((mo::router<nan_if_raised, mo::top_k<3>>{}.forward(ctx, logits)),
                         "the router gave token 70 fewer than 3 distinct experts in 0 … 10.", mo::data_error);
  }
}
