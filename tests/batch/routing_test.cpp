// SPDX-License-Identifier: Apache-2.0
#include <moiety/batch/routing.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <memory_resource>
#include <string>

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

TEST_CASE("a slot has a row, or none because nothing was chosen, or because its expert had no room") {
  mo::routing<float> r(2, 8, 3, *std::pmr::new_delete_resource());
  r.ids[0] = 0, r.ids[1] = mo::no_expert, r.ids[2] = mo::dropped_from(7);
  CHECK(r.has_row(0, 0));
  CHECK_FALSE(r.has_row(0, 1));
  CHECK_FALSE(r.has_row(0, 2));
  r.states[1] = mo::token_state::masked;
  CHECK_NOTHROW(r.check());
  CHECK_FALSE(r.has_row(1, 0));
}

TEST_CASE("a dropped slot still says which expert it asked for, and an empty one that it asked for none") {
  constexpr std::int32_t most = std::numeric_limits<std::int32_t>::max() - 1;
  for (std::int32_t const e : {0, 1, 383, most}) {
    CHECK(mo::dropped_from(e) < 0);
    CHECK(mo::dropped_from(e) != mo::no_expert);
    CHECK(mo::is_dropped(mo::dropped_from(e)));
    CHECK(mo::asked_for(mo::dropped_from(e)) == e);
    CHECK(mo::asked_for(e) == e);
    CHECK_FALSE(mo::is_dropped(e));
  }
  CHECK_FALSE(mo::is_dropped(mo::no_expert));
  CHECK(mo::asked_for(mo::no_expert) < 0);
}

TEST_CASE("ids out of range or twice in a token are data errors that name token, slot and value") {
  mo::routing<float> r(4, 5, 3, *std::pmr::new_delete_resource());
  auto const reset = [&] {
    for (std::int32_t i = 0; i < 12; ++i) r.ids[i] = (i + i / 3) % 5;
  };
  reset();
  CHECK_NOTHROW(r.check());
  constexpr auto least = std::numeric_limits<std::int32_t>::min(), most = std::numeric_limits<std::int32_t>::max();
  for (std::int32_t const id : {-6, 5, least + 1, most}) {
    reset();
    r.ids[7] = id;
    CHECK_THROWS_WITH_AS(
        r.check(), ("the routing gives token 2 in slot 1 expert " + std::to_string(id) + ", outside 0 … 4.").c_str(),
        mo::data_error);
  }
  reset();
  r.ids[11] = r.ids[9];
  CHECK_THROWS_WITH_AS(r.check(), "the routing gives token 3 in slot 2 expert 2, which an earlier slot has.",
                       mo::data_error);
  for (auto const state : {mo::token_state::masked, mo::token_state::unroutable}) {
    r.states[3] = state;  // not dispatched: its ids are never read
    CHECK_NOTHROW(r.check());
  }
  r.states[3] = mo::token_state::sanitised;
  CHECK_THROWS_AS(r.check(), mo::data_error);
  reset();
  r.ids[11] = mo::dropped_from(r.ids[9]);
  CHECK_THROWS_WITH_AS(r.check(), "the routing gives token 3 in slot 2 expert -3, which an earlier slot has.",
                       mo::data_error);
  reset();
  r.ids[10] = r.ids[11] = mo::no_expert;
  CHECK_NOTHROW(r.check());
}

TEST_CASE("a routing of impossible sizes, or without memory, is a data error") {
  using view = mo::routing_view<float>;
  CHECK_THROWS_WITH_AS(view{}.check(), "a routing of 0 tokens to 0 of 0 experts cannot be.", mo::data_error);
  CHECK_THROWS_WITH_AS((view{1, 2, 3}.check()), "a routing of 1 tokens to 3 of 2 experts cannot be.", mo::data_error);
  CHECK_THROWS_AS((view{-1, 2, 1}.check()), mo::data_error);
  CHECK_THROWS_AS((view{1, 2, -1}.check()), mo::data_error);
  std::int32_t id = 0;
  auto state = mo::token_state::routed;
  CHECK_THROWS_WITH_AS((view{1, 2, 1, &id}.check()), "a routing of 1 tokens has null ids or states.", mo::data_error);
  CHECK_THROWS_AS((view{1, 2, 1, nullptr, nullptr, &state}.check()), mo::data_error);
  CHECK_NOTHROW(view{1, 2, 1, &id, nullptr, &state}.check());  // weights are read by neither permute nor statistics
  CHECK_NOTHROW(view{0, 2, 1}.check());
}
