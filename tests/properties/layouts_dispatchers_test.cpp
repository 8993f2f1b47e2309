// SPDX-License-Identifier: Apache-2.0
// Whichever dispatcher carries rows, a layer has the bits of one rank, wherever weights multiply.
#include "properties/ranks.hpp"

#include <moiety/dispatcher/all_gather.hpp>
#include <moiety/dispatcher/all_to_all.hpp>
#include <moiety/dispatcher/two_level.hpp>

#include <doctest/doctest.h>

#include <vector>

namespace mo = moiety;

namespace {

using plain = ranks::small<mo::router<mo::softmax, mo::top_k<3>>>;
using on_input = ranks::small<mo::router<mo::sigmoid, mo::top_k<3>, mo::on_input>>;
using on_activation = ranks::small<mo::router<mo::sigmoid, mo::top_k<3>, mo::on_activation>>;

std::vector<mo::layout> const spread{{.data = 4, .expert = 4}, {.data = 4, .expert = 2}};
std::vector<mo::layout> const split{{.data = 4, .expert_tensor = 2}, {.data = 4, .expert = 2, .expert_tensor = 2}};

template <class Spec, class Dispatcher> void check(std::vector<mo::layout> const& shapes) {
  ranks::check_layouts<Spec, float, Dispatcher>(shapes, ranks::trained<Spec>());
}

}  // namespace

TEST_CASE("all_gather_tokens") {
  check<plain, mo::all_gather_tokens>(spread);
  check<plain, mo::all_gather_tokens>(split);
  check<plain, mo::all_gather_tokens>({{.data = 4}, {.tensor = 2, .context = 2, .expert = 4}});
}
TEST_CASE("all_gather_tokens, rows kept") {
  check<on_input, mo::keep_rows<mo::all_gather_tokens>>(spread);
  check<on_activation, mo::keep_rows<mo::all_gather_tokens>>(spread);
}
TEST_CASE("two_level") {
  check<plain, mo::two_level<2>>(spread);
  check<plain, mo::two_level<2>>({{.tensor = 2, .context = 2, .expert = 4}});
  check<on_input, mo::two_level<2>>(spread);
}
TEST_CASE("two_level, rows kept") { check<on_activation, mo::keep_rows<mo::two_level<2>>>(spread); }
TEST_CASE("chunked") {
  check<plain, mo::chunked<2>>(spread);
  check<plain, mo::chunked<2>>(split);
}
TEST_CASE("chunked, rows kept") { check<on_input, mo::keep_rows<mo::chunked<3>>>(spread); }
