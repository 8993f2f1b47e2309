// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/expected_load.cuh>

#include <moiety/losses/noisy_load.hpp>
#include <moiety/router/logit_noise.hpp>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;

namespace {

/// The loss on either side; `unit` is the memory of that side.
template <class S> struct load_loss {
  mo::statistics_view unit;
  template <class Row> MOIETY_HD void operator()(std::int64_t token, Row z, Row dp, Row dz) const {
    mo::noisy_load<>{}.token_gradient(unit, static_cast<S>(0.3), z, dp, dz);
    if (token % 3 == 0) dz[0] += z[0];
  }
};

template <class S> struct example {
  std::int64_t tokens, experts, slots, stride;
  std::vector<S> a, z, dz, dsigma;
  std::vector<mo::token_state> states;
  std::vector<std::int64_t> sequences;

  example(std::int64_t t, std::int64_t e, std::int64_t k, bool cut, std::uint64_t number)
      : tokens(t), experts(e), slots(k), stride(e + 3) {
    for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(t * stride); ++i)
      for (std::vector<S>* values : {&a, &z, &dz, &dsigma})
        values->push_back(static_cast<S>(mo::normal(mo::seed{number}, values == &z ? 1 : values == &a ? 2 : 3, i)));
    for (std::int64_t i = 0; i < t; ++i)
      states.push_back(i % 7 == 3 ? mo::token_state::masked : mo::token_state::routed);
    for (std::size_t i = 0; i < z.size() / 3; ++i) z[i] = static_cast<S>(static_cast<int>(z[i]));  // ties
    if (cut) sequences = {0, 0, t / 5, t / 5, t - t / 7, t, t};
  }
  std::int64_t units() const { return sequences.empty() ? 1 : static_cast<std::int64_t>(sequences.size()); }
};

/// Both kernels, on values in memory of the engine.
template <int Experts, class Noise, class S, class Engine>
void run(Engine& engine, example<S> const& of, S const* a, S const* z, mo::token_state* states, S* dz, S* dsigma,
         mo::batch_statistics const& into) {
  Noise const noise{.key = mo::seed{4}};
  mo::token_table const place{.first_row = 1000, .step = 3};
  mo::routing_view<S> const routes{of.tokens, of.experts, of.slots, nullptr, nullptr, states};
  mo::matrix_view<S const> const noise_logits{a, of.tokens, of.experts, of.stride},
      noisy{z, of.tokens, of.experts, of.stride};
  mo::kernels::add_expected_loads<Noise, S, Experts>(engine, noise, place, routes, noise_logits, noisy, into);
  mo::kernels::expected_load_gradient<Noise, S, Experts>(
      engine, noise, place, routes, noise_logits, noisy, load_loss<S>{into.unit(0)},
      mo::matrix_view<S>{dz, of.tokens, of.experts, of.stride},
      Noise::is_learned ? mo::matrix_view<S>{dsigma, of.tokens, of.experts, of.stride} : mo::matrix_view<S>{});
}

template <int Experts, class Noise, class S>
void compare(std::int64_t tokens, std::int64_t experts, std::int64_t slots, bool cut) {
  static mo::cuda_engine gpu{mo::cuda{}};
  mo::host_engine cpu{mo::host{.threads = 1}};
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number, ", ", tokens, " tokens, ", experts, " experts, k ", slots, ", cut ", cut);
  example<S> of(tokens, experts, slots, cut, number);
  auto const count = static_cast<std::size_t>(of.units());
  std::vector<mo::unit_statistics> const units(count);
  std::vector<mo::expert_statistics> const expert_units(count * static_cast<std::size_t>(experts));
  std::vector<mo::exact_sum> loads(expert_units.size());
  testing::device_values<S> const a(of.a), z(of.z);
  testing::device_values<S> dz(of.dz), dsigma(of.dsigma);
  testing::device_values<mo::token_state> states(of.states);
  testing::device_values<std::int64_t> const sequences(of.sequences);
  testing::device_values<mo::unit_statistics> d_units(units);
  testing::device_values<mo::expert_statistics> d_expert_units(expert_units);
  testing::device_values<mo::exact_sum> d_loads(loads);
  auto host_units = units;
  auto host_expert_units = expert_units;
  run<Experts, Noise>(cpu, of, of.a.data(), of.z.data(), of.states.data(), of.dz.data(), of.dsigma.data(),
                      {of.units(), experts, host_units.data(), host_expert_units.data(), of.sequences.data(), nullptr,
                       0, nullptr, loads.data()});
  run<Experts, Noise>(gpu, of, a.data(), z.data(), states.data(), dz.data(), dsigma.data(),
                      {of.units(), experts, d_units.data(), d_expert_units.data(), sequences.data(), nullptr, 0,
                       nullptr, d_loads.data()});
  CHECK(d_loads.host() == loads);
  CHECK(testing::same_bits(dz.host(), of.dz));
  CHECK(testing::same_bits(dsigma.host(), of.dsigma));
}

}  // namespace

TEST_CASE("loads and gradients have the bits of the host") {
  for (std::int64_t const tokens : {0, 1, 37, 300})
    for (bool const cut : {false, true}) {
      compare<0, mo::logit_noise, float>(tokens, 40, 4, cut);
      compare<8, mo::logit_noise, float>(tokens, 8, 8, cut);
      compare<8, mo::constant_logit_noise<>, double>(tokens, 8, 2, cut);
    }
  compare<1, mo::logit_noise, double>(37, 1, 1, false);
  compare<0, mo::logit_noise, double>(37, 160, 6, true);
}
