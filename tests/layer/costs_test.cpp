// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/costs.hpp>

#include "counting_memory.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <ratio>
#include <vector>

namespace mo = moiety;

namespace {

struct gated : mo::layer_spec<mo::dims{.hidden = 48, .ffn = 20, .experts = 6}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<mo::over::sequence>, mo::router_z>;
};
struct plain : mo::layer_spec<mo::dims{.hidden = 30, .ffn = 300, .experts = 3}> {
  using router = mo::router<mo::sigmoid, mo::top_k<3>>;
  using experts = mo::mlp<mo::relu>;
};

struct biased : gated {
  using experts = mo::clamped_swiglu<std::ratio<7>, mo::biased>;
};

struct beside : gated {
  using shared = mo::shared_experts<2>;
};
struct gated_beside : biased {
  using shared = mo::shared_experts<1, mo::sigmoid_gated, mo::shared_ffn<300>>;
};

struct with_zeros : mo::layer_spec<mo::dims{.hidden = 48, .ffn = 20, .experts = 6, .zero_experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<8>>;
};

struct in_latent : mo::layer_spec<mo::dims{.hidden = 48, .ffn = 20, .experts = 6, .latent = 16}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
};
struct noisy : gated_beside {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::logit_noise, mo::jitter<>, mo::linear_bias>;
  using losses = mo::losses<mo::noisy_load<mo::over::sequence>>;
};

template <class T> struct in : mo::deployment<> { using element = T; };

}  // namespace

TEST_CASE("parameters, active parameters and FLOPs are those of the matrices") {
  static_assert(mo::parameters<gated> == 6 * 48 + 6 * 3 * 48 * 20);
  static_assert(mo::active_parameters<gated> == 6 * 48 + 2 * 3 * 48 * 20);
  static_assert(mo::parameters<plain> == 3 * 30 + 3 * 2 * 30 * 300);
  static_assert(mo::forward_flops<gated>(mo::tokens{10}) == 20 * mo::active_parameters<gated>);
  static_assert(mo::backward_flops<gated>(mo::tokens{10}) == 40 * mo::active_parameters<gated>);
  static_assert(mo::parameters<biased> == mo::parameters<gated> + 6 * (2 * 20 + 48));
  static_assert(mo::active_parameters<biased> == mo::active_parameters<gated> + 2 * (2 * 20 + 48));
  static_assert(mo::forward_flops<biased>(mo::tokens{10}) == mo::forward_flops<gated>(mo::tokens{10}));
  static_assert(mo::parameters<beside> == mo::parameters<gated> + 3 * 48 * 40);
  static_assert(mo::active_parameters<gated_beside> - mo::active_parameters<biased> ==
                48 + 3 * 48 * 300 + 2 * 300 + 48);
  static_assert(mo::forward_flops<gated_beside>(mo::tokens{10}) - mo::forward_flops<biased>(mo::tokens{10}) ==
                20 * (48 + 3 * 48 * 300));
  static_assert(mo::parameters<with_zeros> == mo::parameters<gated> + 4 * 48);
  static_assert(mo::active_parameters<with_zeros> == mo::parameters<with_zeros>);  // at most 6 of 8 are MLPs
  static_assert(mo::parameters<in_latent> == 6 * 48 + 2 * 48 * 16 + 6 * 3 * 16 * 20);
  static_assert(mo::forward_flops<in_latent>(mo::tokens{10}) == 20 * mo::active_parameters<in_latent>);
  static_assert(mo::parameters<noisy> == mo::parameters<gated_beside> + 6 * 48 + 6);
  static_assert(mo::active_parameters<noisy> == mo::active_parameters<gated_beside> + 6 * 48 + 6);
  static_assert(mo::forward_flops<noisy>(mo::tokens{10}) ==
                mo::forward_flops<gated_beside>(mo::tokens{10}) + 20 * 6 * 48);
  CHECK(mo::weight_bytes<gated, in<mo::bf16>> == 6 * 48 * 4 + 6 * 3 * 48 * 20 * 2);
  CHECK(mo::gradient_bytes<gated, in<mo::bf16>> == mo::parameters<gated> * 4);
}

TEST_CASE("weights in a packed layout count their copies") {
  struct kept : in<mo::bf16> {
    using weight_layout = mo::packed;
  };
  counting memory;
  mo::context<kept> ctx(mo::host{.threads = 1, .memory = &memory});
  mo::moe_layer<gated, kept> layer{ctx};
  std::int64_t const before = memory.live;
  auto const weights = layer.make_weights(mo::seed{1});
  CHECK(memory.live - before == mo::weight_bytes<gated, kept>);
  std::int64_t const first = memory.live;
  mo::moe_layer<gated_beside, kept> other{ctx};
  auto const more = other.make_weights(mo::seed{1});
  CHECK(memory.live - first == mo::weight_bytes<gated_beside, kept>);
  CHECK(mo::weight_bytes<gated, kept> > mo::weight_bytes<gated, in<mo::bf16>>);
}

TEST_CASE("a rank has its share of the experts, and rows as with even loads") {
  struct spread : mo::deployment<mo::dynamic> {};
  constexpr std::int64_t experts = 6 * 3 * 48 * 20 * 4, router = 6 * 48 * 4, shared = 3 * 48 * 40 * 4;
  constexpr mo::tokens of(10);
  auto const whole = mo::bytes_of_rank<beside, spread>({}, of),
             third = mo::bytes_of_rank<beside, spread>({.data = 3, .expert = 3}, of);
  auto const split = mo::bytes_of_rank<beside, spread>({.data = 4, .expert = 2, .expert_tensor = 2}, of);
  CHECK(whole.weights == mo::weight_bytes<beside>);
  CHECK(whole.saved == mo::saved_bytes<beside>(of));
  CHECK(whole.workspace == mo::workspace_bytes<beside>(of));
  CHECK(third.weights == router + shared + experts / 3);
  CHECK(third.gradients == third.weights);
  CHECK(third.saved == whole.saved);  // as many rows as without other ranks
  CHECK(third.workspace == whole.workspace);
  CHECK(split.weights == router + shared + experts / 4);
  CHECK(split.saved == whole.saved);  // twice the rows, of half the width
  CHECK(split.workspace > whole.workspace);
  CHECK_THROWS_AS(static_cast<void>(mo::bytes_of_rank<beside, spread>({.data = 4, .expert = 4}, of)), mo::config_error);
}

TEST_CASE("a gated expert has three matrices, a plain one has two, whatever the number of experts") {
  struct three : mo::layer_spec<mo::dims{.hidden = 1024, .ffn = 2816, .experts = 8}> {
    using router = mo::router<mo::softmax, mo::top_k<2>>;
  };
  struct two : three {
    using experts = mo::mlp<mo::gelu_tanh>;
  };
  using fewer = mo::resized<three, mo::dims{.hidden = 1024, .ffn = 2816, .experts = 2}>;
  CHECK(mo::parameters<three> == 69206016 + 8 * 1024);
  CHECK(mo::parameters<two> == 46137344 + 8 * 1024);
  CHECK(4 * mo::parameters<fewer> == mo::parameters<three>);
}

TEST_CASE_TEMPLATE("bytes are those that the allocator hook sees", T, float, double, mo::bf16) {
  auto const check = [&]<class Spec>(Spec, std::int64_t count, std::vector<std::int64_t> const& sequences) {
    using D = in<T>;
    CAPTURE(count);
    counting hook;
    mo::context<D> ctx{mo::host{.threads = 2, .memory = &hook}};
    std::int64_t const scratch = 2 * mo::host_engine::scratch_bytes;
    CHECK(hook.live == scratch);
    mo::moe_layer<Spec, D> layer{ctx};
    auto const weights = layer.make_weights(mo::seed{1});
    CHECK(hook.live == scratch + mo::weight_bytes<Spec, D>);
    auto gradients = layer.make_gradients();
    std::int64_t const kept = scratch + mo::weight_bytes<Spec, D> + mo::gradient_bytes<Spec, D>;
    CHECK(hook.live == kept);
    auto const hidden = mo::spec_of<Spec>::hidden;
    mo::matrix<T> x(count, hidden), y(count, hidden), dx(count, hidden);
    mo::tokens const size(count, static_cast<std::int64_t>(std::max<std::size_t>(2, sequences.size())) - 1);
    std::int64_t most_workspace = 0;
    {
      auto tape = layer.forward(weights, x, y, {.sequences = sequences});
      most_workspace = hook.most - kept - mo::saved_bytes<Spec, D>(size);
      ctx.memory().release();
      CHECK(hook.live == kept + mo::saved_bytes<Spec, D>(size));
      hook.most = hook.live;
      layer.backward(weights, tape, y, dx, gradients);
      most_workspace = std::max(most_workspace, hook.most - kept - mo::saved_bytes<Spec, D>(size));
    }
    ctx.memory().release();
    CHECK(hook.live == kept);
    hook.most = hook.live;
    layer.infer(weights, x, y, {.sequences = sequences});
    most_workspace = std::max(most_workspace, hook.most - kept);
    CHECK(most_workspace == mo::workspace_bytes<Spec, D>(size));
  };
  check(gated{}, 100, {});
  check(gated{}, 37, {0, 5, 5, 30, 37});
  check(plain{}, 65, {});
  check(gated{}, 1, {});
  check(biased{}, 100, {});
  check(biased{}, 1, {});
  check(beside{}, 100, {});
  check(gated_beside{}, 100, {});
  check(gated_beside{}, 1, {});
  check(with_zeros{}, 100, {});
  check(in_latent{}, 100, {});
  check(noisy{}, 100, {});
  check(noisy{}, 37, {0, 5, 5, 30, 37});
}

TEST_CASE("a tape that no backward takes gives its memory back") {
  counting hook;
  mo::context<> ctx{mo::host{.threads = 1, .memory = &hook}};
  mo::moe_layer<gated> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  std::int64_t const kept = hook.live;
  mo::matrix<float> x(50, 48), y(50, 48), dx(50, 48);
  { auto const dropped = layer.forward(weights, x, y); }
  {
    auto half = layer.forward(weights, x, y);
    layer.backward_input(weights, half, y, dx);
  }
  ctx.memory().release();
  CHECK(hook.live == kept);
}

TEST_CASE("steps after the first ask the hook for nothing") {
  counting hook;
  mo::context<> ctx{mo::host{.threads = 1, .memory = &hook}};
  mo::moe_layer<gated> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  auto x = ctx.matrix(50, 48), y = ctx.matrix(50, 48), dx = ctx.matrix(50, 48);
  std::optional<std::int64_t> after_first;
  for (int step = 0; step < 3; ++step) {
    auto tape = layer.forward(weights, x, y);
    layer.backward(weights, tape, y, dx, gradients);
    if (!after_first) after_first = hook.most;
    CHECK(hook.most == *after_first);
    CHECK(hook.live == *after_first);
  }
}
