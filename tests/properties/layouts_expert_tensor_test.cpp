// SPDX-License-Identifier: Apache-2.0
// Experts whose width is split over ranks: the routing has the bits of one rank, and what parts add up to is close to its.
#include "properties/ranks.hpp"

#include <doctest/doctest.h>

#include <ratio>

namespace mo = moiety;

namespace {

using plain = ranks::small<ranks::softmax_2>;
struct interleaved : ranks::small<mo::router<mo::sigmoid, mo::top_k<2>, mo::on_input>> {
  using experts = mo::gated_mlp<mo::silu, mo::interleaved, mo::down_in_by_out>;
  using capacity = mo::capacity<std::ratio<1>>;
};
struct on_activation : ranks::small<mo::router<mo::softmax, mo::top_k<2>, mo::on_activation>> {
  using experts = mo::mlp<mo::gelu, mo::in_by_out>;
  static constexpr mo::dims size{.hidden = 20, .ffn = 12, .experts = 8, .zero_experts = 2, .latent = 10};
};

template <class Spec, class T> void check() {
  ranks::check_layouts<Spec, T>(ranks::split_layouts, ranks::trained<Spec>());
}

}  // namespace

TEST_CASE("softmax, double") { check<plain, double>(); }
TEST_CASE("softmax, bf16") { check<plain, mo::bf16>(); }
TEST_CASE("weights on inputs, interleaved, with a capacity") { check<interleaved, float>(); }
TEST_CASE("weights on activations, latent, with experts that return their input") { check<on_activation, float>(); }
