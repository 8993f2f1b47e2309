// SPDX-License-Identifier: Apache-2.0
// What every order promises, checked over all shapes with p ≤ 8, m ≤ 24 and all costs F, I, W ≤ 3.
#pragma once

#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace formulas {

namespace mo = moiety;

/// The grid as text: one row a rank.
inline std::string text(mo::schedule_view const& plan) {
  std::ostringstream out;
  out << plan;
  return out.str();
}

/// One rank's row.
inline std::string row(mo::schedule_view const& plan, int r) {
  std::istringstream all(text(plan));
  std::string line;
  for (int i = 0; i <= r; ++i) std::getline(all, line);
  return line;
}

/// Whether every stage adds its weight gradients in the promised order, on each of its ranks.
inline bool keeps_gradient_order(mo::schedule_view const& plan, mo::gradient_order order) {
  for (int r = 0; r < plan.ranks(); ++r) {
    std::map<std::pair<int, bool>, int> last;
    for (mo::action const& a : plan.rank(r)) {
      if (a.type == mo::computation::forward || a.type == mo::computation::input_gradient) continue;
      bool const second = plan.bidirectional() && a.microbatch >= plan.microbatches() / 2;
      auto const [at, first] = last.try_emplace({a.stage, second}, a.microbatch);
      if (!first && (order == mo::gradient_order::descending ? a.microbatch >= at->second : a.microbatch <= at->second))
        return false;
      at->second = a.microbatch;
    }
  }
  return true;
}

inline std::int64_t worst_peak(mo::schedule_view const& plan) {
  std::int64_t most = 0;
  for (int r = 0; r < plan.ranks(); ++r) most = std::max(most, mo::peak_activations(plan, r));
  return most;
}

/// Calls f(shape) for every shape with that many chunks that the order accepts.
template <class Order, class F> void for_each_shape(int chunks, F const& f) {
  int shapes = 0;
  for (int p = 1; p <= 8; ++p)
    for (int m = 1; m <= 24; ++m) {
      mo::pipeline_shape const shape{.ranks = p, .chunks = chunks, .microbatches = m};
      if (mo::fault_of<Order>(shape) != mo::shape_fault::none) continue;
      ++shapes;
      f(shape);
    }
  CHECK(shapes > 20);
}

template <class F> void for_each_costs(F const& f) {
  for (int forward = 1; forward <= 3; ++forward)
    for (int input = 1; input <= 3; ++input)
      for (int weight = 1; weight <= 3; ++weight)
        f(mo::step_costs{.forward = forward, .input_gradient = input, .weight_gradient = weight});
}

/// Every accepted shape gives a sound schedule with the promised order of gradients, which lowers.
template <class Order> void sound(int chunks) {
  for_each_shape<Order>(chunks, [](mo::pipeline_shape const& shape) {
    CAPTURE(shape.ranks);
    CAPTURE(shape.microbatches);
    auto const plan = mo::make_schedule(Order{}, shape);
    REQUIRE(mo::verify(plan));
    CHECK(keeps_gradient_order(plan, Order::gradients));
    CHECK(mo::lower(plan).ranks() == shape.ranks);
  });
}

}  // namespace formulas
