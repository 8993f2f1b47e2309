// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/spec.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <ratio>
#include <string>
#include <type_traits>
#include <vector>

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

template <class... Options> struct limited : mo::layer_spec<mo::dims{.hidden = 8, .ffn = 6, .experts = 5}> {
  using router = mo::router<mo::sigmoid, mo::top_k<2>, mo::renormalised>;
  using losses = mo::losses<mo::load_balance<>>;
  using capacity = mo::capacity<std::ratio<3, 4>, Options...>;
};

/// The bits of all that one training step and an infer compute: y of both, dx, all gradients; and the drops.
template <class Spec> std::vector<std::int64_t> computed() {
  mo::context<> ctx;
  mo::moe_layer<Spec> layer{ctx, {.losses = {mo::load_balance<>{.coefficient = 1e-2f}}}};
  auto const weights = layer.make_weights(mo::seed{3});
  auto gradients = layer.make_gradients();
  mo::matrix<float> x(37, 8), y(37, 8), dy(37, 8), dx(37, 8), inferred(37, 8);
  mo::fill_normal(ctx, x, mo::seed{4});
  mo::fill_normal(ctx, dy, mo::seed{5});
  auto tape = layer.forward(weights, x, y);
  layer.backward(weights, tape, dy, dx, gradients);
  layer.infer(weights, x, inferred);
  std::vector<std::int64_t> all;
  auto const add = [&](auto const& values) {
    for (float const v : values) all.push_back(std::bit_cast<std::int32_t>(v));
  };
  for (mo::matrix<float> const* m : {&y, &dx, &inferred}) add(*m);
  gradients.for_each([&](mo::parameter const&, auto values) { add(values); });
  for (std::int64_t const dropped : layer.report(tape).dropped()) all.push_back(dropped);
  return all;
}

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

TEST_CASE("a capacity that says padded is described so, and not a bit changes") {
  using plain = limited<mo::renormalise_after_drop>;
  using padded = limited<mo::renormalise_after_drop, mo::padded>;
  CHECK(mo::spec_of<padded>::capacity_type::pads);
  CHECK_FALSE(mo::spec_of<plain>::capacity_type::pads);
  std::string text = mo::describe<plain>().text;
  std::size_t const end = text.find('\n', text.find("capacity "));
  text.insert(end, ", padded");
  CHECK(mo::describe<padded>().text == text);
  CHECK(text.find(
            "capacity 0.75 of the mean load, drops lowest_weight per global_batch, renormalise_after_drop, padded\n") !=
        std::string::npos);

  auto const without = computed<plain>();
  CHECK(computed<padded>() == without);
  CHECK(std::any_of(without.end() - 5, without.end(), [](std::int64_t dropped) { return dropped > 0; }));
  CHECK(mo::saved_bytes<padded>(mo::tokens{37}) == mo::saved_bytes<plain>(mo::tokens{37}));
}
