// SPDX-License-Identifier: Apache-2.0
// Promise 6 at sizes that grow: the memory of a step is what its costs say, for any number of tokens and experts.
#include "counting_memory.hpp"

#include <moiety/experts/fp8.hpp>
#include <moiety/layer/costs.hpp>
#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

template <int Experts> struct block : mo::layer_spec<mo::dims{.hidden = 40, .ffn = 24, .experts = Experts}> {
  using router = mo::router<mo::softmax, mo::top_k<4>>;
  using losses = mo::losses<mo::load_balance<mo::over::sequence>, mo::router_z>;
};

template <class T, class Layout> struct in : mo::deployment<> {
  using element = T;
  using weight_layout = Layout;
};

/// Where blocks of other sizes could serve what the rows of products want, or would stay beside it.
struct wide : mo::layer_spec<mo::dims{.hidden = 256, .ffn = 64, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<4>>;
};
struct wide_and_shared : mo::layer_spec<mo::dims{.hidden = 64, .ffn = 32, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<4>>;
  using shared = mo::shared_experts<1>;
};

template <class T> struct forward_in_fp8 : mo::deployment<> {
  using element = T;
  using expert_products = mo::fp8_block_forward_products;
};
template <class T> struct in_fp8 : mo::deployment<> {
  using element = T;
  using expert_products = mo::fp8_products;
};

template <class Spec, class D> void check(std::int64_t count) {
  using T = typename D::element;
  constexpr std::int64_t hidden = mo::spec_of<Spec>::hidden;
  CAPTURE(count);
  CAPTURE(mo::spec_of<Spec>::experts);
  counting hook;
  mo::context<D> ctx{mo::host{.threads = 2, .memory = &hook}};
  mo::moe_layer<Spec, D> layer{ctx, {}};
  auto weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  std::int64_t const kept =
      2 * mo::host_engine::scratch_bytes + mo::weight_bytes<Spec, D> + mo::gradient_bytes<Spec, D>;
  CHECK(hook.live == kept);
  mo::matrix<T> x(count, hidden), y(count, hidden), dx(count, hidden);
  mo::fill_normal(ctx, x, mo::seed{2});
  std::vector<std::int64_t> const sequences{0, count / 4, count};
  mo::tokens const size(count, 2);
  std::int64_t const saved = mo::saved_bytes<Spec, D>(size), workspace = mo::workspace_bytes<Spec, D>(size);
  std::int64_t const shared = mo::layer_workspace<Spec, D>(size);

  // Each call on an arena that holds nothing else.
  ctx.memory().release();
  hook.most = hook.live;
  std::int64_t working = 0;
  {
    auto tape = layer.forward(weights, x, y, {.sequences = sequences});
    working = hook.most - kept - saved;
    CHECK(working == shared);
    ctx.memory().release();
    CHECK(hook.live == kept + saved);
    hook.most = hook.live;
    layer.backward(weights, tape, y, dx, gradients);
    working = std::max(working, hook.most - kept - saved);
  }
  ctx.memory().release();
  CHECK(hook.live == kept);
  hook.most = hook.live;
  layer.infer(weights, x, y, {.sequences = sequences});
  CHECK(std::max(working, hook.most - kept) == workspace);

  // A whole step without a release between its calls takes no more, and the next step adds nothing.
  ctx.memory().release();
  hook.most = hook.live;
  std::int64_t most = 0;
  for (int again = 0; again < 2; ++again) {
    auto tape = layer.forward(weights, x, y, {.sequences = sequences});
    layer.backward(weights, tape, y, dx, gradients);
    if (again == 0) most = hook.most;
    CHECK(hook.most == most);
    CHECK(most == kept + saved + mo::pending_plan<Spec, T>(size).block.bytes() + shared);
    CHECK(most <= kept + saved + workspace);
  }
}

}  // namespace

TEST_CASE("memory is what the costs say") {
  for (std::int64_t const count : {0, 1, 64}) {
    check<block<8>, in<float, mo::row_major>>(count);
    check<block<32>, in<mo::bf16, mo::packed>>(count);
    check<block<8>, in_fp8<mo::bf16>>(count);
    check<wide, in_fp8<mo::bf16>>(count);
    check<wide_and_shared, in_fp8<mo::bf16>>(count);
    check<wide_and_shared, forward_in_fp8<float>>(count);
  }
}

TEST_SUITE("long") {
  TEST_CASE("memory grows with the tokens of a call as its costs say") {
    for (std::int64_t const count : {64, 1024, 16384, 65536}) {
      check<block<32>, in<float, mo::row_major>>(count);
      check<block<32>, in<mo::bf16, mo::packed>>(count);
      check<block<32>, in_fp8<mo::bf16>>(count);
    }
  }

  TEST_CASE("memory grows with the experts of a layer as its costs say, slots being the same") {
    auto const each = [](auto element) {
      using T = decltype(element);
      check<block<8>, in<T, mo::row_major>>(4096);
      check<block<32>, in<T, mo::packed>>(4096);
      check<block<128>, in<T, mo::row_major>>(4096);
      check<block<384>, in<T, mo::packed>>(4096);
    };
    each(float{}), each(mo::bf16{});
  }
}
