// SPDX-License-Identifier: Apache-2.0
// Where the router's weights stand, on layers whose experts are linear: then it is the same on output, input or activation.
#include <moiety/layer/expert_stage.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

template <class Place, class Act = mo::identity>
struct placed : mo::layer_spec<mo::dims{.hidden = 9, .ffn = 7, .experts = 5}> {
  using router = mo::router<mo::sigmoid, mo::top_k<2>, Place>;
  using experts = mo::mlp<Act>;
};

template <class Spec> struct step {
  mo::context<> ctx;
  mo::moe_layer<Spec> layer{ctx};
  typename mo::moe_layer<Spec>::weights_type weights = layer.make_weights(mo::seed{1});
  mo::matrix<float> x{60, 9}, y{60, 9}, dy{60, 9}, dx{60, 9};
  std::vector<float> all;

  step() {
    mo::fill_normal(ctx, x, mo::seed{2});
    mo::fill_normal(ctx, dy, mo::seed{3});
    auto tape = layer.forward(weights, x, y);
    auto gradients = layer.make_gradients();
    layer.backward(weights, tape, dy, dx, gradients);
    all.assign(y.begin(), y.end());
    all.insert(all.end(), dx.begin(), dx.end());
    gradients.for_each([&](mo::parameter const&, auto values) { all.insert(all.end(), values.begin(), values.end()); });
  }
};

double distance(std::vector<float> const& a, std::vector<float> const& b) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    double const difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    error += difference * difference, norm += static_cast<double>(a[i]) * static_cast<double>(a[i]);
  }
  return std::sqrt(error / norm);
}

}  // namespace

TEST_CASE("linear experts do not know where the weights stand") {
  auto const output = step<placed<mo::on_output>>().all;
  CHECK(distance(output, step<placed<mo::on_input>>().all) < 1e-6);
  CHECK(distance(output, step<placed<mo::on_activation>>().all) < 1e-6);
}

TEST_CASE("others do: what weights multiply on the input comes out squared by a quadratic expert") {
  using quadratic = mo::router<mo::sigmoid, mo::top_k<1>, mo::on_input>;
  struct on_input : placed<mo::on_input, mo::relu_squared> {
    using router = quadratic;
  };
  struct on_output : on_input {
    using router = mo::router<mo::sigmoid, mo::top_k<1>>;
  };
  step<on_input> const in;
  step<on_output> const out;
  auto const routes =
      quadratic{}.forward(const_cast<mo::context<>&>(in.ctx),
                          in.layer.forward(in.weights, in.x, const_cast<mo::matrix<float>&>(in.y)).logits());
  for (std::int64_t t = 0; t < 60; ++t)
    for (std::int64_t c = 0; c < 9; ++c)
      CHECK(in.y(t, c) == doctest::Approx(out.y(t, c) * routes.weight(t, 0)).epsilon(1e-5));
}
