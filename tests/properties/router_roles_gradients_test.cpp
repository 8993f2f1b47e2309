// SPDX-License-Identifier: Apache-2.0
// Roles of a router beside score, selection and weight rule inside a layer: gradients of x and of all parameters equal
// differences.
#include "properties/router_layers.hpp"

#include <ratio>

namespace {

namespace mo = moiety;
using router_gradients::every_loss;
using router_gradients::layer_passes;

using biased_mlp = mo::gated_mlp<mo::silu, mo::biased>;

template <int Experts, int K> void each_role() {
  using mo::softmax, mo::sigmoid, mo::sqrt_softplus, mo::raw_logits;
  using top = mo::top_k<K>;
  layer_passes<mo::router<softmax, top, mo::on_input>, Experts>();
  layer_passes<mo::router<sqrt_softplus, top, mo::on_activation>, Experts, every_loss, biased_mlp>();
  layer_passes<mo::router<sigmoid, top, mo::jitter<std::ratio<1, 4>>, mo::linear_bias>, Experts>();
  layer_passes<mo::router<softmax, top, mo::logit_noise>, Experts>();
  layer_passes<mo::router<raw_logits, top, mo::constant_logit_noise<>>, Experts, mo::losses<mo::router_z>>();
  layer_passes<mo::router<sigmoid, mo::quantile_bias, top>, Experts>();
  layer_passes<mo::router<sqrt_softplus, mo::selection_bias, mo::groups<1, 1>, top>, Experts>();
  // Each slot's weight jumps where a logit comes near its own: with many slots, so does one within a difference.
  using few = mo::top_k<K <= 8 ? K : 2>;
  layer_passes<mo::router<softmax, few, mo::sparsemixer<std::ratio<1, 4>>>, Experts>();
}

}  // namespace

TEST_CASE("weights on what experts read, or on their activation: gradients equal differences") {
  layer_passes<mo::router<mo::softmax, mo::top_k<2>, mo::on_input>, 8>();
  layer_passes<mo::router<mo::sigmoid, mo::top_k<1>, mo::on_input>, 3, every_loss, biased_mlp>();
  layer_passes<mo::router<mo::softmax, mo::top_k<3>, mo::on_activation, mo::renormalised>, 8>();
  layer_passes<mo::router<mo::sqrt_softplus, mo::top_k<2>, mo::on_activation>, 8, every_loss, biased_mlp>();
  layer_passes<mo::router<mo::softmax, mo::top_p<3, std::ratio<2, 5>>, mo::on_input>, 8>();
  layer_passes<mo::router<mo::softmax, mo::expert_choice<2>, mo::on_activation>, 8>();
}

TEST_CASE("jitter, a bias of the logits, and a bias by quantiles: gradients equal differences") {
  layer_passes<mo::router<mo::softmax, mo::top_k<2>, mo::jitter<std::ratio<1, 4>>>, 8>();
  layer_passes<mo::router<mo::sigmoid, mo::top_k<2>, mo::linear_bias, mo::jitter<>, mo::on_input>, 8>();
  layer_passes<mo::router<mo::softmax, mo::sinkhorn<2>, mo::jitter<>, mo::linear_bias>, 8>();
  layer_passes<mo::router<mo::sigmoid, mo::quantile_bias, mo::top_k<2>, mo::renormalised>, 8>();
}

TEST_CASE("sparsemixer: gradients equal differences") {
  layer_passes<mo::router<mo::softmax, mo::top_k<2>, mo::sparsemixer<std::ratio<1, 4>>>, 8>();
  layer_passes<mo::router<mo::softmax, mo::hash<2>, mo::sparsemixer<std::ratio<1, 4>>, mo::scale<std::ratio<5, 2>>>,
               8>();
}

TEST_CASE("the same for one expert, for few, and for a slot of each") {
  each_role<1, 1>();
  each_role<3, 1>();
  each_role<3, 3>();
  each_role<8, 1>();
  each_role<8, 8>();
}

TEST_SUITE("long") {
  TEST_CASE("the same for 40 experts") {
    each_role<40, 1>();
    each_role<40, 40>();
  }
}
