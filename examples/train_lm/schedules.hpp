// SPDX-License-Identifier: Apache-2.0
// The orders of a pipeline's work, by name.
#pragma once

#include <moiety/pipeline.hpp>

#include "../command_line.hpp"

#include <optional>
#include <string>

namespace lm {

namespace mo = moiety;

struct pipeline_plan {
  mo::schedule schedule;
  mo::placement placed;
  mo::gradient_order gradients;
};

template <class... Orders> struct orders {};
using known_orders =
    orders<mo::gpipe, mo::one_f_one_b, mo::zb_h1, mo::zb_h2, mo::zb_v, mo::looped_bfs, mo::interleaved_1f1b,
           mo::interleaved_1f1b_overlapped, mo::interleaved_zb1p, mo::dual_pipe, mo::dual_pipe_v>;

template <class... Orders> std::string names_of(orders<Orders...>) {
  std::string names;
  ((names += (names.empty() ? "" : ", ") + std::string(Orders::name)), ...);
  return names;
}
inline std::string schedule_names() { return names_of(known_orders{}); }

template <class... Orders>
pipeline_plan make_plan(std::string const& name, mo::pipeline_shape const& shape, orders<Orders...>) {
  std::optional<pipeline_plan> made;
  auto const make = [&]<class Order>(Order const& order) {
    if (name == Order::name)
      made.emplace(pipeline_plan{mo::make_schedule(order, shape), Order::placed, Order::gradients});
  };
  (make(Orders{}), ...);
  if (!made) throw command_line::usage_error("--schedule is one of " + schedule_names() + ".");
  return *made;
}

/// Throws schedule_error for a shape that the order refuses.
inline pipeline_plan make_plan(std::string const& name, mo::pipeline_shape const& shape) {
  return make_plan(name, shape, known_orders{});
}

}  // namespace lm
