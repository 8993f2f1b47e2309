// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/loss_scale.hpp>

#include "thread_ranks.hpp"

#include <moiety/training/reduce_gradients.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace mo = moiety;

TEST_CASE("an overflow on one rank skips the step and lowers the scale on all") {
  for (int const size : {1, 2, 3, 4})
    ranks::run(size, [&](ranks::communicator& world) {
      mo::dynamic_loss_scale scale({.initial = 8, .growth = 4, .greatest = 64, .growth_interval = 3});
      std::vector<double> seen;
      std::vector<bool> taken;
      for (int step = 0; step < 12; ++step) {
        bool const overflow = (step == 1 || step == 2) && world.rank() == size - 1;
        taken.push_back(scale.update(world, overflow));
        seen.push_back(scale.value());
      }
      CHECK(seen == std::vector<double>{8, 4, 2, 2, 2, 8, 8, 8, 32, 32, 32, 64});
      CHECK(taken == std::vector<bool>{true, false, false, true, true, true, true, true, true, true, true, true});
      CHECK(scale.clean_steps() == 0);
    });
}

TEST_CASE("the scale falls to its least value and no further") {
  ranks::run(1, [](ranks::communicator& world) {
    mo::dynamic_loss_scale scale({.initial = 4, .least = 0.75});
    for (int i = 0; i < 5; ++i) CHECK_FALSE(scale.update(world, true));
    CHECK(scale.value() == 0.75);
  });
}

TEST_CASE("micro-batches of a step have one scale, and are unscaled with it") {
  ranks::run(2, [](ranks::communicator& world) {
    ranks::mesh mesh(world, 1);
    mo::dynamic_loss_scale scale({.initial = 1024, .growth_interval = 1});
    for (int step = 0; step < 3; ++step) {
      float g = 0;
      for (int micro = 0; micro < 2; ++micro) g += static_cast<float>(scale.value()) * 3;
      mo::gradient_list<float> const list{{"w", {&g, 1}}};
      mo::reduce_gradients(list, mesh.of_rank());
      mo::normalise(list, mo::total_weight(world, 2) * scale.value());
      CHECK(g == 3);
      CHECK(scale.update(world, false));
    }
    CHECK(scale.value() == 8192);
  });
}

TEST_CASE("a scale resumes where it was") {
  ranks::run(1, [](ranks::communicator& world) {
    mo::dynamic_loss_scale scale({.growth_interval = 5});
    scale.resume(512, 4);
    CHECK(scale.value() == 512);
    CHECK(scale.update(world, false));
    CHECK(scale.value() == 1024);
    CHECK_THROWS_AS(scale.resume(0.5, 0), mo::config_error);
    CHECK_THROWS_AS(scale.resume(2, -1), mo::config_error);
  });
}

TEST_CASE("options that can never work are refused") {
  double const nan = std::numeric_limits<double>::quiet_NaN();
  for (mo::loss_scale_options const& wrong : {mo::loss_scale_options{.initial = nan},
                                              {.initial = 0.5},
                                              {.growth = 1},
                                              {.growth = nan},
                                              {.backoff = 1},
                                              {.backoff = 0},
                                              {.backoff = nan},
                                              {.least = 0},
                                              {.greatest = 1},
                                              {.growth_interval = 0}})
    CHECK_THROWS_AS(mo::dynamic_loss_scale{wrong}, mo::config_error);
}
