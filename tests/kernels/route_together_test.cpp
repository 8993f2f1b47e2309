// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/route_together.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

namespace {

constexpr std::int64_t tokens = 300, experts = 9;

template <class Router> struct routed {
  std::vector<std::int32_t> ids = std::vector<std::int32_t>(tokens * experts, 77);
  std::vector<float> weights = std::vector<float>(tokens * experts, 77.0f);
  std::vector<mo::token_state> states = std::vector<mo::token_state>(tokens);

  routed(int threads, mo::batch const& about, float spoiled = 0, mo::non_finite policy = mo::non_finite::reject) {
    mo::host_engine engine{mo::host{.threads = threads}};
    mo::matrix<float> z(tokens, experts);
    mo::context<> ctx;
    mo::fill_normal(ctx, z, mo::seed{4});
    if (spoiled != 0) z(123, 4) = z(200, 1) = spoiled;
    std::vector<std::byte> work(static_cast<std::size_t>(mo::kernels::route_workspace<Router, float>(tokens, experts)) +
                                64);
    auto const aligned = reinterpret_cast<std::uintptr_t>(work.data()) % 64;
    mo::routing_view<float> const out{tokens,     experts,        Router::slots_of(experts),
                                      ids.data(), weights.data(), states.data()};
    mo::kernels::route_together<Router, float>(engine, Router{}, mo::matrix_view<float const>(z), about, policy, out,
                                               work.data() + (64 - aligned), "layer 3");
  }
};

}  // namespace

TEST_CASE_TEMPLATE("no bit depends on the number of threads, and every slot is written", Selection,
                   mo::expert_choice<2>, mo::sinkhorn<2>, mo::token_rounding<2, 16>) {
  using router = mo::router<mo::softmax, Selection, mo::renormalised>;
  std::vector<std::uint8_t> mask(tokens, 1);
  for (std::size_t t = 3; t < tokens; t += 11) mask[t] = 0;
  routed<router> const one(1, {.mask = mask}), four(4, {.mask = mask});
  CHECK(one.ids == four.ids);
  CHECK(one.weights == four.weights);
  CHECK(one.states == four.states);
  auto const slots = static_cast<std::size_t>(router::slots_of(experts));
  CHECK(std::find(one.ids.begin(), one.ids.begin() + static_cast<std::ptrdiff_t>(tokens * slots), 77) ==
        one.ids.begin() + static_cast<std::ptrdiff_t>(tokens * slots));
  for (std::size_t t = 0; t < tokens; ++t)
    for (std::size_t j = 0; j < slots; ++j) {
      std::size_t const s = t * slots + j;
      if (mask[t] == 0) CHECK(one.ids[s] == mo::no_expert);
      if (one.ids[s] == mo::no_expert) CHECK(one.weights[s] == 0);
    }
}

TEST_CASE("the first token whose logits are rejected is named with its layer, before anything is chosen") {
  using router = mo::router<mo::softmax, mo::sinkhorn<2>>;
  CHECK_THROWS_WITH_AS((routed<router>(3, {}, std::numeric_limits<float>::infinity())),
                       "layer 3: the router logits of token 123 are not all finite.", mo::data_error);
  routed<router> const kept(3, {}, std::numeric_limits<float>::infinity(), mo::non_finite::sanitise);
  CHECK(kept.states[123] == mo::token_state::sanitised);
  CHECK(kept.ids[246] == 4);
}

TEST_CASE("the workspace holds a score for each token and expert, and what the selection asks for") {
  using router = mo::router<mo::softmax, mo::expert_choice<2>>;
  CHECK(mo::kernels::route_workspace<router, float>(16, 4) == 16 * 4 * 4 * 2);
  CHECK(mo::kernels::route_workspace<router, double>(16, 4) == 16 * 4 * 8 * 2);
  CHECK(mo::kernels::route_workspace<router, float>(0, 4) == 0);
}
