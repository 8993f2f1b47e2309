// SPDX-License-Identifier: Apache-2.0
// Every selection inside a layer, with the losses that it can have: gradients of x and of all parameters equal differences.
#include <moiety/testing.hpp>

#include "properties/router_gradients.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <ratio>
#include <string_view>
#include <vector>

namespace {

namespace mo = moiety;
using router_gradients::surroundings;

using every_loss = mo::losses<mo::load_balance<>, mo::load_balance<mo::over::sequence>, mo::router_z>;

template <class Router, int Experts, class Losses = every_loss>
struct layer_with : mo::layer_spec<mo::dims{.hidden = 7, .ffn = 5, .experts = Experts}> {
  using router = Router;
  using losses = Losses;
};

template <class Spec> void passes_at(std::int64_t tokens, bool masked) {
  using router = typename Spec::router;
  using selection = typename router::selection_type;
  surroundings const with(tokens, Spec::size.experts, router::slots_of(Spec::size.experts), masked);
  auto options = mo::testing::trained_options<Spec>();
  options.router = router_gradients::furnished<router>(with);
  CAPTURE(std::string_view(selection::name));
  CAPTURE(Spec::size.experts);
  CAPTURE(tokens);
  for (auto const& check : mo::testing::check_gradients<Spec>(tokens, with.about<selection>(), options)) {
    CAPTURE(check.name);
    CHECK(check.error <= mo::testing::gradient_tolerance);
  }
}

template <class Router, int Experts, class Losses = every_loss> void passes() {
  for (std::int64_t const tokens : {0, 1, 2, 37}) passes_at<layer_with<Router, Experts, Losses>>(tokens, tokens == 37);
}

}  // namespace

TEST_CASE("selections of single tokens: gradients of a layer equal differences") {
  passes<mo::router<mo::softmax, mo::top_p<3, std::ratio<2, 5>>, mo::renormalised>, 8>();
  passes<mo::router<mo::sqrt_softplus, mo::hash<2>, mo::renormalised, mo::scale<std::ratio<5, 2>>>, 8>();
  passes<mo::router<mo::sigmoid, mo::precomputed<3>>, 8>();
  passes<mo::router<mo::softmax, mo::forced<2, mo::imbalance::zipf>>, 3>();
  passes<mo::router<mo::raw_logits, mo::top_k<2>, mo::softmax_of_selected>, 8, mo::losses<mo::router_z>>();
}

TEST_CASE("groups and bias: gradients of a layer equal differences") {
  passes<mo::router<mo::sigmoid, mo::selection_bias, mo::groups<4, 2>, mo::top_k<3>, mo::renormalised>, 8>();
  passes<mo::router<mo::softmax, mo::groups<8, 3, mo::group_score::largest>, mo::top_k<6>>, 40>();
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
  passes<mo::router<mo::softmax, mo::expert_choice<2>>, 8>();
  passes<mo::router<mo::sigmoid, mo::sinkhorn<2>, mo::renormalised>, 8>();
  passes<mo::router<mo::sqrt_softplus, mo::token_rounding<2, 4>, mo::renormalised, mo::selection_bias>, 8>();
  passes<mo::router<mo::softmax, mo::expert_choice<1>>, 1>();
}

TEST_SUITE("long") {
  TEST_CASE("many tokens, many experts, and all of them: gradients of a layer equal differences") {
    passes_at<
        layer_with<mo::router<mo::sigmoid, mo::selection_bias, mo::groups<8, 4>, mo::top_k<8>, mo::renormalised>, 160>>(
        512, true);
    passes_at<layer_with<mo::router<mo::softmax, mo::token_rounding<4, 16>>, 60>>(512, true);
    passes_at<layer_with<mo::router<mo::softmax, mo::expert_choice<4>>, 384>>(512, false);
    passes_at<layer_with<mo::router<mo::sqrt_softplus, mo::top_k<40>, mo::renormalised>, 40>>(101, true);
  }
}
