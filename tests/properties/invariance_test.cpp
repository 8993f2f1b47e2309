// SPDX-License-Identifier: Apache-2.0
// What must not change a bit: threads, a second run, neighbours in the batch, the halves of a backward, how a batch was
// cut, where the weights lie, padding.
#include "properties/reference_layer.hpp"

#include <moiety/moiety.hpp>
#include <moiety/testing.hpp>

#include <doctest/doctest.h>

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace mo = moiety;

namespace {

using losses = mo::losses<mo::load_balance<>, mo::load_balance<mo::over::sequence>, mo::router_z>;

template <mo::dims Size, int K> struct gated : mo::layer_spec<Size> {
  using router = mo::router<mo::softmax, mo::top_k<K>, mo::renormalised>;
  using losses = ::losses;
};
template <mo::dims Size> struct raw_top_1 : mo::layer_spec<Size> {
  using router = mo::router<mo::softmax, mo::top_k<1>>;
};

template <class T> struct in : mo::deployment<> { using element = T; };

using small = gated<mo::dims{.hidden = 37, .ffn = 27, .experts = 8}, 2>;
using fine = gated<mo::dims{.hidden = 30, .ffn = 11, .experts = 60}, 7>;
using one_of_three = gated<mo::dims{.hidden = 20, .ffn = 300, .experts = 3}, 3>;
using forty = gated<mo::dims{.hidden = 21, .ffn = 10, .experts = 40}, 6>;
using alone_expert = raw_top_1<mo::dims{.hidden = 13, .ffn = 29, .experts = 1}>;

/// Everything that a step computes, as bytes.
template <class Values> void append(std::vector<unsigned char>& to, Values const& values) {
  auto const* const from = reinterpret_cast<unsigned char const*>(values.data());
  to.insert(to.end(), from, from + values.size() * sizeof(*values.data()));
}

template <class Spec, class T> struct step {
  mo::context<in<T>> ctx;
  mo::moe_layer<Spec, in<T>> layer;
  typename mo::moe_layer<Spec, in<T>>::weights_type weights;
  typename mo::moe_layer<Spec, in<T>>::gradients_type gradients;

  explicit step(int threads = 1)
      : ctx(mo::host{.threads = threads}),
        layer(ctx, mo::testing::trained_options<Spec>()),
        weights(layer.make_weights(mo::seed{5})),
        gradients(layer.make_gradients()) {}

  std::vector<unsigned char> run(std::int64_t tokens, bool halves = false, mo::batch const& about = {}) {
    auto const hidden = mo::spec_of<Spec>::hidden;
    auto x = ctx.matrix(tokens, hidden), y = ctx.matrix(tokens, hidden), dy = ctx.matrix(tokens, hidden),
         dx = ctx.matrix(tokens, hidden);
    mo::fill_normal(ctx, x, mo::seed{1}, mo::first_row{about.first_row});
    mo::fill_normal(ctx, dy, mo::seed{2}, mo::first_row{about.first_row});
    std::fill(y.begin(), y.end(), T(NAN));
    std::fill(dx.begin(), dx.end(), T(NAN));
    gradients.reset();
    auto tape = layer.forward(weights, x, y, about);
    if (halves) {
      layer.backward_input(weights, tape, dy, dx);
      layer.backward_weights(tape, gradients);
    } else {
      layer.backward(weights, tape, dy, dx, gradients);
    }
    std::vector<unsigned char> all;
    append(all, y);
    append(all, dx);
    gradients.for_each([&](mo::parameter const&, auto values) { append(all, values); });
    return all;
  }
};

/// A matrix whose rows lie 2^29 elements and a few apart; only the pages that are touched cost memory.
class far_apart {
 public:
  far_apart(std::int64_t rows, std::int64_t cols)
      : rows_(rows),
        cols_(cols),
        data_(::mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  far_apart(far_apart const&) = delete;
  far_apart& operator=(far_apart const&) = delete;
  ~far_apart() {
    if (there()) ::munmap(data_, bytes());
  }
  bool there() const { return data_ != MAP_FAILED; }
  mo::matrix_view<float> view() const { return {static_cast<float*>(data_), rows_, cols_, stride}; }

 private:
  static constexpr std::int64_t stride = (std::int64_t{1} << 29) + 3;
  std::size_t bytes() const { return static_cast<std::size_t>(rows_ * stride) * sizeof(float); }
  std::int64_t rows_, cols_;
  void* data_;
};

}  // namespace

TEST_CASE_TEMPLATE("threads, a second run and the halves of a backward give the same bits", T, float, double, mo::bf16,
                   mo::fp16) {
  auto const check = [&]<class Spec>(Spec) {
    for (std::int64_t const tokens : {0, 1, 2, 37, 512}) {
      CAPTURE(tokens);
      step<Spec, T> first(1);
      auto const expected = first.run(tokens);
      CHECK(first.run(tokens) == expected);
      CHECK(first.run(tokens, true) == expected);
      CHECK(step<Spec, T>(2).run(tokens) == expected);
      CHECK(step<Spec, T>(4).run(tokens) == expected);
    }
  };
  check(small{});
  check(fine{});
  if constexpr (std::is_same_v<T, float>) {
    check(one_of_three{});
    check(forty{});
    check(alone_expert{});
  }
}

TEST_CASE_TEMPLATE("a token alone gets the bits that it gets in a batch, in forward and infer", T, float, double,
                   mo::bf16, mo::fp16) {
  auto const check = [&]<class Spec>(Spec) {
    constexpr std::int64_t hidden = mo::spec_of<Spec>::hidden;
    step<Spec, T> s(2);
    auto x = s.ctx.matrix(66, hidden), together = s.ctx.matrix(66, hidden), alone = s.ctx.matrix(1, hidden);
    mo::fill_normal(s.ctx, x, mo::seed{3});
    auto const tape = s.layer.forward(s.weights, x, together);
    auto inferred = s.ctx.matrix(66, hidden);
    s.layer.infer(s.weights, x, inferred);
    CHECK(std::memcmp(inferred.data(), together.data(), together.size() * sizeof(T)) == 0);
    for (std::int64_t t = 0; t < 66; ++t) {
      s.layer.infer(s.weights, x.rows(t, 1), alone);
      CHECK(std::memcmp(alone.data(), together.row(t), hidden * sizeof(T)) == 0);
    }
  };
  check(fine{});
  if constexpr (std::is_same_v<T, float>) {
    check(small{});
    check(one_of_three{});
    check(forty{});
    check(alone_expert{});
  }
}

TEST_CASE("a weight that is not a number spoils the tokens of its expert, and no bit of the others") {
  step<small, float> s;
  auto x = s.ctx.matrix(50, 37), clean = s.ctx.matrix(50, 37), spoiled = s.ctx.matrix(50, 37);
  mo::fill_normal(s.ctx, x, mo::seed{3});
  auto const tape = s.layer.forward(s.weights, x, clean);
  s.weights.for_each([](mo::parameter const& p, auto values) {
    std::size_t const each = values.size() / 8;
    if (p.name != "router.weight") std::fill_n(values.begin() + static_cast<std::ptrdiff_t>(3 * each), each, NAN);
  });
  s.layer.infer(s.weights, x, spoiled);
  int others = 0;
  for (std::int64_t t = 0; t < 50; ++t) {
    if (tape.routing().expert(t, 0) == 3 || tape.routing().expert(t, 1) == 3) {
      CHECK(std::isnan(spoiled(t, 0)));
      continue;
    }
    ++others;
    CHECK(std::memcmp(spoiled.row(t), clean.row(t), 37 * sizeof(float)) == 0);
  }
  CHECK((others > 0 && others < 50));
}

TEST_CASE("gradients of two calls in turn are those of one call with all tokens") {
  // Without losses: their units differ. The sum over tokens is one chain, whichever call a token was in.
  struct plain : mo::layer_spec<mo::dims{.hidden = 19, .ffn = 23, .experts = 4}> {
    using router = mo::router<mo::softmax, mo::top_k<2>>;
  };
  mo::context<> ctx;
  mo::moe_layer<plain> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{9});
  auto x = ctx.matrix(50, 19), y = ctx.matrix(50, 19), dy = ctx.matrix(50, 19), dx = ctx.matrix(50, 19);
  mo::fill_normal(ctx, x, mo::seed{1});
  mo::fill_normal(ctx, dy, mo::seed{2});
  auto whole = layer.make_gradients(), parts = layer.make_gradients();
  auto tape = layer.forward(weights, x, y);
  layer.backward(weights, tape, dy, dx, whole);
  for (auto const& [first, count] : {std::pair{0, 17}, std::pair{17, 0}, std::pair{17, 33}}) {
    auto part = layer.forward(weights, x.rows(first, count), y.rows(first, count));
    layer.backward(weights, part, dy.rows(first, count), dx.rows(first, count), parts);
  }
  std::vector<float> expected;
  whole.for_each([&](mo::parameter const&, auto g) { expected.insert(expected.end(), g.begin(), g.end()); });
  std::vector<float> got;
  parts.for_each([&](mo::parameter const&, auto g) { got.insert(got.end(), g.begin(), g.end()); });
  CHECK(expected == got);
}

TEST_CASE("bound memory gives the bits of owned memory") {
  mo::context<> ctx;
  mo::moe_layer<small> layer{ctx};
  std::map<std::string, std::vector<float>> memory;
  auto bound = layer.bind_weights([&](mo::parameter const& p) {
    memory[p.name].assign(p.size(), 0.0f);
    return memory[p.name].data();
  });
  layer.initialise(bound, mo::seed{4});
  auto const owned = layer.make_weights(mo::seed{4});
  CHECK(memory.size() == 4);
  owned.for_each([&](mo::parameter const& p, auto values) {
    CHECK(std::equal(values.begin(), values.end(), memory[p.name].begin(), memory[p.name].end()));
  });
}

TEST_CASE("rows that lie 2^31 elements apart in all give the bits of dense rows") {
  constexpr std::int64_t tokens = 5;
  far_apart const x(tokens, 37), y(tokens, 37), dy(tokens, 37), dx(tokens, 37);
  if (!x.there() || !y.there() || !dy.there() || !dx.there()) {
    MESSAGE("skipped: no address space of 43 GB");
    return;
  }
  step<small, float> s;
  std::vector<unsigned char> const expected = s.run(tokens);
  mo::fill_normal(s.ctx, x.view(), mo::seed{1});
  mo::fill_normal(s.ctx, dy.view(), mo::seed{2});
  s.gradients.reset();
  auto tape = s.layer.forward(s.weights, x.view(), y.view());
  s.layer.backward(s.weights, tape, dy.view(), dx.view(), s.gradients);
  std::vector<unsigned char> got;
  for (auto const& m : {y.view(), dx.view()})
    for (std::int64_t t = 0; t < tokens; ++t) append(got, std::span(m.row(t), 37));
  s.gradients.for_each([&](mo::parameter const&, auto values) { append(got, values); });
  CHECK(got == expected);
}

TEST_CASE("padding changes nothing for the tokens beside it, and gets nothing") {
  step<small, float> s;
  auto x = s.ctx.matrix(20, 37), y = s.ctx.matrix(20, 37), dense_x = s.ctx.matrix(12, 37),
       dense_y = s.ctx.matrix(12, 37);
  mo::fill_normal(s.ctx, x, mo::seed{8});
  std::vector<std::uint8_t> mask(20, 0);
  for (std::int64_t t = 0; t < 12; ++t) {
    mask[static_cast<std::size_t>(t + t / 2)] = 1;
    std::copy_n(x.row(t + t / 2), 37, dense_x.row(t));
  }
  for (std::int64_t t = 0; t < 20; ++t)  // padding may hold anything
    if (mask[static_cast<std::size_t>(t)] == 0) std::fill_n(x.row(t), 37, std::numeric_limits<float>::quiet_NaN());
  auto padded = s.layer.forward(s.weights, x, y, {.mask = mask});
  auto dense = s.layer.forward(s.weights, dense_x, dense_y);
  for (std::int64_t t = 0; t < 12; ++t) CHECK(std::memcmp(y.row(t + t / 2), dense_y.row(t), 37 * sizeof(float)) == 0);
  for (std::int64_t t = 0; t < 20; ++t)
    if (mask[static_cast<std::size_t>(t)] == 0) CHECK(y(t, 5) == 0);
  auto const a = s.layer.report(padded), b = s.layer.report(dense);
  CHECK(a.value<mo::load_balance<>>() == b.value<mo::load_balance<>>());
  CHECK(a.value<mo::router_z>() == b.value<mo::router_z>());
  CHECK(a.counts() == b.counts());
  CHECK(a.tokens() == 12);
  CHECK(a.states().masked == 8);

  auto dy = s.ctx.matrix(20, 37), dx = s.ctx.matrix(20, 37), dense_dy = s.ctx.matrix(12, 37),
       dense_dx = s.ctx.matrix(12, 37);
  mo::fill_normal(s.ctx, dense_dy, mo::seed{3});
  for (std::int64_t t = 0; t < 12; ++t) std::copy_n(dense_dy.row(t), 37, dy.row(t + t / 2));
  auto padded_gradients = s.layer.make_gradients(), dense_gradients = s.layer.make_gradients();
  s.layer.backward(s.weights, padded, dy, dx, padded_gradients);
  s.layer.backward(s.weights, dense, dense_dy, dense_dx, dense_gradients);
  for (std::int64_t t = 0; t < 12; ++t) CHECK(std::memcmp(dx.row(t + t / 2), dense_dx.row(t), 37 * sizeof(float)) == 0);
  for (std::int64_t t = 0; t < 20; ++t)
    if (mask[static_cast<std::size_t>(t)] == 0) CHECK(dx(t, 5) == 0);
  std::vector<float> padded_values, dense_values;
  padded_gradients.for_each(
      [&](auto const&, auto g) { padded_values.insert(padded_values.end(), g.begin(), g.end()); });
  dense_gradients.for_each([&](auto const&, auto g) { dense_values.insert(dense_values.end(), g.begin(), g.end()); });
  CHECK(padded_values == dense_values);
}

TEST_CASE_TEMPLATE("outputs agree with plain loops in double", T, float, double, mo::bf16, mo::fp16) {
  double const tolerance = std::is_same_v<T, double>     ? 1e-13
                           : std::is_same_v<T, float>    ? 1e-5
                           : std::is_same_v<T, mo::fp16> ? 4e-3
                                                         : 3e-2;
  auto const check = [&]<class Spec>(Spec, std::int64_t k, bool renormalise) {
    step<Spec, T> s;
    reference::weights w;
    w.take(s.weights);
    auto const hidden = mo::spec_of<Spec>::hidden;
    auto x = s.ctx.matrix(41, hidden), y = s.ctx.matrix(41, hidden);
    mo::fill_normal(s.ctx, x, mo::seed{12});
    s.layer.infer(s.weights, x, y);
    double error = 0, norm = 0;
    for (std::int64_t t = 0; t < 41; ++t) {
      std::vector<double> const row(x.row(t), x.row(t) + hidden);
      auto const expected =
          reference::token_output(w, row, k, renormalise, [](double v) { return v / (1 + std::exp(-v)); });
      for (std::int64_t h = 0; h < hidden; ++h) {
        double const miss = static_cast<double>(y(t, h)) - expected[static_cast<std::size_t>(h)];
        error += miss * miss;
        norm += expected[static_cast<std::size_t>(h)] * expected[static_cast<std::size_t>(h)];
      }
    }
    CHECK(std::sqrt(error / norm) < tolerance);
  };
  check(small{}, 2, true);
  check(fine{}, 7, true);
  check(raw_top_1<mo::dims{.hidden = 24, .ffn = 40, .experts = 5}>{}, 1, false);
}

TEST_CASE("one expert with weight 1 is a dense gated MLP of three matrices, and so is each of eight") {
  using one = raw_top_1<mo::dims{.hidden = 2, .ffn = 3, .experts = 1}>;
  using eight = gated<mo::dims{.hidden = 2, .ffn = 3, .experts = 8}, 8>;
  auto const check = [&]<class Spec>(Spec) {
    step<Spec, double> s;
    s.weights.for_each([](mo::parameter const& p, auto values) {
      std::vector<double> const matrix = p.name == "experts.gate"   ? std::vector<double>{.5, -.25, 1, .5, -.5, .75}
                                         : p.name == "experts.up"   ? std::vector<double>{1, 0, .5, -.5, .25, .25}
                                         : p.name == "experts.down" ? std::vector<double>{1, .5, -1, 0, 2, .5}
                                                                    : std::vector<double>{0};
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = matrix[i % matrix.size()];
    });
    auto x = s.ctx.matrix(1, 2), y = s.ctx.matrix(1, 2), dy = s.ctx.matrix(1, 2), dx = s.ctx.matrix(1, 2);
    x(0, 0) = 1, x(0, 1) = 2, dy(0, 0) = dy(0, 1) = 1;
    auto tape = s.layer.forward(s.weights, x, y);
    CHECK(y(0, 0) == doctest::Approx(-.988692).epsilon(1e-6));
    CHECK(y(0, 1) == doctest::Approx(-1.487447).epsilon(1e-6));
    s.layer.backward(s.weights, tape, dy, dx, s.gradients);
    CHECK(dx(0, 0) == doctest::Approx(1.171068).epsilon(1e-6));
    CHECK(dx(0, 1) == doctest::Approx(-3.361023).epsilon(1e-6));
  };
  check(one{});
  check(eight{});
  CHECK(mo::parameters<gated<mo::dims{.hidden = 1024, .ffn = 2816, .experts = 8}, 2>> - 8 * 1024 == 69206016);
}

TEST_CASE("all tokens to one expert, and experts without a token") {
  step<small, float> s;
  s.weights.for_each([](mo::parameter const& p, auto values) {
    if (p.name != "router.weight") return;
    std::fill(values.begin(), values.end(), 0.0f);  // ties: experts 0 and 1 get every token
  });
  auto const bytes = s.run(64);
  CHECK(bytes == s.run(64));
  s.gradients.for_each([&](mo::parameter const& p, auto values) {
    if (p.name == "router.weight") return;
    std::size_t const each = values.size() / 8;
    for (std::size_t i = 2 * each; i < values.size(); ++i) REQUIRE(values[i] == 0.0f);
    CHECK(values[each / 2] != 0.0f);
  });
}
