// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/tape.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <string>
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
  fixture() {
    mo::fill_normal(ctx, x, mo::seed{2});
    mo::fill_normal(ctx, dy, mo::seed{3});
  }

  std::vector<float> sums() {
    std::vector<float> all;
    gradients.for_each([&](mo::parameter const&, auto values) { all.insert(all.end(), values.begin(), values.end()); });
    return all;
  }
  /// What call() throws, which has written neither dx nor a gradient.
  template <class Call> std::string refusal(Call const& call) {
    std::fill(dx.begin(), dx.end(), 77.0f);
    std::vector<float> const before = sums();
    std::string what = "nothing";
    try {
      call();
    } catch (mo::state_error const& e) {
      what = e.what();
    }
    CHECK(std::all_of(dx.begin(), dx.end(), [](float v) { return v == 77; }));
    CHECK(sums() == before);
    return what;
  }
};

}  // namespace

TEST_CASE_FIXTURE(fixture, "each step happens once, in its order") {
  auto tape = layer.forward(weights, x, y);
  CHECK(tape.state() == mo::tape_state::forward_done);
  auto const input_half = [&] { layer.backward_input(weights, tape, dy, dx); };
  auto const weight_half = [&] { layer.backward_weights(tape, gradients); };
  auto const both = [&] { layer.backward(weights, tape, dy, dx, gradients); };
  std::vector<float> const none = sums();
  CHECK(refusal(weight_half) == "backward_weights needs a tape after the input half, but this one is after forward.");
  input_half();
  CHECK(tape.state() == mo::tape_state::input_half_done);
  for (std::string const& what : {refusal(input_half), refusal(both)})
    CHECK(what == "backward_input needs a tape after forward, but this one is after the input half.");
  CHECK_NOTHROW(layer.report(tape));
  weight_half();
  CHECK(sums() != none);
  CHECK(tape.state() == mo::tape_state::finished);
  CHECK(refusal(weight_half) ==
        "backward_weights needs a tape after the input half, but this one is after the weight half.");
  for (std::string const& what : {refusal(input_half), refusal(both)})
    CHECK(what == "backward_input needs a tape after forward, but this one is after the weight half.");
  CHECK_NOTHROW(layer.report(tape));
}

TEST_CASE_FIXTURE(fixture, "a tape belongs to the weights of its forward, and moves") {
  auto const other = layer.make_weights(mo::seed{1});
  auto tape = layer.forward(weights, x, y);
  auto const backward = [&](auto const& with) {
    return refusal([&] { layer.backward(with, tape, dy, dx, gradients); });
  };
  CHECK(backward(other) == "backward_input was given other weights than the tape's forward.");
  auto moved = std::move(tape);
  CHECK(tape.state() == mo::tape_state::moved_from);
  CHECK(backward(weights) == "backward_input needs a tape after forward, but this one is after a move.");
  CHECK_THROWS_AS(layer.report(tape), mo::state_error);
  CHECK_THROWS_AS(tape.statistics(), mo::state_error);
  CHECK_THROWS_AS(tape.batch_weight(), mo::state_error);
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
