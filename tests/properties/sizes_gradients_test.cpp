// SPDX-License-Identifier: Apache-2.0
// Every policy that is part of a layer, at the numbers of experts and of tokens that models have: gradients of x and of all
// parameters equal differences, and those in float are those in double. A spec holds as many policies as fit together.
#include <moiety/testing.hpp>

#include "properties/float_gradients.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <ratio>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

template <int Experts, class Router, class Mlp, class Capacity = mo::dropless, int Zeros = 0, int Latent = 0>
struct of : mo::layer_spec<mo::dims{
                .hidden = 7, .ffn = 5, .experts = Experts - Zeros, .zero_experts = Zeros, .latent = Latent}> {
  using router = Router;
  using experts = Mlp;
  using capacity = Capacity;
  using losses = mo::losses<mo::load_balance<>, mo::load_balance<mo::over::sequence>, mo::router_z>;
};

template <class Spec> struct beside : Spec {
  using shared = mo::shared_experts<2, mo::sigmoid_gated, mo::mlp<mo::gelu, mo::biased>>;
};
template <class Spec> struct noisy : Spec {
  using losses = mo::losses<mo::load_balance<mo::over::global_batch>, mo::importance<>, mo::load<>, mo::noisy_load<>,
                            mo::router_z>;
};
template <class Spec> struct without_probabilities : Spec { using losses = mo::losses<mo::router_z>; };

template <class Spec> void passes(std::vector<std::int64_t> const& counts) {
  CAPTURE(mo::describe<Spec>().text);
  for (std::int64_t const tokens : counts) {
    CAPTURE(tokens);
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(tokens), 1);
    for (std::size_t t = 2; t < mask.size(); t += 7) mask[t] = 0;
    std::vector<std::int64_t> const sequences{0, tokens / 3, tokens};
    mo::batch const about{.sequences = sequences, .mask = mask};
    for (auto const& check : mo::testing::check_gradients<Spec>(tokens, about)) {
      CAPTURE(check.name);
      CHECK(check.error <= mo::testing::gradient_tolerance);
    }
    float_gradients::agree<Spec>(tokens, about);
  }
}

template <int Experts> void every_policy() {
  using mo::router, mo::softmax, mo::sigmoid, mo::sqrt_softplus, mo::raw_logits, mo::top_k, mo::capacity, mo::biased;
  namespace drop = mo::drop;
  using half = std::ratio<1, 2>;
  using three_quarters = std::ratio<3, 4>;
  std::vector<std::int64_t> const counts{0, 1, 2, 37, 512};
  // Of many tokens, one is within a difference of a kink or a jump.
  std::vector<std::int64_t> const few{0, 1, 2, 37};

  passes<of<Experts, router<softmax, mo::top_p<8, std::ratio<2, 5>>, mo::on_input>, mo::gated_mlp<mo::gelu>,
            capacity<three_quarters, drop::position>>>(counts);
  passes<beside<of<Experts,
                   router<sigmoid, mo::selection_bias, mo::groups<4, 2>, top_k<8>, mo::jitter<std::ratio<1, 4>>,
                          mo::linear_bias, mo::renormalised, mo::scale<std::ratio<5, 2>>>,
                   mo::gated_mlp<mo::silu, biased, mo::interleaved, mo::in_by_out>,
                   capacity<half, mo::renormalise_after_drop>, 2>>>(counts);
  passes<of<Experts, router<softmax, top_k<8>, mo::logit_noise, mo::on_activation>,
            mo::mlp<mo::relu_squared, biased, mo::down_in_by_out>,
            capacity<three_quarters, drop::priority, mo::per::sequence>>>(counts);
  passes<without_probabilities<
      of<Experts, router<raw_logits, top_k<4>, mo::softmax_of_selected, mo::constant_logit_noise<>>,
         mo::gated_mlp<mo::identity, biased, mo::concatenated>, capacity<three_quarters, drop::random>, 1, 6>>>(counts);
  passes<of<Experts, router<sigmoid, mo::quantile_bias, top_k<4>, mo::renormalised>, mo::gated_mlp<mo::gelu_quick>>>(
      counts);
  passes<of<Experts, router<sqrt_softplus, mo::sinkhorn<2>, mo::linear_bias>, mo::gated_mlp<mo::gelu_tanh>>>({37, 512});
  passes<of<Experts, router<sigmoid, top_k<Experts>, mo::renormalised>, mo::gated_mlp<mo::silu>>>({1, 37});

  passes<noisy<of<Experts, router<softmax, top_k<8>, mo::logit_noise>, mo::clamped_swiglu<half, biased>>>>(few);
  passes<of<Experts, router<softmax, top_k<2>, mo::sparsemixer<std::ratio<1, 4>>>, mo::limited_swiglu<half>>>(few);
  passes<of<Experts, router<sqrt_softplus, top_k<1>>, mo::gated_mlp<mo::relu>>>(few);
}

}  // namespace

TEST_SUITE("long") {
  TEST_CASE("60 experts: gradients equal differences") { every_policy<60>(); }
  TEST_CASE("160 experts: gradients equal differences") { every_policy<160>(); }
  TEST_CASE("384 experts: gradients equal differences") { every_policy<384>(); }
}
