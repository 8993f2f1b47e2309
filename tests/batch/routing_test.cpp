// SPDX-License-Identifier: Apache-2.0
#include <moiety/batch/routing.hpp>

#include <doctest/doctest.h>

#include <memory_resource>

namespace mo = moiety;

TEST_CASE("a routing is ids and weights [tokens x k] and a state a token") {
  mo::routing<float> r(3, 8, 2, *std::pmr::new_delete_resource());
  r.ids[3] = 5;
  r.weights[3] = 0.25f;
  CHECK(r.expert(1, 1) == 5);
  CHECK(r.weight(1, 1) == 0.25f);
  CHECK(r.view().expert(1, 1) == 5);
  CHECK(r.experts == 8);
  CHECK(r.state(2) == mo::token_state::routed);
  r.states[0] = mo::token_state::sanitised;
  r.states[1] = mo::token_state::unroutable;
  r.states[2] = mo::token_state::masked;
  CHECK(r.dispatched(0));
  CHECK_FALSE(r.dispatched(1));
  CHECK_FALSE(r.dispatched(2));
  CHECK(r.count_states() == mo::token_counts{0, 1, 1, 1});
}

TEST_CASE("counts of states add up") {
  mo::token_counts a{1, 2, 3, 4};
  a += {10, 20, 30, 40};
  CHECK(a == mo::token_counts{11, 22, 33, 44});
}
