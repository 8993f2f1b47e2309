// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/moe_layer.hpp>

#include <moiety/cuda.cuh>

#include "captured_graph.hpp"
#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <ratio>
#include <span>
#include <sstream>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

template <class T, class Backend = mo::cuda> struct on : mo::deployment<> {
  using backend = Backend;
  using element = T;
};

using by_sequence = mo::load_balance<mo::over::sequence>;

struct swiglu : mo::layer_spec<mo::dims{.hidden = 72, .ffn = 40, .experts = 6}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>;
  using losses = mo::losses<by_sequence, mo::load_balance<>, mo::router_z>;
};

/// Nothing is a multiple of anything, and there is more than one tile of columns.
struct odd : mo::layer_spec<mo::dims{.hidden = 13, .ffn = 135, .experts = 40}> {
  using router = mo::router<mo::sigmoid, mo::top_k<3>, mo::scale<std::ratio<5, 2>>>;
  using experts = mo::mlp<mo::gelu_tanh>;
  using losses = mo::losses<mo::load_balance<>>;
};

struct biased : swiglu {
  using experts = mo::clamped_swiglu<std::ratio<1>, mo::biased>;
};

struct beside : odd {
  using shared = mo::shared_experts<2, mo::sigmoid_gated, mo::gated_mlp<mo::silu, mo::biased>>;
};
struct plain_beside : swiglu {
  using shared = mo::shared_experts<>;
};

struct with_zeros : mo::layer_spec<mo::dims{.hidden = 72, .ffn = 40, .experts = 6, .zero_experts = 5}> {
  using router = mo::router<mo::softmax, mo::top_k<4>>;
  using experts = mo::gated_mlp<mo::silu, mo::biased>;
  using losses = mo::losses<mo::load_balance<>>;
};

struct in_latent : mo::layer_spec<mo::dims{.hidden = 72, .ffn = 40, .experts = 6, .latent = 24}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using shared = mo::shared_experts<>;
};
struct on_input : odd {
  using router = mo::router<mo::sigmoid, mo::top_k<3>, mo::on_input, mo::renormalised>;
};
struct on_activation : biased {
  using router = mo::router<mo::sqrt_softplus, mo::top_k<2>, mo::on_activation, mo::linear_bias>;
};
struct noisy : on_input {
  using router = mo::router<mo::jitter<std::ratio<1, 10>>, mo::linear_bias, mo::softmax, mo::top_k<3>, mo::on_input>;
};
struct grouped : odd {
  using router = mo::router<mo::sigmoid, mo::selection_bias, mo::groups<8, 4>, mo::top_k<6>, mo::renormalised>;
};
struct mixed : odd {
  using router = mo::router<mo::softmax, mo::top_k<3>, mo::sparsemixer<std::ratio<1, 4>>>;
};

struct noisy_logits : odd {
  using router = mo::router<mo::logit_noise, mo::softmax, mo::top_k<3>, mo::renormalised, mo::jitter<>>;
  using losses = mo::losses<mo::noisy_load<mo::over::sequence>, mo::importance<>>;
};

struct limited : swiglu {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using capacity = mo::capacity<std::ratio<3, 4>, mo::renormalise_after_drop>;
};
struct limited_by_sequence : odd {
  using capacity = mo::capacity<std::ratio<1>, mo::drop::random, mo::per::sequence>;
  using shared = mo::shared_experts<>;
};

struct chosen_by_experts : swiglu {
  using router = mo::router<mo::softmax, mo::expert_choice<2>>;
};
struct rounded_tokens : swiglu {
  using router = mo::router<mo::sigmoid, mo::token_rounding<2, 8>, mo::renormalised, mo::on_activation>;
};
/// With a capacity, which a plan of so few iterations needs.
struct balanced : odd {
  using router = mo::router<mo::sigmoid, mo::sinkhorn<3, 4>>;
  using capacity = mo::capacity<std::ratio<1>, mo::drop::position>;
};

template <class Experts> struct stored : mo::layer_spec<mo::dims{.hidden = 13, .ffn = 135, .experts = 7}> {
  using router = mo::router<mo::softmax, mo::top_k<3>>;
  using experts = Experts;
};

template <class Spec> mo::layer_options<Spec> options() {
  mo::layer_options<Spec> all{.non_finite = mo::non_finite::sanitise, .loss_scale = 2};
  all.losses.for_each([&]<class Loss>(Loss const&) { all.losses.template get<Loss>().coefficient = 0.25f; });
  return all;
}

template <class Engine, class T> std::vector<T> copied(Engine& engine, T const* from, std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  engine.memory().load(values.data(), from, count * static_cast<std::int64_t>(sizeof(T)));
  return values;
}

template <class T> struct outcome {
  using S = mo::sum_t<T>;
  std::vector<std::int32_t> ids;
  std::vector<S> weights;
  std::vector<mo::token_state> states;
  std::vector<T> y, inferred, dx;
  std::vector<std::vector<S>> gradients;
  std::string report;
};

struct call {
  std::int64_t tokens;
  std::vector<std::int64_t> sequences{};
  std::vector<std::uint8_t> mask{};
  std::optional<double> weight{};
  std::vector<std::int64_t> nan_rows{};  // tokens whose first value is NaN
};

/// Biases start at 0, where a mistake would not show.
template <class Engine, class Weights> void draw_biases(Engine& engine, Weights& weights, std::uint64_t number) {
  weights.for_each([&]<class V>(mo::parameter const& p, std::span<V> values) {
    if (p.fan_in != 0 || !p.trained) return;
    for (std::size_t i = 0; i < values.size(); ++i) {
      auto const value = static_cast<V>(static_cast<float>(mo::normal(mo::seed{number}, mo::stream_of(p.name), i)));
      engine.memory().store(&values[i], &value, sizeof(value));
    }
  });
}

/// Two steps whose gradients add; x is the same in both.
template <class Spec, class Deployment> auto run(mo::context<Deployment>& ctx, call const& of, std::uint64_t number) {
  using T = typename mo::context<Deployment>::element;
  auto const hidden = mo::spec_of<Spec>::hidden;
  mo::moe_layer<Spec, Deployment> layer{ctx, options<Spec>()};
  auto weights = layer.make_weights(mo::seed{number});
  draw_biases(ctx.engine(), weights, number);
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(of.tokens, hidden), y = ctx.matrix(of.tokens, hidden), dy = ctx.matrix(of.tokens, hidden),
       dx = ctx.matrix(of.tokens, hidden);
  mo::fill_normal(ctx, x, mo::seed{number + 1});
  mo::fill_normal(ctx, dy, mo::seed{number + 2});
  T const nan = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
  for (std::int64_t const row : of.nan_rows) ctx.memory().store(x.rows(row, 1).data(), &nan, sizeof(nan));
  mo::buffer const mask(static_cast<std::int64_t>(of.mask.size()), ctx.memory());
  ctx.memory().store(mask.data(), of.mask.data(), mask.bytes());
  mo::batch const about{.sequences = of.sequences,
                        .mask = {static_cast<std::uint8_t const*>(mask.data()), of.mask.size()},
                        .weight = of.weight};
  outcome<T> result;
  for (int step = 0; step < 2; ++step) {
    auto tape = layer.forward(weights, x, y, about);
    if (step == 0) {
      auto const& r = tape.routing();
      result.ids = copied(ctx.engine(), r.ids, r.tokens * r.slots);
      result.weights = copied(ctx.engine(), r.weights, r.tokens * r.slots);
      result.states = copied(ctx.engine(), r.states, r.tokens);
      std::ostringstream text;
      text.precision(17);
      text << layer.report(tape);
      result.report = text.str();
      layer.backward(weights, tape, dy, dx, gradients);
    } else {
      layer.backward_input(weights, tape, dy, dx);
      layer.backward_weights(tape, gradients);
    }
  }
  auto const all = [&](auto& m) { return copied(ctx.engine(), static_cast<T const*>(m.data()), of.tokens * hidden); };
  result.y = all(y), result.dx = all(dx);
  layer.infer(weights, x, y, about);
  result.inferred = all(y);
  gradients.for_each([&](mo::parameter const&, auto values) {
    result.gradients.push_back(copied(ctx.engine(), values.data(), static_cast<std::int64_t>(values.size())));
  });
  ctx.synchronize();
  return result;
}

template <class V> bool same_bits(std::vector<V> const& a, std::vector<V> const& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(V)) == 0);
}

template <class V> double distance(std::vector<V> const& wanted, std::vector<V> const& got) {
  REQUIRE(wanted.size() == got.size());
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    auto const a = static_cast<double>(wanted[i]), b = static_cast<double>(got[i]);
    if (std::isnan(a) && std::isnan(b)) continue;
    error += (a - b) * (a - b), norm += a * a;
  }
  return error == 0 ? 0 : std::sqrt(error / norm);
}

template <class Spec, class T> void compare(call const& of) {
  constexpr bool chains = std::same_as<T, float> || std::same_as<T, double>;
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number, ", ", of.tokens, " tokens of ", std::string(mo::name_of<T>));
  mo::context<on<T, mo::host>> cpu{mo::host{.threads = 1}};
  mo::context<on<T>> gpu;
  auto const wanted = run<Spec>(cpu, of, number);
  auto const got = run<Spec>(gpu, of, number);
  // The router's products are chains for every element type: its results have the bits of the host.
  CHECK(same_bits(wanted.ids, got.ids));
  CHECK(same_bits(wanted.weights, got.weights));
  CHECK(same_bits(wanted.states, got.states));
  CHECK(wanted.report == got.report);
  if (!Spec::router::has_jitter) CHECK(same_bits(got.y, got.inferred));
  if (chains) CHECK(same_bits(wanted.y, got.y));
  CHECK(distance(wanted.y, got.y) <= (chains ? 0 : 4e-3));
  CHECK(distance(wanted.dx, got.dx) <= (chains ? 1e-6 : 6e-3));
  REQUIRE(wanted.gradients.size() == got.gradients.size());
  for (std::size_t i = 0; i < wanted.gradients.size(); ++i) {
    CAPTURE(i);
    CHECK(distance(wanted.gradients[i], got.gradients[i]) <= (chains ? 2e-6 : 6e-3));
  }
}

}  // namespace

TEST_CASE_TEMPLATE("a layer on a device is the layer on the host", T, float, mo::bf16) {
  compare<swiglu, T>({.tokens = 67});
  compare<swiglu, T>({.tokens = 1});
  compare<swiglu, T>({.tokens = 0});
}

TEST_CASE_TEMPLATE("biased experts on a device are those on the host", T, float, mo::bf16) {
  for (std::int64_t const tokens : {37, 2, 1, 0}) compare<biased, T>({.tokens = tokens});
}

TEST_CASE_TEMPLATE("weights on inputs or activations mean on a device what they mean on the host", T, float, mo::bf16) {
  for (std::int64_t const tokens : {37, 1, 0}) {
    compare<on_input, T>({.tokens = tokens});
    compare<on_activation, T>({.tokens = tokens});
  }
}

TEST_CASE("jitter, groups and biases are on a device what they are on the host") {
  for (std::int64_t const tokens : {37, 1, 0}) compare<noisy, float>({.tokens = tokens});
  compare<grouped, float>({.tokens = 37, .nan_rows = {3}});
  compare<mixed, float>({.tokens = 37, .nan_rows = {3}});
}

TEST_CASE("jitter, groups and biases of bf16 are on a device what they are on the host" * doctest::test_suite("long")) {
  for (std::int64_t const tokens : {37, 1, 0}) compare<noisy, mo::bf16>({.tokens = tokens});
  compare<grouped, mo::bf16>({.tokens = 37, .nan_rows = {3}});
  compare<mixed, mo::bf16>({.tokens = 37, .nan_rows = {3}});
}

TEST_CASE("shared experts on a device are those on the host") {
  std::vector<std::uint8_t> mask(37, 1);
  for (std::size_t const t : {0, 5, 36}) mask[t] = 0;
  compare<beside, float>({.tokens = 37, .mask = mask});
  compare<beside, float>({.tokens = 0});
  compare<plain_beside, mo::bf16>({.tokens = 37, .mask = mask, .nan_rows = {3}});
}

TEST_CASE("zero-compute experts on a device are those on the host") {
  for (std::int64_t const tokens : {37, 1, 0}) compare<with_zeros, float>({.tokens = tokens});
  compare<with_zeros, mo::bf16>({.tokens = 37});
}

TEST_CASE("experts of a latent width on a device are those on the host") {
  std::vector<std::uint8_t> mask(37, 1);
  for (std::size_t const t : {0, 5, 36}) mask[t] = 0;
  compare<in_latent, float>({.tokens = 37, .mask = mask});
  compare<in_latent, float>({.tokens = 0});
  compare<in_latent, mo::bf16>({.tokens = 37});
}

TEST_CASE("noise of logits and its load loss on a device are those on the host") {
  compare<noisy_logits, float>({.tokens = 37});
  compare<noisy_logits, double>({.tokens = 60, .sequences = {0, 10, 10, 45, 60}, .nan_rows = {0, 5, 32}});
  compare<noisy_logits, mo::bf16>({.tokens = 0});
}

TEST_CASE("experts of a capacity drop on a device what they drop on the host") {
  std::vector<std::uint8_t> mask(60, 1);
  for (std::size_t const t : {0, 7, 8, 30, 59}) mask[t] = 0;
  for (std::int64_t const tokens : {60, 1, 0}) compare<limited, float>({.tokens = tokens});
  compare<limited, mo::bf16>({.tokens = 60, .sequences = {0, 10, 10, 45, 60}, .mask = mask, .nan_rows = {3, 9}});
  compare<limited_by_sequence, float>({.tokens = 60, .sequences = {0, 10, 10, 45, 60}, .mask = mask, .nan_rows = {3}});
  compare<limited_by_sequence, float>({.tokens = 37});
}

TEST_CASE("selections over a whole batch choose on a device what they choose on the host") {
  std::vector<std::uint8_t> mask(60, 1);
  for (std::size_t const t : {0, 7, 8, 30, 59}) mask[t] = 0;
  call const masked{.tokens = 60, .sequences = {0, 10, 10, 45, 60}, .mask = mask, .nan_rows = {3, 9}};
  compare<chosen_by_experts, float>(masked);
  compare<rounded_tokens, float>(masked);
  compare<balanced, mo::bf16>(masked);
  for (std::int64_t const tokens : {1, 0}) {
    compare<chosen_by_experts, float>({.tokens = tokens});
    compare<rounded_tokens, float>({.tokens = tokens});
  }
}

TEST_CASE("tensors that lie otherwise are read on a device as on the host") {
  using swiglu_of_gpt_oss = mo::clamped_swiglu<std::ratio<1>, mo::biased, mo::interleaved, mo::in_by_out>;
  compare<stored<swiglu_of_gpt_oss>, float>({.tokens = 37});
  compare<stored<swiglu_of_gpt_oss>, mo::bf16>({.tokens = 37});
  compare<stored<mo::gated_mlp<mo::silu, mo::concatenated, mo::biased>>, float>({.tokens = 37});
  compare<stored<mo::mlp<mo::gelu_tanh, mo::in_by_out>>, double>({.tokens = 37});
}

TEST_CASE("sizes that are multiples of nothing, in double") { compare<odd, double>({.tokens = 37}); }
TEST_CASE("sizes that are multiples of nothing, in fp16") { compare<odd, mo::fp16>({.tokens = 37}); }

TEST_CASE("padding, sequences and weights mean on a device what they mean on the host") {
  std::vector<std::uint8_t> mask(60, 1);
  for (std::size_t const t : {0, 7, 8, 30, 59}) mask[t] = 0;
  compare<swiglu, float>({.tokens = 60, .sequences = {0, 10, 10, 45, 60}, .mask = mask});
  compare<swiglu, mo::bf16>({.tokens = 60, .sequences = {0, 10, 10, 45, 60}, .weight = 3.5});
  compare<swiglu, float>({.tokens = 60, .mask = std::vector<std::uint8_t>(60, 0)});
}

TEST_CASE("tokens whose logits are not finite are routed nowhere, on a device as on the host") {
  compare<swiglu, float>({.tokens = 33, .nan_rows = {0, 5, 32}});
  compare<swiglu, mo::bf16>({.tokens = 33, .sequences = {0, 20, 33}, .nan_rows = {0, 5, 32}});
}

namespace {

/// A layer and what a step needs.
template <class T, class Spec = swiglu> struct fixture {
  static constexpr std::int64_t tokens = 50, hidden = mo::spec_of<Spec>::hidden;
  using layer_type = mo::moe_layer<Spec, on<T>>;
  mo::context<on<T>> ctx;
  layer_type layer;
  typename layer_type::weights_type weights;
  typename layer_type::gradients_type gradients;
  mo::device_matrix<T> x, y, dy, dx;

  explicit fixture(mo::cuda const& on_device = {}, mo::layer_options<Spec> const& with = options<Spec>())
      : ctx(on_device),
        layer(ctx, with),
        weights(layer.make_weights(mo::seed{1})),
        gradients(layer.make_gradients()),
        x(ctx.matrix(tokens, hidden)),
        y(ctx.matrix(tokens, hidden)),
        dy(ctx.matrix(tokens, hidden)),
        dx(ctx.matrix(tokens, hidden)) {
    mo::fill_normal(ctx, x, mo::seed{2});
    mo::fill_normal(ctx, dy, mo::seed{3});
  }

  void step(mo::batch const& about = {}) {
    auto tape = layer.forward(weights, x, y, about);
    layer.backward(weights, tape, dy, dx, gradients);
  }

  /// y, dx and all gradients, one after another.
  std::vector<float> results() {
    std::vector<float> all;
    for (T const v : y.host()) all.push_back(static_cast<float>(v));
    for (T const v : dx.host()) all.push_back(static_cast<float>(v));
    gradients.for_each([&](mo::parameter const&, auto values) {
      auto const part = copied(ctx.engine(), values.data(), static_cast<std::int64_t>(values.size()));
      for (auto const v : part) all.push_back(static_cast<float>(v));
    });
    return all;
  }

  void poison() {
    auto const spoil = [&](void* at, std::size_t bytes) {
      REQUIRE(cudaMemsetAsync(at, 0xff, bytes, ctx.engine().stream()) == cudaSuccess);
    };
    spoil(y.data(), y.size() * sizeof(T)), spoil(dx.data(), dx.size() * sizeof(T));
    gradients.for_each([&](mo::parameter const&, auto values) { spoil(values.data(), values.size_bytes()); });
    gradients.reset();
  }
};

}  // namespace

TEST_CASE("a step is captured into a graph, and its replays have the bits of the step") {
  fixture<mo::bf16> f;
  f.step();  // the arena holds what a step needs
  auto const wanted = f.results();
  f.poison();
  testing::captured_graph const graph(f.ctx.engine().stream(), [&] { f.step(); });
  for (int replay = 0; replay < 3; ++replay) {
    if (replay == 2) {  // another call takes none of the blocks of the graph
      auto tape = f.layer.forward(f.weights, f.x, f.y);
      f.poison();
      graph.replay();
      f.layer.backward(f.weights, tape, f.dy, f.dx, f.gradients);
      CHECK(same_bits(f.results(), wanted));
      continue;
    }
    f.poison();
    graph.replay();
    f.gradients.filled();
    CHECK(same_bits(f.results(), wanted));
  }
}

TEST_CASE("offsets of sequences that a capacity needs are part of a graph") {
  fixture<float, limited_by_sequence> f;
  std::vector<std::int64_t> sequences{0, 20, 50};
  f.step({.sequences = sequences});
  auto const wanted = f.results();
  f.poison();
  testing::captured_graph const graph(f.ctx.engine().stream(), [&] { f.step({.sequences = sequences}); });
  sequences.assign(3, -1);
  f.poison();
  graph.replay();
  f.gradients.filled();
  CHECK(same_bits(f.results(), wanted));
}

TEST_CASE("a capture that would need memory says so") {
  fixture<float> f;
  cudaStream_t const stream = f.ctx.engine().stream();
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  std::string said;
  try {
    f.step();
  } catch (mo::cuda_error const& e) {
    said = e.what();
  }
  static_cast<void>(cudaStreamEndCapture(stream, &graph));
  static_cast<void>(cudaGetLastError());
  if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
  CHECK(said.find("make the call once before it is captured.") != std::string::npos);
}

TEST_CASE("twenty runs have the same bits, whatever else the device does meanwhile") {
  fixture<mo::bf16> f;
  fixture<float, odd> other;  // in a stream of its own
  f.step();
  auto const wanted = f.results();
  for (int i = 0; i < 19; ++i) {
#if defined(CUDA_ON_CPU)
    cuda_on_cpu::knobs.seed = static_cast<std::uint64_t>(100 + i);  // of the order of threads
    if (i >= 4) break;
#endif
    f.poison();
    other.step();
    f.step();
    CHECK(same_bits(f.results(), wanted));
  }
  CHECK_NOTHROW(other.ctx.synchronize());
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::reset();
#endif
}

TEST_CASE("rejected logits are an error of the next synchronize") {
  auto with = options<swiglu>();
  with.non_finite = mo::non_finite::reject;
  fixture<float> f({}, with);
  float const nan = std::numeric_limits<float>::quiet_NaN();
  for (std::int64_t const row : {41, 7}) f.ctx.memory().store(f.x.rows(row, 1).data(), &nan, sizeof(nan));
  f.step();
  CHECK_THROWS_WITH_AS(f.ctx.synchronize(), "the router logits of token 7 were not all finite.", mo::data_error);
  CHECK_NOTHROW(f.ctx.synchronize());
}

TEST_CASE("matrices of the wrong shape or kind are refused before anything is written") {
  fixture<float> f;
  mo::matrix<float> on_host(fixture<float>::tokens, fixture<float>::hidden);
  std::vector<std::uint8_t> const mask(50, 1);
  f.poison();
  CHECK_THROWS_WITH_AS(f.layer.forward(f.weights, on_host.view(), f.y),
                       "forward was given x in host memory; mo::cuda needs device memory.", mo::cuda_error);
  CHECK_THROWS_WITH_AS(f.layer.forward(f.weights, f.x, on_host.view()),
                       "forward was given y in host memory; mo::cuda needs device memory.", mo::cuda_error);
  CHECK_THROWS_WITH_AS(f.layer.infer(f.weights, f.x, f.y, {.mask = mask}),
                       "a layer was given a mask in host memory; mo::cuda needs device memory.", mo::cuda_error);
  CHECK_THROWS_WITH_AS(f.layer.forward(f.weights, f.x, f.y.rows(0, 49)),
                       "forward needs y of the shape [50 x 72], but was given [49 x 72].", mo::data_error);
  auto const odd_place = reinterpret_cast<float*>(reinterpret_cast<char*>(f.y.data()) + 2);
  CHECK_THROWS_AS(f.layer.forward(f.weights, f.x, mo::matrix_view<float>(odd_place, 49, 72)), mo::data_error);
  std::vector<float> mine(6 * 72 * 40);
  CHECK_THROWS_WITH_AS(f.layer.bind_weights([&](mo::parameter const&) { return mine.data(); }),
                       "bind_weights was given router.weight in host memory; mo::cuda needs device memory.",
                       mo::cuda_error);
  auto tape = f.layer.forward(f.weights, f.x, f.dx);
  CHECK_THROWS_AS(f.layer.backward_input(f.weights, tape, on_host.view(), f.dx), mo::cuda_error);
  for (float const v : f.y.host()) REQUIRE(std::isnan(v));
  CHECK_NOTHROW(f.ctx.synchronize());
}

namespace {

template <class Spec, class T> void check_memory(std::vector<std::int64_t> const& sequences) {
  using D = on<T>;
  testing::counted_device_memory hook;
  {
    fixture<T, Spec> f(mo::cuda{.memory = &hook});
    mo::batch const about{.sequences = sequences};
    mo::tokens const all{f.tokens, about.units()};
    f.ctx.memory().release();
    std::int64_t const kept = hook.live;
    std::int64_t const saved = mo::saved_bytes<Spec, D>(all), workspace = mo::workspace_bytes<Spec, D>(all);
    hook.most = hook.live.load();
    f.step(about);
    CHECK(hook.most - kept == saved + workspace);
    f.ctx.memory().release();
    hook.most = hook.live.load();
    f.layer.infer(f.weights, f.x, f.y, about);
    CHECK(hook.most - kept <= workspace);
    f.ctx.synchronize();
  }
  CHECK(hook.live == 0);
}

}  // namespace

TEST_CASE("the memory of a step is what describe says, to the byte") {
  check_memory<swiglu, mo::bf16>({});
  check_memory<limited_by_sequence, float>({0, 20, 50});
  check_memory<chosen_by_experts, float>({});
}
