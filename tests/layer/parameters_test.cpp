// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/parameters.hpp>

#include "layer/held.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

struct gated : mo::layer_spec<mo::dims{.hidden = 3, .ffn = 5, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};
struct plain : gated {
  using experts = mo::mlp<mo::relu>;
};
struct gated_biased : gated {
  using experts = mo::gated_mlp<mo::silu, mo::biased>;
};

/// A router with a bias of its logits, and one that it selects by.
struct router_of_biases : mo::router<mo::softmax, mo::top_k<2>> {
  static constexpr bool has_linear_bias = true, has_selection_bias = true;
};

}  // namespace

namespace moiety::inline MOIETY_ABI {
template <> inline constexpr bool is_router<router_of_biases> = true;
}

namespace {

struct with_router_biases : gated {
  using router = router_of_biases;
};
struct in_bf16 : mo::deployment<> {
  using element = mo::bf16;
};

template <class Spec> std::vector<std::string> names() {
  mo::context<> ctx;
  std::vector<std::string> all;
  mo::moe_layer<Spec>{ctx}.make_weights(mo::seed{1}).for_each([&](mo::parameter const& p, auto) {
    all.push_back(p.name);
  });
  return all;
}

}  // namespace

TEST_CASE("parameters have names, logical shapes, slices and types") {
  CHECK(names<gated>() == std::vector<std::string>{"router.weight", "experts.gate", "experts.up", "experts.down"});
  CHECK(names<plain>() == std::vector<std::string>{"router.weight", "experts.up", "experts.down"});
  mo::context<in_bf16> ctx;
  mo::moe_layer<gated, in_bf16> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  std::map<std::string, mo::parameter> all;
  mo::for_each_parameter(weights, [&](mo::parameter const& p, auto values) {
    CHECK(values.size() == p.size());
    for (std::size_t axis = 0; axis < p.shape.size(); ++axis) CHECK(p.part[axis].first == 0);
    CHECK(p.part[0].count == 4);
    all[p.name] = p;
  });
  CHECK(all["router.weight"].shape == std::vector<std::int64_t>{4, 3});
  CHECK(all["router.weight"].type == "float");
  CHECK(all["experts.up"].shape == std::vector<std::int64_t>{4, 5, 3});
  CHECK(all["experts.up"].type == "bf16");
  CHECK(all["experts.up"].fan_in == 3);
  CHECK(all["experts.down"].shape == std::vector<std::int64_t>{4, 3, 5});
  CHECK(all["experts.down"].fan_in == 5);
}

TEST_CASE("weights and gradients are visited together, gradients in the sum type") {
  mo::context<in_bf16> ctx;
  mo::moe_layer<gated, in_bf16> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  int visits = 0;
  mo::for_each_parameter(weights, gradients, [&](mo::parameter const& p, auto w, auto g) {
    CHECK(w.size() == g.size());
    CHECK(std::is_same_v<typename decltype(g)::element_type, float>);
    for (float const v : g) CHECK(v == 0);
    visits += p.size() > 0;
  });
  CHECK(visits == 4);
}

TEST_CASE("gradients know that they are empty, and read as zeros then") {
  mo::context<> ctx;
  mo::moe_layer<gated> layer{ctx};
  auto gradients = layer.make_gradients();
  CHECK(gradients.empty());
  gradients.for_each([](auto const&, auto g) { std::fill(g.begin(), g.end(), 7.0f); });
  CHECK_FALSE(gradients.empty());
  gradients.reset();
  CHECK(gradients.empty());
  gradients.for_each([](auto const&, auto g) {
    for (float const v : g) CHECK(v == 0);
  });
}

TEST_CASE("zeros that were only prepared are no earlier backward to a loss over the global batch") {
  struct global : gated {
    using losses = mo::losses<mo::load_balance<mo::over::global_batch>>;
  };
  mo::context<> ctx;
  mo::moe_layer<global> layer{ctx, {.losses = {mo::load_balance<mo::over::global_batch>{.coefficient = 1}}}};
  auto weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients(), plain = layer.make_gradients();
  mo::matrix<float> x(6, 3), y(6, 3), dx(6, 3);
  mo::fill_normal(ctx, x, mo::seed{2});
  auto const backward = [&](auto& to) {
    auto tape = layer.forward(weights, x, y);
    layer.backward(weights, tape, x, dx, to);
  };
  auto const bits = [](auto& of) {
    std::vector<float> all;
    of.for_each([&](mo::parameter const&, auto g) { all.insert(all.end(), g.begin(), g.end()); });
    return all;
  };
  mo::adamw<float> optimiser;
  optimiser.prepare(mo::parameters_of(weights, gradients));
  CHECK(mo::global_norm(ctx, gradients) == 0);
  CHECK_FALSE(gradients.empty());
  CHECK_NOTHROW(backward(gradients));
  backward(plain);
  CHECK(bits(gradients) == bits(plain));
  CHECK_THROWS_WITH_AS(backward(gradients), doctest::Contains("under gradient accumulation"), mo::config_error);
  CHECK(bits(gradients) == bits(plain));
  gradients.reset();
  gradients.for_each([](mo::parameter const&, auto) {});
  CHECK_NOTHROW(backward(gradients));
  CHECK(bits(gradients) == bits(plain));
  CHECK_THROWS_AS(backward(gradients), mo::config_error);
}

TEST_CASE("memory is bound by typed pointers or void, and refused when null or of another type") {
  mo::context<in_bf16> ctx;
  mo::moe_layer<gated, in_bf16> layer{ctx};
  std::map<std::string, std::vector<std::byte>> memory;
  auto weights = layer.bind_weights(
      [&](mo::parameter const& p) -> void* { return memory.try_emplace(p.name, p.size() * 4).first->second.data(); });
  layer.initialise(weights, mo::seed{2});
  CHECK(memory.size() == 4);
  CHECK_THROWS_WITH_AS(layer.bind_weights([](mo::parameter const&) -> void* { return nullptr; }),
                       doctest::Contains("router.weight was bound to null"), mo::data_error);
  float word = 0;
  CHECK_THROWS_WITH_AS(layer.bind_weights([&](mo::parameter const&) { return &word; }),
                       doctest::Contains("experts.gate holds bf16"), mo::config_error);
}

TEST_CASE("misaligned memory is refused by the name of its parameter, and nothing is written") {
  mo::context<in_bf16> ctx;
  mo::moe_layer<gated, in_bf16> layer{ctx};
  for (auto const& [name, bytes] : {std::pair{"router.weight", 4}, {"experts.gate", 2}, {"experts.down", 2}}) {
    std::map<std::string, std::vector<std::byte>> memory;
    auto const bind = [&, odd = std::string(name)](mo::parameter const& p) -> void* {
      auto& values = memory.try_emplace(p.name, p.size() * 4 + 1, std::byte{77}).first->second;
      return values.data() + (p.name == odd ? 1 : 0);
    };
    std::string const why = std::string("bind_weights was given memory for parameter ") + name +
                            " at an address that is no multiple of " + std::to_string(bytes) + " bytes.";
    CHECK_THROWS_WITH_AS(layer.bind_weights(bind), why.c_str(), mo::data_error);
    for (auto const& [_, values] : memory)
      CHECK(std::all_of(values.begin(), values.end(), [](std::byte b) { return b == std::byte{77}; }));
  }
}

TEST_CASE("biased experts have biases in the element type, which start at 0") {
  CHECK(names<gated_biased>() == std::vector<std::string>{"router.weight", "experts.gate", "experts.up", "experts.down",
                                                          "experts.gate_bias", "experts.up_bias", "experts.down_bias"});
  mo::context<in_bf16> ctx;
  mo::moe_layer<gated_biased, in_bf16> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  mo::for_each_parameter(weights, [&](mo::parameter const& p, auto values) {
    if (p.name.find("bias") == std::string::npos) return;
    CHECK(p.shape == std::vector<std::int64_t>{4, p.name == "experts.down_bias" ? 3 : 5});
    CHECK(p.type == "bf16");
    CHECK(p.trained);
    CHECK(std::all_of(values.begin(), values.end(), [](auto v) { return static_cast<float>(v) == 0; }));
  });
}

TEST_CASE("a router's bias is a parameter in the sum type, its selection bias a state in float without a gradient") {
  struct in_double : mo::deployment<> {
    using element = double;
  };
  mo::context<in_double> ctx;
  mo::moe_layer<with_router_biases, in_double> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  std::vector<std::string> checkpoint, trained;
  mo::for_each_parameter(weights, [&]<class V>(mo::parameter const& p, std::span<V> values) {
    checkpoint.push_back(p.name);
    CHECK(p.trained == (p.name != "router.selection_bias"));
    CHECK(std::is_same_v<V, double> == (p.name != "router.selection_bias"));
    if (p.shape.size() == 1) CHECK(std::all_of(values.begin(), values.end(), [](V v) { return v == 0; }));
  });
  CHECK(checkpoint == std::vector<std::string>{"router.weight", "router.bias", "experts.gate", "experts.up",
                                               "experts.down", "router.selection_bias"});
  mo::for_each_parameter(weights, gradients, [&](mo::parameter const& p, auto, auto) { trained.push_back(p.name); });
  CHECK(trained ==
        std::vector<std::string>{"router.weight", "router.bias", "experts.gate", "experts.up", "experts.down"});
  CHECK(weights.router_bias() != nullptr);
  CHECK(weights.selection_bias() != nullptr);
  CHECK(gradients.router_bias() != nullptr);
  CHECK(gradients.selection_bias() == nullptr);
  std::vector<std::string> asked;
  CHECK_THROWS_AS(layer.bind_weights([&](mo::parameter const& p) -> double* {
    asked.push_back(p.name);
    return p.name == "router.selection_bias" ? nullptr : weights.router().data();
  }),
                  mo::config_error);
  CHECK(asked.back() == "router.selection_bias");
  mo::context<> plain_ctx;
  auto const plain = mo::moe_layer<gated>{plain_ctx}.make_weights(mo::seed{1});
  CHECK(plain.router_bias() == nullptr);
  CHECK(plain.selection_bias() == nullptr);
}

TEST_CASE("gradients of another layer are refused, and more than there are weights") {
  held::parts<float> one, two;
  one.add("a", 0, 3, false), two.add("a", 0, 3, false), two.add("b", 0, 3, false);
  std::vector<std::string> seen;
  auto const see = [&](mo::parameter const& p, auto, auto) { seen.push_back(p.name); };
  CHECK_THROWS_WITH_AS(mo::for_each_parameter(one, two, see),
                       "the gradients have 1 parameters behind the last of the weights.", mo::state_error);
  CHECK_NOTHROW(mo::for_each_parameter(two, two, see));
  CHECK(seen == std::vector<std::string>{"a", "a", "b"});
  mo::context<> ctx;
  auto weights = mo::moe_layer<gated>{ctx}.make_weights(mo::seed{1});
  auto gradients = mo::moe_layer<with_router_biases>{ctx}.make_gradients();
  CHECK_THROWS_WITH_AS(mo::for_each_parameter(weights, gradients, [](mo::parameter const&, auto, auto) {}),
                       "the weights have a parameter experts.gate where the gradients have none of it.",
                       mo::state_error);
}

TEST_CASE("tensors that lie otherwise are used where they lie: memory of a framework, without a copy") {
  struct fused : gated {
    using experts = mo::gated_mlp<mo::silu, mo::interleaved, mo::in_by_out>;
  };
  mo::context<> ctx;
  mo::moe_layer<fused> layer{ctx};
  std::map<std::string, std::vector<float>> memory;
  auto const weights = layer.bind_weights(
      [&](mo::parameter const& p) { return memory.try_emplace(p.name, p.size()).first->second.data(); });
  auto const matrices = weights.experts();
  CHECK(matrices.inputs[0].data == memory["experts.gate_up"].data());
  CHECK(matrices.down.data == memory["experts.down"].data());
  auto x = ctx.matrix(1, 3), y = ctx.matrix(1, 3);
  x(0, 0) = 2;
  auto& fused_memory = memory["experts.gate_up"];
  auto& down = memory["experts.down"];
  for (std::size_t e = 0; e < 4; ++e) fused_memory[e * 30 + 2] = 1, fused_memory[e * 30 + 3] = 3;  // unit 1, input 0
  for (std::size_t e = 0; e < 4; ++e) down[e * 15 + 1 * 3 + 2] = 1;                                // unit 1, output 2
  layer.infer(weights, x, y);
  CHECK(y(0, 2) == doctest::Approx(0.5 * 2 * .880797 * 6));  // equal logits of four experts: two weights of a quarter
  CHECK(y(0, 0) == 0);
}

TEST_CASE(
    "weights and gradients that were moved from are refused, nothing is written, and they work again once assigned") {
  struct biased : gated {
    using router = mo::router<mo::sigmoid, mo::top_k<2>, mo::selection_bias>;
  };
  mo::context<> ctx;
  mo::moe_layer<biased> const layer{ctx};
  auto x = ctx.matrix(4, 3), y = ctx.matrix(4, 3), dx = ctx.matrix(4, 3);
  mo::fill_normal(ctx, x, mo::seed{1});
  auto const nothing = [](mo::parameter const&, auto) {};
  std::vector<std::vector<float>> places;
  auto const bind = [&](mo::parameter const& p) { return places.emplace_back(p.size(), 0.5f).data(); };
  places.reserve(16);
  for (bool const bound : {false, true}) {
    auto weights = bound ? layer.bind_weights(bind) : layer.make_weights(mo::seed{1});
    auto gradients = layer.make_gradients();
    auto tape = layer.forward(weights, x, y);
    auto const before = std::vector<float>(y.begin(), y.end());
    auto held = std::move(weights);
    auto held_gradients = std::move(gradients);
    std::fill(y.begin(), y.end(), 5.0f), std::fill(dx.begin(), dx.end(), 5.0f);
    CHECK_THROWS_WITH_AS(layer.forward(weights, x, y), "weights of a layer were used after a move.", mo::state_error);
    CHECK_THROWS_AS(layer.infer(weights, x, y), mo::state_error);
    CHECK_THROWS_AS(layer.pack(weights), mo::state_error);
    CHECK_THROWS_AS(layer.initialise(weights, mo::seed{2}), mo::state_error);
    CHECK_THROWS_AS(weights.for_each_trained(nothing), mo::state_error);
    CHECK_THROWS_AS(std::as_const(weights).for_each(nothing), mo::state_error);
    CHECK_THROWS_AS(weights.selection_bias(), mo::state_error);
    CHECK_THROWS_AS(layer.backward_input(weights, tape, x, dx), mo::state_error);
    CHECK_THROWS_WITH_AS(layer.backward(held, tape, x, dx, gradients), "gradients of a layer were used after a move.",
                         mo::state_error);
    CHECK_THROWS_AS(gradients.for_each(nothing), mo::state_error);
    CHECK(std::all_of(y.begin(), y.end(), [](float v) { return v == 5; }));
    CHECK(std::all_of(dx.begin(), dx.end(), [](float v) { return v == 5; }));
    layer.backward(held, tape, x, dx, held_gradients);
    weights = std::move(held), gradients = std::move(held_gradients);
    CHECK_THROWS_AS(layer.infer(held, x, y), mo::state_error);
    layer.infer(weights, x, y);
    CHECK(std::equal(y.begin(), y.end(), before.begin()));
    CHECK_FALSE(gradients.empty());
  }
}
