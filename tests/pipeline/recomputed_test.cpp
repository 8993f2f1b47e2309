// SPDX-License-Identifier: Apache-2.0
#include <moiety/pipeline/recomputed.hpp>

#include "counting_memory.hpp"
#include "pipeline/mixed_model.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace mixed;

static_assert(mo::model_block<wide_again> && mo::block_with_losses<wide_again>);
static_assert(std::is_same_v<wide_again::spec, wide> && std::is_same_v<noisy_again::spec, noisy>);
static_assert(mo::model_block<dense_again> && !mo::block_with_losses<dense_again>);
static_assert(mo::model_block<mo::recomputed<embedding>>);

/// All that one forward and backward of a block give, for two micro-batches.
struct outcome {
  std::vector<double> rows;
  values gradients;
  double losses = 0;
};

template <class Block> outcome once(context& ctx, Block const& block, mo::batch about = {}) {
  outcome out;
  auto const weights = block.make_weights(mo::seed{1}, "");
  auto gradients = block.make_gradients();
  for (std::int64_t const tokens : {11, 0, 6}) {
    auto const of = ids(tokens, 1);
    auto x = ctx.matrix(tokens, block.input_width()), dx = ctx.matrix(tokens, block.input_width());
    auto y = ctx.matrix(tokens, block.output_width()), dy = ctx.matrix(tokens, block.output_width());
    if (x.cols() > 0) mo::fill_normal(ctx, x, mo::seed{2});
    mo::fill_normal(ctx, dy, mo::seed{3});
    about.ids = of;
    auto made = block.forward(weights, std::as_const(x).view(), y.view(), about);
    auto tape = std::move(made);
    if constexpr (mo::block_with_losses<Block>) {
      auto const record = block.record(tape);
      for (mo::loss_sum const& s : record.sums) out.losses += s.weighted.value();
      out.losses += static_cast<double>(record.tokens.routed);
    }
    block.backward_input(weights, tape, std::as_const(dy).view(), dx.view());
    block.backward_weights(tape, gradients);
    auto last = ctx.matrix(tokens, block.output_width());
    block.infer(weights, std::as_const(x).view(), last.view(), about);
    for (auto const* m : {&y, &dx, &last}) out.rows.insert(out.rows.end(), m->begin(), m->end());
    about.first_row += tokens;
  }
  out.gradients = values_of(gradients);
  return out;
}

template <class Make> void check_same(context& ctx, Make const& make, mo::batch const& about = {}) {
  outcome const plain = once(ctx, make(), about), again = once(ctx, mo::recomputed{ctx, make()}, about);
  CHECK(plain.rows == again.rows);
  CHECK(plain.gradients == again.gradients);
  CHECK(plain.losses == again.losses);
}

/// What the memory of a context holds, without blocks that wait for their next use.
std::int64_t held(context& ctx, counting const& hook) {
  ctx.memory().release();
  return hook.live;
}
template <class F> void counted(F const& f) {
  counting hook;
  mo::run<spread>([&](context& ctx) { f(ctx, hook); }, {}, mo::layout{}, mo::host{.threads = 1, .memory = &hook});
}

/// Balance over the global batch, by the counts of the micro-batches so far.
using prefix = mo::load_balance<mo::over::global_batch, mo::counts::prefix>;
struct counting_spec : mo::layer_spec<mo::dims{.hidden = hidden, .ffn = 4, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<prefix>;
};

/// Balanced by a bias, which steps by the counts of a step.
struct biased_spec : mo::layer_spec<mo::dims{.hidden = hidden, .ffn = 4, .experts = 4}> {
  using router = mo::router<mo::sigmoid, mo::selection_bias, mo::top_k<2>, mo::renormalised>;
};
using biased_layer = mo::moe_layer<biased_spec, spread>;
mo::layer_options<biased_spec> const biased_options{.router = {mo::selection_bias{.rate = 0.25f}}};

struct loads {
  std::vector<std::vector<std::int64_t>> counts;  // of each step and layer
  std::vector<float> biases;                      // of each layer, after the last step
  friend bool operator==(loads const&, loads const&) = default;
};

/// Two steps of two layers with four micro-batches of 9 tokens each.
loads loads_of(context& ctx, bool recompute) {
  using stack = mo::block_stack<spread, biased_layer, mo::recomputed<biased_layer>>;
  stack stage{ctx, split_of({2}), [&](int) -> stack::any_block {
                if (recompute) return mo::recomputed{ctx, biased_layer{ctx, biased_options}};
                return biased_layer{ctx, biased_options};
              }};
  auto const plan = mo::make_schedule(mo::one_f_one_b{}, {.ranks = 1, .microbatches = 4});
  mo::pipeline_engine<spread, stack> engine{ctx, plan, stage};
  auto weights = stage.make_weights(mo::seed{1});
  auto gradients = stage.make_gradients();
  loads all;
  for (int step = 0; step < 2; ++step) {
    gradients.reset();
    auto const report = engine.step(
        weights, gradients, mo::equal_batches(4, 9),
        [&](int m, auto x) { mo::fill_normal(ctx, x, mo::seed{10 * step + m}); },
        [&](int, auto y, auto dy) { return mo::square_error(ctx, y, dy); }, step);
    for (std::size_t l = 0; l < 2; ++l) all.counts.push_back(report.counts(l));
    mo::update_selection_biases(ctx, biased_options, weights, report);
  }
  mo::for_each_parameter(weights, [&](mo::parameter const& p, auto values) {
    if (p.name.ends_with("selection_bias")) all.biases.insert(all.biases.end(), values.begin(), values.end());
  });
  return all;
}

}  // namespace

TEST_CASE("the same bits as the block that it holds") {
  alone([](context& ctx) {
    mo::batch const about{.first_row = 40, .step = 5, .weight = 3};
    check_same(ctx, [] { return embedding{}; });
    check_same(ctx, [&] { return dense{ctx}; });
    check_same(ctx, [] { return head{}; });
    check_same(
        ctx,
        [&] {
          return wide_layer{ctx, wide_options()};
        },
        about);
    auto const noisy_one = [&] { return noisy_layer{ctx, noisy_options()}; };
    check_same(ctx, noisy_one, about);
    CHECK(once(ctx, noisy_one(), about).rows != once(ctx, noisy_one(), {.first_row = 40, .step = 6, .weight = 3}).rows);
  });
}

TEST_CASE("between forward and backward nothing but the record is kept") {
  counted([](context& ctx, counting const& hook) {
    std::int64_t const tokens = 500;
    wide_layer const plain{ctx, wide_options()};
    mo::recomputed const again{ctx, wide_layer{ctx, wide_options()}};
    auto const weights = plain.make_weights(mo::seed{1});
    auto gradients = plain.make_gradients();
    auto x = ctx.matrix(tokens, hidden), y = ctx.matrix(tokens, hidden), dy = ctx.matrix(tokens, hidden),
         dx = ctx.matrix(tokens, hidden);
    mo::fill_normal(ctx, x, mo::seed{2});
    std::int64_t const before = held(ctx, hook);
    auto const kept_by = [&](auto const& block) {
      std::vector<std::int64_t> kept;
      auto tape = block.forward(weights, x, y);
      kept.push_back(held(ctx, hook) - before);
      block.backward_input(weights, tape, dy, dx);
      kept.push_back(held(ctx, hook) - before);
      block.backward_weights(tape, gradients);
      kept.push_back(held(ctx, hook) - before);
      return kept;
    };
    auto const usual = kept_by(plain), less = kept_by(again);
    CHECK(usual[0] >= mo::tape_plan<wide, double>(mo::tokens{tokens}).block.bytes());
    CHECK(less[0] == 0);
    CHECK(less[1] == usual[1]);
    CHECK(less[2] == 0);
    CHECK(held(ctx, hook) == before);
  });
}

TEST_CASE("a model whose layers compute again holds the rows between them and no tapes") {
  std::int64_t const tokens = 300;
  auto const most_of = [&](std::string_view of) {
    std::int64_t kept = 0;
    counted([&](context& ctx, counting const& hook) {
      model const stage{ctx, split_of({4}), build(ctx, of)};
      auto const weights = stage.make_weights(mo::seed{1});
      auto x = ctx.matrix(tokens, hidden), y = ctx.matrix(tokens, hidden);
      mo::fill_normal(ctx, x, mo::seed{2});
      std::int64_t const before = held(ctx, hook);
      std::vector<model::tape_type> tapes;
      for (int m = 0; m < 3; ++m) tapes.push_back(stage.forward(weights, 0, x, y, {}));
      kept = held(ctx, hook) - before;
      tapes.clear();
      CHECK(held(ctx, hook) == before);
    });
    return kept;
  };
  // The arena may serve a request by a waiting block of twice its size.
  std::int64_t const between = 3 * 3 * tokens * hidden * std::int64_t{sizeof(double)}, none = most_of("DWDW");
  CHECK(none >= between);
  CHECK(none <= 2 * between);
  CHECK(most_of("DwDW") > none);
  CHECK(most_of("DwDw") > most_of("DwDW"));
  CHECK(most_of("dwdw") > most_of("DwDw"));
  CHECK(most_of("dwdw") > 3 * none);
}

TEST_CASE("counts of other micro-batches are those that forward saw") {
  alone([](context& ctx) {
    using layer_type = mo::moe_layer<counting_spec, spread>;
    auto const make = [&] { return layer_type{ctx, {.losses = {prefix{.coefficient = 0.5f}}}}; };
    auto const weights = make().make_weights(mo::seed{1});
    auto const gradient = [&](auto const& block, bool count) {
      auto gradients = block.make_gradients();
      mo::step_counts counts(4);
      auto x = ctx.matrix(20, hidden), y = ctx.matrix(20, hidden), dy = ctx.matrix(20, hidden),
           dx = ctx.matrix(20, hidden);
      mo::fill_normal(ctx, x, mo::seed{2});
      counts.add(make().forward(weights, x.rows(0, 10), y.rows(0, 10), {.counts = &counts}).statistics());
      auto made = block.forward(weights, x, y, {.counts = &counts});
      auto tape = std::move(made);
      if (count) counts.add(make().forward(weights, x, y, {.counts = &counts}).statistics()), counts.next_step();
      block.backward_input(weights, tape, dy, dx);
      block.backward_weights(tape, gradients);
      return values_of(gradients).at("router.weight");
    };
    mo::recomputed const again{ctx, make()};
    CHECK(gradient(make(), true) == gradient(make(), false));
    CHECK(gradient(again, true) == gradient(make(), true));
  });
}

TEST_CASE("counts of experts are those of one forward, and so is the step of a selection bias") {
  alone([](context& ctx) {
    loads const plain = loads_of(ctx, false), again = loads_of(ctx, true);
    CHECK(plain == again);
    std::vector<float> biases(8);
    REQUIRE(again.counts.size() == 4);
    for (std::size_t i = 0; i < 4; ++i) {
      auto const& counts = again.counts[i];
      CHECK(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}) == 4 * 9 * 2);
      for (std::size_t e = 0; e < 4; ++e)
        biases[i % 2 * 4 + e] += 0.25f * static_cast<float>((counts[e] < 18) - (counts[e] > 18));
    }
    CHECK(again.biases == biases);
    CHECK(biases != std::vector<float>(8));
  });
}

TEST_CASE("halves out of order, and twice") {
  alone([](context& ctx) {
    dense_again const block{ctx, dense{ctx}};
    auto const weights = block.make_weights(mo::seed{1});
    auto gradients = block.make_gradients();
    auto x = ctx.matrix(4, hidden), y = ctx.matrix(4, hidden), dx = ctx.matrix(4, hidden);
    auto tape = block.forward(weights, x, y);
    CHECK_THROWS_WITH_AS(block.backward_weights(tape, gradients), "backward_weights needs a tape after the input half.",
                         mo::state_error);
    block.backward_input(weights, tape, x, dx);
    CHECK_THROWS_WITH_AS(block.backward_input(weights, tape, x, dx),
                         "backward_input needs a tape after forward, but this one was used.", mo::state_error);
    block.backward_weights(tape, gradients);
    CHECK_THROWS_AS(block.backward_weights(tape, gradients), mo::state_error);
    CHECK_THROWS_AS(block.backward_input(weights, tape, x, dx), mo::state_error);
  });
}
