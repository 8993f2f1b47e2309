// SPDX-License-Identifier: Apache-2.0
// Whatever surrounds the experts, or multiplies what they read and give, has the bits of one rank on every layout.
#include "properties/ranks.hpp"

#include <doctest/doctest.h>

namespace mo = moiety;

namespace {

struct on_input : ranks::small<mo::router<mo::sigmoid, mo::top_k<2>, mo::on_input>> {
  using experts = mo::gated_mlp<mo::silu, mo::biased>;
  using shared = mo::shared_experts<1, mo::sigmoid_gated>;
};
struct on_activation : ranks::small<mo::router<mo::sigmoid, mo::top_k<2>, mo::on_activation>> {
  using experts = mo::mlp<mo::gelu, mo::biased>;
  static constexpr mo::dims size{.hidden = 20, .ffn = 12, .experts = 8, .zero_experts = 1};
};
struct latent : ranks::small<ranks::softmax_2> {
  using shared = mo::shared_experts<2>;
  static constexpr mo::dims size{.hidden = 20, .ffn = 12, .experts = 8, .zero_experts = 3, .latent = 6};
};

template <class Spec> void check() { ranks::check_layouts<Spec, float>(ranks::few_layouts, ranks::trained<Spec>()); }

}  // namespace

TEST_CASE("weights on inputs, biases, a gated shared expert") { check<on_input>(); }
TEST_CASE("weights on activations, biases, an expert that returns its input") { check<on_activation>(); }
TEST_CASE("a latent width, shared experts, experts that return their input") { check<latent>(); }
