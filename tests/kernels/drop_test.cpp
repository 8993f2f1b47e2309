// SPDX-License-Identifier: Apache-2.0
// drop_beyond on a routing made by hand; what a layer makes of it is tested in capacity/capacity_test.cpp.
#include <moiety/kernels/drop.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <ratio>
#include <vector>

namespace mo = moiety;

namespace {

using router = mo::router<mo::softmax, mo::top_k<2>>;
constexpr std::int32_t none = mo::no_expert;

/// Five tokens, three experts; the fourth token is padding and the third has an empty slot.
struct by_hand {
  std::vector<std::int32_t> ids{0, 1, 0, 2, 0, none, 0, 1, 1, 0};
  std::vector<float> weights{.5f, .25f, .5f, .125f, .75f, 0, 0, 0, .25f, .25f};
  std::vector<mo::token_state> states = std::vector<mo::token_state>(5);
  mo::permutation order{5, 3, 2, *std::pmr::new_delete_resource()};

  template <class Capacity> void drop(mo::batch const& about = {}, int threads = 1) {
    mo::host_engine engine{mo::host{.threads = threads}};
    states[3] = mo::token_state::masked;
    mo::routing_view<float> const routes{5, 3, 2, ids.data(), weights.data(), states.data()};
    mo::kernels::build_permutation(engine, routes, order.view());
    mo::kernels::drop_beyond<Capacity>(engine, router{}, about, order.view(), routes);
    mo::kernels::build_permutation(engine, routes, order.view());
  }
};

}  // namespace

TEST_CASE("the slots of the lowest weights lose their rows and say whose they were; of equal ones the later token's") {
  by_hand a;
  a.drop<mo::capacity<std::ratio<6, 10>>>();  // C = 2: expert 0 has four slots, expert 1 two
  std::int32_t const lost = mo::dropped_from(0);
  CHECK(a.ids == std::vector<std::int32_t>{0, 1, lost, 2, 0, none, 0, 1, 1, lost});
  CHECK(a.weights == std::vector<float>{.5f, .25f, 0, .125f, .75f, 0, 0, 0, .25f, 0});
  CHECK(a.order.rows() == 5);
  CHECK(a.order.row_of(0, 0) == 0);
  CHECK(a.order.row_of(1, 0) == -1);
  CHECK(a.order.row_of(2, 0) == 1);
}

TEST_CASE("by position the first tokens stay, by sequence each has a capacity of its own") {
  by_hand a, b;
  a.drop<mo::capacity<std::ratio<3, 10>, mo::drop::position>>();  // C = 1
  std::int32_t const from_0 = mo::dropped_from(0), from_1 = mo::dropped_from(1);
  CHECK(a.ids == std::vector<std::int32_t>{0, 1, from_0, 2, from_0, none, 0, 1, from_1, from_0});
  std::array<std::int64_t, 3> const sequences{0, 2, 5};
  b.drop<mo::capacity<std::ratio<3, 10>, mo::per::sequence, mo::drop::position>>({.sequences = sequences}, 3);
  CHECK(b.ids == std::vector<std::int32_t>{0, 1, from_0, 2, 0, none, 0, 1, 1, from_0});
}

TEST_CASE("weights that are kept are divided by their sum, where that was asked for") {
  by_hand a;
  a.drop<mo::capacity<std::ratio<6, 10>, mo::renormalise_after_drop>>();
  CHECK(a.weights[0] == doctest::Approx(2.0 / 3));
  CHECK(a.weights[1] == doctest::Approx(1.0 / 3));
  CHECK(a.weights[2] == 0);
  CHECK(a.weights[3] == doctest::Approx(1));
  CHECK(a.weights[4] == doctest::Approx(1));
  CHECK(a.weights[5] == 0);
  CHECK(a.weights[6] == 0);
}
