// SPDX-License-Identifier: Apache-2.0
// A pipeline schedule proved while compiling, compared with others at run time, and one of your own.
#include <moiety/pipeline.hpp>

#include <iostream>
#include <string_view>

namespace mo = moiety;

constexpr auto plan = mo::schedule_for<mo::one_f_one_b, mo::pipeline_shape{.ranks = 4, .microbatches = 8}>;
static_assert(mo::verify(plan));  // complete, ordered, free of deadlock
static_assert(mo::makespan(plan, mo::unit_costs) == 33);
static_assert(mo::peak_activations(plan, 0) == 4);  // rank 0 holds four micro-batches at most

// All backwards of a rank start only when its forwards are done, in pairs of micro-batches.
struct by_pairs {
  static constexpr std::string_view name = "by_pairs";
  static constexpr auto placed = mo::placement::loop;
  static constexpr auto gradients = mo::gradient_order::ascending;
  static constexpr mo::shape_fault fault(mo::pipeline_shape const& shape) {
    return shape.microbatches % 2 == 0 ? mo::shape_fault::none : mo::shape_fault::odd_microbatches;
  }
  static constexpr void generate(mo::pipeline_shape const& shape, int rank, mo::rank_actions& actions) {
    for (int i = 0; i < shape.microbatches; i += 2) {
      actions.forward(rank, i);
      actions.forward(rank, i + 1);
      actions.backward(rank, i);
      actions.backward(rank, i + 1);
    }
  }
};

template <class Order> void compare(Order order, int chunks) {
  auto const schedule = mo::make_schedule(order, {.ranks = 4, .chunks = chunks, .microbatches = 8});
  mo::step_costs const costs{.forward = 10, .input_gradient = 10, .weight_gradient = 10, .hop = 1};
  std::cout << Order::name << ": " << mo::makespan(schedule, costs) / chunks  // two chunks are one stage
            << " units, idle " << mo::idle_fraction(schedule, costs) << ", messages that rank 0 holds "
            << mo::lower(schedule).receive_buffers(0) << '\n';
}

int main() {
  compare(mo::gpipe{}, 1);
  compare(mo::interleaved_1f1b{}, 2);
  compare(mo::zb_v{}, 2);
  compare(by_pairs{}, 1);
  try {
    mo::make_schedule(by_pairs{}, {.ranks = 4, .microbatches = 7});
  } catch (mo::schedule_error const& e) {
    std::cout << e.what() << '\n';
  }
}
