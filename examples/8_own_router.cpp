// SPDX-License-Identifier: Apache-2.0
// A selection and a weight rule of your own in a layer, checked with the rest of it in one line.
#include <moiety/moiety.hpp>
#include <moiety/testing.hpp>

#include "own_router.hpp"

#include <iostream>

namespace mo = moiety;

struct mine : mo::layer_spec<mo::dims{.hidden = 32, .ffn = 24, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::selection_bias, spread_out<3>, sharpened>;
  using losses = mo::losses<mo::load_balance<>>;
};

int main() {
  std::cout << mo::describe<mine>();
  return mo::testing::conforms<mine>() ? 0 : 1;
}
