// SPDX-License-Identifier: Apache-2.0
// Every policy's gradient against central differences in double, through scores, weights, losses and experts.
#include <moiety/testing.hpp>

#include "properties/float_gradients.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <ratio>
#include <vector>

namespace mo = moiety;

namespace {

template <class Router, class Experts, class Losses, mo::dims Size> struct composed : mo::layer_spec<Size> {
  using router = Router;
  using experts = Experts;
  using losses = Losses;
};

using all_losses = mo::losses<mo::load_balance<>, mo::load_balance<mo::over::sequence>,
                              mo::load_balance<mo::over::global_batch>, mo::router_z>;

template <class Router, class Experts, mo::dims Size> using trained = composed<Router, Experts, all_losses, Size>;

/// Each loss over units of one kind.
template <class Over, class Noise> struct every_loss : mo::layer_spec<mo::dims{.hidden = 7, .ffn = 5, .experts = 8}> {
  using router = mo::router<mo::softmax, Noise, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<Over>, mo::importance<Over>, mo::load<Over>, mo::device_balance<4, Over>,
                            mo::communication_balance<4, 2, Over>, mo::noisy_load<Over>, mo::router_z>;
};

template <class Spec> void passes(std::int64_t tokens, mo::batch const& about = {}) {
  for (auto const& check : mo::testing::check_gradients<Spec>(tokens, about)) {
    CAPTURE(check.name);
    CAPTURE(tokens);
    CHECK(check.error <= mo::testing::gradient_tolerance);
  }
  CAPTURE(tokens);
  float_gradients::agree<Spec>(tokens, about);
}

}  // namespace

TEST_CASE("scores and weight rules: gradients equal differences") {
  constexpr mo::dims size{.hidden = 11, .ffn = 13, .experts = 8};
  using silu = mo::gated_mlp<mo::silu>;
  passes<trained<mo::router<mo::softmax, mo::top_k<2>>, silu, size>>(37);
  passes<trained<mo::router<mo::top_k<3>, mo::renormalised, mo::softmax>, silu, size>>(37);
  passes<trained<mo::router<mo::softmax, mo::top_k<3>, mo::softmax_of_selected>, silu, size>>(37);
  passes<trained<mo::router<mo::sigmoid, mo::top_k<1>>, silu, size>>(37);
  passes<trained<mo::router<mo::sigmoid, mo::top_k<3>, mo::renormalised, mo::scale<std::ratio<5, 2>>>, silu, size>>(37);
  passes<
      trained<mo::router<mo::sigmoid, mo::top_k<8>, mo::softmax_of_selected, mo::scale<std::ratio<1, 3>>>, silu, size>>(
      37);
}

TEST_CASE("activations: gradients equal differences") {
  constexpr mo::dims size{.hidden = 9, .ffn = 7, .experts = 3};
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  passes<trained<router, mo::gated_mlp<mo::gelu>, size>>(37);
  passes<trained<router, mo::gated_mlp<mo::gelu_tanh>, size>>(37);
  passes<trained<router, mo::gated_mlp<mo::gelu_quick>, size>>(37);
  passes<trained<router, mo::gated_mlp<mo::relu>, size>>(37);
  passes<trained<router, mo::gated_mlp<mo::relu_squared>, size>>(37);
  passes<trained<router, mo::gated_mlp<mo::identity>, size>>(37);
  passes<trained<router, mo::mlp<mo::silu>, size>>(37);
  passes<trained<router, mo::mlp<mo::gelu>, size>>(37);
  passes<trained<router, mo::mlp<mo::gelu_tanh>, size>>(37);
  passes<trained<router, mo::mlp<mo::gelu_quick>, size>>(37);
  passes<trained<router, mo::mlp<mo::relu>, size>>(37);
  passes<trained<router, mo::mlp<mo::relu_squared>, size>>(37);
  passes<trained<router, mo::mlp<mo::identity>, size>>(37);
}

TEST_CASE("sizes: gradients equal differences for any number of tokens and experts") {
  using router = mo::router<mo::softmax, mo::top_k<1>>;
  using few = trained<router, mo::gated_mlp<mo::silu>, mo::dims{.hidden = 5, .ffn = 3, .experts = 1}>;
  using many = trained<mo::router<mo::sigmoid, mo::top_k<5>, mo::renormalised>, mo::gated_mlp<mo::silu>,
                       mo::dims{.hidden = 10, .ffn = 6, .experts = 60}>;
  for (std::int64_t const tokens : {0, 1, 2, 37}) {
    passes<few>(tokens);
    passes<many>(tokens);
  }
}

TEST_CASE("masks, sequences and weights: gradients equal differences") {
  using spec = trained<mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>, mo::gated_mlp<mo::silu>,
                       mo::dims{.hidden = 6, .ffn = 10, .experts = 5}>;
  std::vector<std::int64_t> const sequences{0, 9, 9, 30, 37};
  std::vector<std::uint8_t> mask(37, 1);
  for (std::size_t const t : {0u, 8u, 20u, 36u}) mask[t] = 0;
  passes<spec>(37, {.sequences = sequences});
  passes<spec>(37, {.mask = mask});
  passes<spec>(37, {.sequences = sequences, .mask = mask, .weight = 5.5});
}

TEST_CASE("every loss at once: gradients equal differences") {
  std::vector<std::int64_t> const sequences{0, 9, 9, 30, 37};
  for (std::int64_t const tokens : {0, 1, 2, 37}) passes<every_loss<mo::over::micro_batch, mo::logit_noise>>(tokens);
  passes<every_loss<mo::over::sequence, mo::constant_logit_noise<>>>(37, {.sequences = sequences});
  passes<every_loss<mo::over::global_batch, mo::logit_noise>>(37);
}

TEST_SUITE("long") {
  TEST_CASE("sizes: gradients equal differences at 512 tokens and 40 experts") {
    using spec = trained<mo::router<mo::softmax, mo::top_k<8>, mo::renormalised>, mo::gated_mlp<mo::silu>,
                         mo::dims{.hidden = 29, .ffn = 37, .experts = 40}>;
    passes<spec>(512);
    passes<trained<mo::router<mo::sigmoid, mo::top_k<40>>, mo::mlp<mo::gelu_tanh>,
                   mo::dims{.hidden = 17, .ffn = 300, .experts = 40}>>(101);
  }
}
