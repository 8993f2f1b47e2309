// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/rank_memory.hpp>

#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

using numbers = std::vector<std::int64_t>;

}  // namespace

TEST_CASE("the moments of a rank are all that may be its fullest, whatever the sizes of its stages") {
  for (mo::schedule const& made :
       {mo::make_schedule(mo::interleaved_1f1b{}, {.ranks = 4, .chunks = 3, .microbatches = 8}),
        mo::make_schedule(mo::zb_v{}, {.ranks = 3, .chunks = 2, .microbatches = 7}),
        mo::make_schedule(mo::dual_pipe{}, {.ranks = 4, .chunks = 2, .microbatches = 8}),
        mo::make_schedule(mo::one_f_one_b{}, {.ranks = 3, .microbatches = 5})}) {
    mo::schedule_view const plan = made;
    for (int seed = 0; seed < 20; ++seed)
      for (int r = 0; r < plan.ranks(); ++r) {
        mo::detail::rank_use use(plan, r);
        auto const size = [&](int stage) { return std::int64_t{(seed * 7 + stage * 13) % 11}; };
        for (int const s : use.stages()) use.add(s, 0, size(s));
        CHECK(std::ranges::max(use.used()) == mo::peak_activations(plan, r, size));
        for (int const s : use.stages()) use.add(s, 0, -size(s));
        CHECK(std::ranges::max(use.used()) == 0);
      }
  }
}

TEST_CASE("stages and moments by hand") {
  auto const plan = mo::make_schedule(mo::interleaved_1f1b{}, {.ranks = 2, .chunks = 2, .microbatches = 2});
  mo::detail::rank_use use(plan, 1);  // 1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1
  CHECK(use.stages() == std::vector<int>{1, 3});
  CHECK(use.moments() == std::vector<numbers>{{2, 1}});
  CHECK(use.has_room(1, 3, 2, 7));
  CHECK_FALSE(use.has_room(1, 3, 2, 6));
  use.add(1, 3, 2);
  CHECK(use.used() == numbers{7});
  CHECK(use.has_room(3, 3, 2, 12));
  CHECK_FALSE(use.has_room(3, 3, 2, 11));
  auto const both = mo::make_schedule(mo::dual_pipe{}, {.ranks = 2, .chunks = 2, .microbatches = 4});
  CHECK(mo::detail::rank_use(both, 0).stages() == std::vector<int>{0, 1});
}

TEST_CASE("typical blocks need the median of both, and are counted where costs allow") {
  numbers const weights{9, 4, 4, 5, 4, 1, 4}, activations{0, 2, 2, 2, 3, 2, 2}, costs{0, 3, 3, 3, 3, 3, 8};
  mo::detail::typical_blocks const typical(mo::rank_memory{weights, activations, 0});
  CHECK(typical.weights == 4);
  CHECK(typical.activations == 2);
  CHECK(typical.from(0) == 4);  // not the first, the light one, and the last
  CHECK(typical.from(3) == 2);
  CHECK(typical.from(6) == 0);
  CHECK(typical.widest(costs, 2) == 0);
  CHECK(typical.widest(costs, 6) == 2);
  CHECK(typical.widest(costs, 100) == 4);
}
