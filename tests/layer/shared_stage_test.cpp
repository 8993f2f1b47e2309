// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/shared_stage.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

template <class T> struct in : mo::deployment<> { using element = T; };

/// Experts whose weights are 0 in every test: what is left is shared.
template <class Shared> struct spec : mo::layer_spec<mo::dims{.hidden = 2, .ffn = 3, .experts = 2}> {
  using router = mo::router<mo::softmax, mo::top_k<1>>;
  using experts = mo::mlp<mo::relu>;
  using shared = Shared;
};

using values = std::map<std::string, std::vector<float>>;

template <class Weights> void set(Weights& weights, values const& known) {
  weights.for_each([&]<class V>(mo::parameter const& p, std::span<V> to) {
    auto const found = known.find(p.name);
    for (std::size_t i = 0; i < to.size(); ++i)
      to[i] = found == known.end() ? V(0.0f) : static_cast<V>(found->second.at(i));
  });
}

template <class T> double wide(T value) { return static_cast<double>(static_cast<mo::sum_t<T>>(value)); }

template <class T> void poison(mo::matrix<T>& m) {
  std::fill(m.begin(), m.end(), static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
}

values const two_units{{"shared.up", {1, 0, 0, 1, 1, 1, 1, -1, 0, 0, 0, 0}},
                       {"shared.down", {1, 0, 2, 1, 0, 0, 0, 1, 1, -1, 0, 0}}};

}  // namespace

TEST_CASE_TEMPLATE("two shared experts are one MLP of twice the width, worked by hand", T, float, double, mo::bf16) {
  using two = spec<mo::shared_experts<2>>;
  mo::context<in<T>> ctx;
  mo::moe_layer<two, in<T>> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  set(weights, two_units);
  auto x = ctx.matrix(2, 2), y = ctx.matrix(2, 2), dy = ctx.matrix(2, 2), dx = ctx.matrix(2, 2);
  x(0, 0) = T(1.0f), x(0, 1) = T(2.0f), x(1, 0) = T(3.0f), x(1, 1) = T(-1.0f);
  dy(0, 0) = T(1.0f), dy(0, 1) = T(2.0f), dy(1, 0) = T(-1.0f), dy(1, 1) = T(0.5f);
  poison(y), poison(dx);
  auto gradients = layer.make_gradients();
  auto tape = layer.forward(weights, x, y);
  // a = relu(1, 2, 3, -1, 0, 0) and relu(3, -1, 2, 4, 0, 0)
  CHECK(wide(y(0, 0)) == 7);
  CHECK(wide(y(0, 1)) == 5);
  CHECK(wide(y(1, 0)) == 11);
  CHECK(wide(y(1, 1)) == -2);
  layer.backward(weights, tape, dy, dx, gradients);
  // dA' of the four units: (1, 2, 4, -1) where the last is off, and (-1, .5, -1.5, -1.5) where the second is off
  CHECK(wide(dx(0, 0)) == 5);
  CHECK(wide(dx(0, 1)) == 6);
  CHECK(wide(dx(1, 0)) == -4);
  CHECK(wide(dx(1, 1)) == 0);
  gradients.for_each([&](mo::parameter const& p, auto g) {
    if (p.name == "shared.up") CHECK(std::vector<double>(g.begin(), g.begin() + 4) == std::vector<double>{-2, 3, 2, 4});
    if (p.name == "shared.down")
      CHECK(std::vector<double>(g.begin(), g.begin() + 4) == std::vector<double>{-2, 2, 1, -4});
  });
}

TEST_CASE("a gate scales the shared experts of a token, worked by hand") {
  using gated = spec<mo::shared_experts<2, mo::sigmoid_gated>>;
  mo::context<in<double>> ctx;
  mo::moe_layer<gated, in<double>> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  values known = two_units;
  known["shared_gate.weight"] = {1, -.5};
  set(weights, known);
  auto x = ctx.matrix(1, 2), y = ctx.matrix(1, 2), dy = ctx.matrix(1, 2), dx = ctx.matrix(1, 2);
  x(0, 0) = 1, x(0, 1) = 2, dy(0, 0) = 1, dy(0, 1) = 2;
  auto gradients = layer.make_gradients();
  auto tape = layer.forward(weights, x, y);  // the logit is 0, so half of (7, 5)
  CHECK(y(0, 0) == 3.5);
  CHECK(y(0, 1) == 2.5);
  layer.backward(weights, tape, dy, dx, gradients);
  // <dy, shared> = 17, a quarter of which reaches the logit; half of (5, 6) reaches x through the experts
  CHECK(dx(0, 0) == 2.5 + 4.25);
  CHECK(dx(0, 1) == 3 - 2.125);
  gradients.for_each([&](mo::parameter const& p, auto g) {
    if (p.name == "shared_gate.weight")
      CHECK(std::vector<double>(g.begin(), g.end()) == std::vector<double>{4.25, 8.5});
  });
}

TEST_CASE_TEMPLATE("masked tokens pass no shared expert, whatever they hold, and an empty call leaves zeros", T, float,
                   mo::bf16) {
  using gated = spec<mo::shared_experts<1, mo::sigmoid_gated, mo::gated_mlp<mo::silu, mo::biased>>>;
  mo::context<in<T>> ctx{mo::host{.threads = 2}};
  mo::moe_layer<gated, in<T>> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  for (std::int64_t const tokens : {0, 1, 2, 37}) {
    CAPTURE(tokens);
    auto x = ctx.matrix(tokens, 2), y = ctx.matrix(tokens, 2), dy = ctx.matrix(tokens, 2), dx = ctx.matrix(tokens, 2);
    mo::fill_normal(ctx, x, mo::seed{2});
    mo::fill_normal(ctx, dy, mo::seed{3});
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(tokens), 1);
    for (std::int64_t t = 0; t < tokens; t += 3) {
      mask[static_cast<std::size_t>(t)] = 0;
      x(t, 0) = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
    }
    poison(y), poison(dx);
    auto gradients = layer.make_gradients();
    auto tape = layer.forward(weights, x, y, {.mask = mask});
    layer.backward(weights, tape, dy, dx, gradients);
    for (std::int64_t t = 0; t < tokens; ++t) {
      bool const masked = mask[static_cast<std::size_t>(t)] == 0;
      CHECK((wide(y(t, 0)) == 0) == masked);
      CHECK((wide(dx(t, 1)) == 0) == masked);
      CHECK(std::isfinite(wide(y(t, 1)) + wide(dx(t, 0))));
    }
    gradients.for_each([&](mo::parameter const& p, auto g) {
      CAPTURE(p.name);
      bool any = false;
      for (auto const v : g) {
        CHECK(std::isfinite(v));
        any = any || v != 0;
      }
      if (p.name.find("shared") == 0) CHECK(any == (tokens > 1));
    });
  }
}

TEST_CASE("a token has the same bits alone and among others, forward and infer alike") {
  using both = spec<mo::shared_experts<1, mo::shared_ffn<300>, mo::sigmoid_gated>>;
  mo::context<> ctx{mo::host{.threads = 2}};
  mo::moe_layer<both> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(33, 2), y = ctx.matrix(33, 2), inferred = ctx.matrix(33, 2), alone = ctx.matrix(1, 2);
  mo::fill_normal(ctx, x, mo::seed{2});
  { auto const tape = layer.forward(weights, x, y); }
  layer.infer(weights, x, inferred);
  CHECK(std::equal(y.begin(), y.end(), inferred.begin()));
  for (std::int64_t t = 0; t < 33; ++t) {
    layer.infer(weights, x.rows(t, 1), alone);
    CHECK((alone(0, 0) == y(t, 0) && alone(0, 1) == y(t, 1)));
  }
}
