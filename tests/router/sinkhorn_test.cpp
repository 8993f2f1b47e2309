// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/sinkhorn.hpp>

#include <moiety/layer/deployment.hpp>
#include <moiety/moiety.hpp>

#include "router/drawn.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

namespace {

template <int K, int Iterations = 16> using balanced = mo::router<mo::softmax, mo::sinkhorn<K, Iterations>>;

bool takes_part(std::vector<std::uint8_t> const& mask, std::int64_t t) {
  return mask.empty() || mask[static_cast<std::size_t>(t)] != 0;
}

/// C_te b_e, from the formula, in double throughout.
mo::matrix<double> plan(mo::matrix<double> const& z, std::vector<std::uint8_t> const& mask, int iterations) {
  std::int64_t const tokens = z.rows(), experts = z.cols();
  mo::matrix<double> c(tokens, experts);
  double n = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    n += takes_part(mask, t) ? 1 : 0;
    double const peak = *std::max_element(z.row(t), z.row(t) + experts);
    for (std::int64_t e = 0; e < experts; ++e) c(t, e) = takes_part(mask, t) ? std::exp(z(t, e) - peak) : 0;
  }
  std::vector<double> a(static_cast<std::size_t>(tokens)), b(static_cast<std::size_t>(experts), 1.0);
  for (int i = 0; i < iterations; ++i) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      double sum = 1e-8;
      for (std::int64_t e = 0; e < experts; ++e) sum += c(t, e) * b[static_cast<std::size_t>(e)];
      a[static_cast<std::size_t>(t)] = 1 / (n * sum);
    }
    for (std::int64_t e = 0; e < experts; ++e) {
      double sum = 1e-8;
      for (std::int64_t t = 0; t < tokens; ++t) sum += c(t, e) * a[static_cast<std::size_t>(t)];
      b[static_cast<std::size_t>(e)] = 1 / (static_cast<double>(experts) * sum);
    }
  }
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t e = 0; e < experts; ++e) c(t, e) *= b[static_cast<std::size_t>(e)];
  return c;
}

struct in_double : mo::deployment<> {
  using element = double;
};

/// Whether each token has the K largest of its plan, largest first, to within rounding.
template <int K, int Iterations, class S>
void compare(mo::routing_view<S> const& r, mo::matrix<double> const& z, std::vector<std::uint8_t> const& mask,
             double accuracy) {
  mo::matrix<double> const p = plan(z, mask, Iterations);
  CHECK_NOTHROW(r.check());
  for (std::int64_t t = 0; t < r.tokens; ++t) {
    CHECK(r.dispatched(t) == takes_part(mask, t));
    std::vector<double> sorted(p.row(t), p.row(t) + p.cols());
    std::sort(sorted.rbegin(), sorted.rend());
    for (std::int64_t j = 0; r.dispatched(t) && j < K; ++j)
      CHECK(p(t, r.expert(t, j)) >= sorted[static_cast<std::size_t>(j)] * (1 - accuracy));
  }
}

mo::matrix<float> in_float(mo::matrix<double> const& z) {
  mo::matrix<float> narrow(z.rows(), z.cols());
  for (std::size_t i = 0; i < z.size(); ++i) narrow.data()[i] = static_cast<float>(z.data()[i]);
  return narrow;
}

std::int64_t most(mo::routing_view<float> const& r) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(r.experts));
  for (std::int64_t s = 0; s < r.tokens * r.slots; ++s) ++counts[static_cast<std::size_t>(r.ids[s])];
  return *std::max_element(counts.begin(), counts.end());
}

}  // namespace

TEST_CASE("the experts of a token are those of the plan that the formula gives") {
  for (std::int64_t const tokens : {1, 2, 37, 200})
    for (std::int64_t const experts : {2, 3, 8, 40}) {
      CAPTURE(tokens);
      CAPTURE(experts);
      auto const z = rows::drawn<double>(tokens, experts, 3);
      std::vector<std::uint8_t> mask(static_cast<std::size_t>(tokens), 1);
      for (std::size_t t = 1; t < mask.size(); t += 3) mask[t] = 0;
      mo::context<in_double> wide;
      mo::context<> narrow;
      compare<1, 16>(balanced<1>{}.forward(wide, z).view(), z, {}, 1e-12);
      compare<2, 3>(balanced<2, 3>{}.forward(wide, z, {.mask = mask}).view(), z, mask, 1e-12);
      compare<2, 16>(balanced<2>{}.forward(narrow, in_float(z), {.mask = mask}).view(), z, mask, 1e-5);
    }
}

TEST_CASE("padding is no part of the plan, whatever its logits") {
  mo::context<> ctx;
  auto const z = rows::drawn<float>(60, 6, 4);
  mo::matrix<float> padded(90, 6), wild(90, 6);
  std::vector<std::uint8_t> mask(90, 0);
  for (std::int64_t t = 0; t < 60; ++t) {
    std::copy_n(z.row(t), 6, padded.row(t + 30));
    std::copy_n(z.row(t), 6, wild.row(t + 30));
    mask[static_cast<std::size_t>(t + 30)] = 1;
  }
  for (std::int64_t t = 0; t < 30; ++t) wild(t, t % 6) = t % 2 == 0 ? 1e30f : std::numeric_limits<float>::quiet_NaN();
  auto const alone = balanced<2>{}.forward(ctx, z), zeros = balanced<2>{}.forward(ctx, padded, {.mask = mask}),
             any = balanced<2>{}.forward(ctx, wild, {.mask = mask});
  for (std::int64_t t = 0; t < 60; ++t)
    for (std::int64_t j = 0; j < 2; ++j) {
      CHECK(zeros.expert(t + 30, j) == alone.expert(t, j));
      CHECK(any.expert(t + 30, j) == alone.expert(t, j));
      CHECK(any.weight(t + 30, j) == alone.weight(t, j));
    }
}

TEST_CASE("large logits neither overflow nor lose a slot") {
  mo::context<> ctx;
  auto z = rows::drawn<float>(40, 5, 5);
  for (float& v : z) v *= 1e4f;
  mo::routing const r = balanced<2>{}.forward(ctx, z);
  CHECK_NOTHROW(r.check());
  for (std::int64_t t = 0; t < 40; ++t) {
    CHECK(r.has_row(t, 1));
    CHECK(z(t, r.expert(t, 0)) == *std::max_element(z.row(t), z.row(t) + 5));
  }
}

TEST_CASE("one token with logits that are not finite leaves the others their experts") {
  mo::context<> ctx;
  auto z = rows::drawn<float>(50, 6, 6);
  z(7, 2) = std::numeric_limits<float>::infinity();
  z(8, 1) = std::numeric_limits<float>::quiet_NaN();
  z(9, 0) = -std::numeric_limits<float>::infinity();
  mo::routing const r = balanced<2>{}.forward(ctx, z, mo::non_finite::sanitise);
  CHECK_NOTHROW(r.check());
  for (std::int64_t t = 0; t < 50; ++t)
    for (std::int64_t j = 0; j < 2; ++j) CHECK(r.has_row(t, j));
  CHECK(r.expert(7, 0) == 2);
  for (std::int64_t j = 0; j < 2; ++j) {
    CHECK(r.expert(8, j) != 1);
    CHECK(r.expert(9, j) != 0);
  }
  z(7, 2) = 300, z(8, 1) = -300, z(9, 0) = -300;  // what they stand for
  mo::routing const finite = balanced<2>{}.forward(ctx, z);
  for (std::int64_t t = 0; t < 50; ++t) CHECK(r.expert(t, 0) == finite.expert(t, 0));
  CHECK_NOTHROW(balanced<2>{}.forward(ctx, z));
}

TEST_CASE("the plan has the same bits on one and three threads, and does not move with a constant") {
  auto const z = rows::drawn<float>(333, 7, 7);
  mo::context<> one{mo::host{.threads = 1}}, three{mo::host{.threads = 3}};
  auto const a = balanced<3>{}.forward(one, z), b = balanced<3>{}.forward(three, z);
  CHECK(std::equal(a.ids, a.ids + 999, b.ids));
  CHECK(std::equal(a.weights, a.weights + 999, b.weights));
  auto raised = rows::drawn<float>(333, 7, 7);
  for (float& v : raised) v = std::ldexp(std::round(std::ldexp(v, 10)), -10);
  auto const base = balanced<3>{}.forward(one, raised);
  for (float& v : raised) v += 16;
  auto const above = balanced<3>{}.forward(one, raised);
  CHECK(std::equal(base.ids, base.ids + 999, above.ids));
}

TEST_CASE("skewed logits are spread better than by their largest") {
  mo::context<> ctx;
  auto z = rows::drawn<float>(800, 8, 8);
  for (std::int64_t t = 0; t < 800; ++t) z(t, 0) += 2, z(t, 1) += 1;
  auto const plain = mo::router<mo::softmax, mo::top_k<1>>{}.forward(ctx, z);
  auto const even = balanced<1>{}.forward(ctx, z);
  CHECK(most(plain) > 400);
  CHECK(most(even) < 150);  // 100 each would be even
}

TEST_CASE("weights are those of the scores, and nothing else of the plan enters them") {
  mo::context<> ctx;
  auto const z = rows::drawn<float>(20, 4, 9);
  mo::routing const r = mo::router<mo::sigmoid, mo::sinkhorn<1>>{}.forward(ctx, z);
  for (std::int64_t t = 0; t < 20; ++t) CHECK(r.weight(t, 0) == mo::logistic(z(t, r.expert(t, 0))));
  mo::routing const one = mo::router<mo::sigmoid, mo::sinkhorn<1>>{}.forward(ctx, rows::drawn<float>(20, 1, 9));
  for (std::int64_t t = 0; t < 20; ++t) CHECK(one.expert(t, 0) == 0);
}
