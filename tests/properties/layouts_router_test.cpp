// SPDX-License-Identifier: Apache-2.0
// Dropless layers give the bits of one rank on every layout, and what is close to them where experts are split.
#include "properties/ranks.hpp"

#include <doctest/doctest.h>

#include <ratio>

namespace mo = moiety;

namespace {

using plain = ranks::small<ranks::softmax_2>;
using grouped = ranks::small<mo::router<mo::sigmoid, mo::selection_bias, mo::groups<4, 2>, mo::top_k<3>,
                                        mo::renormalised, mo::scale<std::ratio<5, 2>>>>;

}  // namespace

TEST_CASE("softmax, float") { ranks::check_layouts<plain, float>(ranks::all_layouts, ranks::trained<plain>()); }
TEST_CASE("softmax, double") { ranks::check_layouts<plain, double>(ranks::few_layouts, ranks::trained<plain>()); }
TEST_CASE("softmax, bf16") { ranks::check_layouts<plain, mo::bf16>(ranks::few_layouts, ranks::trained<plain>()); }
TEST_CASE("sigmoid with bias and groups") {
  ranks::check_layouts<grouped, float>(ranks::all_layouts, ranks::trained<grouped>());
  ranks::check_layouts<grouped, float>(ranks::split_layouts, ranks::trained<grouped>());
}
