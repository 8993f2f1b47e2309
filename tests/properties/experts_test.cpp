// SPDX-License-Identifier: Apache-2.0
// Every kind of expert in a whole layer: gradients against differences in double, the same bits of two runs and of one and
// two threads.
#include <moiety/testing.hpp>

#include "properties/float_gradients.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <ratio>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace mo = moiety;

namespace {

template <class Experts, class Router = mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>, int Count = 5>
struct with : mo::layer_spec<mo::dims{.hidden = 10, .ffn = 7, .experts = Count}> {
  using router = Router;
  using experts = Experts;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};

template <class Spec> void gradients_pass() {
  for (std::int64_t const tokens : {0, 1, 2, 37}) {
    CAPTURE(tokens);
    for (auto const& check : mo::testing::check_gradients<Spec>(tokens)) {
      CAPTURE(check.name);
      CHECK(check.error <= mo::testing::gradient_tolerance);
    }
    float_gradients::agree<Spec>(tokens);
  }
}

template <class Spec> void passes() {
  gradients_pass<Spec>();
  CHECK(mo::testing::conforms<Spec>());
}

}  // namespace

TEST_CASE("clamped gates: gradients equal differences, with values on either side of the limit") {
  passes<with<mo::clamped_swiglu<std::ratio<1, 2>>>>();
  passes<with<mo::limited_swiglu<std::ratio<1, 2>>>>();
  passes<with<mo::clamped_swiglu<>>>();
}

TEST_CASE("biases: gradients equal differences, that of the router with the bias of down among them") {
  passes<with<mo::gated_mlp<mo::silu, mo::biased>>>();
  passes<with<mo::mlp<mo::gelu_tanh, mo::biased>>>();
  passes<with<mo::clamped_swiglu<std::ratio<1, 2>, mo::biased>>>();
}

namespace {

/// What a value of a stored tensor is: a matrix or a bias, and its expert, output and input there.
struct logical {
  std::string_view matrix;  // "gate", "up" or "down"
  bool bias;
  std::int64_t expert, out, in;
};

template <class Mlp> logical logical_of(mo::parameter const& p, std::size_t index) {
  using storage = typename mo::storage_of<Mlp>::type;
  bool const bias = p.shape.size() == 2;
  auto const i = static_cast<std::int64_t>(index);
  std::int64_t const last = p.shape.back(), rows = bias ? 1 : p.shape[1];
  logical at{p.name.find("down") != std::string::npos ? "down" : "up", bias, i / (last * rows), i / last % rows,
             i % last};
  if (bias || (at.matrix == "down" ? storage::down_transposed : storage::transposed)) std::swap(at.out, at.in);
  if (p.name.find("gate_up") != std::string::npos) {
    std::int64_t const ffn = (bias || storage::transposed ? last : rows) / 2;
    at.matrix = (storage::paired ? at.out % 2 : at.out / ffn) == 0 ? "gate" : "up";
    at.out = storage::paired ? at.out / 2 : at.out % ffn;
  } else if (p.name.find("gate") != std::string::npos) {
    at.matrix = "gate";
  }
  return at;
}

/// A number for every logical value: the same model in every storage.
double value_of(logical const& at) {
  auto const place = static_cast<std::uint64_t>((at.expert * 1000 + at.out) * 1000 + at.in);
  return 0.3 * mo::normal(mo::seed{9}, mo::stream_of(at.matrix) + (at.bias ? 1 : 0), place);
}

template <class T, class Layout> struct on_host : mo::deployment<> {
  using element = T;
  using weight_layout = Layout;
};

template <class T> struct outcome {
  std::vector<T> y, dx;
  std::map<std::string, mo::sum_t<T>> gradients;  // by logical place
};

/// Two steps whose gradients add.
template <class Experts, class T, class Layout> outcome<T> run(std::int64_t tokens) {
  using deployment = on_host<T, Layout>;
  mo::context<deployment> ctx{mo::host{.threads = 2}};
  mo::moe_layer<with<Experts>, deployment> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  weights.for_each([&]<class V>(mo::parameter const& p, std::span<V> values) {
    for (std::size_t i = 0; p.name.find("experts") == 0 && i < values.size(); ++i)
      values[i] = static_cast<V>(static_cast<mo::sum_t<V>>(value_of(logical_of<Experts>(p, i))));
  });
  layer.pack(weights);
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(tokens, 10), y = ctx.matrix(tokens, 10), dy = ctx.matrix(tokens, 10), dx = ctx.matrix(tokens, 10);
  mo::fill_normal(ctx, x, mo::seed{2});
  mo::fill_normal(ctx, dy, mo::seed{3});
  for (int step = 0; step < 2; ++step) {
    std::fill(y.begin(), y.end(), static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
    std::fill(dx.begin(), dx.end(), static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
    auto tape = layer.forward(weights, x, y);
    layer.backward(weights, tape, dy, dx, gradients);
  }
  outcome<T> result{{y.begin(), y.end()}, {dx.begin(), dx.end()}, {}};
  gradients.for_each([&](mo::parameter const& p, auto values) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::string place = p.name + std::to_string(i);
      if (p.name.find("experts") == 0) {
        logical const at = logical_of<Experts>(p, i);
        place = std::string(at.matrix) + (at.bias ? " bias " : " ") + std::to_string(at.expert) + ' ' +
                std::to_string(at.out) + ' ' + std::to_string(at.in);
      }
      result.gradients[place] = values[i];
    }
  });
  return result;
}

template <class T> bool same_bits(std::vector<T> const& a, std::vector<T> const& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T> double distance(std::vector<T> const& a, std::vector<T> const& b) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    auto const wanted = static_cast<double>(static_cast<mo::sum_t<T>>(a[i])),
               got = static_cast<double>(static_cast<mo::sum_t<T>>(b[i]));
    error += (wanted - got) * (wanted - got), norm += wanted * wanted;
  }
  return error == 0 ? 0 : std::sqrt(error / norm);
}

/// Every bit but those of dx of interleaved inputs, whose sum has another order.
template <class T, class Plain, class Stored> void same_model() {
  for (std::int64_t const tokens : {0, 1, 2, 5, 37}) {
    CAPTURE(tokens);
    auto const compare = [&](outcome<T> const& wanted, outcome<T> const& got) {
      CHECK(same_bits(wanted.y, got.y));
      CHECK(wanted.gradients == got.gradients);
      if (mo::storage_of<Stored>::type::paired)
        CHECK(distance(wanted.dx, got.dx) <= (sizeof(T) == 2 ? 4e-3 : sizeof(T) == 4 ? 1e-6 : 1e-15));
      else
        CHECK(same_bits(wanted.dx, got.dx));
    };
    auto const wanted = run<Plain, T, mo::row_major>(tokens);
    compare(wanted, run<Stored, T, mo::row_major>(tokens));
    compare(wanted, run<Stored, T, mo::packed>(tokens));
  }
}

}  // namespace

TEST_CASE_TEMPLATE("a model has the same bits however its tensors lie", T, float, double, mo::bf16) {
  using swiglu = mo::gated_mlp<mo::silu, mo::biased>;
  same_model<T, swiglu, mo::gated_mlp<mo::silu, mo::biased, mo::in_by_out>>();
  same_model<T, swiglu, mo::gated_mlp<mo::silu, mo::biased, mo::concatenated>>();
  same_model<T, swiglu, mo::gated_mlp<mo::silu, mo::concatenated, mo::in_by_out, mo::biased>>();
  same_model<T, swiglu, mo::gated_mlp<mo::silu, mo::biased, mo::interleaved>>();
  same_model<T, swiglu, mo::gated_mlp<mo::silu, mo::interleaved, mo::in_by_out, mo::biased>>();
  same_model<T, swiglu, mo::gated_mlp<mo::silu, mo::biased, mo::down_in_by_out>>();
  same_model<T, mo::mlp<mo::gelu_tanh, mo::biased>, mo::mlp<mo::gelu_tanh, mo::in_by_out, mo::biased>>();
}

TEST_CASE("gradients equal differences however tensors lie") {
  passes<with<mo::clamped_swiglu<std::ratio<1, 2>, mo::biased, mo::interleaved, mo::in_by_out>>>();
  passes<with<mo::gated_mlp<mo::silu, mo::concatenated, mo::in_by_out>>>();
}

namespace {

template <class Shared, class Experts = mo::gated_mlp<mo::silu>> struct beside : with<Experts> {
  using shared = Shared;
};

}  // namespace

TEST_CASE("shared experts: gradients equal differences, plain and gated, of their own width and kind") {
  passes<beside<mo::shared_experts<>>>();
  passes<beside<mo::shared_experts<2, mo::sigmoid_gated>>>();
  passes<beside<mo::shared_experts<1, mo::shared_ffn<11>, mo::sigmoid_gated, mo::mlp<mo::gelu, mo::biased>>>>();
  passes<beside<mo::shared_experts<1, mo::gated_mlp<mo::silu, mo::biased>>, mo::mlp<mo::silu>>>();
}

namespace {

template <class Experts, int Slots>
struct with_zeros : mo::layer_spec<mo::dims{.hidden = 10, .ffn = 7, .experts = 4, .zero_experts = 3}> {
  using router = mo::router<mo::softmax, mo::top_k<Slots>, mo::scale<std::ratio<6>>>;
  using experts = Experts;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};

}  // namespace

TEST_CASE("zero-compute experts: gradients equal differences, through x and through the weights") {
  passes<with_zeros<mo::gated_mlp<mo::silu>, 3>>();
  passes<with_zeros<mo::mlp<mo::gelu_tanh, mo::biased>, 7>>();
}

TEST_CASE_TEMPLATE("a token that goes to every expert gets itself back from those that compute nothing", T, float,
                   double, mo::bf16) {
  using deployment = on_host<T, mo::row_major>;
  mo::context<deployment> ctx;
  mo::moe_layer<with_zeros<mo::mlp<mo::silu>, 7>, deployment> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  weights.for_each([](mo::parameter const&, auto values) {  // equal logits, and experts that give 0
    for (auto& v : values) v = static_cast<std::remove_reference_t<decltype(v)>>(0.0f);
  });
  auto x = ctx.matrix(2, 10), y = ctx.matrix(2, 10), dx = ctx.matrix(2, 10);
  for (std::int64_t c = 0; c < 10; ++c) x(0, c) = T(7.0f), x(1, c) = T(-14.0f);
  auto gradients = layer.make_gradients();
  auto tape = layer.forward(weights, x, y);
  layer.backward(weights, tape, x, dx, gradients);
  for (std::int64_t c = 0; c < 10; ++c) {  // 3 of 7 experts, times 6
    CHECK(static_cast<double>(static_cast<mo::sum_t<T>>(y(0, c))) == doctest::Approx(18).epsilon(4e-3));
    CHECK(static_cast<double>(static_cast<mo::sum_t<T>>(y(1, c))) == doctest::Approx(-36).epsilon(4e-3));
    CHECK(static_cast<double>(static_cast<mo::sum_t<T>>(dx(1, c))) == doctest::Approx(-36).epsilon(4e-3));
  }
  CHECK(layer.report(tape).counts().size() == 7);
}

namespace {

template <class Router, class Shared = mo::no_shared>
struct in_latent : mo::layer_spec<mo::dims{.hidden = 10, .ffn = 7, .experts = 5, .zero_experts = 1, .latent = 6}> {
  using router = Router;
  using shared = Shared;
  using experts = mo::gated_mlp<mo::silu, mo::biased>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};

}  // namespace

TEST_CASE("experts of a latent width: gradients equal differences, with all that stands beside them") {
  passes<in_latent<mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>>>();
  passes<in_latent<mo::router<mo::sigmoid, mo::top_k<3>>, mo::shared_experts<1, mo::sigmoid_gated>>>();
}

namespace {

template <int Count, int K>
struct beside_zeros : mo::layer_spec<mo::dims{.hidden = 10, .ffn = 7, .experts = Count, .zero_experts = 2}> {
  using router = mo::router<mo::softmax, mo::top_k<K>>;
  using shared = mo::shared_experts<1, mo::sigmoid_gated>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};

/// Each kind of expert with K of Count experts a token.
template <int Count, int K> void each_kind() {
  using router = mo::router<mo::sigmoid, mo::top_k<K>>;
  gradients_pass<with<mo::gated_mlp<mo::silu>, router, Count>>();
  gradients_pass<with<mo::mlp<mo::gelu_tanh, mo::biased>, router, Count>>();
  gradients_pass<with<mo::clamped_swiglu<std::ratio<1, 2>, mo::biased>, router, Count>>();
  gradients_pass<with<mo::gated_mlp<mo::silu, mo::interleaved, mo::in_by_out, mo::biased>, router, Count>>();
  gradients_pass<beside_zeros<Count, K>>();
}

}  // namespace

TEST_CASE("one expert, few, and a slot of each: gradients equal differences") {
  each_kind<1, 1>();
  each_kind<3, 1>();
  each_kind<3, 3>();
  each_kind<8, 1>();
  each_kind<8, 8>();
}

TEST_SUITE("long") {
  TEST_CASE("40 experts: gradients equal differences") {
    each_kind<40, 1>();
    each_kind<40, 40>();
  }
}
