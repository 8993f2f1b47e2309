// SPDX-License-Identifier: Apache-2.0
// Two replicas, two micro-batches, four layers with given balance losses: what every rank reports, and what the engine puts
// into the gradient of each layer for each micro-batch, by digits worked out by hand; and what other systems make of the same.
#include "pipeline/carrying.hpp"
#include "pipeline/linear_stage.hpp"
#include "pipeline/worked_example.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

using linear::spread;
using worked::given;
using worked::layers;
using worked::micro;
using worked::replicas;
using context = mo::context<spread>;
using in = mo::matrix_view<double const>;
using out = mo::matrix_view<double>;

constexpr std::int64_t tokens = 3;
constexpr float alpha_by_layers = 0.01f / 4;

/// A sequence is what a rank has of a micro-batch. Where all tokens go to expert 0 of 2, the loss is 2 p_0.
using balance = mo::load_balance<mo::over::sequence>;

/// Columns 0 to 3 are the logits of expert 0 in each layer; the others say which replica and micro-batch a row is of.
struct block : mo::layer_spec<mo::dims{.hidden = layers + replicas * micro, .ffn = 2, .experts = 2}> {
  using router = mo::router<mo::softmax, mo::top_k<1>>;
  using losses = mo::losses<balance>;
};

std::int64_t place_of(int replica, int m) { return layers + replica * micro + m; }

/// y = x + layer(x)
class residual : public mo::moe_layer<block, spread> {
  using layer = mo::moe_layer<block, spread>;

 public:
  using layer::layer;

  tape_type forward(weights_type const& weights, in x, out y, mo::batch const& about) const {
    tape_type tape = layer::forward(weights, x, y, about);
    add(x, y);
    return tape;
  }
  void infer(weights_type const& weights, in x, out y, mo::batch const& about) const {
    layer::infer(weights, x, y, about);
    add(x, y);
  }
  void backward_input(weights_type const& weights, tape_type& tape, in dy, out dx) const {
    layer::backward_input(weights, tape, dy, dx);
    add(dy, dx);
  }

 private:
  static void add(in from, out to) {
    for (std::int64_t t = 0; t < to.rows(); ++t)
      for (std::int64_t h = 0; h < to.cols(); ++h) to(t, h) += from(t, h);
  }
};

using carried = carrying::block<residual>;
using model = mo::block_stack<spread, residual, mo::recomputed<residual>, carried, mo::recomputed<carried>>;

/// Whether the losses of a layer on a stage and a replica come into the report.
using recorded = bool (*)(int stage, int stages, int replica);
bool all(int, int, int) { return true; }

class partly_recorded : public model {
 public:
  template <class Split, class Build>
  partly_recorded(context& ctx, Split const& split, Build const& build, recorded which)
      : model(ctx, split, build), which_(which), stages_(ctx.pipeline().size()), replica_(ctx.data().rank()) {}
  template <class Ledger> void record(tape_type const& tape, Ledger& ledger) const {
    if (which_(stage_of(tape.chunk), stages_, replica_)) model::record(tape, ledger);
  }

 private:
  recorded which_;
  int stages_, replica_;
};

struct how {
  std::vector<int> split{2, 2};
  bool first_all_forward = false, carries = false, again = false;
  int expert = 1;
  float coefficient = alpha_by_layers;
  recorded which = all;
  bool comes_back = true;  // the gradient of the carried losses
};

/// Gradients of routers.
using by_layer = std::map<int, std::vector<double>>;

struct outcome {
  std::vector<double> values;  // unweighted by layer, then the total, and the unweighted mean
  bool common = true;          // the same values on all ranks
  /// By replica: as the engine has added them up, and after the sums over ranks and the division by all tokens.
  std::array<by_layer, replicas> on_replica, averaged;
  std::array<double, replicas> carried{};  // what the carried column had in the end, summed over micro-batches
};

bool is_router(mo::parameter const& p) { return p.name == "layers." + std::to_string(p.layer) + ".router.weight"; }

void read(model::gradients_type& gradients, by_layer& to) {
  gradients.for_each([&](mo::parameter const& p, std::span<double> v) {
    if (is_router(p)) to[static_cast<int>(p.layer)].assign(v.begin(), v.end());
  });
}

outcome run(how const& h = {}) {
  int const stages = static_cast<int>(h.split.size());
  mo::pipeline_shape const shape{.ranks = stages, .microbatches = micro};
  mo::schedule const plan =
      h.first_all_forward ? mo::make_schedule(mo::gpipe{}, shape) : mo::make_schedule(mo::one_f_one_b{}, shape);
  outcome found;
  std::mutex mutex;
  mo::run<spread>(
      [&](context& ctx) {
        int const replica = ctx.data().rank();
        auto const build = [&](int) -> model::any_block {
          residual layer{ctx, {.losses = {balance{.coefficient = h.coefficient}}}};
          if (h.carries && h.again) return mo::recomputed{ctx, carried{std::move(layer)}};
          if (h.carries) return carried{std::move(layer)};
          if (h.again) return mo::recomputed{ctx, std::move(layer)};
          return layer;
        };
        partly_recorded stage{ctx, mo::split_by_counts(h.split, layers), build, h.which};
        auto weights = stage.make_weights(mo::seed{1});
        weights.for_each([](mo::parameter const& p, std::span<double> v) {
          std::fill(v.begin(), v.end(), 0);
          if (is_router(p)) v[static_cast<std::size_t>(p.layer)] = 1;
        });
        auto gradients = stage.make_gradients();
        mo::pipeline_engine engine{ctx, plan, stage};
        double sum = 0;
        auto const report = engine.step(
            weights, gradients, mo::equal_batches(micro, tokens),
            [&](int m, out x) {
              for (std::int64_t t = 0; t < tokens; ++t) {
                std::fill(x.row(t), x.row(t) + x.cols(), 0.0);
                for (int l = 0; l < layers; ++l) x(t, l) = std::log(given[replica][m][l] / (2 - given[replica][m][l]));
                x(t, place_of(replica, m)) = 1;
              }
            },
            [&](int, out y, out dy) {
              for (std::int64_t t = 0; t < tokens; ++t) std::fill(dy.row(t), dy.row(t) + dy.cols(), 0.0);
              if (h.carries)
                sum += y(0, carried::hidden()),
                    dy(0, carried::hidden()) = h.comes_back ? replicas * static_cast<double>(tokens) : 0;
              return mo::task_loss{0, tokens};
            });
        std::vector<double> values = report.per_layer<balance>();
        values.push_back(report.total()), values.push_back(report.value<balance>());
        auto const everywhere = ctx.world().all_gather_v<double>(std::span<double const>(values));
        by_layer before, after;
        read(gradients, before);
        auto const list = mo::gradients_of<double>(mo::parameters_of(weights, gradients));
        mo::reduce_gradients(list, mo::groups_of(ctx));
        mo::normalise(list, engine.task().weight);
        read(gradients, after);
        std::scoped_lock const lock(mutex);
        for (std::size_t i = 0; i < everywhere.size(); ++i)
          found.common = found.common && everywhere[i] == values[i % values.size()];
        found.values = values;
        auto const r = static_cast<std::size_t>(replica);
        found.carried[r] += sum;
        found.on_replica[r].merge(before), found.averaged[r].merge(after);
      },
      {}, {.data = replicas, .pipeline = stages, .expert = h.expert});
  return found;
}

/// What the loss of a replica's micro-batch in a layer was multiplied by before it was differentiated, as ∂(2 p_0)/∂logit is
/// known.
double seed(by_layer const& gradients, int d, int m, int l) {
  double const b = given[d][m][l], slope = b * (1 - b / 2);
  return gradients.at(l)[static_cast<std::size_t>(place_of(d, m))] / slope;
}

bool near(double found, double wanted) { return std::abs(found - wanted) < 1e-7 * wanted; }

bool right_report(outcome const& found) {
  constexpr double wanted[]{1.075, 1.15, 1.225, 1.3, .01187500, 1.187500};
  bool right = found.common && found.values.size() == 6;
  for (std::size_t i = 0; right && i < 6; ++i) right = near(found.values[i], wanted[i]);
  return right;
}

bool right_seeds(outcome const& found) {
  for (int d = 0; d < replicas; ++d)
    for (int m = 0; m < micro; ++m)
      for (int l = 0; l < layers; ++l) {
        auto const r = static_cast<std::size_t>(d);
        double const on_its_rank = seed(found.on_replica[r], d, m, l) / (micro * tokens);
        if (!near(on_its_rank, .00125)) return false;
        for (by_layer const& any : found.averaged)
          if (!near(seed(any, d, m, l), .000625)) return false;
      }
  return true;
}

}  // namespace

TEST_CASE(
    "the report and the seeds of gradients, to the digit and with the same bits for every split, order and policy") {
  outcome const one = run({.split = {4}});
  CHECK(right_report(one));
  CHECK(right_seeds(one));
  for (std::vector<int> const& split : {std::vector<int>{4}, {2, 2}, {1, 1, 1, 1}, {4, 0}, {0, 3, 0, 1}})
    for (int const expert : {1, 2})
      for (bool const first_all_forward : {true, false})
        for (bool const carries : {false, true})
          for (bool const again : {false, true}) {
            INFO(split.size(), " stages, the last with ", split.back(), " layers, experts on ", expert, " ranks",
                 first_all_forward ? ", gpipe" : ", 1f1b", carries ? ", carried" : "", again ? ", recomputed" : "");
            outcome const found = run({split, first_all_forward, carries, again, expert});
            CHECK(found.common);
            CHECK(found.values == one.values);
            CHECK(found.on_replica == one.on_replica);
            CHECK(found.averaged == one.averaged);
            double const carried = (found.carried[0] + found.carried[1]) / (replicas * micro);
            CHECK(carried == (carries ? doctest::Approx(one.values[4]).epsilon(1e-14) : doctest::Approx(0)));
          }
}

TEST_CASE("what other systems make of it is told from the truth") {
  struct wrong {
    double total;
    how made;
    bool seeds;  // are right all the same
  };
  recorded const last = [](int stage, int stages, int) { return stage + 1 == stages; },
                 first = [](int stage, int, int) { return stage == 0; },
                 of_one_replica = [](int, int, int replica) { return replica == 0; };
  for (wrong const& w : {wrong{.00631250, {.which = last}, true}, wrong{.00556250, {.which = first}, true},
                         wrong{.01275000, {.which = of_one_replica}, true},
                         wrong{.00593750, {.coefficient = alpha_by_layers / micro}, false},
                         wrong{.02375000, {.coefficient = alpha_by_layers * micro}, false}}) {
    CAPTURE(w.total);
    outcome const found = run(w.made);
    CHECK(near(found.values[4], w.total));
    CHECK_FALSE(right_report(found));
    CHECK(right_seeds(found) == w.seeds);
  }
  // A carried loss whose gradient does not come back trains nothing.
  outcome const cut = run({.carries = true, .comes_back = false});
  CHECK(right_report(cut));
  CHECK_FALSE(right_seeds(cut));
}
