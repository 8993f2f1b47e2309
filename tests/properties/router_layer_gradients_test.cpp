// SPDX-License-Identifier: Apache-2.0
// Every selection inside a layer, with the losses that it can have: gradients of x and of all parameters equal differences.
#include "properties/router_layers.hpp"

#include <cstdint>
#include <ratio>
#include <vector>

namespace {

namespace mo = moiety;
using router_gradients::layer_passes;
using router_gradients::layer_with;

}  // namespace

TEST_CASE("selections of single tokens: gradients of a layer equal differences") {
  layer_passes<mo::router<mo::softmax, mo::top_p<3, std::ratio<2, 5>>, mo::renormalised>, 8>();
  layer_passes<mo::router<mo::sqrt_softplus, mo::hash<2>, mo::renormalised, mo::scale<std::ratio<5, 2>>>, 8>();
  layer_passes<mo::router<mo::sigmoid, mo::precomputed<3>>, 8>();
  layer_passes<mo::router<mo::softmax, mo::forced<2, mo::imbalance::zipf>>, 3>();
  layer_passes<mo::router<mo::raw_logits, mo::top_k<2>, mo::softmax_of_selected>, 8, mo::losses<mo::router_z>>();
}

TEST_CASE("groups and bias: gradients of a layer equal differences") {
  layer_passes<mo::router<mo::sigmoid, mo::selection_bias, mo::groups<4, 2>, mo::top_k<3>, mo::renormalised>, 8>();
  layer_passes<mo::router<mo::softmax, mo::groups<8, 3, mo::group_score::largest>, mo::top_k<6>>, 40>();
}

TEST_CASE("groups and a bias with values: gradients of a router alone equal differences") {
  for (std::int64_t const experts : {8, 40}) {
    router_gradients::passes<mo::router<mo::sqrt_softplus, mo::selection_bias, mo::expert_choice<2>>>(experts);
    router_gradients::passes<mo::router<mo::sigmoid, mo::selection_bias, mo::groups<4, 2>, mo::top_k<3>>>(experts);
    router_gradients::passes<mo::router<mo::softmax, mo::groups<2, 1>, mo::token_rounding<2, 4>>>(experts);
    router_gradients::passes<mo::router<mo::raw_logits, mo::groups<2, 1>, mo::expert_choice<2>>>(experts);
    router_gradients::passes<mo::router<mo::softmax, mo::top_p<3, std::ratio<2, 5>>, mo::softmax_of_selected>>(experts);
  }
}

TEST_CASE("selections of a whole batch: gradients of a layer equal differences") {
  layer_passes<mo::router<mo::softmax, mo::expert_choice<2>>, 8>();
  layer_passes<mo::router<mo::sigmoid, mo::sinkhorn<2>, mo::renormalised>, 8>();
  layer_passes<mo::router<mo::sqrt_softplus, mo::token_rounding<2, 4>, mo::renormalised, mo::selection_bias>, 8>();
  layer_passes<mo::router<mo::softmax, mo::expert_choice<1>>, 1>();
}

namespace {

/// Experts until their probabilities reach two fifths, at most K.
template <int K> void up_to(std::vector<std::int64_t> const& experts) {
  for (std::int64_t const e : experts) {
    router_gradients::passes<mo::router<mo::softmax, mo::top_p<K, std::ratio<2, 5>>>>(e);
    router_gradients::passes<mo::router<mo::softmax, mo::top_p<K, std::ratio<9, 10>>>>(e);
  }
}

}  // namespace

TEST_CASE("as many experts as a sum of probabilities needs, up to one and up to all: gradients equal differences") {
  up_to<1>({1, 3, 8});
  up_to<3>({3});
  up_to<8>({8});
}

TEST_SUITE("long") {
  TEST_CASE("the same for 40 experts") {
    up_to<1>({40});
    up_to<40>({40});
  }
  TEST_CASE("many tokens, many experts, and all of them: gradients of a layer equal differences") {
    layer_passes<
        layer_with<mo::router<mo::sigmoid, mo::selection_bias, mo::groups<8, 4>, mo::top_k<8>, mo::renormalised>, 160>>(
        512, true);
    layer_passes<layer_with<mo::router<mo::softmax, mo::token_rounding<4, 16>>, 60>>(512, true);
    layer_passes<layer_with<mo::router<mo::softmax, mo::expert_choice<4>>, 384>>(512, false);
    layer_passes<layer_with<mo::router<mo::sqrt_softplus, mo::top_k<40>, mo::renormalised>, 40>>(101, true);
  }
}
