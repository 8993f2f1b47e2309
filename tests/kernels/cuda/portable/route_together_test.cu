// SPDX-License-Identifier: Apache-2.0
// The passes around a selection; what each selection chooses is tested in router/*_test.cu.
#include <moiety/kernels/cuda/portable/route_together.cuh>

#include <moiety/moiety.hpp>

#include "device_memory.hpp"
#include "router/together_cases.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

namespace {

/// A user's selection: token t to the experts t mod E and, if its first score is above ½, t + 1 mod E.
struct by_turns {
  static constexpr int count = 2;
  static constexpr double average = 2;
  template <class Backend> static constexpr bool runs_on = true;
  static constexpr std::int64_t rows(std::int64_t tokens, std::int64_t) { return 2 * tokens; }
  template <class S> static constexpr std::int64_t workspace_bytes(std::int64_t, std::int64_t) { return 0; }

  template <class S> MOIETY_HD static void choose(mo::batch_of_scores<S> const& of, std::int64_t t) {
    std::int64_t const experts = of.scores.cols();
    if (!of.takes_part(t)) return;
    of.ids[2 * t] = static_cast<std::int32_t>(t % experts);
    if (experts > 1 && of.scores(t, 0) > S(0.5)) of.ids[2 * t + 1] = static_cast<std::int32_t>((t + 1) % experts);
  }
  template <class S> void select(mo::host_engine&, mo::batch_of_scores<S> const& of) const {
    for (std::int64_t t = 0; t < of.scores.rows(); ++t) choose(of, t);
  }
  template <class S> void select(mo::cuda_engine& engine, mo::batch_of_scores<S> const& of) const;
};

template <class S> __global__ void choose_by_turns(mo::batch_of_scores<S> const of) {
  by_turns::choose(of, std::int64_t{blockIdx.x} * 32 + threadIdx.x);
}

template <class S> void by_turns::select(mo::cuda_engine& engine, mo::batch_of_scores<S> const& of) const {
  REQUIRE(of.scores.rows() % 32 == 0);
  engine.launch("by_turns", choose_by_turns<S>, {of.scores.rows() / 32, 32}, of);
}

}  // namespace

static_assert(mo::selects_on<by_turns, mo::cuda> && mo::selects_on<mo::sinkhorn<1>, mo::cuda>);

TEST_CASE("a user's selection is surrounded on a device by what surrounds it on the host") {
  using together_cases::compare_with_host;
  using router = mo::router<mo::softmax, by_turns, mo::renormalised, mo::scale<>>;
  for (auto const how : route_cases::kinds) {
    compare_with_host<router, float, 8>(8, how, 64);
    compare_with_host<router, double>(100, how, 32);
  }
}

TEST_CASE("tokens whose logits are rejected take no part, and the first is named by the next synchronisation") {
  using router = mo::router<mo::softmax, by_turns>;
  mo::cuda_engine& engine = route_cases::shared_engine();
  std::vector<float> z(32 * 4, 0.0f);
  z[5 * 4 + 1] = std::numeric_limits<float>::infinity(), z[9 * 4] = std::numeric_limits<float>::quiet_NaN();
  testing::device_values<float> weights(64);
  testing::device_values<std::int32_t> ids(64);
  testing::device_values<mo::token_state> states(32);
  testing::device_values<std::byte> work(mo::kernels::route_workspace<router, float>(32, 4));
  testing::device_values<float> logits(z);  // waits for the poison
  mo::routing_view<float> const routes{32, 4, 2, ids.data(), weights.data(), states.data()};
  mo::kernels::route_together<router, float>(engine, router{}, {logits.data(), 32, 4}, {}, mo::non_finite::reject,
                                             routes, work.data());
  CHECK_THROWS_WITH_AS(engine.synchronize(), "the router logits of token 5 were not all finite.", mo::data_error);
  CHECK(states.host()[5] == mo::token_state::unroutable);
  CHECK(states.host()[6] == mo::token_state::routed);
  CHECK(ids.host()[10] == mo::no_expert);
  CHECK(ids.host()[12] == 2);
  CHECK(weights.host()[10] == 0);
  CHECK(weights.host()[12] == 0.25f);
}
