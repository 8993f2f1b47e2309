// SPDX-License-Identifier: Apache-2.0
// Scores that are not bounded, with every weight rule and every selection.
#include "properties/router_gradients.hpp"

namespace mo = moiety;
using router_gradients::each_weight;
using router_gradients::one_slot_and_all;
using router_gradients::one_slot_and_all_of_40;

TEST_CASE("sqrt_softplus with every weight rule and selection: gradients equal differences") {
  each_weight<mo::sqrt_softplus>({3, 8, 40});
}

TEST_CASE("raw logits with every weight rule and selection: gradients equal differences") {
  each_weight<mo::raw_logits>({3, 8, 40});
}

TEST_CASE("the same for one slot, and for as many as experts") {
  one_slot_and_all<mo::sqrt_softplus>();
  one_slot_and_all<mo::raw_logits>();
}

TEST_SUITE("long") {
  TEST_CASE("the same for one of 40 experts, and for all of them") {
    one_slot_and_all_of_40<mo::sqrt_softplus>();
    one_slot_and_all_of_40<mo::raw_logits>();
  }
  TEST_CASE("the same for many tokens, and 60, 160 and 384 experts") {
    each_weight<mo::sqrt_softplus>({60, 160, 384}, {512});
    each_weight<mo::raw_logits>({60, 160, 384}, {512});
  }
}
