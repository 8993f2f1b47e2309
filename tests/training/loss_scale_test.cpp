// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/loss_scale.hpp>

#include "thread_ranks.hpp"

#include <moiety/moiety.hpp>
#include <moiety/training/reduce_gradients.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
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

namespace {

struct halves : mo::layer_spec<mo::dims{.hidden = 8, .ffn = 8, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};
struct of_fp16 : mo::deployment<> {
  using element = mo::fp16;
};

/// A layer in fp16 with two micro-batches under way at once, whose scales may differ.
struct half_layer {
  mo::context<of_fp16> ctx;
  mo::moe_layer<halves, of_fp16> layer{
      ctx, {.losses = {mo::load_balance<>{.coefficient = 0.5f}, mo::router_z{.coefficient = 0.25f}}}};
  mo::moe_layer<halves, of_fp16>::weights_type weights = layer.make_weights(mo::seed{4});

  /// Gradients of both over their scales, where dy is `slope` in every element.
  std::vector<float> unscaled(float first, float second, float slope) {
    float const scales[] = {first, second};
    std::vector<mo::matrix<mo::fp16>> x, y;
    std::vector<mo::moe_layer<halves, of_fp16>::tape_type> tapes;
    std::vector<float> all;
    for (std::uint64_t m = 0; m < 2; ++m) {
      x.push_back(ctx.matrix(6, 8)), y.push_back(ctx.matrix(6, 8));
      mo::fill_normal(ctx, x.back(), mo::seed{5 + m});
    }
    for (std::size_t m = 0; m < 2; ++m) tapes.push_back(layer.forward(weights, x[m], y[m], {.loss_scale = scales[m]}));
    for (std::size_t m = 0; m < 2; ++m) {
      auto gradients = layer.make_gradients();
      mo::matrix<mo::fp16> dy(6, 8), dx(6, 8);
      for (mo::fp16& v : dy) v = static_cast<mo::fp16>(scales[m] * slope);
      layer.backward(weights, tapes[m], dy, dx, gradients);
      gradients.for_each([&](mo::parameter const&, std::span<float> of) {
        for (float const g : of) all.push_back(g / scales[m]);
      });
    }
    return all;
  }
};

}  // namespace

TEST_CASE("each micro-batch of a layer in fp16 is of the scale that its forward was given") {
  half_layer of;
  auto const plain = of.unscaled(1, 1, 1.0f / 64);
  CHECK(std::any_of(plain.begin(), plain.end(), [](float g) { return g != 0; }));
  // Values of fp16 lose bits below its least normal number, so that scales are not told from one to the bit.
  for (float const scale : {16.0f, 1024.0f}) {
    auto const apart = of.unscaled(scale, 4 * scale, 1.0f / 64);
    float error = 0, norm = 0;
    for (std::size_t i = 0; i < plain.size(); ++i)
      error = std::max(error, std::abs(apart[i] - plain[i])), norm = std::max(norm, std::abs(plain[i]));
    CHECK(error < 2e-3f * norm);
    CHECK(of.unscaled(scale, 4 * scale, 1.0f / 64) == apart);
  }
}

TEST_CASE("a layer in fp16 whose gradients overflow is trained once the scale has come down") {
  half_layer of;
  ranks::run(1, [&](ranks::communicator& world) {
    mo::dynamic_loss_scale scale;  // 65536, beyond what fp16 holds
    int skipped = 0;
    std::vector<float> gradients;
    auto const finite = [](float g) { return std::isfinite(g); };
    do {
      gradients = of.unscaled(scale.factor(), scale.factor(), 4);
      skipped += !std::all_of(gradients.begin(), gradients.end(), finite);
    } while (!scale.update(world, !std::all_of(gradients.begin(), gradients.end(), finite)) && skipped < 20);
    CHECK(skipped >= 3);
    CHECK(skipped < 10);
    CHECK(scale.value() == std::ldexp(1.0, 16 - skipped));
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
                                              {.least = 1e-60},
                                              {.greatest = 1},
                                              {.growth_interval = 0}})
    CHECK_THROWS_AS(mo::dynamic_loss_scale{wrong}, mo::config_error);
}
