// SPDX-License-Identifier: Apache-2.0
// Capacities over all ranks drop what one rank would, whatever the rule, and so give its bits.
#include "properties/ranks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <ratio>

namespace mo = moiety;

namespace {

template <class... Options> struct limited : ranks::small<ranks::softmax_2> {
  using capacity = mo::capacity<std::ratio<3, 4>, Options...>;
};

template <class... Options> void check(std::vector<mo::layout> const& shapes) {
  using spec = limited<Options...>;
  auto const options = ranks::trained<spec>();
  auto const one = ranks::step_on<spec, float>({}, {{64}}, options);
  CHECK(ranks::total(one.dropped) > 8);
  ranks::check_layouts<spec, float>(shapes, options);
}

}  // namespace

TEST_CASE("lowest weight") { check<>(ranks::all_layouts); }
TEST_CASE("position") { check<mo::drop::position>(ranks::few_layouts); }
TEST_CASE("priority, renormalised") { check<mo::drop::priority, mo::renormalise_after_drop>(ranks::few_layouts); }
TEST_CASE("random") { check<mo::drop::random>(ranks::few_layouts); }
