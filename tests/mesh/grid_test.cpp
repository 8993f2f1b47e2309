// SPDX-License-Identifier: Apache-2.0
#include <moiety/mesh/grid.hpp>

#include <mesh/golden_groups.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

using mo::axis;
using mo::axis_set;
using mo::layout;

/// Every set of axes of one grid; pipeline alone and no axis at all are in both lists.
std::vector<axis_set> sets_of(layout const& l) {
  std::vector<axis_set> sets;
  for (mo::grid const g : {mo::grid::dense, mo::grid::expert})
    for (unsigned chosen = 0; chosen < 16; ++chosen) {
      axis_set among;
      for (unsigned i = 0; i < 4; ++i)
        if ((chosen >> i & 1U) != 0) among = among | mo::axes_of(l, g)[i];
      sets.push_back(among);
    }
  return sets;
}

/// The groups along some axes as text: 0 2 | 1 3.
std::string text_of(layout const& l, axis_set among) {
  std::ostringstream out;
  for (int rank = 0; rank < l.world(); ++rank) {
    if (mo::group_of(l, among, rank).position != 0) continue;
    out << (rank > 0 ? " |" : "");
    for (int const member : mo::members_of(l, among, rank)) out << (out.tellp() > 0 ? " " : "") << member;
  }
  return std::move(out).str();
}

/// Coordinates by counting through the ranks, the outermost axis in the outermost loop.
std::vector<mo::coordinates> counted(layout const& l) {
  std::vector<mo::coordinates> all(static_cast<std::size_t>(l.world()));
  auto const count = [&](axis first, axis second, axis third) {
    std::size_t rank = 0;
    for (int p = 0; p < l.pipeline; ++p)
      for (int c = 0; c < l.size(third); ++c)
        for (int b = 0; b < l.size(second); ++b)
          for (int a = 0; a < l.size(first); ++a) {
            mo::coordinates& at = all[rank++];
            at[axis::pipeline] = p;
            at[first] = a;
            at[second] = b;
            at[third] = c;
          }
    CHECK(rank == all.size());
  };
  count(l.order.first, l.order.second, l.order.third);
  count(axis::expert_tensor, axis::expert, axis::expert_data);
  return all;
}

/// The ranks that differ from `rank` in the named axes only, ascending.
std::vector<int> group_by_definition(layout const& l, std::vector<mo::coordinates> const& at, axis_set among,
                                     int rank) {
  std::vector<int> members;
  for (int other = 0; other < l.world(); ++other) {
    bool same = true;
    for (axis const a : mo::axes_of(l, mo::grid_of(among)))
      same = same && (among.has(a) || at[static_cast<std::size_t>(other)][a] == at[static_cast<std::size_t>(rank)][a]);
    if (same) members.push_back(other);
  }
  return members;
}

constexpr std::array<mo::axis_order, 6> orders{{{axis::tensor, axis::context, axis::data},
                                                {axis::tensor, axis::data, axis::context},
                                                {axis::context, axis::tensor, axis::data},
                                                {axis::context, axis::data, axis::tensor},
                                                {axis::data, axis::tensor, axis::context},
                                                {axis::data, axis::context, axis::tensor}}};

/// A layout that passes, of at most 120 ranks.
layout random_layout(std::mt19937& random) {
  for (;;) {
    auto const any = [&](unsigned most) { return 1 + static_cast<int>(random() % most); };
    layout l{.data = any(6), .tensor = any(4), .context = any(3), .pipeline = any(4), .order = orders[random() % 6]};
    l.expert = any(12);
    l.expert_tensor = any(4);
    if (mo::fault_of(l) == mo::layout_fault::none && l.world() <= 120) return l;
  }
}

/// The proof, done by the compiler. Its result is checked when the test runs, so that a wrong library still compiles.
template <layout... Layouts> constexpr bool proved() {
  return (mo::check_layout<Layouts>() && ...) && (std::bool_constant<mo::layout_holds(Layouts)>::value && ...);
}

}  // namespace

TEST_CASE("8 ranks of tensor 2, pipeline 2, expert 4: the experts span tensor and data") {
  constexpr layout l{.data = 2, .tensor = 2, .pipeline = 2, .expert = 4};
  CHECK(text_of(l, axis::data) == "0 2 | 1 3 | 4 6 | 5 7");
  CHECK(text_of(l, axis::tensor) == "0 1 | 2 3 | 4 5 | 6 7");
  CHECK(text_of(l, axis::expert) == "0 1 2 3 | 4 5 6 7");
  CHECK(text_of(l, axis::expert_data) == "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7");
  CHECK(text_of(l, mo::axes::stage) == "0 1 2 3 | 4 5 6 7");
  CHECK(text_of(l, axis_set{}) == "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7");
  constexpr mo::coordinates c = mo::coordinates_of(l, 6);
  CHECK(c == mo::coordinates{{0, 0, 1, 1, 0, 2, 0}});
  constexpr bool inverse = mo::rank_of(l, mo::grid::dense, c) == 6 && mo::rank_of(l, mo::grid::expert, c) == 6;
  constexpr mo::group_place place = mo::group_of(l, axis::data | axis::pipeline, 6);
  constexpr int second = mo::member_of(l, axis::data | axis::pipeline, 6, 1);
  CHECK(inverse);
  CHECK(place == mo::group_place{0, 3, 4});
  CHECK(second == 2);
}

TEST_CASE("groups are those of the golden worlds") {
  CHECK(golden::worlds.size() == 5);
  for (golden::world const& world : golden::worlds) {
    CHECK(world.families.size() == 13);
    for (golden::groups const& family : world.families) {
      INFO(world.shape, ": ", family.along);
      CHECK(text_of(world.shape, family.along) == family.ranks);
    }
  }
}

TEST_CASE("the compiler proves groups and coordinates of constant layouts") {
  constexpr bool one_rank = proved<layout{}>();
  constexpr bool one_axis = proved<layout{.data = 8}, layout{.tensor = 5}, layout{.context = 7}, layout{.pipeline = 6},
                                   layout{.data = 4, .expert = 4}, layout{.tensor = 6, .expert_tensor = 3}>();
  constexpr bool folded = proved<layout{.data = 2, .tensor = 2, .pipeline = 2, .expert = 4},
                                 layout{.data = 4, .tensor = 2, .expert = 2, .expert_tensor = 2},
                                 layout{.data = 2, .tensor = 3, .context = 2, .expert = 4},
                                 layout{.data = 3, .tensor = 3, .pipeline = 2, .expert = 9},
                                 layout{.data = 4, .context = 3, .pipeline = 2, .expert = 2, .expert_tensor = 3}>();
  constexpr bool large = proved<layout{.data = 4, .tensor = 2, .pipeline = 4, .expert = 8},
                                layout{.data = 2, .tensor = 4, .context = 2, .pipeline = 2, .expert = 4},
                                layout{.data = 5, .tensor = 3, .pipeline = 2, .expert = 5, .expert_tensor = 3}>();
  constexpr bool reordered = proved<layout{.data = 4, .tensor = 2, .expert = 4, .order = orders[4]},
                                    layout{.data = 2, .tensor = 2, .context = 3, .expert = 6, .order = orders[1]},
                                    layout{.data = 3, .tensor = 2, .context = 2, .expert = 4, .order = orders[2]},
                                    layout{.data = 3, .tensor = 2, .context = 2, .expert = 4, .order = orders[3]},
                                    layout{.data = 3, .tensor = 2, .pipeline = 3, .expert = 2, .order = orders[5]}>();
  CHECK(one_rank);
  CHECK(one_axis);
  CHECK(folded);
  CHECK(large);
  CHECK(reordered);
}

TEST_CASE("the proof fails for layouts that check_layout refuses") {
  CHECK_FALSE(mo::layout_holds(layout{.data = 3, .expert = 2}));
  CHECK_FALSE(mo::layout_holds(layout{.data = 2, .tensor = 2, .order = {axis::tensor, axis::tensor, axis::data}}));
  CHECK_FALSE(mo::layout_holds(layout{.data = 2, .tensor = 2, .order = {axis::tensor, axis::context, axis::expert}}));
}

TEST_CASE("ranks are counted through each grid in its order, and found again by coordinates") {
  std::mt19937 random(11);
  for (int i = 0; i < 300; ++i) {
    layout const l = random_layout(random);
    INFO(l);
    auto const at = counted(l);
    bool same = true;
    for (int rank = 0; rank < l.world(); ++rank) {
      mo::coordinates const c = mo::coordinates_of(l, rank);
      same = same && c == at[static_cast<std::size_t>(rank)] && mo::rank_of(l, mo::grid::dense, c) == rank &&
             mo::rank_of(l, mo::grid::expert, c) == rank;
    }
    CHECK(same);
  }
}

TEST_CASE("groups along any axes of a grid are the ranks that differ in nothing else") {
  std::mt19937 random(12);
  for (int i = 0; i < 40; ++i) {
    layout const l = random_layout(random);
    auto const at = counted(l);
    for (axis_set const among : sets_of(l)) {
      INFO(l, ": ", among);
      bool same = true, inside = true;
      for (int rank = 0; rank < l.world(); ++rank) {
        std::vector<int> const members = group_by_definition(l, at, among, rank);
        mo::group_place const place = mo::group_of(l, among, rank);
        same = same && mo::members_of(l, among, rank) == members && place.colour == members.front() &&
               place.size == static_cast<int>(members.size()) &&
               members[static_cast<std::size_t>(place.position)] == rank;
        inside = inside && members.front() / l.stage() == members.back() / l.stage();
      }
      CHECK(same);
      CHECK((inside || among.has(axis::pipeline)));
    }
  }
}

TEST_CASE("random layouts of any order hold") {
  std::mt19937 random(13);
  for (int i = 0; i < 100; ++i) {
    layout const l = random_layout(random);
    INFO(l);
    CHECK(mo::layout_holds(l));
  }
}

TEST_CASE("both grids have the same stages and the same pipeline groups") {
  constexpr layout l{.data = 3, .tensor = 2, .context = 2, .pipeline = 3, .expert = 2, .expert_tensor = 3};
  constexpr axis_set experts = mo::axes::expert_group | axis::expert_data;
  for (int rank = 0; rank < l.world(); ++rank) {
    CHECK(mo::group_of(l, mo::axes::stage, rank) == mo::group_of(l, experts, rank));
    CHECK(mo::group_of(l, axis::pipeline, rank) == mo::group_place{rank % 12, rank / 12, 3});
    CHECK(mo::group_of(l, mo::axes::stage | axis::pipeline, rank) == mo::group_place{0, rank, 36});
    CHECK(mo::group_of(l, experts | axis::pipeline, rank) == mo::group_place{0, rank, 36});
  }
  CHECK(mo::axes::sequence == (axis::context | axis::tensor));
  CHECK(mo::group_of(l, mo::axes::expert_group, 11) == mo::group_place{6, 5, 6});
}

TEST_CASE("groups of a world of 2^31 - 2 ranks do not overflow") {
  constexpr int world = 2147483646;
  constexpr layout l{.data = world / 6, .tensor = 2, .pipeline = 3, .expert = world / 3};
  CHECK(mo::group_of(l, axis::pipeline, world - 1) == mo::group_place{world / 3 - 1, 2, 3});
  CHECK(mo::group_of(l, axis::expert | axis::pipeline, world - 1) == mo::group_place{0, world - 1, world});
  CHECK(mo::member_of(l, mo::axes::stage, world - 1, world / 3 - 1) == world - 1);
  CHECK(mo::rank_of(l, mo::grid::dense, mo::coordinates_of(l, world - 1)) == world - 1);
}

TEST_CASE("ranks, positions, coordinates and axes that a layout does not have are refused") {
  constexpr layout l{.data = 2, .expert = 2};
  std::string const grids =
      "the layout with dense grid tensor 1 x context 1 x data 2 x pipeline 1, expert grid expert_tensor 1 x expert 2 x "
      "expert_data 1 x pipeline 1.";
  CHECK_THROWS_WITH_AS(mo::coordinates_of(l, 2), ("rank 2 is outside " + grids).c_str(), mo::config_error);
  CHECK_THROWS_WITH_AS(mo::group_of(l, axis::data, -1), ("rank -1 is outside " + grids).c_str(), mo::config_error);
  CHECK_THROWS_WITH_AS(mo::member_of(l, axis::data, 0, 2), "position 2 is outside a group of 2 ranks.",
                       mo::config_error);
  CHECK_THROWS_AS(mo::member_of(l, axis::data, 0, -1), mo::config_error);
  mo::coordinates beyond;
  beyond[axis::expert] = 2;
  CHECK_THROWS_WITH_AS(mo::rank_of(l, mo::grid::expert, beyond), ("expert coordinate 2 is outside " + grids).c_str(),
                       mo::config_error);
  CHECK(mo::rank_of(l, mo::grid::dense, beyond) == 0);
  CHECK_THROWS_WITH_AS(mo::group_of(l, axis::expert | axis::data, 0),
                       "the axes data, expert belong to two grids, so they have no groups.", mo::config_error);
  CHECK_THROWS_AS(mo::members_of(l, axis::tensor | axis::expert_data | axis::pipeline, 0), mo::config_error);
}
