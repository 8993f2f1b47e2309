// SPDX-License-Identifier: Apache-2.0
// Every kind of expert in a whole layer: gradients against differences in double, the same bits of two runs and of one and
// two threads.
#include <moiety/testing.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <ratio>

namespace mo = moiety;

namespace {

template <class Experts> struct with : mo::layer_spec<mo::dims{.hidden = 10, .ffn = 7, .experts = 5}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>;
  using experts = Experts;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};

template <class Spec> void passes() {
  for (std::int64_t const tokens : {0, 1, 2, 37})
    for (auto const& check : mo::testing::check_gradients<Spec>(tokens)) {
      CAPTURE(check.name);
      CAPTURE(tokens);
      CHECK(check.error <= mo::testing::gradient_tolerance);
    }
  CHECK(mo::testing::conforms<Spec>());
}

}  // namespace

TEST_CASE("clamped gates: gradients equal differences, with values on either side of the limit") {
  passes<with<mo::clamped_swiglu<std::ratio<1, 2>>>>();
  passes<with<mo::limited_swiglu<std::ratio<1, 2>>>>();
  passes<with<mo::clamped_swiglu<>>>();
}

TEST_CASE("biases: gradients equal differences, that of the router with the bias of down among them") {
  passes<with<mo::gated_mlp<mo::silu, mo::biased>>>();
  passes<with<mo::mlp<mo::gelu_tanh, mo::biased>>>();
  passes<with<mo::clamped_swiglu<std::ratio<1, 2>, mo::biased>>>();
}
