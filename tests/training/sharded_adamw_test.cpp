// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/sharded_adamw.hpp>

#include "thread_ranks.hpp"

#include <moiety/training/global_norm.hpp>
#include <moiety/training/reduce_gradients.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

/// A model of three element types, with tensors smaller than the ranks are many, and one with no value.
struct model {
  std::vector<float> router = ranks::normals<float>(37, 1), bias = ranks::normals<float>(1, 2), none;
  std::vector<mo::bf16> experts, dense;
  std::vector<float> router_g, bias_g, none_g, experts_g, dense_g;

  /// Experts `first` … of 4, of 101 values each.
  explicit model(std::size_t first = 0, std::size_t count = 4)
      : router_g(37), bias_g(1), experts_g(101 * count), dense_g(5003), first_expert(first) {
    for (float const v : ranks::normals<float>(404, 3)) experts.push_back(mo::bf16(v));
    experts.erase(experts.begin(), experts.begin() + static_cast<std::ptrdiff_t>(101 * first));
    experts.resize(101 * count);
    for (float const v : ranks::normals<float>(5003, 4)) dense.push_back(mo::bf16(v));
  }

  template <class F> void operator()(F const& f) const {
    auto& m = const_cast<model&>(*this);
    f(mo::trained_tensor{"router", std::span(m.router), std::span(m.router_g)});
    f(mo::trained_tensor{"experts", std::span(m.experts), std::span(m.experts_g), mo::replicated::expert_data});
    f(mo::trained_tensor{"bias", std::span(m.bias), std::span(m.bias_g), mo::replicated::stage, false});
    f(mo::trained_tensor{"none", std::span(m.none), std::span(m.none_g)});
    f(mo::trained_tensor{"dense", std::span(m.dense), std::span(m.dense_g)});
  }

  /// The gradients of a step, of which each of `ranks` holds its part: an integer, so that their sum is exact.
  void fill(unsigned step, int rank = 0, int of = 1, int expert_rank = 0, int expert_ranks = 1) {
    auto const part = [](std::vector<float>& g, unsigned seed, std::size_t offset, int r, int n) {
      auto const values = ranks::normals<float>(offset + g.size(), seed);
      for (std::size_t i = 0; i < g.size(); ++i) {
        auto const whole = static_cast<std::int64_t>(values[offset + i] * 1024);
        g[i] = static_cast<float>(mo::slice_of(whole < 0 ? -whole : whole, r, n).count) * (whole < 0 ? -1.0f : 1.0f);
      }
    };
    part(router_g, step * 10, 0, rank, of);
    part(bias_g, step * 10 + 1, 0, rank, of);
    part(dense_g, step * 10 + 2, 0, rank, of);
    part(experts_g, step * 10 + 3, 101 * first_expert, expert_rank, expert_ranks);
  }

  std::size_t first_expert;
};

bool same(std::vector<mo::bf16> const& a, std::span<mo::bf16 const> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), b.size_bytes()) == 0;
}

constexpr int steps = 4;
constexpr double weight = 1000;

/// The model after each step, on one rank and not sharded.
std::vector<model> expected() {
  std::vector<model> all;
  model m;
  mo::adamw<float> optimiser({.weight_decay = 0.1});
  ranks::run(1, [&](ranks::communicator& world) {
    ranks::mesh mesh(world, 1);
    for (int t = 0; t < steps; ++t) {
      m.fill(static_cast<unsigned>(t));
      auto const list = mo::gradients_of<float>(m);
      mo::normalise(list, weight);
      double const norm = mo::global_norm(list, mesh.of_rank());
      mo::clip_gradients(list, 1, norm);
      optimiser.step(m, 0.01, norm);
      all.push_back(m);
    }
  });
  return all;
}

}  // namespace

TEST_CASE("sharded steps have the bits of whole ones, for uneven slices, buckets and places of sums") {
  auto const reference = expected();
  for (int const size : {1, 2, 3, 4})
    for (int const expert : {1, 2, 4})
      for (std::int64_t const bucket : {std::int64_t{1}, std::int64_t{200}, std::int64_t{1} << 22}) {
        if (size % expert != 0) continue;
        ranks::run(size, [&](ranks::communicator& world) {
          ranks::mesh mesh(world, expert);
          auto const groups = mesh.of_rank();
          auto const count = 4 / static_cast<std::size_t>(expert);
          std::size_t const first = static_cast<std::size_t>(world.rank() % expert) * count;
          model m(first, count);
          mo::sharded_adamw<float, ranks::communicator> optimiser(groups, {.weight_decay = 0.1}, bucket);
          for (int t = 0; t < steps; ++t) {
            m.fill(static_cast<unsigned>(t), world.rank(), size, groups.expert_data.rank(), groups.expert_data.size());
            auto const list = mo::gradients_of<float>(m);
            auto const where = t % 2 == 0 ? mo::summed::slices : mo::summed::everywhere;
            mo::reduce_gradients(list, groups, {.where = where, .bucket_bytes = bucket});
            mo::normalise(list, weight);
            double const norm = mo::global_norm(list, groups);
            mo::clip_gradients(list, 1, norm);
            CHECK(optimiser.step(m, 0.01, norm));
            model const& want = reference[static_cast<std::size_t>(t)];
            CHECK(m.router == want.router);
            CHECK(m.bias == want.bias);
            CHECK(same(want.dense, m.dense));
            CHECK(same(m.experts, std::span(want.experts).subspan(101 * first, 101 * count)));
          }
        });
      }
}

TEST_CASE("the states of all ranks together are each value once") {
  std::vector<int> held(5003), of_router(37);
  std::vector<std::int64_t> values(3);
  ranks::run(3, [&](ranks::communicator& world) {
    ranks::mesh mesh(world, 1);
    model m;
    m.fill(1);
    mo::sharded_adamw<float, ranks::communicator> optimiser(mesh.of_rank());
    CHECK(optimiser.step(m, 0.01, 1));
    for (int turn = 0; turn < 3; ++turn) {  // one rank after another
      world.barrier();
      if (turn != world.rank()) continue;
      optimiser.for_each_state([&](mo::optimiser_state<float> const& s) {
        CHECK(s.values.size() == static_cast<std::size_t>(s.range.count));
        CHECK((s.kind != "master" || s.tensor == "dense" || s.tensor == "experts" || s.values.empty()));
        values[static_cast<std::size_t>(world.rank())] += s.range.count;
        if (s.kind != "first_moment") return;
        for (std::int64_t i = s.range.first; i < s.range.first + s.range.count; ++i) {
          if (s.tensor == "dense") ++held[static_cast<std::size_t>(i)];
          if (s.tensor == "router") ++of_router[static_cast<std::size_t>(i)];
        }
      });
    }
  });
  CHECK(held == std::vector<int>(5003, 1));
  CHECK(of_router == std::vector<int>(37, 1));
  CHECK(values[0] + values[1] + values[2] == 3 * (5003 + 404) + 2 * (37 + 1));
  CHECK(values[0] - values[2] <= 3 * 5);
}

TEST_CASE("a gradient that is not finite on one rank skips the step on all, and nothing has changed") {
  ranks::run(3, [](ranks::communicator& world) {
    ranks::mesh mesh(world, 3);
    auto const groups = mesh.of_rank();
    model m;
    mo::sharded_adamw<float, ranks::communicator> optimiser(groups);
    auto const states = [&] {
      std::vector<float> all;
      optimiser.for_each_state([&](auto const& s) { all.insert(all.end(), s.values.begin(), s.values.end()); });
      return all;
    };
    auto const step = [&] {
      auto const list = mo::gradients_of<float>(m);
      mo::reduce_gradients(list, groups);
      return optimiser.step(m, 0.01, mo::global_norm(list, groups));
    };
    m.fill(1);
    CHECK(step());
    model const before = m;
    auto const states_before = states();
    m.fill(2);
    if (world.rank() == 1) m.experts_g[7] = std::numeric_limits<float>::infinity();
    CHECK_FALSE(step());
    CHECK(m.router == before.router);
    CHECK(same(before.experts, m.experts));
    CHECK(states() == states_before);
    CHECK(optimiser.steps() == 1);
    m.fill(3);
    CHECK(step());
    CHECK(optimiser.steps() == 2);
  });
}

TEST_CASE("ranks that hold other tensors learn it, all of them, before a step") {
  CHECK(ranks::all_throw<mo::config_error>(ranks::errors_of(2, [](ranks::communicator& world) {
    ranks::mesh mesh(world, 1);
    model const m(0, world.rank() == 0 ? 4 : 2);
    mo::sharded_adamw<float, ranks::communicator> optimiser(mesh.of_rank());
    optimiser.step(m, 0.01, 1);
  })));
  ranks::run(1, [](ranks::communicator& world) {
    ranks::mesh mesh(world, 1);
    using optimiser = mo::sharded_adamw<float, ranks::communicator>;
    CHECK_THROWS_AS(optimiser(mesh.of_rank(), {}, 0), mo::config_error);
    CHECK_THROWS_AS(optimiser(mesh.of_rank(), {.beta1 = 2}), mo::config_error);
  });
}

TEST_CASE("a rank without a tensor takes steps beside others that have some") {
  std::vector<float> const start = ranks::normals<float>(10, 1);
  ranks::run(4, [&](ranks::communicator& world) {
    ranks::mesh mesh(world, 2);
    std::vector<float> weights = start, gradients(10, 1.0f);
    auto const list = [&](auto const& f) {
      if (world.rank() % 2 == 1)
        f(mo::trained_tensor{"experts", std::span(weights), std::span(gradients), mo::replicated::expert_data});
    };
    mo::sharded_adamw<float, ranks::communicator> optimiser(mesh.of_rank());
    for (int t = 0; t < steps; ++t) CHECK(optimiser.step(list, 0.01, 1));
    CHECK(optimiser.steps() == steps);
    CHECK((weights == start) == (world.rank() % 2 == 0));
  });
}
