// SPDX-License-Identifier: Apache-2.0
// Capacities over all ranks drop what one rank would, whatever the rule, and so give its bits.
#include "properties/ranks.hpp"

#include <moiety/dispatcher/padded.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <ratio>
#include <utility>
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

/// Sequences of at most 16 tokens; none is on two ranks of a data axis, however ranks.hpp cuts the tokens.
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

/// Sequences that ranks share: what a rank keeps of an expert is bounded by the capacity of the whole sequence.
template <class Dispatcher>
void check_shared(std::vector<mo::layout> const& shapes, ranks::cut const& tokens, std::vector<std::int64_t> offsets) {
  using spec = limited<mo::per::sequence>;
  auto const options = ranks::trained<spec>();
  ranks::tokens_of_all const about{.sequences = std::move(offsets)};
  auto const one = ranks::step_on<spec, float>({}, {{64}}, options, about);
  CHECK(ranks::total(one.dropped) > 8);
  for (mo::layout const& shape : shapes) {
    CAPTURE(shape);
    ranks::check_same(ranks::step_on<spec, float, Dispatcher>(shape, {tokens}, options, about), one, shape);
  }
}

TEST_CASE("padded messages, a capacity of sequences that ranks share") {
  check_shared<mo::padded_all_to_all<32>>({{.context = 2, .expert = 2}, {.tensor = 2, .expert = 2}}, {32, 32}, {0, 64});
  check_shared<mo::padded_all_to_all<16>>(
      {{.tensor = 2, .context = 2, .expert = 4}, {.context = 4, .expert = 2, .expert_tensor = 2}}, {16, 16, 16, 16},
      {0, 64});
  check_shared<mo::padded_all_to_all<16>>(
      {{.data = 2, .context = 2, .expert = 4}, {.data = 2, .tensor = 2, .expert = 2}}, {16, 16, 16, 16}, {0, 32, 64});
}
