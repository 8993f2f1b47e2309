// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/spec.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <type_traits>

namespace mo = moiety;

namespace {

struct least : mo::layer_spec<mo::dims{.hidden = 4, .ffn = 5, .experts = 6}> {
  using router = mo::router<mo::top_k<6>, mo::sigmoid>;
};
struct full : mo::layer_spec<mo::dims{.hidden = 1, .ffn = 1, .experts = 1}> {
  using router = mo::router<mo::softmax, mo::top_k<1>>;
  using experts = mo::mlp<mo::relu>;
  using losses = mo::losses<mo::router_z>;
};

struct as_they_are {
  static constexpr bool has_probabilities = false;
  void forward(mo::score_row auto&) const {}
  void backward(mo::score_row auto const&, mo::score_row auto&) const {}
};

}  // namespace

TEST_CASE("a spec has defaults for all but its router") {
  using spec = mo::spec_of<least>;
  CHECK(spec::hidden == 4);
  CHECK(spec::ffn == 5);
  CHECK(spec::experts == 6);
  CHECK(spec::slots == 6);
  CHECK(spec::inputs == 2);
  CHECK(std::is_same_v<spec::experts_type, mo::gated_mlp<mo::silu>>);
  CHECK(std::is_same_v<spec::losses_type, mo::losses<>>);
}

TEST_CASE("a spec says its roles, and a derived one changes what it names") {
  struct derived : full {
    using experts = mo::gated_mlp<mo::gelu>;
  };
  CHECK(std::is_same_v<mo::spec_of<full>::experts_type, mo::mlp<mo::relu>>);
  CHECK(mo::spec_of<full>::inputs == 1);
  CHECK(std::is_same_v<mo::spec_of<derived>::experts_type, mo::gated_mlp<mo::gelu>>);
  CHECK(std::is_same_v<mo::spec_of<derived>::losses_type, mo::losses<mo::router_z>>);
}

TEST_CASE("resized keeps the roles and changes the sizes") {
  using spec = mo::spec_of<mo::resized<least, mo::dims{.hidden = 9, .ffn = 8, .experts = 7}>>;
  CHECK(spec::hidden == 9);
  CHECK(spec::ffn == 8);
  CHECK(spec::experts == 7);
  CHECK(std::is_same_v<spec::router_type, least::router>);
}

TEST_CASE("a score rule without probabilities goes with losses that need none") {
  struct plain : mo::layer_spec<mo::dims{.hidden = 4, .ffn = 5, .experts = 6}> {
    using router = mo::router<mo::top_k<2>, as_they_are>;
    using losses = mo::losses<mo::router_z, mo::load<>>;
  };
  CHECK(mo::spec_of<plain>::losses_type::count == 2);
  CHECK_FALSE(mo::has_probabilities<as_they_are>);
  CHECK(mo::has_probabilities<mo::softmax>);
}
