// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/expert_choice.cuh>

#include <moiety/moiety.hpp>

#include "router/together_cases.hpp"

#include <doctest/doctest.h>

#include <ratio>

namespace mo = moiety;
using together_cases::compare_all;

TEST_CASE("experts choose on a device the tokens that they choose on the host") {
  compare_all<mo::router<mo::softmax, mo::expert_choice<2>, mo::renormalised>>();
  compare_all<mo::router<mo::sigmoid, mo::groups<4, 2>, mo::expert_choice<1, std::ratio<5, 4>>>, double>();
  compare_all<mo::router<mo::raw_logits, mo::expert_choice<2>, mo::softmax_of_selected>>();
  compare_all<mo::router<mo::softmax, mo::expert_choice<2, std::ratio<100>>>>();  // all that there are
}
