// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/options.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

namespace mo = moiety;

namespace {

struct spec : mo::layer_spec<mo::dims{.hidden = 4, .ffn = 4, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::scale<>>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z, mo::load_balance<mo::over::global_batch>>;
};

}  // namespace

TEST_CASE("losses are given in any order, and any of them") {
  mo::layer_options<spec> const options{
      .losses = {mo::router_z{.coefficient = 2}, mo::load_balance<>{.coefficient = 1}}};
  CHECK(options.losses.get<mo::load_balance<>>().coefficient == 1);
  CHECK(options.losses.get<mo::router_z>().coefficient == 2);
  CHECK(options.losses.get<mo::load_balance<mo::over::global_batch>>().coefficient == 0);
  CHECK_NOTHROW(options.check());
}

TEST_CASE("trains_over asks for a coefficient") {
  mo::layer_options<spec> options;
  CHECK_FALSE(options.trains_over<mo::over::global_batch>());
  options.losses.get<mo::router_z>().coefficient = 1;
  CHECK_FALSE(options.trains_over<mo::over::global_batch>());
  CHECK(options.trains_over<mo::over::micro_batch>());
  options.losses.get<mo::load_balance<mo::over::global_batch>>().coefficient = 1;
  CHECK(options.trains_over<mo::over::global_batch>());
}

TEST_CASE("a loss over the global batch that takes the counts of the step does not train over the unit alone") {
  using prefix = mo::load_balance<mo::over::global_batch, mo::counts::prefix>;
  struct counted : spec {
    using losses = mo::losses<prefix, mo::importance<mo::over::global_batch>>;
  };
  mo::layer_options<counted> options{.losses = {prefix{.coefficient = 1}}};
  CHECK_FALSE(options.trains_over<mo::over::global_batch>());
  CHECK_THROWS_AS(options.check_counts({}), mo::data_error);
  mo::step_counts const counts(4), others(3);
  CHECK_NOTHROW(options.check_counts({.counts = &counts}));
  CHECK_THROWS_AS(options.check_counts({.counts = &others}), mo::data_error);
  options.losses.get<prefix>().coefficient = 0;
  CHECK_NOTHROW(options.check_counts({}));
  CHECK_THROWS_AS(options.check_counts({.counts = &others}), mo::data_error);
  options.losses.get<mo::importance<mo::over::global_batch>>().coefficient = 1;
  CHECK(options.trains_over<mo::over::global_batch>());
}

TEST_CASE("a knob that can never work is a config_error when the layer is made") {
  mo::context<> ctx;
  auto const refused = [&](mo::layer_options<spec> const& options, char const* why) {
    CHECK_THROWS_WITH_AS((mo::moe_layer<spec>{ctx, options}), doctest::Contains(why), mo::config_error);
  };
  float const nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  refused({.losses = {mo::load_balance<>{.coefficient = -1}}}, "the coefficient of load_balance");
  refused({.losses = {mo::router_z{.coefficient = nan}}}, "the coefficient of router_z");
  refused({.losses = {mo::router_z{.coefficient = inf}}}, "but is inf");
  refused({.loss_scale = 0}, "loss_scale");
  refused({.loss_scale = nan}, "loss_scale");
  refused({.router = {mo::scale<>{.factor = nan}}}, "the scale of a router");
  CHECK_NOTHROW(mo::moe_layer<spec>{ctx, {.router = {mo::scale<>{.factor = 2.5f}}}});
}

namespace {

/// A score rule of a user's: softmax of z / temperature.
struct cooled {
  static constexpr bool rows_are_probabilities = true;
  float temperature = 1;
  void forward(mo::score_row auto& row) const {
    row.map([&](auto v) { return v / temperature; });
    mo::softmax{}.forward(row);
  }
  void backward(mo::score_row auto const& scores, mo::score_row auto& gradient) const {
    mo::softmax{}.backward(scores, gradient);
    gradient.map([&](auto g) { return g / temperature; });
  }
  void check() const {
    mo::detail::require<mo::config_error>(temperature > 0 && mo::is_finite(temperature), "the temperature is ",
                                          temperature, '.');
  }
};
template <class... Roles> struct routed : mo::layer_spec<mo::dims{.hidden = 4, .ffn = 4, .experts = 4}> {
  using router = mo::router<Roles...>;
};

/// The words of the config_error of a layer of this router, or none.
template <class... Roles, class Policy> std::string refusal(Policy const& policy) {
  mo::context<> ctx;
  try {
    mo::moe_layer<routed<Roles...>> const layer{ctx, {.router = {policy}}};
  } catch (mo::config_error const& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("values of selections, score rules and weight rules that can never work are config errors that say them") {
  float const nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  auto const sparse = [](float epsilon) {
    return refusal<mo::softmax, mo::top_k<2>, mo::sparsemixer<>>(mo::sparsemixer<>{.epsilon = epsilon});
  };
  std::string const words = "the epsilon of mo::sparsemixer must be at least 0 and below 10^38, but is ";
  CHECK(sparse(nan) == words + "nan.");
  CHECK(sparse(inf) == words + "inf.");
  CHECK(sparse(-0.25f) == words + "-0.25.");
  CHECK(sparse(3e38f) == words + "3e+38.");
  for (float const sound : {0.0f, 0.01f, 1.0f, 1e30f}) CHECK(sparse(sound) == "");

  auto const enough = [](float mass) { return refusal<mo::softmax, mo::top_p<2>>(mo::top_p<2>{.mass = mass}); };
  for (float const mass : {nan, inf, 0.0f, -0.5f, 1.5f})
    CHECK(enough(mass) ==
          mo::detail::sentence("the mass of mo::top_p must be above 0 and at most 1, but is ", mass, '.'));
  for (float const sound : {1e-30f, 0.5f, 1.0f}) CHECK(enough(sound) == "");

  std::int32_t const table[]{0, 1, 2, 3};
  auto const listed = [](std::int32_t const* at, std::int64_t entries) {
    return refusal<mo::softmax, mo::hash<2>>(mo::hash<2>{.table = at, .entries = entries});
  };
  CHECK(listed(nullptr, 5) == "mo::hash was given no table of its 5 entries.");
  CHECK(listed(table, -1) == "the entries of mo::hash must be at least 0, but are -1.");
  CHECK(listed(nullptr, 0) == "");
  CHECK(listed(table, 2) == "");

  auto const cold = [](float t) { return refusal<cooled, mo::top_k<2>>(cooled{.temperature = t}); };
  CHECK(cold(0) == "the temperature is 0.");
  CHECK(cold(nan) == "the temperature is nan.");
  CHECK(cold(0.5f) == "");
}

TEST_CASE("a factor set at run time multiplies the weights") {
  mo::context<> ctx;
  mo::moe_layer<spec> once{ctx}, twice{ctx, {.router = {mo::scale<>{.factor = 2}}}};
  auto const weights = once.make_weights(mo::seed{1});
  auto x = ctx.matrix(3, 4), y = ctx.matrix(3, 4), z = ctx.matrix(3, 4);
  mo::fill_normal(ctx, x, mo::seed{2});
  once.infer(weights, x, y);
  twice.infer(weights, x, z);
  for (int i = 0; i < 12; ++i) CHECK(z.data()[i] == doctest::Approx(2 * y.data()[i]));
}
