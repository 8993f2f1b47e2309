// SPDX-License-Identifier: Apache-2.0
// Capacities over all ranks drop what one rank would, whatever the rule, and so give its bits.
#include "properties/ranks.hpp"

#include <moiety/dispatcher/padded.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <ratio>
#include <vector>

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

/// Sequences of at most 16 tokens; none is on two ranks, however ranks.hpp cuts the tokens.
ranks::tokens_of_all const sequences{.sequences = {0, 7, 16, 17, 32, 48, 57, 64}};

template <class Dispatcher, class... Options>
void check_padded(std::vector<mo::layout> const& shapes, ranks::tokens_of_all const& about = {}) {
  using spec = limited<Options...>;
  auto const options = ranks::trained<spec>();
  CHECK(ranks::total(ranks::step_on<spec, float>({}, {{64}}, options, about).dropped) > 8);
  ranks::check_layouts<spec, float, Dispatcher>(shapes, options, about);
}

}  // namespace

TEST_CASE("lowest weight") { check<>(ranks::all_layouts); }
TEST_CASE("lowest weight, split experts") { check<>(ranks::split_layouts); }
TEST_CASE("position") { check<mo::drop::position>(ranks::few_layouts); }
TEST_CASE("priority, renormalised") { check<mo::drop::priority, mo::renormalise_after_drop>(ranks::few_layouts); }
TEST_CASE("random") { check<mo::drop::random>(ranks::few_layouts); }

TEST_CASE("padded messages") {
  check_padded<mo::padded_all_to_all<64>>(ranks::few_layouts);
  check_padded<mo::padded_all_to_all<64>>(
      {{.data = 2, .expert_tensor = 2}, {.data = 4, .expert = 2, .expert_tensor = 2}});
  check_padded<mo::keep_rows<mo::padded_all_to_all<64>>, mo::drop::position>({{.data = 4, .expert = 2}});
}
TEST_CASE("padded messages, a capacity of each sequence") {
  check_padded<mo::padded_all_to_all<16, 7>, mo::per::sequence>({{.data = 4, .expert = 4}, {.data = 2, .expert = 2}},
                                                                sequences);
}
