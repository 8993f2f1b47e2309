// SPDX-License-Identifier: Apache-2.0
// Pipelines over ranks that share a device give the answer of the same ranks on the host, and that of one rank of the device to
// the bit where micro-batches are added in one order; stages without layers, and both copies of a stage, among them.
#include "device_memory.hpp"
#include "pipeline/staged_steps.hpp"
#include "properties/ranks.hpp"

#include <moiety/cuda.cuh>
#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using namespace staged;
using ranks::distance;

enum class layers_keep { all, less };

template <class Backend, class Order>
outcome steps(Order const& order, mo::schedule_view const& plan, int data, layers_keep keep = layers_keep::all) {
  outcome all(static_cast<std::size_t>(layout_of(plan, data).world()));
  mo::run<on<Backend>>(
      [&](mo::context<on<Backend>>& ctx) {
        all[static_cast<std::size_t>(ctx.world().rank())] =
            keep == layers_keep::all ? two_steps(ctx, order, plan) : two_steps_recomputed(ctx, order, plan);
      },
      {}, layout_of(plan, data));
  return all;
}

/// Whether a value is not 0.
bool any(std::vector<double> const& values) {
  return std::any_of(values.begin(), values.end(), [](double v) { return v != 0; });
}

template <class Order> outcome check(Order const& order, mo::pipeline_shape const& shape, int data) {
  mo::schedule const plan = mo::make_schedule(order, shape);
  INFO(std::string(Order::name) << " on " << shape.ranks << " x " << data);
  outcome const device = steps<mo::cuda>(order, plan, data), host = steps<mo::host>(order, plan, data);
  for (std::size_t r = 0; r < device.size(); ++r) {
    CHECK(device[r].loads == host[r].loads);
    CHECK(device[r].losses == device[0].losses);
    CHECK(any(host[r].losses));
    CHECK(distance(device[r].losses, host[r].losses) < 1e-14);
    CHECK(std::abs(device[r].task.sum / host[r].task.sum - 1) < 1e-13);
    CHECK(device[r].task == device[0].task);
    CHECK(device[r].evaluated.sum == doctest::Approx(device[r].task.sum).epsilon(1e-12));
    REQUIRE(device[r].gradients.size() == host[r].gradients.size());
    for (auto const& of : host[r].gradients) {
      INFO(of.first);
      CHECK(any(of.second));
      CHECK(distance(device[r].gradients.at(of.first), of.second) < 1e-12);
    }
  }
  return device;
}

}  // namespace

TEST_CASE("every rank of a device has what the same rank of the host has, and one rank has all of it") {
  outcome const one = check(mo::gpipe{}, {.ranks = 1, .microbatches = count}, 1);
  for (outcome const& split : {check(mo::gpipe{}, {.ranks = 2, .microbatches = count}, 1),
                               check(mo::one_f_one_b{}, {.ranks = 2, .microbatches = count}, 1),
                               check(mo::one_f_one_b{}, {.ranks = 4, .microbatches = count}, 1)}) {
    CHECK(split[0].losses == one[0].losses);
    CHECK(split[0].loads == one[0].loads);
    CHECK(split[0].task == one[0].task);
    std::size_t found = 0;
    for (of_rank const& mine : split)
      for (auto const& of : mine.gradients) {
        CHECK(of.second == one[0].gradients.at(of.first));
        ++found;
      }
    CHECK(found == one[0].gradients.size());
  }
}

TEST_CASE("experts on two ranks of each stage, stages in a V, and zero-bubble halves") {
  check(mo::one_f_one_b{}, {.ranks = 2, .microbatches = count}, 2);
  check(mo::zb_v{}, {.ranks = 2, .chunks = 2, .microbatches = count}, 1);
}

TEST_CASE("layers that compute again what they did not keep have the same bits") {
  auto const same = [](auto const& order, mo::pipeline_shape const& shape, int data) {
    mo::schedule const plan = mo::make_schedule(order, shape);
    INFO(std::string(std::decay_t<decltype(order)>::name) << " on " << shape.ranks << " x " << data);
    CHECK((steps<mo::cuda>(order, plan, data, layers_keep::less) == steps<mo::cuda>(order, plan, data)));
  };
  same(mo::gpipe{}, {.ranks = 1, .microbatches = count}, 1);
  same(mo::one_f_one_b{}, {.ranks = 2, .microbatches = count}, 2);
  same(mo::zb_v{}, {.ranks = 2, .chunks = 2, .microbatches = count}, 1);
}

TEST_CASE("both copies of a stage have the gradient of the whole, step after step") {
  outcome const found = check(mo::dual_pipe{}, {.ranks = 2, .chunks = 2, .microbatches = count}, 1);
  CHECK(found[0].gradients == found[1].gradients);
}
