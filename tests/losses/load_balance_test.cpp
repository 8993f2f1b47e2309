// SPDX-License-Identifier: Apache-2.0
#include <moiety/losses/load_balance.hpp>

#include "losses/differences.hpp"
#include "router/example.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <numeric>
#include <ratio>
#include <vector>

namespace mo = moiety;

namespace {

struct in_double : mo::deployment<> {
  using element = double;
};

template <class Router> mo::routing_statistics statistics(mo::matrix_view<double const> z) {
  mo::context<in_double> ctx{mo::host{.threads = 1}};
  Router const router;
  return mo::statistics(ctx, z, router, router.forward(ctx, z));
}

using top_2 = mo::router<mo::softmax, mo::top_k<2>>;
using top_1 = mo::router<mo::softmax, mo::top_k<1>>;

template <class Router> double balance(mo::matrix_view<double const> z) {
  return mo::load_balance<>{.coefficient = 9}.value(statistics<Router>(z));
}

template <class Router> mo::matrix<double> gradient(mo::matrix_view<double const> z) {
  mo::context<in_double> ctx{mo::host{.threads = 1}};
  mo::matrix<double> d(z.rows(), z.cols());
  mo::load_balance<>{.coefficient = 9}.gradient(ctx, statistics<Router>(z), z, Router{}, d);
  return d;
}

}  // namespace

TEST_CASE("the worked example, to six digits; the coefficient does not enter") {
  auto const z = example::make_logits<double>();
  CHECK(std::abs(balance<top_2>(z) - 1.11839430148576) < 1e-12);
  CHECK(std::abs(balance<top_1>(z) - 1.152581) < 1e-6);
  auto const d = gradient<top_2>(z);
  double const expected[4][4] = {{.035097, -.026569, -.004933, -.003596},
                                 {.011113, -.014426, .006532, -.003219},
                                 {.028981, -.001421, .000979, -.028539},
                                 {.011330, -.004199, -.006195, -.000937}};
  int const token[4] = {0, 2, 3, 4};
  for (int i = 0; i < 4; ++i)
    for (int e = 0; e < 4; ++e) CHECK(std::abs(d(token[i], e) - expected[i][e]) < 1e-6);
  for (int t = 0; t < 6; ++t) CHECK(std::abs(d(t, 0) + d(t, 1) + d(t, 2) + d(t, 3)) < 1e-15);
}

TEST_CASE("a constant shift of the logits changes nothing") {
  CHECK(std::abs(balance<top_2>(example::make_logits<double>(1)) - balance<top_2>(example::make_logits<double>())) <
        1e-14);
}

TEST_CASE("1 at perfect balance whatever the ties, E / k at collapse, 0 for no token") {
  CHECK(balance<top_2>(mo::matrix<double>(7, 4)) == doctest::Approx(1).epsilon(1e-14));
  CHECK(balance<top_1>(mo::matrix<double>(3, 64)) == doctest::Approx(1).epsilon(1e-14));
  mo::matrix<double> z(5, 8);
  for (int t = 0; t < 5; ++t) z(t, 3) = 100;
  CHECK(balance<top_1>(z) == doctest::Approx(8).epsilon(1e-12));
  CHECK(balance<top_1>(mo::matrix<double>(0, 4)) == 0);
}

TEST_CASE("shards: local losses differ, the loss of merged statistics is that of the whole") {
  auto const z = example::make_logits<double>();
  auto const a = statistics<top_2>(z.rows(0, 3)), b = statistics<top_2>(z.rows(3, 3));
  double const local_a = mo::load_balance<>{}.value(a), local_b = mo::load_balance<>{}.value(b);
  CHECK(std::abs(local_a - 1.233131) < 1e-6);
  CHECK(std::abs(local_b - 1.276823) < 1e-6);
  CHECK(std::abs((local_a + local_b) / 2 - 1.118394) > 0.1);
  mo::routing_statistics both = a;
  both += b;
  CHECK(mo::load_balance<>{}.value(both) == balance<top_2>(z));

  // counts of all shards with the probabilities of one: the mean over equal shards is the loss of the whole
  auto const shard = [&](mo::routing_statistics const& of) {
    double sum = 0;
    for (std::size_t e = 0; e < 4; ++e) sum += static_cast<double>(both.counts()[e]) * of.probabilities()[e];
    return 4 * sum / (2.0 * static_cast<double>(both.tokens() * of.tokens()));
  };
  CHECK(std::abs(shard(a) - 1.130737) < 1e-6);
  CHECK(std::abs(shard(b) - 1.106052) < 1e-6);
  CHECK(std::abs((shard(a) + shard(b)) / 2 - balance<top_2>(z)) < 1e-14);

  for (auto const& [s, expected] : {std::pair{1.0, 1.462117}, {4.0, 1.964028}, {8.0, 1.999329}}) {
    mo::matrix<double> all(8, 2);
    for (int t = 0; t < 8; ++t) all(t, t / 4) = s;
    CHECK(std::abs(balance<top_1>(all.rows(0, 4)) - expected) < 1e-6);
    CHECK(balance<top_1>(all) == doctest::Approx(1).epsilon(1e-12));
  }
}

TEST_CASE("tokens may be permuted, and experts relabelled") {
  auto const z = example::make_logits<double>();
  mo::matrix<double> tokens(6, 4), labels(6, 4);
  for (int t = 0; t < 6; ++t)
    for (int e = 0; e < 4; ++e) tokens((t * 5) % 6, e) = z(t, e), labels(t, (e + 1) % 4) = z(t, e);
  CHECK(balance<top_2>(tokens) == balance<top_2>(z));
  CHECK(balance<top_2>(labels) == doctest::Approx(balance<top_2>(z)).epsilon(1e-14));
  auto const d = gradient<top_2>(z), permuted = gradient<top_2>(tokens);
  for (int t = 0; t < 6; ++t)
    for (int e = 0; e < 4; ++e) CHECK(permuted((t * 5) % 6, e) == d(t, e));
}

TEST_CASE("scores that do not sum to one enter normalised") {
  using router = mo::router<mo::sigmoid, mo::top_k<2>>;
  auto const z = example::make_logits<double>();
  auto const s = statistics<router>(z);
  auto const p = s.probabilities();
  CHECK(std::accumulate(p.begin(), p.end(), 0.0) == doctest::Approx(6).epsilon(1e-14));
  auto const sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
  double expected = 0;
  for (int t = 0; t < 6; ++t)
    expected += sigmoid(z(t, 0)) / (sigmoid(z(t, 0)) + sigmoid(z(t, 1)) + sigmoid(z(t, 2)) + sigmoid(z(t, 3)));
  CHECK(p[0] == doctest::Approx(expected).epsilon(1e-14));
}

TEST_CASE_TEMPLATE("gradients equal differences at fixed counts", Router, top_2,
                   mo::router<mo::sigmoid, mo::top_k<3>>) {
  auto const z = example::make_logits<double>();
  auto const d = gradient<Router>(z);
  for (int t = 0; t < 6; ++t)
    for (int e = 0; e < 4; ++e) {
      auto const at = [&](double step) {
        auto moved = example::make_logits<double>();
        moved(t, e) += step;
        return balance<Router>(moved);
      };
      CHECK(d(t, e) == doctest::Approx((at(1e-6) - at(-1e-6)) / 2e-6).epsilon(1e-6));
    }
}

TEST_CASE_TEMPLATE("gradients equal differences for any sizes", Router, differences::softmax, differences::sigmoid) {
  differences::check_all<mo::load_balance<>, Router>();
}

TEST_CASE("parts add up to the whole") { differences::check_merge<mo::load_balance<>, differences::sigmoid>(); }

namespace {

using global = mo::over::global_batch;
using prefix = mo::load_balance<global, mo::counts::prefix>;
using previous = mo::load_balance<global, mo::counts::previous_step>;

/// What one token of a unit is given, for a factor 1 and a row that starts at 0.
template <class Loss> std::vector<double> row(mo::statistics_view const& of) {
  std::vector<double> z(of.experts.size()), p(z.size()), d(z.size());
  auto const size = static_cast<std::int64_t>(z.size());
  mo::span_row<double> logits(z.data(), size), dp(p.data(), size), dz(d.data(), size);
  Loss{}.token_gradient(of, 1.0, logits, dp, dz);
  return p;
}

}  // namespace

static_assert(!mo::uses_step_counts<mo::load_balance<>> && !mo::uses_step_counts<mo::load_balance<global>>);
static_assert(mo::uses_step_counts<prefix> && mo::uses_step_counts<previous>);

TEST_CASE("by hand: the gradient takes the frequencies of the tokens that its counts name") {
  mo::routing_statistics own(2, 1);
  own.view().unit->tokens = own.view().unit->chosen = 4;
  own.view().experts[0].count = 3, own.view().experts[1].count = 1;
  own.view().experts[0].probability.add(2.5), own.view().experts[1].probability.add(1.5);
  std::vector<std::int64_t> const counts{4, 1, 3, 16, 4, 12};
  mo::statistics_view of = own.view();
  of.earlier = {counts.data()}, of.last_step = {counts.data() + 3};
  // E / (k T T') c' with E = 2, k = 1, T = 4
  CHECK(row<mo::load_balance<global>>(of) == std::vector<double>{.375, .125});
  CHECK(row<prefix>(of) == std::vector<double>{.25, .25});      // 4 and 4 of 8
  CHECK(row<previous>(of) == std::vector<double>{.125, .375});  // 4 and 12 of 16
  // the value is of the unit itself, and so is the gradient where nothing was counted before
  CHECK(prefix{}.value(of) == mo::load_balance<>{}.value(own));
  CHECK(previous{}.value(of) == mo::load_balance<>{}.value(own));
  CHECK(row<prefix>(own) == row<mo::load_balance<>>(own));
  CHECK(row<previous>(own) == row<mo::load_balance<>>(own));
}

TEST_CASE("where slots stay empty the loss is 1 at perfect balance all the same") {
  mo::context<> ctx;
  mo::matrix<float> const equal(12, 6);
  auto const value = [&](auto const& router) {
    auto const stats = mo::statistics(ctx, equal, router, router.forward(ctx, equal));
    return mo::load_balance<>{}.value(stats);
  };
  CHECK(value(mo::router<mo::softmax, mo::expert_choice<2>>{}) == doctest::Approx(1));
  CHECK(value(mo::router<mo::softmax, mo::top_p<4, std::ratio<1, 4>>>{}) == doctest::Approx(1));
  CHECK(value(mo::router<mo::softmax, mo::top_k<3>>{}) == doctest::Approx(1));
}
