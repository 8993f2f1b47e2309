// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/order.hpp>

#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <array>
#include <string_view>

namespace mo = moiety;

namespace {

/// The worked example of the header.
struct forward_then_backward {
  static constexpr std::string_view name = "forward_then_backward";
  static constexpr auto placed = mo::placement::loop;
  static constexpr auto gradients = mo::gradient_order::ascending;
  static constexpr mo::shape_fault fault(mo::pipeline_shape const&) { return mo::shape_fault::none; }
  static constexpr void generate(mo::pipeline_shape const& shape, int rank, mo::rank_actions& actions) {
    for (int i = 0; i < shape.microbatches; ++i) actions.forward(rank, i);
    for (int i = 0; i < shape.microbatches; ++i) actions.backward(rank, i);
  }
};

struct too_many : forward_then_backward {
  static constexpr void generate(mo::pipeline_shape const& shape, int rank, mo::rank_actions& actions) {
    for (int i = 0; i < 1000 * shape.microbatches; ++i) actions.forward(rank, i);
  }
};

struct no_order {};

}  // namespace

TEST_CASE("a user's own order is an order, at compile time and at run time") {
  static_assert(mo::pipeline_order<forward_then_backward> && !mo::pipeline_order<no_order>);
  constexpr auto plan = mo::schedule_for<forward_then_backward, mo::pipeline_shape{.ranks = 3, .microbatches = 5}>;
  static_assert(mo::verify(plan));
  mo::pipeline_shape const shape{.ranks = 3, .microbatches = 5};
  CHECK(mo::same_actions(plan, mo::make_schedule(forward_then_backward{}, shape)));
  CHECK(mo::same_actions(plan, mo::make_schedule(mo::gpipe{}, shape)));
}

TEST_CASE("an order that makes too many actions is stopped") {
  CHECK_THROWS_WITH_AS(mo::make_schedule(too_many{}, {.ranks = 2, .microbatches = 4}),
                       "an order made more actions than its shape has.", mo::schedule_error);
}

TEST_CASE("where stages live") {
  mo::pipeline_shape const shape{.ranks = 3, .chunks = 2, .microbatches = 1};
  CHECK(mo::stages_of(mo::placement::loop, shape) == 6);
  CHECK(mo::stages_of(mo::placement::bidirectional, shape) == 3);
  std::array const loop{0, 1, 2, 0, 1, 2}, v{0, 1, 2, 2, 1, 0};
  for (int s = 0; s < 6; ++s) {
    CHECK(mo::rank_of_stage(mo::placement::loop, shape, s) == loop[static_cast<std::size_t>(s)]);
    CHECK(mo::rank_of_stage(mo::placement::v, shape, s) == v[static_cast<std::size_t>(s)]);
  }
}

TEST_CASE("deferred weight gradients come in the order of their input gradients") {
  std::array<mo::action, 8> to{};
  mo::rank_actions actions(to.data(), 8);
  CHECK_FALSE(actions.next_weight_gradient());
  actions.forward(0, 0);
  actions.input_gradient(1, 5);
  actions.backward(0, 1);
  actions.input_gradient(0, 2);
  CHECK(actions.next_weight_gradient());
  CHECK(to[4] == mo::action{1, 5, mo::computation::weight_gradient});
  CHECK(actions.next_weight_gradient());
  CHECK(to[5] == mo::action{0, 2, mo::computation::weight_gradient});
  CHECK_FALSE(actions.next_weight_gradient());
  CHECK(actions.size() == 6);
}
