// SPDX-License-Identifier: Apache-2.0
// What a layer refuses, and that it then writes nothing.
#include <moiety/layer/moe_layer.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <new>
#include <optional>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

struct spec : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 3}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>, mo::load_balance<mo::over::global_batch>, mo::router_z>;
};

/// Only the first expert gets a score that is a number, unless all logits are 0.
struct brittle {
  void forward(mo::score_row auto& row) const {
    bool const breaks = row.max() != 0;
    row.map_indexed([&](auto v, int e) { return breaks && e > 0 ? static_cast<decltype(v)>(nan) : v; });
  }
  void backward(mo::score_row auto const&, mo::score_row auto&) const {}
};

struct brittle_spec : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 3}> {
  using router = mo::router<brittle, mo::top_k<2>>;
};

struct fixture {
  mo::context<> ctx;
  mo::moe_layer<spec> layer{ctx, {.losses = {mo::load_balance<>{.coefficient = 1}, mo::router_z{.coefficient = 1}}}};
  mo::layer_weights<spec, float> weights = layer.make_weights(mo::seed{1});
  mo::layer_gradients<spec, float> gradients = layer.make_gradients();
  mo::matrix<float> x = ctx.matrix(8, 6), y = ctx.matrix(8, 6), dy = ctx.matrix(8, 6), dx = ctx.matrix(8, 6);

  fixture() {
    mo::fill_normal(ctx, x, mo::seed{2});
    mo::fill_normal(ctx, dy, mo::seed{3});
    std::fill(y.begin(), y.end(), 77.0f);
    std::fill(dx.begin(), dx.end(), 77.0f);
  }

  static bool untouched(mo::matrix<float> const& m) {
    return std::all_of(m.begin(), m.end(), [](float v) { return v == 77.0f; });
  }

  /// Rows of m, two bytes further on.
  template <class T = float> static mo::matrix_view<T> shifted(mo::matrix<float>& m, std::int64_t rows) {
    return {reinterpret_cast<float*>(reinterpret_cast<char*>(m.data()) + 2), rows, 6};
  }

  template <class Error, class Call> void refuses(char const* why, Call const& call) {
    CHECK_THROWS_WITH_AS(call(), doctest::Contains(why), Error);
    CHECK(untouched(y));
    CHECK(untouched(dx));
    CHECK(gradients.empty());
  }
};

}  // namespace

TEST_CASE_FIXTURE(fixture, "shapes, null and aliasing are data errors, and nothing is written") {
  refuses<mo::data_error>("forward needs x of the shape [8 x 6], but was given [8 x 5].", [&] {
    layer.forward(weights, mo::matrix_view<float const>{x.data(), 8, 5}, y);
  });
  refuses<mo::data_error>("forward needs y of the shape [7 x 6], but was given [8 x 6].",
                          [&] { layer.forward(weights, x.rows(0, 7), y); });
  refuses<mo::data_error>("null x", [&] { layer.infer(weights, mo::matrix_view<float const>{nullptr, 8, 6}, y); });
  refuses<mo::data_error>("null y", [&] { layer.infer(weights, x, mo::matrix_view<float>{nullptr, 8, 6}); });
  refuses<mo::data_error>("forward was given y that overlaps x", [&] { layer.forward(weights, y, y); });
  refuses<mo::data_error>("infer was given y that overlaps x",
                          [&] { layer.infer(weights, y.rows(1, 7), y.rows(0, 7)); });
}

TEST_CASE_FIXTURE(fixture, "the same for backward") {
  auto z = ctx.matrix(8, 6);
  auto tape = layer.forward(weights, x, z);
  refuses<mo::data_error>("backward needs dy of the shape [8 x 6], but was given [7 x 6].",
                          [&] { layer.backward(weights, tape, dy.rows(0, 7), dx, gradients); });
  refuses<mo::data_error>("backward needs dx of the shape [8 x 6], but was given [8 x 4].", [&] {
    layer.backward(weights, tape, dy, mo::matrix_view<float>{dx.data(), 8, 4}, gradients);
  });
  refuses<mo::data_error>("dx that overlaps dy", [&] { layer.backward(weights, tape, dx, dx, gradients); });
  refuses<mo::data_error>("dx that overlaps x", [&] { layer.backward(weights, tape, dy, x, gradients); });
  refuses<mo::data_error>("null dy", [&] {
    layer.backward(weights, tape, mo::matrix_view<float const>{nullptr, 8, 6}, dx, gradients);
  });
  CHECK(tape.state() == mo::tape_state::forward_done);
  CHECK_NOTHROW(layer.backward(weights, tape, dy, dx, gradients));
}

TEST_CASE_FIXTURE(fixture, "misaligned memory is a data error that names call and argument, and nothing is written") {
  auto const names = [](char const* what) {
    return std::string(what) + " at an address that is no multiple of 4 bytes.";
  };
  auto const refused = [&](char const* what, auto const& call) { refuses<mo::data_error>(names(what).c_str(), call); };
  mo::matrix_view<float const> const in = x.rows(0, 7), d = dy.rows(0, 7);
  mo::matrix_view<float> const out = y.rows(0, 7), gradient = dx.rows(0, 7);
  refused("forward was given x", [&] { layer.forward(weights, shifted<float const>(x, 7), out); });
  refused("forward was given y", [&] { layer.forward(weights, in, shifted(y, 7)); });
  refused("infer was given x", [&] { layer.infer(weights, shifted<float const>(x, 7), out); });
  refused("infer was given y", [&] { layer.infer(weights, in, shifted(y, 7)); });
  auto z = ctx.matrix(7, 6);
  auto tape = layer.forward(weights, in, z);
  refused("backward was given dy",
          [&] { layer.backward(weights, tape, shifted<float const>(dy, 7), gradient, gradients); });
  refused("backward was given dx", [&] { layer.backward(weights, tape, d, shifted(dx, 7), gradients); });
  CHECK(tape.state() == mo::tape_state::forward_done);
  CHECK_NOTHROW(layer.backward(weights, tape, d, gradient, gradients));
}

TEST_CASE_FIXTURE(fixture, "a batch that does not fit its call is a data error") {
  std::vector<std::uint8_t> const mask(7, 1);
  std::vector<std::int32_t> const ids(9, 1);
  std::vector<std::int64_t> const falling{0, 5, 3, 8}, short_of{0, 7};
  refuses<mo::data_error>("mo::batch{.mask} has 7 entries for a call of 8 tokens.",
                          [&] { layer.forward(weights, x, y, {.mask = mask}); });
  refuses<mo::data_error>("mo::batch{.ids}", [&] { layer.forward(weights, x, y, {.ids = ids}); });
  refuses<mo::data_error>("mo::batch{.sequences}", [&] { layer.forward(weights, x, y, {.sequences = falling}); });
  refuses<mo::data_error>("mo::batch{.sequences}", [&] { layer.infer(weights, x, y, {.sequences = short_of}); });
  refuses<mo::data_error>("mo::batch{.weight}", [&] { layer.forward(weights, x, y, {.weight = -1.0}); });
  refuses<mo::data_error>("mo::batch{.weight}",
                          [&] { layer.forward(weights, x, y, {.weight = static_cast<double>(nan)}); });
}

TEST_CASE_FIXTURE(fixture, "non-finite input is rejected by name of layer and token") {
  mo::moe_layer<spec> named{ctx, {.name = "layers.3"}};
  x(5, 2) = nan;
  x(7, 1) = infinity;
  refuses<mo::data_error>("layers.3: the router logits of token 5 are not all finite.",
                          [&] { named.forward(weights, x, y); });
  refuses<mo::data_error>("the router logits of token 5 are not all finite.", [&] { layer.infer(weights, x, y); });
}

TEST_CASE_FIXTURE(fixture, "sanitised input stays in its own token") {
  mo::moe_layer<spec> sanitising{ctx,
                                 {.losses = {mo::load_balance<>{.coefficient = 1}, mo::router_z{.coefficient = 1}},
                                  .non_finite = mo::non_finite::sanitise}};
  auto expected = ctx.matrix(8, 6);
  layer.infer(weights, x, expected);
  std::fill_n(x.row(5), 6, nan);
  auto tape = sanitising.forward(weights, x, y);
  for (std::int64_t t = 0; t < 8; ++t)
    for (std::int64_t h = 0; h < 6; ++h) CHECK(y(t, h) == (t == 5 ? 0.0f : expected(t, h)));
  auto const report = sanitising.report(tape);
  CHECK(report.states().unroutable == 1);
  CHECK(report.states().routed == 7);
  CHECK(std::isfinite(report.value<mo::load_balance<>>()));
  CHECK(std::isfinite(report.value<mo::router_z>()));
  sanitising.backward(weights, tape, dy, dx, gradients);
  for (std::int64_t h = 0; h < 6; ++h) CHECK(dx(5, h) == 0);
  CHECK(std::all_of(dx.begin(), dx.end(), [](float v) { return std::isfinite(v); }));
  gradients.for_each([](auto const&, auto g) {
    for (float const v : g) REQUIRE(std::isfinite(v));
  });
}

TEST_CASE_FIXTURE(fixture, "huge and tiny logits are finite, and routed") {
  for (float const magnitude : {1e30f, 1e-42f}) {
    weights.for_each([&](mo::parameter const& p, auto values) {
      if (p.name != "router.weight") return;
      std::fill(values.begin(), values.end(), 0.0f);
      values[6] = magnitude;  // expert 1, first input
    });
    std::fill(x.begin(), x.end(), 0.5f);
    auto tape = layer.forward(weights, x, y);
    CHECK(tape.routing().expert(0, 0) == (magnitude > 1 ? 1 : 0));  // tiny logits tie: the lower expert wins
    CHECK(std::all_of(y.begin(), y.end(), [](float v) { return std::isfinite(v); }));
    layer.backward(weights, tape, dy, dx, gradients);
    gradients.reset();
  }
}

TEST_CASE_FIXTURE(fixture, "a loss over the global batch is refused under accumulation, and only there") {
  using global = mo::load_balance<mo::over::global_batch>;
  mo::moe_layer<spec> trained{ctx, {.losses = {global{.coefficient = 1}}}};
  auto first = trained.forward(weights, x, y), second = trained.forward(weights, x, y);
  trained.backward(weights, first, dy, dx, gradients);
  std::fill(dx.begin(), dx.end(), 77.0f);
  CHECK_THROWS_WITH_AS(trained.backward(weights, second, dy, dx, gradients), doctest::Contains("gradient accumulation"),
                       mo::config_error);
  CHECK(untouched(dx));
  auto measured = layer.forward(weights, x, y);
  CHECK_NOTHROW(layer.backward(weights, measured, dy, dx, gradients));
}

TEST_CASE("memory that cannot be had is a resource_error, and nothing is written") {
  struct limited final : std::pmr::memory_resource {
    std::int64_t left = 0;
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
      if (static_cast<std::int64_t>(bytes) > left) throw std::bad_alloc();
      left -= static_cast<std::int64_t>(bytes);
      return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void do_deallocate(void* block, std::size_t bytes, std::size_t alignment) override {
      left += static_cast<std::int64_t>(bytes);
      std::pmr::new_delete_resource()->deallocate(block, bytes, alignment);
    }
    bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override { return this == &other; }
  } hook;
  hook.left = mo::host_engine::scratch_bytes + mo::weight_bytes<spec> + 4096;
  mo::context<> ctx{mo::host{.threads = 1, .memory = &hook}};
  mo::moe_layer<spec> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  mo::matrix<float> x(1000, 6), y(1000, 6);
  std::fill(y.begin(), y.end(), 77.0f);
  CHECK_THROWS_WITH_AS(layer.infer(weights, x, y), doctest::Contains("out of memory"), mo::resource_error);
  CHECK(std::all_of(y.begin(), y.end(), [](float v) { return v == 77.0f; }));
  CHECK_NOTHROW(layer.infer(weights, x.rows(0, 2), y.rows(0, 2)));
}

TEST_CASE("the coefficient, the weight and the scale multiply the gradient of a loss") {
  mo::context<> ctx;
  struct only_loss : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 3}> {
    using router = mo::router<mo::softmax, mo::top_k<2>>;
    using losses = mo::losses<mo::load_balance<>>;
  };
  auto const router_gradient = [&](float coefficient, float scale, std::optional<double> weight, float of_batch = 1) {
    mo::moe_layer<only_loss> layer{ctx,
                                   {.losses = {mo::load_balance<>{.coefficient = coefficient}}, .loss_scale = scale}};
    auto const weights = layer.make_weights(mo::seed{1});
    auto gradients = layer.make_gradients();
    auto x = ctx.matrix(8, 6), y = ctx.matrix(8, 6), dy = ctx.matrix(8, 6), dx = ctx.matrix(8, 6);
    mo::fill_normal(ctx, x, mo::seed{2});
    auto tape = layer.forward(weights, x, y, {.weight = weight, .loss_scale = of_batch});
    layer.backward(weights, tape, dy, dx, gradients);
    std::vector<float> all;
    gradients.for_each([&](mo::parameter const& p, auto g) {
      if (p.name == "router.weight") all.assign(g.begin(), g.end());
    });
    return all;
  };
  auto const once = router_gradient(1, 1, {});
  CHECK(std::any_of(once.begin(), once.end(), [](float v) { return v != 0; }));
  CHECK(router_gradient(1, 1, 8.0) == once);
  auto const doubled = router_gradient(2, 1, {});
  for (std::size_t i = 0; i < once.size(); ++i) CHECK(doubled[i] == 2 * once[i]);
  CHECK(router_gradient(1, 2, {}) == doubled);
  CHECK(router_gradient(1, 1, {}, 2) == doubled);
  CHECK(router_gradient(1, 8, {}, 0.25f) == doubled);
  for (float const wrong : {0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::nanf("")})
    CHECK_THROWS_WITH_AS(router_gradient(1, 1, {}, wrong), doctest::Contains("mo::batch{.loss_scale}"), mo::data_error);
  for (float const extreme : {1e30f, 1e-30f})
    CHECK_THROWS_WITH_AS(router_gradient(1, extreme, {}, extreme),
                         doctest::Contains("times the loss_scale of the layer"), mo::data_error);
  CHECK(router_gradient(1, 1, 16.0) == doubled);
  auto const untrained = router_gradient(0, 1, {});
  CHECK(std::all_of(untrained.begin(), untrained.end(), [](float v) { return v == 0; }));
}

TEST_CASE_FIXTURE(fixture, "a router that finds fewer than k experts is a data error of layer and token") {
  mo::moe_layer<brittle_spec> const named{ctx, {.name = "layers.3"}}, nameless{ctx};
  auto const own = named.make_weights(mo::seed{1});
  auto some = ctx.matrix(5, 6);
  std::fill_n(x.data(), 5 * x.cols(), 0.0f);
  CHECK_NOTHROW(named.infer(own, x.rows(0, 5), some));
  refuses<mo::data_error>("layers.3: the router gave token 5 fewer than 2 distinct experts in 0 … 2.",
                          [&] { named.forward(own, x, y); });
  refuses<mo::data_error>("the router gave token 5 fewer than 2 distinct experts in 0 … 2.",
                          [&] { nameless.infer(own, x, y); });
}
