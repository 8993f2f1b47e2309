// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/latent_stage.hpp>

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

struct small : mo::layer_spec<mo::dims{.hidden = 3, .ffn = 2, .experts = 1, .latent = 2}> {
  using router = mo::router<mo::softmax, mo::top_k<1>>;
  using experts = mo::mlp<mo::identity>;
};
struct beside : mo::layer_spec<mo::dims{.hidden = 9, .ffn = 7, .experts = 4, .latent = 5}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using shared = mo::shared_experts<>;
};

template <class T> double wide(T value) { return static_cast<double>(static_cast<mo::sum_t<T>>(value)); }
template <class T> std::vector<double> wide(mo::matrix<T> const& m) {
  std::vector<double> all;
  for (T const v : m) all.push_back(wide(v));
  return all;
}
template <class T> void poison(mo::matrix<T>& m) {
  std::fill(m.begin(), m.end(), static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
}

}  // namespace

TEST_CASE_TEMPLATE("an expert of a latent width works between two maps, worked by hand", T, float, double, mo::bf16) {
  mo::context<in<T>> ctx;
  mo::moe_layer<small, in<T>> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  std::map<std::string, std::vector<float>> const known{{"latent.in", {1, 0, 1, 0, 2, 0}},
                                                        {"experts.up", {1, 1, 0, 1}},
                                                        {"experts.down", {1, 0, 0, 2}},
                                                        {"latent.out", {1, 0, 0, 1, 1, -1}}};
  weights.for_each([&]<class V>(mo::parameter const& p, std::span<V> to) {
    auto const found = known.find(p.name);
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = V(found == known.end() ? 0.0f : found->second.at(i));
    if (p.name == "latent.in") CHECK(p.shape == std::vector<std::int64_t>{2, 3});
    if (p.name == "experts.up") CHECK(p.shape == std::vector<std::int64_t>{1, 2, 2});
    if (p.name == "latent.out") CHECK(p.shape == std::vector<std::int64_t>{3, 2});
  });
  auto x = ctx.matrix(1, 3), y = ctx.matrix(1, 3), dy = ctx.matrix(1, 3), dx = ctx.matrix(1, 3);
  x(0, 0) = T(1.0f), x(0, 1) = T(-1.0f), x(0, 2) = T(2.0f);
  dy(0, 0) = T(1.0f), dy(0, 1) = T(2.0f), dy(0, 2) = T(-1.0f);
  poison(y), poison(dx);
  auto gradients = layer.make_gradients();
  auto tape = layer.forward(weights, x, y);  // x' = (3, -2), a = (1, -2), y' = (1, -4)
  CHECK(wide(y) == std::vector<double>{1, -4, 5});
  layer.backward(weights, tape, dy, dx, gradients);  // dy' = (0, 3), dA' = (0, 6), dx' = (0, 6)
  CHECK(wide(dx) == std::vector<double>{0, 12, 0});
  gradients.for_each([&](mo::parameter const& p, auto g) {
    std::vector<double> const values(g.begin(), g.end());
    if (p.name == "latent.in") CHECK(values == std::vector<double>{0, 0, 0, 6, -6, 12});
    if (p.name == "latent.out") CHECK(values == std::vector<double>{1, -4, 2, -8, -1, 4});
    if (p.name == "experts.up") CHECK(values == std::vector<double>{0, 0, 18, -12});
  });
}

TEST_CASE_TEMPLATE("masked tokens may hold anything, dy included, and an empty call leaves zeros", T, float, mo::bf16) {
  mo::context<in<T>> ctx{mo::host{.threads = 2}};
  mo::moe_layer<beside, in<T>> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  for (std::int64_t const tokens : {0, 1, 2, 37}) {
    CAPTURE(tokens);
    auto x = ctx.matrix(tokens, 9), y = ctx.matrix(tokens, 9), dy = ctx.matrix(tokens, 9), dx = ctx.matrix(tokens, 9);
    mo::fill_normal(ctx, x, mo::seed{2});
    mo::fill_normal(ctx, dy, mo::seed{3});
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(tokens), 1);
    for (std::int64_t t = 0; t < tokens; t += 3) {
      mask[static_cast<std::size_t>(t)] = 0;
      x(t, 0) = dy(t, 1) = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
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
      for (auto const v : g) CHECK(std::isfinite(v));
      if (p.name.find("latent") == 0)
        CHECK(std::any_of(g.begin(), g.end(), [](auto v) { return v != 0; }) == (tokens > 1));
    });
  }
}

TEST_CASE("a token has the same bits alone and among others, forward and infer alike") {
  mo::context<> ctx{mo::host{.threads = 2}};
  mo::moe_layer<beside> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(33, 9), y = ctx.matrix(33, 9), inferred = ctx.matrix(33, 9), alone = ctx.matrix(1, 9);
  mo::fill_normal(ctx, x, mo::seed{2});
  { auto const tape = layer.forward(weights, x, y); }
  layer.infer(weights, x, inferred);
  CHECK(std::equal(y.begin(), y.end(), inferred.begin()));
  for (std::int64_t t = 0; t < 33; ++t) {
    layer.infer(weights, x.rows(t, 1), alone);
    CHECK(std::equal(alone.begin(), alone.end(), y.row(t)));
  }
}

TEST_CASE("what shared experts give is added to what leaves the latent width") {
  mo::context<> ctx;
  mo::moe_layer<beside> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(5, 9), both = ctx.matrix(5, 9), routed = ctx.matrix(5, 9), shared = ctx.matrix(5, 9);
  mo::fill_normal(ctx, x, mo::seed{2});
  layer.infer(weights, x, both);
  auto const without = [&](char const* name, mo::matrix<float>& y) {
    auto some = layer.make_weights(mo::seed{1});
    some.for_each([&](mo::parameter const& p, auto values) {
      if (p.name == name) std::fill(values.begin(), values.end(), 0.0f);
    });
    layer.infer(some, x, y);
  };
  without("shared.down", routed);
  without("latent.out", shared);
  for (std::int64_t t = 0; t < 5; ++t)
    for (std::int64_t c = 0; c < 9; ++c) {
      CHECK(shared(t, c) != 0);
      CHECK(both(t, c) == doctest::Approx(routed(t, c) + shared(t, c)).epsilon(1e-5));
    }
}
