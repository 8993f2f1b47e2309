// SPDX-License-Identifier: Apache-2.0
// Which way rows travel, in parts or at once, kept or brought again, changes no bit of a step on the same layout.
#include <moiety/layer/expert_travel.hpp>

#include "properties/ranks.hpp"

#include <moiety/dispatcher/all_to_all.hpp>
#include <moiety/dispatcher/padded.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <ratio>
#include <vector>

namespace mo = moiety;

namespace {

struct weighted : ranks::small<mo::router<mo::sigmoid, mo::top_k<2>, mo::on_activation>> {
  using experts = mo::mlp<mo::gelu, mo::biased>;
};

struct limited : weighted {
  using capacity = mo::capacity<std::ratio<3, 4>>;
};

template <class Dispatcher, class Spec = weighted> void check_bits() {
  for (mo::layout const& shape :
       {mo::layout{.data = 4, .expert = 4}, mo::layout{.data = 2}, mo::layout{.data = 2, .tensor = 2, .expert = 2}})
    for (ranks::share const how : {ranks::share::even, ranks::share::uneven}) {
      INFO(mo::detail::sentence(shape), " ", static_cast<int>(how));
      std::vector<ranks::cut> const tokens{ranks::tokens_of(shape.stage(), how)};
      auto const options = ranks::trained<Spec>();
      auto const at_once = ranks::step_on<Spec, float>(shape, tokens, options);
      auto const other = ranks::step_on<Spec, float, Dispatcher>(shape, tokens, options);
      CHECK(ranks::same_bits(other.y, at_once.y));
      CHECK(ranks::same_bits(other.inferred, at_once.inferred));
      CHECK(ranks::same_bits(other.dx, at_once.dx));
      CHECK(other.experts == at_once.experts);
      CHECK(other.dense == at_once.dense);
      CHECK(std::any_of(other.dx.begin(), other.dx.end(), [](float v) { return v != 0; }));
    }
}

}  // namespace

TEST_CASE("two parts") { check_bits<mo::chunked<2>>(); }
TEST_CASE("more parts than experts on a rank, rows kept") { check_bits<mo::keep_rows<mo::chunked<9>>>(); }
TEST_CASE("rows kept") { check_bits<mo::keep_rows<mo::all_to_all>>(); }
TEST_CASE("blocks of one size") { check_bits<mo::padded_all_to_all<64>, limited>(); }
