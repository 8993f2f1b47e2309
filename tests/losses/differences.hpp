// SPDX-License-Identifier: Apache-2.0
// A loss against central differences in double, with the routing frozen: the experts of each token are given, whatever the
// logits, so k may be any number up to E. Each seventh token is padding.
#pragma once

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace differences {

namespace mo = moiety;

struct in_double : mo::deployment<> {
  using element = double;
};

/// Logits of T tokens and k distinct experts for each.
class problem {
 public:
  problem(std::int64_t tokens, std::int64_t experts, std::int64_t slots, std::uint64_t number)
      : logits(tokens, experts),
        ids_(static_cast<std::size_t>(tokens * slots)),
        weights_(ids_.size(), 1.0),
        states_(static_cast<std::size_t>(tokens), mo::token_state::routed),
        slots_(slots) {
    mo::fill_normal(ctx, logits, mo::seed{number});
    std::vector<std::int32_t> order(static_cast<std::size_t>(experts));
    for (std::size_t e = 0; e < order.size(); ++e) order[e] = static_cast<std::int32_t>(e);
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t j = 0; j < slots; ++j) {
        auto const word = mo::random_word(mo::seed{number + 1}, 0, static_cast<std::uint64_t>(t * slots + j));
        // Squared, so that low experts are chosen more often.
        double const u = static_cast<double>(word >> 8) * 0x1p-24;
        auto const left = static_cast<double>(experts - j);
        std::swap(order[static_cast<std::size_t>(j)],
                  order[static_cast<std::size_t>(j + static_cast<std::int64_t>(u * u * left))]);
        ids_[static_cast<std::size_t>(t * slots + j)] = order[static_cast<std::size_t>(j)];
      }
      if (tokens > 1 && t % 7 == 3) states_[static_cast<std::size_t>(t)] = mo::token_state::masked;
    }
  }

  mo::routing_view<double> routes() {
    return {logits.rows(), logits.cols(), slots_, ids_.data(), weights_.data(), states_.data()};
  }

  template <class Router> mo::routing_statistics statistics(std::int64_t groups) {
    return mo::statistics(ctx, logits, Router{}, routes(), groups);
  }

  mo::context<in_double> ctx{mo::host{.threads = 1}};
  mo::matrix<double> logits;

 private:
  std::vector<std::int32_t> ids_;
  std::vector<double> weights_;
  std::vector<mo::token_state> states_;
  std::int64_t slots_;
};

/// ∂value/∂logits, by the loss itself.
template <class Loss, class Router>
mo::matrix<double> gradient(problem& of, Loss const& loss, mo::statistics_view const& unit) {
  mo::matrix<double> d(of.logits.rows(), of.logits.cols());
  mo::kernels::route_backward(
      of.ctx.engine(), Router{}, mo::matrix_view<double const>(of.logits), of.routes(),
      static_cast<double const*>(nullptr),
      [&](std::int64_t, mo::span_row<double> z, mo::span_row<double> dp, mo::span_row<double> dz) {
        loss.token_gradient(unit, 1.0, z, dp, dz);
      },
      d.view(), false);
  return d;
}

template <class Loss, class Router> void check(std::int64_t tokens, std::int64_t experts, std::int64_t slots) {
  CAPTURE(tokens);
  CAPTURE(experts);
  CAPTURE(slots);
  constexpr double h = 1e-4;
  constexpr std::int64_t groups = mo::counted_groups<Loss>;
  problem p(tokens, experts, slots, 5);
  Loss const loss{.coefficient = 9};
  mo::routing_statistics const unit = p.statistics<Router>(groups);
  CHECK(std::isfinite(loss.value(unit)));
  auto const d = gradient<Loss, Router>(p, loss, unit);
  std::vector<double> const g(d.begin(), d.end()), start(p.logits.begin(), p.logits.end());
  double norm = 0;
  for (double const v : g) norm += v * v;
  norm = std::sqrt(norm);
  CHECK(std::isfinite(norm));
  if (tokens == 0) CHECK(loss.value(unit) == 0);
  if (norm < 1e-12) norm = 0;  // nothing to gain: perfect balance, one expert, one group

  for (int along = 0; along < 3; ++along) {  // a random direction, that of the gradient, one logit
    std::vector<double> v(g.size());
    for (std::size_t i = 0; i < v.size() && along == 0; ++i) v[i] = mo::normal(mo::seed{8}, 0, i);
    if (along == 1) v = g;
    if (along == 2 && !v.empty()) v[v.size() / 2] = 1;
    double inner = 0, length = 0, largest = 0;
    for (std::size_t i = 0; i < v.size(); ++i)
      inner += g[i] * v[i], length += v[i] * v[i], largest = std::max(largest, std::abs(v[i]));
    if (!(largest > 1e-12)) continue;
    auto const at = [&](double step) {
      for (std::size_t i = 0; i < v.size(); ++i) p.logits.data()[i] = start[i] + step * v[i] / largest;
      return loss.value(p.statistics<Router>(groups));
    };
    double const slope = (at(h) - at(-h)) / (2 * h) * largest;
    CAPTURE(along);
    CHECK(std::abs(slope - inner) / std::sqrt(length) <= std::max(1e-6 * norm, 1e-11));
  }
}

/// For every number of tokens and experts, and some k up to E.
template <class Loss, class Router> void check_all() {
  for (std::int64_t const experts : {1, 3, 8, 40, 60, 160, 384}) {
    if (experts % mo::device_groups<Loss> != 0) continue;
    for (std::int64_t const slots : std::vector<std::int64_t>{1, 2, 8, experts}) {
      if (slots > experts) continue;
      for (std::int64_t const tokens : {0, 1, 2, 37}) check<Loss, Router>(tokens, experts, slots);
      if (slots == 8 || experts < 8) check<Loss, Router>(512, experts, slots);
    }
  }
}

/// Statistics of parts give the loss of the whole, to the last bit and in any order.
template <class Loss, class Router> void check_merge() {
  problem p(300, 24, 5, 3);
  constexpr std::int64_t groups = mo::counted_groups<Loss>;
  auto const of = [&](std::int64_t first, std::int64_t count) {
    mo::routing_view<double> part = p.routes();
    part.tokens = count, part.ids += first * part.slots, part.weights += first * part.slots, part.states += first;
    return mo::statistics(p.ctx, p.logits.rows(first, count), Router{}, part, groups);
  };
  mo::routing_statistics forwards, backwards;
  std::vector<std::pair<std::int64_t, std::int64_t>> const parts{{0, 1}, {1, 99}, {100, 0}, {100, 200}};
  for (auto const& [first, count] : parts) forwards += of(first, count);
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) backwards += of(part->first, part->second);
  mo::routing_statistics const whole = of(0, 300);
  CHECK(forwards == whole);
  CHECK(backwards == whole);
  CHECK(Loss{}.value(forwards) == Loss{}.value(whole));
  CHECK(Loss{}.value(of(0, 100)) != Loss{}.value(whole));
}

using softmax = moiety::router<moiety::softmax, moiety::top_k<1>>;
using sigmoid = moiety::router<moiety::sigmoid, moiety::top_k<1>>;

}  // namespace differences
