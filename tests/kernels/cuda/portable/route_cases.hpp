// SPDX-License-Identifier: Apache-2.0
// Routing, statistics and gradients on the device against the host, bit for bit.
#pragma once

#include <moiety/kernels/cuda/portable/route.cuh>

#include <moiety/moiety.hpp>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string_view>
#include <vector>

namespace route_cases {

namespace mo = moiety;

enum class kind { normal, ties, wild, one_hot, far_apart, tiny };

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t no_token = std::numeric_limits<std::int64_t>::max();

template <class S> std::vector<S> draw(kind of, std::int64_t rows, std::int64_t cols, std::mt19937_64& words) {
  std::normal_distribution<double> normal;
  std::vector<S> values;
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    double v = normal(words);
    std::uint64_t const word = words();
    if (of == kind::ties) v = static_cast<double>(word % 3) - 1, v = word % 5 == 0 ? -0.0 : v;
    if (of == kind::wild && word % 16 == 0) v = word % 48 == 0 ? infinity : (word % 32 == 0 ? -infinity : std::nan(""));
    if (of == kind::wild && i / cols % 7 == 3) v = word % 2 == 0 ? -infinity : std::nan("");
    if (of == kind::one_hot) v = i % cols == i / cols % cols ? 40 : 0;
    if (of == kind::far_apart) v *= 300;
    // In 0 … 1, often an odd multiple of 2⁻⁶⁵, half of what an exact sum counts.
    if (of == kind::tiny) v = std::ldexp(static_cast<double>(word >> 41), -23 - static_cast<int>(word % 70));
    values.push_back(static_cast<S>(v));
  }
  return values;
}

/// The same losses on either side; `units` is the memory of that side.
template <class S> struct losses_of {
  mo::load_balance<> balance;
  mo::router_z z_loss;
  mo::statistics_view unit;
  template <class Row> MOIETY_HD void operator()(std::int64_t token, Row z, Row dp, Row dz) const {
    if (token % 3 == 0) return;
    balance.token_gradient(unit, static_cast<S>(0.3), z, dp, dz);
    z_loss.token_gradient(unit, static_cast<S>(0.7), z, dp, dz);
    dz[0] += z[0];
  }
};

template <class Router, class S> struct example {
  std::int64_t tokens, experts, stride;
  std::vector<S> logits, dweights, dlogits;
  std::vector<std::uint8_t> mask;
  std::vector<std::int64_t> sequences;
  std::int64_t groups;                          // some divisor of the experts, or none
  std::vector<std::int32_t> ids, lists, table;  // what selections may need: token ids, experts, and experts by token id
  std::vector<float> bias;

  example(kind of, std::int64_t t, std::int64_t e, bool masked, bool cut, std::mt19937_64& words)
      : tokens(t),
        experts(e),
        stride(e + 5),
        logits(draw<S>(of, t, stride, words)),
        dweights(draw<S>(kind::normal, t, Router::slots, words)),
        dlogits(draw<S>(kind::normal, t, stride, words)) {
    for (std::int64_t i = 0; masked && i < t; ++i) mask.push_back(words() % 4 == 0 ? 0 : 1);
    groups = static_cast<std::int64_t>(words() % 12);
    if (groups > e || (groups > 0 && e % groups != 0)) groups = words() % 2 == 0 ? e : 0;
    if (cut) sequences = {0, 0, t / 5, t / 5, t / 5 + (t > 4 ? 1 : 0), t - t / 7, t, t};
    // Some tokens have an unsound list, or an id that the table does not know.
    auto const listed = [&](std::int64_t i, std::vector<std::int32_t>& lists_of) {
      bool const unsound = words() % 16 == 0;
      for (std::int64_t j = 0; j < Router::slots; ++j)
        lists_of.push_back(static_cast<std::int32_t>(unsound ? (j == 0 ? e : 0) : (i * 5 + j) % e));
    };
    for (std::int64_t i = 0; i < t; ++i) ids.push_back(static_cast<std::int32_t>(words() % 13)), listed(i, lists);
    for (std::int64_t i = 0; i < entries; ++i) listed(i, table);
    for (std::int64_t i = 0; i < e; ++i) bias.push_back(static_cast<float>(words() % 5) - 3);
  }

  static constexpr std::int64_t entries = 12;

  /// The batch of tokens first … first + count − 1, with ids and lists as given.
  mo::batch about(std::int64_t first, std::int64_t count, std::int32_t const* of_ids,
                  std::int32_t const* of_lists) const {
    using selection = typename Router::selection_type;
    mo::batch batch{.first_row = 1000 + first, .step = 3};
    auto const size = static_cast<std::size_t>(count);
    if constexpr (requires { selection::needs_ids; }) batch.ids = {of_ids + first, size};
    if constexpr (requires { selection::needs_experts; })
      batch.experts = {of_lists + first * Router::slots, size * static_cast<std::size_t>(Router::slots)};
    return batch;
  }

  /// The router, with a table and a bias in memory of one side.
  static Router router(std::int32_t const* of_table, float const* of_bias) {
    Router result;
    if constexpr (requires { Router::selection_type::needs_ids; }) {
      typename Router::selection_type hash;
      hash.table = of_table, hash.entries = entries;
      result = Router{hash};
    }
    if constexpr (Router::has_selection_bias) result = result.with_bias(of_bias);
    return result;
  }

  std::int64_t units() const { return sequences.empty() ? 1 : static_cast<std::int64_t>(sequences.size()); }
};

template <class S> struct results {
  std::vector<std::int32_t> ids;
  std::vector<S> weights, gradient;
  std::vector<mo::token_state> states;
  std::vector<mo::unit_statistics> units;
  std::vector<mo::expert_statistics> expert_units;
  mo::token_counts counts;
  std::int64_t rejected = no_token, too_short = no_token;
};

/// What the host gives. Where it would throw, a token is unroutable, as on a device.
template <class Router, class S>
results<S> on_host(example<Router, S> const& of, mo::non_finite policy, bool accumulate, bool with_dweights) {
  mo::context<> ctx{mo::host{.threads = 1}};
  constexpr std::int64_t k = Router::slots;
  auto const size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  results<S> r;
  r.ids.resize(size(of.tokens * k)), r.weights.resize(size(of.tokens * k)), r.states.resize(size(of.tokens));
  mo::routing_view<S> const routes{of.tokens, of.experts, k, r.ids.data(), r.weights.data(), r.states.data()};
  mo::matrix_view<S const> const logits{of.logits.data(), of.tokens, of.experts, of.stride};
  Router const router = of.router(of.table.data(), of.bias.data());
  for (std::int64_t t = 0; t < of.tokens; ++t) {  // one by one, as each may be refused
    mo::batch about = of.about(t, 1, of.ids.data(), of.lists.data());
    if (!of.mask.empty()) about.mask = {of.mask.data() + t, 1};
    mo::routing_view<S> const one{
        1, of.experts, k, r.ids.data() + t * k, r.weights.data() + t * k, r.states.data() + t};
    bool refused = false;
    try {
      mo::kernels::route(ctx.engine(), router, logits.rows(t, 1), about, policy, one);
    } catch (mo::data_error const& e) {
      refused = true;
      bool const is_short = std::string_view(e.what()).find("fewer") != std::string_view::npos;
      std::int64_t& first = is_short ? r.too_short : r.rejected;
      first = std::min(first, t);
    }
    for (std::int64_t j = 0; refused && j < k; ++j) one.ids[j] = static_cast<std::int32_t>(j), one.weights[j] = 0;
    if (refused) *one.states = mo::token_state::unroutable;
  }
  r.units.resize(size(of.units())), r.expert_units.resize(size(of.units() * of.experts));
  mo::batch_statistics const all{of.units(),          of.experts, r.units.data(), r.expert_units.data(),
                                 of.sequences.data(), &r.counts,  of.groups};
  mo::kernels::accumulate<Router, S>(ctx.engine(), router, logits, routes, all);
  r.gradient = of.dlogits;
  mo::kernels::route_backward(ctx.engine(), router, logits, routes, with_dweights ? of.dweights.data() : nullptr,
                              losses_of<S>{{}, {}, all.unit(0)},
                              mo::matrix_view<S>{r.gradient.data(), of.tokens, of.experts, of.stride}, accumulate);
  return r;
}

/// One for all cases: the CPU run opens and closes all device memory around each piece of work.
inline mo::cuda_engine& shared_engine() {
  static mo::cuda_engine engine{mo::cuda{}};
  return engine;
}

template <int Experts, class Router, class S>
results<S> on_device(example<Router, S> const& of, mo::non_finite policy, bool accumulate, bool with_dweights) {
  mo::cuda_engine& engine = shared_engine();
  constexpr std::int64_t k = Router::slots;
  testing::device_values<S> logits(of.logits), weights(of.tokens * k), dweights(of.dweights), dlogits(of.dlogits);
  testing::device_values<std::int32_t> ids(of.tokens * k);
  testing::device_values<mo::token_state> states(of.tokens);
  testing::device_values<std::uint8_t> mask(of.mask);
  auto const count = static_cast<std::size_t>(of.units());
  testing::device_values<mo::unit_statistics> units(std::vector<mo::unit_statistics>{count});
  testing::device_values<mo::expert_statistics> expert_units(
      std::vector<mo::expert_statistics>(count * static_cast<std::size_t>(of.experts)));
  testing::device_values<std::int64_t> sequences(of.sequences);
  testing::device_values<mo::token_counts> counts(std::vector<mo::token_counts>(1));
  testing::device_values<std::int32_t> token_ids(of.ids), lists(of.lists), table(of.table);
  testing::device_values<float> bias(of.bias);
  Router const router = of.router(table.data(), bias.data());
  mo::batch about = of.about(0, of.tokens, token_ids.data(), lists.data());
  if (!of.mask.empty()) about.mask = {mask.data(), of.mask.size()};
  mo::matrix_view<S const> const z{logits.data(), of.tokens, of.experts, of.stride};
  mo::routing_view<S> const routes{of.tokens, of.experts, k, ids.data(), weights.data(), states.data()};
  mo::batch_statistics const all{of.units(),       of.experts,    units.data(), expert_units.data(),
                                 sequences.data(), counts.data(), of.groups};
  mo::kernels::route<Router, S, Experts>(engine, router, z, about, policy, routes);
  mo::kernels::accumulate<Router, S, Experts>(engine, router, z, routes, all);
  mo::kernels::route_backward<Router, S, Experts>(
      engine, router, z, routes, static_cast<S const*>(with_dweights ? dweights.data() : nullptr),
      losses_of<S>{{}, {}, all.unit(0)}, mo::matrix_view<S>{dlogits.data(), of.tokens, of.experts, of.stride},
      accumulate);
  results<S> r{ids.host(),          weights.host(),   dlogits.host(), states.host(), units.host(),
               expert_units.host(), counts.host()[0], no_token,       no_token};
  mo::cuda_faults faults{};
  testing::succeed(cudaMemcpy(&faults, engine.faults(), sizeof faults, cudaMemcpyDeviceToHost));
  r.rejected = faults.rejected_token, r.too_short = faults.short_token;
  if (r.rejected != no_token || r.too_short != no_token) CHECK_THROWS_AS(engine.synchronize(), mo::data_error);
  return r;
}

template <class Router, class S, int Experts = 0> void compare(std::int64_t experts, kind of, std::int64_t tokens) {
  std::uint64_t const seed = std::random_device{}();
  INFO("seed ", seed, ", ", experts, " experts, ", tokens, " tokens, kind ", static_cast<int>(of));
  std::mt19937_64 words(seed);
  bool const masked = words() % 2 == 0, cut = words() % 2 == 0, accumulate = words() % 2 == 0;
  auto const policy = words() % 2 == 0 ? mo::non_finite::reject : mo::non_finite::sanitise;
  bool const with_dweights = words() % 4 != 0;
  INFO("masked ", masked, ", cut ", cut, ", accumulate ", accumulate, ", rejecting ", policy == mo::non_finite::reject,
       ", dweights ", with_dweights);
  example<Router, S> const e(of, tokens, experts, masked, cut, words);
  results<S> const host = on_host(e, policy, accumulate, with_dweights);
  results<S> const device = on_device<Experts>(e, policy, accumulate, with_dweights);
  CHECK(device.ids == host.ids);
  CHECK(testing::same_bits(device.weights, host.weights));
  CHECK(device.states == host.states);
  CHECK(device.rejected == host.rejected);
  CHECK(device.too_short == host.too_short);
  CHECK(device.units == host.units);
  CHECK(device.expert_units == host.expert_units);
  CHECK(device.counts == host.counts);
  CHECK(testing::same_bits(device.gradient, host.gradient));
}

inline constexpr kind kinds[] = {kind::normal, kind::ties, kind::wild, kind::one_hot, kind::far_apart, kind::tiny};

}  // namespace route_cases
