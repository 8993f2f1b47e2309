// SPDX-License-Identifier: Apache-2.0
// The gradient of a router alone against differences in double, ids frozen: L = Σ c·w + Σ d·p over the weights of the
// slots and the probabilities of all experts, c and d drawn. And the gradient in float beside that in double.
#pragma once

#include <moiety/moiety.hpp>

#include "properties/float_gradients.hpp"
#include "router/drawn.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <ratio>
#include <string_view>
#include <vector>

namespace router_gradients {

namespace mo = moiety;

/// What a batch may need: token ids, a table for them, and k experts for each token.
struct surroundings {
  std::int64_t tokens, experts, slots;
  std::vector<std::int32_t> ids, lists, table;
  std::vector<std::uint8_t> mask;
  std::vector<float> bias;

  surroundings(std::int64_t t, std::int64_t e, std::int64_t k, bool masked) : tokens(t), experts(e), slots(k) {
    for (std::int64_t i = 0; i < t; ++i) {
      ids.push_back(static_cast<std::int32_t>(i * 7 % 11));
      for (std::int64_t j = 0; j < k; ++j) lists.push_back(static_cast<std::int32_t>((i * 5 + j) % e));
      if (masked) mask.push_back(i % 5 == 2 ? 0 : 1);
    }
    for (std::int64_t i = 0; i < 11; ++i)
      for (std::int64_t j = 0; j < k; ++j) table.push_back(static_cast<std::int32_t>((i * 3 + j) % e));
    for (std::int64_t i = 0; i < e; ++i) bias.push_back(static_cast<float>(i % 3) * 0.25f - 0.5f);
  }

  template <class Selection> mo::batch about() const {
    mo::batch batch{.mask = mask};
    if constexpr (requires { Selection::needs_ids; }) batch.ids = ids;
    if constexpr (requires { Selection::needs_experts; }) batch.experts = lists;
    return batch;
  }
};

/// A router whose hash has a table and whose bias has values.
template <class Router> Router furnished(surroundings const& with) {
  Router router;
  if constexpr (requires { Router::selection_type::needs_ids; }) {
    typename Router::selection_type hash;
    hash.table = with.table.data(), hash.entries = 11;
    router = Router{hash};
  }
  if constexpr (Router::has_selection_bias) router = router.with_bias(with.bias.data());
  return router;
}

template <class Router, class S = double> class frozen {
 public:
  template <class From>
  frozen(Router const& router, mo::matrix<From> const& z, mo::batch const& about)
      : router_(router), z_(z.rows(), z.cols()), routes_((copy(z), router.forward(ctx_, z_, about))) {
    routes_.check();
  }

  std::vector<std::int32_t> ids() const { return {routes_.ids, routes_.ids + routes_.tokens * routes_.slots}; }

  mo::matrix<S> backward() {
    mo::matrix<S> gradient(z_.rows(), z_.cols());
    std::vector<S> dweights(static_cast<std::size_t>(z_.rows() * routes_.slots));
    for (std::size_t s = 0; s < dweights.size(); ++s)
      dweights[s] = routes_.ids[s] == mo::no_expert ? 0 : of_weight(s);  // as a slot without a row has it
    auto const losses = [&](std::int64_t t, auto, auto dp, auto) {
      if constexpr (mo::has_probabilities<typename Router::score_type>)
        dp.map_indexed([&](S, int e) { return of_probability(static_cast<std::size_t>(t * z_.cols() + e)); });
    };
    mo::kernels::route_backward<Router, S>(ctx_.engine(), router_, z_, routes_.view(), dweights.data(), losses,
                                           gradient.view(), false);
    return gradient;
  }

  /// |(L(z + hv) − L(z − hv)) / 2h − ⟨∇L, v⟩| / (‖∇L‖ ‖v‖); without a norm, what is left of the difference.
  double error() requires std::same_as<S, double> {
    mo::matrix<double> const gradient = backward();
    std::vector<double> v(gradient.size());
    double inner = 0, squares = 0, lengths = 0;
    for (std::size_t i = 0; i < v.size(); ++i) {
      v[i] = mo::normal(mo::seed{31}, 0, i);
      inner += v[i] * gradient.data()[i], squares += gradient.data()[i] * gradient.data()[i], lengths += v[i] * v[i];
    }
    auto const along = [&](double h) {
      mo::matrix<double> moved(z_.rows(), z_.cols());
      for (std::size_t i = 0; i < v.size(); ++i) moved.data()[i] = z_.data()[i] + h * v[i];
      return value(moved);
    };
    constexpr double h = 1e-5;
    double const slope = (along(h) - along(-h)) / (2 * h), norm = std::sqrt(squares * lengths);
    return norm > 0 ? std::abs(slope - inner) / norm : std::abs(slope);
  }

 private:
  static S of_weight(std::size_t slot) { return static_cast<float>(mo::normal(mo::seed{32}, 0, slot)); }
  static S of_probability(std::size_t i) { return static_cast<float>(mo::normal(mo::seed{33}, 0, i)); }
  template <class From> void copy(mo::matrix<From> const& z) { std::copy(z.begin(), z.end(), z_.begin()); }

  double value(mo::matrix<double> const& z) {
    std::int64_t const experts = z.cols(), k = routes_.slots;
    std::vector<double> scores(static_cast<std::size_t>(experts)), w(static_cast<std::size_t>(k));
    mo::span_row<double> const row(scores.data(), experts), weights(w.data(), k);
    double sum = 0;
    for (std::int64_t t = 0; t < z.rows(); ++t) {
      if (routes_.state(t) != mo::token_state::routed) continue;
      mo::span_row<double> const logits(const_cast<double*>(z.row(t)), experts);
      router_.weight_row(logits, row, weights, routes_.ids + t * k);
      for (std::int64_t j = 0; j < k; ++j)
        sum += w[static_cast<std::size_t>(j)] * of_weight(static_cast<std::size_t>(t * k + j));
      row.map(logits, [](double, double v) { return v; });
      router_.probability_row(row);
      for (std::int64_t e = 0; e < experts; ++e)
        sum += scores[static_cast<std::size_t>(e)] * of_probability(static_cast<std::size_t>(t * experts + e));
    }
    return sum;
  }

  mo::context<float_gradients::in<S>> ctx_{mo::host{.threads = 1}};
  Router router_;
  mo::matrix<S> z_;
  mo::routing<S> routes_;
};

/// The gradient in float is that in double of the same logits.
template <class Router> void agrees(Router const& router, mo::matrix<float> const& z, mo::batch const& about) {
  frozen<Router> wanted(router, z, about);
  frozen<Router, float> got(router, z, about);
  CHECK(got.ids() == wanted.ids());
  auto const a = got.backward();
  auto const b = wanted.backward();
  double const error = float_gradients::distance({a.begin(), a.end()}, {b.begin(), b.end()});
  CHECK(error <= float_gradients::tolerance);
}

/// Whether a selection is not up to the last bits of scores: to one token, Sinkhorn's plan makes every expert the same.
template <class Router> bool decides(std::int64_t tokens) {
  return tokens != 1 || Router::selection_type::name != mo::sinkhorn<1>::name;
}

/// For each number of tokens, without and with padding.
template <class Router> void passes(std::int64_t experts, std::vector<std::int64_t> const& counts = {0, 1, 2, 37}) {
  CAPTURE(std::string_view(Router::score_type::name));
  CAPTURE(std::string_view(Router::selection_type::name));
  CAPTURE(std::string_view(Router::weight_type::name));
  CAPTURE(experts);
  for (std::int64_t const tokens : counts)
    for (bool const masked : {false, true}) {
      CAPTURE(tokens);
      CAPTURE(masked);
      surroundings const with(tokens, experts, Router::slots_of(experts), masked);
      auto const about = with.about<typename Router::selection_type>();
      auto const router = furnished<Router>(with);
      CHECK((frozen<Router>(router, rows::drawn<double>(tokens, experts, 21), about).error() <= 1e-6));
      if (decides<Router>(tokens)) agrees(router, rows::drawn<float>(tokens, experts, 22), about);
    }
}

/// Each selection with K slots of a token.
template <int K, class... Roles> void each_selection(std::int64_t experts, std::vector<std::int64_t> const& counts) {
  auto const with = [&]<class... Selections>(Selections const&...) {
    (passes<mo::router<Roles..., Selections>>(experts, counts), ...);
  };
  with(mo::top_k<K>{}, mo::hash<K>{}, mo::precomputed<K>{}, mo::forced<K>{}, mo::expert_choice<K>{}, mo::sinkhorn<K>{},
       mo::token_rounding<K, 4>{});
}

/// Each weight rule that the score and K slots allow.
template <class Score, int K = 2>
void each_weight(std::vector<std::int64_t> const& experts, std::vector<std::int64_t> const& counts = {0, 1, 2, 37}) {
  for (std::int64_t const e : experts) {
    each_selection<K, Score>(e, counts);
    if constexpr (K > 1) each_selection<K, Score, mo::softmax_of_selected>(e, counts);
    if constexpr (K > 1 && mo::has_probabilities<Score>)
      each_selection<K, mo::renormalised, Score, mo::scale<std::ratio<5, 2>>>(e, counts);
  }
}

/// One slot, and one for every expert.
template <class Score> void one_slot_and_all() {
  each_weight<Score, 1>({1, 3, 8});
  each_weight<Score, 3>({3});
  each_weight<Score, 8>({8});
}
template <class Score> void one_slot_and_all_of_40() {
  each_weight<Score, 1>({40});
  each_weight<Score, 40>({40});
}

}  // namespace router_gradients
