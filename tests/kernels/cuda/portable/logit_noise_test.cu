// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/logit_noise.cuh>

#include <moiety/router/logit_noise.hpp>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <vector>

namespace mo = moiety;

namespace {

template <class S, class Noise> void compare(std::int64_t tokens, std::int64_t experts) {
  mo::cuda_engine gpu{mo::cuda{}};
  mo::host_engine cpu{mo::host{.threads = 1}};
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number, ", ", tokens, " tokens, ", experts, " experts");
  auto const random = [&](std::uint64_t stream) {
    std::vector<S> values;
    for (std::int64_t i = 0; i < tokens * experts; ++i)
      values.push_back(static_cast<S>(mo::normal(mo::seed{number}, stream, static_cast<std::uint64_t>(i))));
    return values;
  };
  auto const a = random(1), dz = random(2);
  auto z = random(3), da = random(4);
  std::vector<mo::token_state> states;
  for (std::int64_t t = 0; t < tokens; ++t)
    states.push_back(t % 5 == 2 ? mo::token_state::masked : mo::token_state::routed);
  testing::device_values<S> const d_a(a), d_dz(dz);
  testing::device_values<S> d_z(z), d_da(da);
  testing::device_values<mo::token_state> const d_states(states);
  Noise const noise{.key = mo::seed{number}};
  mo::token_table const place{.first_row = std::int64_t{1} << 40, .step = 3};
  auto const all = [&](auto& engine, S const* a_, S const* dz_, mo::token_state const* states_, S* z_, S* da_) {
    mo::kernels::add_logit_noise<Noise, S>(engine, noise, place, {a_, tokens, experts}, {z_, tokens, experts});
    if constexpr (Noise::is_learned)
      for (bool const adds : {true, false, true})
        mo::kernels::logit_noise_gradient<Noise, S>(engine, noise, place, states_, {a_, tokens, experts},
                                                    {dz_, tokens, experts}, {da_, tokens, experts}, adds);
  };
  all(cpu, a.data(), dz.data(), states.data(), z.data(), da.data());
  all(gpu, d_a.data(), d_dz.data(), d_states.data(), d_z.data(), d_da.data());
  CHECK(testing::same_bits(d_z.host(), z));
  CHECK(testing::same_bits(d_da.host(), da));
}

}  // namespace

TEST_CASE_TEMPLATE("noise and its gradient have the bits of the host", S, float, double) {
  for (std::int64_t const tokens : {0, 1, 70})
    for (std::int64_t const experts : {1, 40, 300}) {
      compare<S, mo::logit_noise>(tokens, experts);
      compare<S, mo::constant_logit_noise<>>(tokens, experts);
    }
}
