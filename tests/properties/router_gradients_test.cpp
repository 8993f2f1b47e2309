// SPDX-License-Identifier: Apache-2.0
// Scores whose slope is a product, with every weight rule and every selection.
#include "properties/router_gradients.hpp"

namespace mo = moiety;
using router_gradients::each_weight;
using router_gradients::one_slot_and_all;
using router_gradients::one_slot_and_all_of_40;

TEST_CASE("softmax with every weight rule and selection: gradients equal differences") {
  each_weight<mo::softmax>({3, 8, 40});
}

TEST_CASE("sigmoid with every weight rule and selection: gradients equal differences") {
  each_weight<mo::sigmoid>({3, 8, 40});
}

TEST_CASE("the same for one slot, and for as many as experts") {
  one_slot_and_all<mo::softmax>();
  one_slot_and_all<mo::sigmoid>();
}

TEST_SUITE("long") {
  TEST_CASE("the same for one of 40 experts, and for all of them") {
    one_slot_and_all_of_40<mo::softmax>();
    one_slot_and_all_of_40<mo::sigmoid>();
  }
  TEST_CASE("the same for many tokens, and 60, 160 and 384 experts") {
    each_weight<mo::softmax>({60, 160, 384}, {512});
    each_weight<mo::sigmoid>({60, 160, 384}, {512});
  }
}
