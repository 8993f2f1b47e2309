// SPDX-License-Identifier: Apache-2.0
// The gradients of a layer with a router of any roles against differences in double.
#pragma once

#include <moiety/testing.hpp>

#include "properties/float_gradients.hpp"
#include "properties/router_gradients.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string_view>

namespace router_gradients {

using every_loss = mo::losses<mo::load_balance<>, mo::load_balance<mo::over::sequence>, mo::router_z>;

template <class Router, int Experts, class Losses = every_loss, class Mlp = mo::gated_mlp<mo::silu>>
struct layer_with : mo::layer_spec<mo::dims{.hidden = 7, .ffn = 5, .experts = Experts}> {
  using router = Router;
  using experts = Mlp;
  using losses = Losses;
};

template <class Spec> void layer_passes(std::int64_t tokens, bool masked) {
  using router = typename Spec::router;
  using selection = typename router::selection_type;
  surroundings const with(tokens, Spec::size.experts, router::slots_of(Spec::size.experts), masked);
  auto options = mo::testing::trained_options<Spec>();
  options.router = furnished<router>(with);
  CAPTURE(std::string_view(selection::name));
  CAPTURE(Spec::size.experts);
  CAPTURE(tokens);
  for (auto const& check : mo::testing::check_gradients<Spec>(tokens, with.about<selection>(), options)) {
    CAPTURE(check.name);
    CHECK(check.error <= mo::testing::gradient_tolerance);
  }
  if (decides<router>(tokens)) float_gradients::agree<Spec>(tokens, with.about<selection>(), options);
}

template <class Router, int Experts, class Losses = every_loss, class Mlp = mo::gated_mlp<mo::silu>>
void layer_passes() {
  for (std::int64_t const tokens : {0, 1, 2, 37})
    layer_passes<layer_with<Router, Experts, Losses, Mlp>>(tokens, tokens == 37);
}

}  // namespace router_gradients
