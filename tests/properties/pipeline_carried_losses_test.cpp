// SPDX-License-Identifier: Apache-2.0
// Losses that travel with the activations, and whose gradient travels back, as other systems have it: a second way to the
// numbers of the report, and to the gradients of a stack that carries nothing.
#include "pipeline/carrying.hpp"
#include "pipeline/linear_stage.hpp"
#include "properties/ranks.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

constexpr std::int64_t hidden = 8, tokens = 7;
constexpr int micro = 8, layers = 8;

struct block : mo::layer_spec<mo::dims{.hidden = hidden, .ffn = 6, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};
using linear::spread;
using view = mo::matrix_view<double>;
using layer = mo::moe_layer<block, spread>;
using carried = carrying::block<layer>;
using model = mo::block_stack<spread, layer, carried, mo::recomputed<carried>>;

enum class losses { stay, travel, travel_again, are_lost };  // again: layers are recomputed; lost: on the way back

struct outcome {
  double reported = 0, carried = 0, norm = 0;
  std::map<std::string, std::vector<double>> gradients;  // by name, and by rank of the stage
};

/// A step of layers whose losses do this. A mesh of two replicas that share the experts, or of one.
template <class Order> outcome step_on(Order const&, mo::schedule_view const& plan, losses how, int data) {
  outcome all;
  std::mutex mutex;
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        auto const build = [&](int) -> model::any_block {
          layer made{ctx, {.losses = {mo::load_balance<>{.coefficient = 0.5f}, mo::router_z{.coefficient = 0.25f}}}};
          if (how == losses::stay) return made;
          if (how == losses::travel_again) return mo::recomputed{ctx, carried{std::move(made)}};
          return carried{std::move(made)};
        };
        model stage{ctx, mo::split_layers(std::vector<int>(layers, 1), plan.stages()), build, Order::placed};
        auto const weights = stage.make_weights(mo::seed{3});
        auto gradients = stage.make_gradients();
        mo::pipeline_engine engine{ctx, plan, stage};
        double sum = 0;
        auto const report = engine.step(
            weights, gradients, mo::equal_batches(micro, tokens),
            [&](int m, view x) {
              auto const stream = static_cast<std::uint64_t>(1 + ctx.stage().rank());
              for (std::int64_t t = 0; t < tokens; ++t)
                for (std::int64_t h = 0; h < x.cols(); ++h)
                  x(t, h) =
                      h == hidden ? 0 : mo::normal(mo::seed{m}, stream, static_cast<std::uint64_t>(t * hidden + h));
            },
            [&](int, view y, view dy) {
              mo::task_loss const found = mo::square_error(ctx, carried::rows(y), carried::rows(dy));
              if (how == losses::stay) return found;
              sum += y(0, hidden);
              // The layers' losses weigh what the batch does, over the ranks of the stage.
              for (std::int64_t t = 0; t < tokens; ++t)
                dy(t, hidden) = how == losses::are_lost ? 0 : static_cast<double>(tokens * data);
              return found;
            });
        double const norm = mo::global_norm(ctx, gradients);
        std::scoped_lock const lock(mutex);
        all.reported = report.total(), all.norm = norm;
        all.carried += sum / (micro * data);
        gradients.for_each([&](mo::parameter const& p, auto g) {
          all.gradients[p.name + " of " + std::to_string(ctx.stage().rank())].assign(g.begin(), g.end());
        });
      },
      {}, {.data = data, .pipeline = plan.ranks(), .expert = data});
  return all;
}

outcome one_stage(losses how, int data) {
  return step_on(mo::gpipe{}, mo::make_schedule(mo::gpipe{}, {.ranks = 1, .microbatches = micro}), how, data);
}

void check_all(int data, std::vector<int> const& pipelines) {
  outcome const plain = one_stage(losses::stay, data);
  REQUIRE(plain.gradients.size() == static_cast<std::size_t>(layers * 4 * data));
  CHECK(plain.reported > 0);
  CHECK(plain.carried == 0);
  for (int const stages : pipelines)
    linear::for_each_order(stages, micro, [&](auto const& order, mo::schedule_view const& plan) {
      for (losses const how : {losses::stay, losses::travel, losses::travel_again}) {
        INFO(std::string(order.name), " on ", stages, " ranks, ", plan.stages(), " stages, ", static_cast<int>(how));
        outcome const found = step_on(order, plan, how, data);
        CHECK(found.reported == plain.reported);
        CHECK(found.carried == doctest::Approx(how == losses::stay ? 0 : plain.reported).epsilon(1e-12));
        bool const bits = order.gradients == mo::gradient_order::ascending && !plan.bidirectional();
        if (bits) CHECK(found.norm == plain.norm);
        REQUIRE(found.gradients.size() == plain.gradients.size());
        for (auto const& gradient : plain.gradients) {
          INFO(gradient.first);
          auto const& values = found.gradients.at(gradient.first);
          if (bits) CHECK(ranks::same_bits(values, gradient.second));
          CHECK(ranks::distance(values, gradient.second) < ranks::bound<double>(micro * tokens));
        }
      }
    });
}

}  // namespace

TEST_CASE("carried losses are those of the report, and their gradients those of losses that stay, for every order") {
  check_all(1, {2, 4});
}
TEST_CASE("the same with experts on two ranks") { check_all(2, {2}); }

TEST_CASE("the gradient of carried losses reaches the router of every layer, and nothing else brings it there") {
  outcome const whole = one_stage(losses::travel, 1), lost = one_stage(losses::are_lost, 1);
  CHECK(lost.reported == whole.reported);
  for (int l = 0; l < layers; ++l) {
    std::string const name = "layers." + std::to_string(l) + ".router.weight of 0";
    CHECK(ranks::distance(lost.gradients.at(name), whole.gradients.at(name)) > 1e-3);
  }
}
