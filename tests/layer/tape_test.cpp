// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/tape.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

struct spec : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 3}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<mo::over::sequence>>;
};

struct fixture {
  mo::context<> ctx;
  mo::moe_layer<spec> layer{ctx, {.losses = {mo::load_balance<mo::over::sequence>{.coefficient = 1}}}};
  mo::layer_weights<spec, float> weights = layer.make_weights(mo::seed{1});
  mo::layer_gradients<spec, float> gradients = layer.make_gradients();
  mo::matrix<float> x = ctx.matrix(8, 6), y = ctx.matrix(8, 6), dy = ctx.matrix(8, 6), dx = ctx.matrix(8, 6);
  fixture() { mo::fill_normal(ctx, x, mo::seed{2}); }
};

}  // namespace

TEST_CASE_FIXTURE(fixture, "each step happens once, in its order") {
  auto tape = layer.forward(weights, x, y);
  CHECK(tape.state() == mo::tape_state::forward_done);
  CHECK_THROWS_WITH_AS(layer.backward_weights(tape, gradients),
                       "backward_weights needs a tape after the input half, but this one is after forward.",
                       mo::state_error);
  layer.backward_input(weights, tape, dy, dx);
  CHECK(tape.state() == mo::tape_state::input_half_done);
  CHECK_THROWS_AS(layer.backward_input(weights, tape, dy, dx), mo::state_error);
  CHECK_THROWS_AS(layer.backward(weights, tape, dy, dx, gradients), mo::state_error);
  CHECK_NOTHROW(layer.report(tape));
  layer.backward_weights(tape, gradients);
  CHECK(tape.state() == mo::tape_state::finished);
  CHECK_THROWS_AS(layer.backward_weights(tape, gradients), mo::state_error);
  CHECK_THROWS_AS(layer.backward(weights, tape, dy, dx, gradients), mo::state_error);
  CHECK_NOTHROW(layer.report(tape));
}

TEST_CASE_FIXTURE(fixture, "a tape belongs to the weights of its forward, and moves") {
  auto const other = layer.make_weights(mo::seed{1});
  auto tape = layer.forward(weights, x, y);
  CHECK_THROWS_WITH_AS(layer.backward(other, tape, dy, dx, gradients),
                       "backward_input was given other weights than the tape's forward.", mo::state_error);
  auto moved = std::move(tape);
  CHECK(tape.state() == mo::tape_state::moved_from);
  CHECK_THROWS_AS(layer.backward(weights, tape, dy, dx, gradients), mo::state_error);
  CHECK_THROWS_AS(layer.report(tape), mo::state_error);
  CHECK_NOTHROW(layer.backward(weights, moved, dy, dx, gradients));
}

TEST_CASE_FIXTURE(fixture, "tokens belong to their sequence, and units weigh by tokens") {
  std::vector<std::int64_t> const sequences{0, 3, 3, 8};
  auto const tape = layer.forward(weights, x, y, {.sequences = sequences, .weight = 16.0});
  mo::statistics_table table = tape.statistics();
  mo::batch_statistics const all = table.view();
  CHECK(all.count == 4);
  CHECK(all.sequence_of(0) == 1);
  CHECK(all.sequence_of(2) == 1);
  CHECK(all.sequence_of(3) == 3);
  CHECK(all.sequence_of(7) == 3);
  CHECK(all.unit(0).tokens() == 8);
  CHECK(all.unit(1).tokens() == 3);
  CHECK(all.unit(2).tokens() == 0);
  CHECK(all.weight(0, tape.given_weight()) == 16);
  CHECK(all.weight(1, tape.given_weight()) == 6);
  CHECK(all.weight(2, tape.given_weight()) == 0);
  CHECK(all.weight(3, tape.given_weight()) == 10);
}

TEST_CASE_FIXTURE(fixture, "tapes of several micro-batches are in flight, and end in any order") {
  auto first = layer.forward(weights, x, y);
  auto z = ctx.matrix(5, 6), u = ctx.matrix(5, 6), du = ctx.matrix(5, 6), dz = ctx.matrix(5, 6);
  auto second = layer.forward(weights, z, u);
  layer.backward(weights, first, dy, dx, gradients);
  auto third = layer.forward(weights, x, y);
  layer.backward(weights, third, dy, dx, gradients);
  layer.backward(weights, second, du, dz, gradients);
  CHECK(second.state() == mo::tape_state::finished);
}
