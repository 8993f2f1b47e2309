// SPDX-License-Identifier: Apache-2.0
// Selections of a whole batch on the device against the host, bit for bit: routing, statistics and gradients.
#pragma once

#include <moiety/kernels/cuda/portable/route_together.cuh>

#include <moiety/moiety.hpp>

#include "device_memory.hpp"
#include "kernels/cuda/portable/route_cases.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace together_cases {

namespace mo = moiety;
using route_cases::kind;

template <class S> struct results {
  std::vector<std::int32_t> ids;
  std::vector<S> weights, gradient;
  std::vector<mo::token_state> states;
  std::vector<mo::unit_statistics> unit;
  std::vector<mo::expert_statistics> experts;
};

/// Memory on the host with the members of device_values; poisoned too.
template <class T> class host_values {
 public:
  explicit host_values(std::int64_t count) : values_(static_cast<std::size_t>(count), testing::poison<T>()) {}
  explicit host_values(std::vector<T> const& values) : values_(values) {}
  T* data() { return values_.data(); }
  std::vector<T> const& host() const { return values_; }

 private:
  std::vector<T> values_;
};

template <class S> struct example {
  std::int64_t tokens, experts, slots;
  std::vector<S> logits, dweights;
  std::vector<std::uint8_t> mask;
};

template <template <class> class Values, int Experts, class Router, class S, class Engine>
results<S> run(Engine& engine, Router const& router, example<S> const& of) {
  std::int64_t const slots = of.tokens * of.slots, scores = of.tokens * of.experts;
  Values<S> logits(of.logits), weights(slots), dweights(of.dweights), dlogits(scores);
  Values<std::int32_t> ids(slots);
  Values<mo::token_state> states(of.tokens);
  Values<std::uint8_t> mask(of.mask);
  Values<std::byte> work(mo::kernels::route_workspace<Router, S>(of.tokens, of.experts) + 64);
  Values<mo::unit_statistics> unit(std::vector<mo::unit_statistics>(1));
  Values<mo::expert_statistics> experts(std::vector<mo::expert_statistics>(static_cast<std::size_t>(of.experts)));
  Values<mo::token_counts> counts(std::vector<mo::token_counts>(1));
  mo::matrix_view<S const> const z{logits.data(), of.tokens, of.experts};
  mo::routing_view<S> const routes{of.tokens, of.experts, of.slots, ids.data(), weights.data(), states.data()};
  mo::batch_statistics const all{1, of.experts, unit.data(), experts.data(), nullptr, counts.data(), 0};
  auto* const aligned = work.data() + (64 - reinterpret_cast<std::uintptr_t>(work.data()) % 64) % 64;
  mo::batch const about{.mask = {mask.data(), of.mask.size()}, .first_row = 100, .step = 3, .layer = 1};
  mo::kernels::route_together<Router, S, Experts>(engine, router, z, about, mo::non_finite::sanitise, routes, aligned);
  mo::kernels::accumulate<Router, S, Experts>(engine, router, z, routes, all);
  mo::kernels::route_backward<Router, S, Experts>(engine, router, z, routes, static_cast<S const*>(dweights.data()),
                                                  route_cases::losses_of<S>{{}, {}, all.unit(0)},
                                                  mo::matrix_view<S>{dlogits.data(), of.tokens, of.experts}, false);
  return {ids.host(), weights.host(), dlogits.host(), states.host(), unit.host(), experts.host()};
}

template <class Router, class S, int Experts = 0>
void compare_with_host(std::int64_t experts, kind how, std::int64_t tokens, Router const& router = {}) {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number, ", ", tokens, " tokens, ", experts, " experts, kind ", static_cast<int>(how));
  std::mt19937_64 words(number);
  std::int64_t const slots = Router::slots_of(experts);
  example<S> of{tokens,
                experts,
                slots,
                route_cases::draw<S>(how, tokens, experts, words),
                route_cases::draw<S>(kind::normal, tokens, slots, words),
                {}};
  if (words() % 2 == 0)
    for (std::int64_t t = 0; t < tokens; ++t) of.mask.push_back(words() % 4 == 0 ? 0 : 1);
  mo::host_engine cpu{mo::host{.threads = 1}};
  results<S> const host = run<host_values, Experts>(cpu, router, of);
  results<S> const device = run<testing::device_values, Experts>(route_cases::shared_engine(), router, of);
  CHECK(device.ids == host.ids);
  CHECK(testing::same_bits(device.weights, host.weights));
  CHECK(device.states == host.states);
  CHECK(device.unit == host.unit);
  CHECK(device.experts == host.experts);
  CHECK(testing::same_bits(device.gradient, host.gradient));
}

template <class Router, class S = float> void compare_all() {
  for (kind const how : {kind::normal, kind::ties, kind::wild, kind::one_hot, kind::far_apart}) {
    compare_with_host<Router, S, 8>(8, how, 37);
    compare_with_host<Router, S, 40>(40, how, 37);
  }
  for (std::int64_t const tokens : {0, 1, 512}) compare_with_host<Router, S, 8>(8, kind::wild, tokens);
}

}  // namespace together_cases
