// SPDX-License-Identifier: Apache-2.0
// What a layer gives by one kind of products, to be held against another; and layers of odd sizes and storages for that.
#pragma once

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ratio>
#include <vector>

namespace layer_results {

namespace mo = moiety;

template <class Backend, class T, class Products> struct by : mo::deployment<> {
  using backend = Backend;
  using element = T;
  using expert_products = Products;
};

struct gated : mo::layer_spec<mo::dims{.hidden = 72, .ffn = 40, .experts = 6}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};
/// Biases, units side by side, rows that begin anywhere, and an expert that all tokens share.
struct odd : mo::layer_spec<mo::dims{.hidden = 37, .ffn = 21, .experts = 5}> {
  using router = mo::router<mo::sigmoid, mo::top_k<2>, mo::on_activation>;
  using experts = mo::clamped_swiglu<std::ratio<7>, mo::biased, mo::interleaved>;
  using shared = mo::shared_experts<1, mo::sigmoid_gated>;
};
struct transposed : gated {
  using experts = mo::mlp<mo::gelu_tanh, mo::in_by_out>;
};

inline constexpr std::int64_t tokens = 50;

inline double distance(std::vector<double> const& wanted, std::vector<double> const& got) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    double const off = wanted[i] - got[i];
    error += off * off, norm += wanted[i] * wanted[i];
  }
  return std::sqrt(error / norm);
}

/// One more result: values of a context's memory, widened.
template <class Context, class V>
void append_values(Context& ctx, V const* from, std::size_t count, std::vector<std::vector<double>>& to) {
  std::vector<V> values(count);
  ctx.memory().load(values.data(), from, static_cast<std::int64_t>(count * sizeof(V)));
  auto& wide = to.emplace_back();
  for (V const v : values) wide.push_back(static_cast<double>(static_cast<mo::sum_t<V>>(v)));
}

/// y of infer and forward, dx and all gradients, which are filled twice; and last y of the first nine tokens alone.
template <class Spec, class Deployment>
std::vector<std::vector<double>> run(std::uint64_t number, typename Deployment::backend const& on = {}) {
  constexpr std::int64_t h = mo::spec_of<Spec>::hidden;
  mo::context<Deployment> ctx{on};
  mo::moe_layer<Spec, Deployment> layer{ctx};
  auto weights = layer.make_weights(mo::seed{number});
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(tokens, h), y = ctx.matrix(tokens, h), dy = ctx.matrix(tokens, h), dx = ctx.matrix(tokens, h);
  mo::fill_normal(ctx, x, mo::seed{number + 1});
  mo::fill_normal(ctx, dy, mo::seed{number + 2});
  std::vector<std::vector<double>> all;
  auto const keep = [&](auto const* from, std::size_t count) { append_values(ctx, from, count, all); };
  layer.infer(weights, x, y), keep(y.data(), y.size());
  for (int pass = 0; pass < 2; ++pass) {
    auto tape = layer.forward(weights, x, y);
    layer.backward(weights, tape, dy, dx, gradients);
  }
  keep(y.data(), y.size()), keep(dx.data(), dx.size());
  gradients.for_each([&](mo::parameter const&, auto values) { keep(values.data(), values.size()); });
  auto few = ctx.matrix(9, h);
  layer.infer(weights, x.rows(0, 9), few), keep(few.data(), few.size());
  ctx.engine().synchronize();
  return all;
}

/// The first values of `of` are those of `part`, bit by bit.
inline bool begins_with(std::vector<double> const& of, std::vector<double> const& part) {
  return part.size() <= of.size() && std::memcmp(of.data(), part.data(), part.size() * sizeof(double)) == 0;
}

/// y and dx are within `most` of those wanted, gradients within `most_of_gradients`; y is not within `least`; a token's y is its
/// own.
inline void check(std::vector<std::vector<double>> const& wanted, std::vector<std::vector<double>> const& got,
                  double most, double least, double most_of_gradients) {
  REQUIRE(wanted.size() == got.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    INFO("result ", i);
    CHECK(distance(wanted[i], got[i]) <= (i < 3 || i + 1 == wanted.size() ? most : most_of_gradients));
  }
  CHECK(distance(wanted[1], got[1]) > least);
  CHECK((got[0].size() == got[1].size() && begins_with(got[0], got[1])));
  CHECK(begins_with(got[0], got.back()));
}

inline void check(std::vector<std::vector<double>> const& wanted, std::vector<std::vector<double>> const& got,
                  double most, double least) {
  check(wanted, got, most, least, most);
}

}  // namespace layer_results
