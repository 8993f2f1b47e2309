// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/weight_layout.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace mo = moiety;

namespace {

struct nameless {
  static constexpr bool packs_forward = true, packs_backward = true;
};
static_assert(!mo::weight_layout<nameless>);
static_assert(nameless::packs_forward && nameless::packs_backward);
static_assert(!mo::weight_layout<int>);

struct gated : mo::layer_spec<mo::dims{.hidden = 53, .ffn = 37, .experts = 6}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>;
  using losses = mo::losses<mo::load_balance<>>;
};
struct plain : mo::layer_spec<mo::dims{.hidden = 300, .ffn = 17, .experts = 3}> {
  using router = mo::router<mo::sigmoid, mo::top_k<1>>;
  using experts = mo::mlp<mo::gelu_tanh>;
};

template <class T, class Layout> struct with : mo::deployment<> {
  using element = T;
  using weight_layout = Layout;
};

void append(std::vector<unsigned char>& to, auto const& values) {
  auto const* const from = reinterpret_cast<unsigned char const*>(values.data());
  to.insert(to.end(), from, from + values.size() * sizeof(*values.data()));
}

/// Two steps with a change of weights between them, and an inference: every output as bytes.
template <class Spec, class T, class Layout> std::vector<unsigned char> two_steps(std::int64_t tokens) {
  using deployment = with<T, Layout>;
  std::int64_t const hidden = Spec::size.hidden;
  mo::context<deployment> ctx(mo::host{.threads = 2});
  mo::moe_layer<Spec, deployment> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(tokens, hidden), y = ctx.matrix(tokens, hidden), dy = ctx.matrix(tokens, hidden),
       dx = ctx.matrix(tokens, hidden);
  mo::fill_normal(ctx, x, mo::seed{2});
  mo::fill_normal(ctx, dy, mo::seed{3});
  std::vector<unsigned char> bytes;
  for (int step = 0; step < 2; ++step) {
    auto tape = layer.forward(weights, x, y);
    layer.backward(weights, tape, dy, dx, gradients);
    append(bytes, y), append(bytes, dx);
    mo::for_each_parameter(weights, gradients, [&](mo::parameter const&, auto w, auto g) {
      append(bytes, g);
      for (std::size_t i = 0; i < w.size(); ++i)
        w[i] =
            static_cast<typename decltype(w)::value_type>(static_cast<float>(w[i]) - 0.01f * static_cast<float>(g[i]));
    });
    layer.pack(weights);
  }
  layer.infer(weights, x, y);
  append(bytes, y);
  return bytes;
}

template <class Spec, class T> void check_same() {
  for (std::int64_t const tokens : {0, 1, 5, 70}) {
    CAPTURE(tokens);
    auto const as_they_lie = two_steps<Spec, T, mo::row_major>(tokens);
    CHECK(two_steps<Spec, T, mo::packed_forward>(tokens) == as_they_lie);
    CHECK(two_steps<Spec, T, mo::packed>(tokens) == as_they_lie);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("a weight layout changes no bit", T, double, float, mo::bf16, mo::fp16) {
  check_same<gated, T>();
  check_same<plain, T>();
}

TEST_CASE_TEMPLATE("packed copies that may be older than the weights are refused", Layout, mo::packed_forward,
                   mo::packed) {
  using deployment = with<float, Layout>;
  mo::context<deployment> ctx;
  mo::moe_layer<gated, deployment> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(3, 53), y = ctx.matrix(3, 53), dx = ctx.matrix(3, 53);
  mo::fill_normal(ctx, x, mo::seed{2});
  auto tape = layer.forward(weights, x, y);
  auto const& unchanged = weights;
  mo::for_each_parameter(unchanged, [](mo::parameter const&, auto values) {
    static_assert(std::is_const_v<typename decltype(values)::element_type>);
  });
  CHECK_NOTHROW(layer.infer(weights, x, y));  // reading is no change
  mo::for_each_parameter(weights, [](mo::parameter const&, auto values) { values[0] = 0; });
  CHECK_THROWS_WITH_AS(layer.forward(weights, x, y),
                       "forward was given weights that may have changed since layer.pack(weights).", mo::state_error);
  CHECK_THROWS_WITH_AS(layer.infer(weights, x, y),
                       "infer was given weights that may have changed since layer.pack(weights).", mo::state_error);
  CHECK_THROWS_WITH_AS(layer.backward_input(weights, tape, x, dx),
                       "backward_input was given weights that may have changed since layer.pack(weights).",
                       mo::state_error);
  layer.pack(weights);
  CHECK_NOTHROW(layer.infer(weights, x, y));
}

TEST_CASE("bound weights are packed when their owner says so") {
  using deployment = with<float, mo::packed>;
  mo::context<deployment> ctx;
  mo::moe_layer<gated, deployment> layer{ctx};
  std::vector<std::vector<float>> memory;
  auto weights = layer.bind_weights([&](mo::parameter const& p) {
    memory.emplace_back(p.size(), 0.5f);
    return memory.back().data();
  });
  auto x = ctx.matrix(3, 53), y = ctx.matrix(3, 53);
  CHECK_THROWS_AS(layer.infer(weights, x, y), mo::state_error);
  layer.pack(weights);
  CHECK_NOTHROW(layer.infer(weights, x, y));
}
