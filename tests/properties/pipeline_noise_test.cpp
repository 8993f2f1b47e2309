// SPDX-License-Identifier: Apache-2.0
// The layers of a model draw noise of their own, on any number of stages the same.
#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <ratio>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

struct spread : mo::deployment<mo::dynamic> {};

template <class... Roles> struct of : mo::layer_spec<mo::dims{.hidden = 8, .ffn = 6, .experts = 5}> {
  using router = mo::router<mo::softmax, Roles...>;
  using losses = mo::losses<mo::load_balance<>>;
};
using noisy = of<mo::constant_logit_noise<>, mo::jitter<std::ratio<1, 2>>, mo::top_k<2>>;
using drawn = of<mo::forced<2>>;

struct outcome {
  std::vector<std::vector<std::int64_t>> counts;
  double loss, norm;
  bool operator==(outcome const&) const = default;
};

/// A step of two layers without router weights, where nothing but noise routes; on 1 or 2 stages.
template <class Spec> outcome step_on(int stages, std::int64_t step) {
  return mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        mo::pipeline_shape const shape{.ranks = stages, .chunks = 2 / stages, .microbatches = 4};
        auto const plan = stages == 1 ? mo::make_schedule(mo::interleaved_1f1b{}, shape)
                                      : mo::make_schedule(mo::one_f_one_b{}, shape);
        mo::moe_stack<Spec, spread> stage{ctx, mo::split_by_counts(std::vector{1, 1}, 2)};
        auto weights = stage.make_weights(mo::seed{1});
        weights.for_each([](mo::parameter const& p, auto values) {
          if (p.name.ends_with("router.weight")) std::fill(values.begin(), values.end(), 0.0f);
        });
        auto gradients = stage.make_gradients();
        mo::pipeline_engine engine{ctx, plan, stage};
        auto const report = engine.step(
            weights, gradients, mo::equal_batches(4, 30), [&](int m, auto x) { mo::fill_normal(ctx, x, mo::seed{m}); },
            [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); }, step);
        outcome all{.counts = {},
                    .loss = report.total() + report.template value<mo::load_balance<>>(),
                    .norm = mo::global_norm(ctx, gradients)};
        for (std::size_t l = 0; l < 2; ++l) all.counts.push_back(report.counts(l));
        return all;
      },
      {}, {.pipeline = stages});
}

}  // namespace

TEST_CASE_TEMPLATE("two layers of a model draw different noise, the same on 1 and 2 stages", Spec, noisy, drawn) {
  for (std::int64_t const step : {0, 3}) {
    auto const one = step_on<Spec>(1, step);
    CHECK(one.counts[0] != one.counts[1]);
    CHECK(one.norm > 0);
    CHECK(step_on<Spec>(2, step) == one);
  }
  CHECK(step_on<Spec>(1, 0).counts[0] != step_on<Spec>(1, 3).counts[0]);
  CHECK(step_on<Spec>(1, 1).counts[0] != step_on<Spec>(1, 0).counts[1]);
}
