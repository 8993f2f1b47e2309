// SPDX-License-Identifier: Apache-2.0
#include <moiety/pipeline/moe_stack.hpp>

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

struct block : mo::layer_spec<mo::dims{.hidden = 8, .ffn = 6, .experts = 4}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>>;
};
struct spread : mo::deployment<mo::dynamic> {};

using layer = mo::moe_layer<block, spread>;
using stack = mo::moe_stack<block, spread>;
using values = std::map<std::string, std::vector<float>>;

static_assert(mo::records_losses<stack>);

template <class Part> values values_of(Part&& part, std::string const& prefix = {}) {
  values all;
  part.for_each([&](mo::parameter const& p, auto v) { all[prefix + p.name].assign(v.begin(), v.end()); });
  return all;
}

auto split_of(std::vector<int> const& counts) {
  int blocks = 0;
  for (int const n : counts) blocks += n;
  return mo::split_by_counts(counts, blocks);
}

/// What each rank of a pipeline holds: weights by name, and the stages of its chunks.
struct held {
  values weights;
  std::vector<int> stages;
};
std::vector<held> held_by(int ranks, std::vector<int> const& counts, mo::placement where) {
  std::vector<held> all(static_cast<std::size_t>(ranks));
  mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        stack const stage{ctx, split_of(counts), {}, where};
        held& mine = all[static_cast<std::size_t>(ctx.pipeline().rank())];
        mine.weights = values_of(stage.make_weights(mo::seed{7}));
        for (int c = 0; c < stage.chunks(); ++c) mine.stages.push_back(stage.stage_of(c));
        for (auto const& [name, v] : values_of(stage.make_gradients()))
          if (mine.weights.at(name).size() != v.size()) throw mo::state_error("a gradient has another size.");
        if (stage.layers() != split_of(counts).blocks()) throw mo::state_error("another number of layers.");
      },
      {}, {.pipeline = ranks});
  return all;
}

template <class F> void alone(F const& f) { mo::run<spread>(f, {}, mo::layout{}); }

bool same(mo::matrix<float> const& a, mo::matrix<float> const& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

}  // namespace

TEST_CASE("the same logical weights whatever the split, each layer's its own") {
  held const whole = held_by(1, {5}, mo::placement::loop)[0];
  CHECK(whole.weights.size() == 5 * 4);
  CHECK(whole.stages == std::vector<int>{0});
  REQUIRE(whole.weights.count("layers.0.router.weight") == 1);
  CHECK(whole.weights.at("layers.0.router.weight") != whole.weights.at("layers.4.router.weight"));
  struct cut {
    int ranks;
    std::vector<int> counts;
    mo::placement where;
    std::vector<std::vector<int>> stages;
  };
  using mo::placement;
  for (cut const& c :
       {cut{2, {3, 2}, placement::loop, {{0}, {1}}}, cut{2, {1, 2, 0, 2}, placement::loop, {{0, 2}, {1, 3}}},
        cut{2, {1, 2, 0, 2}, placement::v, {{0, 3}, {1, 2}}}, cut{1, {2, 3}, placement::v, {{0, 1}}},
        cut{4, {0, 4, 0, 1}, placement::loop, {{0}, {1}, {2}, {3}}}}) {
    values all;
    auto const ranks = held_by(c.ranks, c.counts, c.where);
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      CHECK(ranks[r].stages == c.stages[r]);
      std::size_t layers = 0;
      for (int const s : c.stages[r]) layers += static_cast<std::size_t>(c.counts[static_cast<std::size_t>(s)]);
      CHECK(ranks[r].weights.size() == 4 * layers);
      for (int const s : c.stages[r])
        if (c.counts[static_cast<std::size_t>(s)] > 0)
          CHECK(ranks[r].weights.count("layers." + std::to_string(split_of(c.counts).first(s)) + ".router.weight") ==
                1);
      all.insert(ranks[r].weights.begin(), ranks[r].weights.end());
    }
    CHECK(all == whole.weights);
  }
}

TEST_CASE("a chunk is its layers one after another, forward, infer and both halves of backward") {
  alone([](mo::context<spread>& ctx) {
    mo::layer_options<block> const options{.losses = {mo::load_balance<>{.coefficient = 0.3f}}};
    stack const stage{ctx, split_of({1, 3}), options};
    layer const plain{ctx, options};
    auto const weights = stage.make_weights(mo::seed{7});
    auto gradients = stage.make_gradients();
    REQUIRE(stage.chunks() == 2);
    std::vector<layer::weights_type> by_layer;
    std::vector<layer::gradients_type> sums;
    for (int l = 1; l < 4; ++l) {
      by_layer.push_back(plain.make_weights(mo::seed{7}, "layers." + std::to_string(l) + "."));
      sums.push_back(plain.make_gradients());
    }
    mo::loss_ledger<block> ledger{ctx, 4}, expected{ctx, 4};
    for (std::int64_t const tokens : {9, 0, 17}) {
      std::vector<mo::matrix<float>> rows;
      for (int i = 0; i < 4; ++i) rows.push_back(ctx.matrix(tokens, 8));
      auto y = ctx.matrix(tokens, 8), dx = ctx.matrix(tokens, 8);
      mo::fill_normal(ctx, rows[0], mo::seed{1});
      auto tape = stage.forward(weights, 1, rows[0], y, {});
      stage.record(tape, ledger);
      std::vector<layer::tape_type> tapes;
      for (std::size_t l = 0; l < 3; ++l) {
        tapes.push_back(plain.forward(by_layer[l], rows[l], rows[l + 1]));
        expected.record(static_cast<std::int64_t>(l) + 1, tapes.back());
      }
      CHECK(same(y, rows[3]));
      std::fill(y.begin(), y.end(), 0.f);
      stage.infer(weights, 1, rows[0], y, {});
      CHECK(same(y, rows[3]));

      auto dy = ctx.matrix(tokens, 8);
      mo::fill_normal(ctx, dy, mo::seed{2});
      auto moved = std::move(tape);  // as into the engine's hands
      stage.backward_input(weights, moved, std::as_const(dy).view(), dx);
      stage.backward_weights(moved, gradients);
      for (std::size_t l = 3; l-- > 0;) {
        auto next = ctx.matrix(tokens, 8);
        plain.backward(by_layer[l], tapes[l], dy, next, sums[l]);
        dy = std::move(next);
      }
      CHECK(same(dx, dy));
    }
    auto const found = values_of(gradients);
    for (int l = 1; l < 4; ++l)
      for (auto const& gradient :
           values_of(sums[static_cast<std::size_t>(l) - 1], "layers." + std::to_string(l) + ".")) {
        auto const& v = gradient.second;
        INFO(gradient.first);
        CHECK(found.at(gradient.first) == v);
        CHECK(std::any_of(v.begin(), v.end(), [](float x) { return x != 0; }));
      }
    for (float const v : found.at("layers.0.router.weight")) CHECK(v == 0);
    auto const report = ledger.reduce(), other = expected.reduce();
    CHECK(report.per_layer<mo::load_balance<>>() == other.per_layer<mo::load_balance<>>());
    CHECK(report.counts(3) == other.counts(3));
    CHECK(report.counts(0) == std::vector<std::int64_t>(4, 0));
    CHECK(report.counts(1) != report.counts(3));
  });
}

TEST_CASE("reset: the next backward overwrites") {
  alone([](mo::context<spread>& ctx) {
    stack const stage{ctx, split_of({2})};
    auto const weights = stage.make_weights(mo::seed{7});
    auto gradients = stage.make_gradients();
    auto x = ctx.matrix(5, 8), y = ctx.matrix(5, 8), dx = ctx.matrix(5, 8);
    mo::fill_normal(ctx, x, mo::seed{1});
    auto const once = [&] {
      auto tape = stage.forward(weights, 0, x, y, {});
      stage.backward_input(weights, tape, x, dx);
      stage.backward_weights(tape, gradients);
      return values_of(gradients);
    };
    values const first = once(), second = once();
    CHECK(first != second);
    gradients.reset();
    CHECK(once() == first);
    gradients.reset();
    for (auto const& [name, v] : values_of(gradients)) CHECK(std::count(v.begin(), v.end(), 0.f) == std::ssize(v));
  });
}

TEST_CASE("a chunk without layers hands on rows and gradients") {
  alone([](mo::context<spread>& ctx) {
    stack const stage{ctx, split_of({0, 1})};
    auto const weights = stage.make_weights(mo::seed{7});
    auto gradients = stage.make_gradients();
    auto x = ctx.matrix(6, 8), y = ctx.matrix(6, 8), dy = ctx.matrix(6, 8), dx = ctx.matrix(6, 8);
    mo::fill_normal(ctx, x, mo::seed{1});
    mo::fill_normal(ctx, dy, mo::seed{2});
    auto tape = stage.forward(weights, 0, x, y, {});
    CHECK(same(y, x));
    std::fill(y.begin(), y.end(), 0.f);
    stage.infer(weights, 0, x, y, {});
    CHECK(same(y, x));
    stage.backward_input(weights, tape, dy, dx);
    CHECK(same(dx, dy));
    stage.backward_weights(tape, gradients);
    for (auto const& [name, v] : values_of(gradients)) CHECK(std::count(v.begin(), v.end(), 0.f) == std::ssize(v));
    mo::loss_ledger<block> ledger{ctx, 2};
    stage.record(tape, ledger);
    CHECK(ledger.reduce().tokens() == 0);
  });
}

TEST_CASE("halves out of order, and splits that do not fit") {
  alone([](mo::context<spread>& ctx) {
    stack const stage{ctx, split_of({2})};
    auto const weights = stage.make_weights(mo::seed{7});
    auto gradients = stage.make_gradients();
    auto x = ctx.matrix(5, 8), y = ctx.matrix(5, 8), dx = ctx.matrix(5, 8);
    mo::fill_normal(ctx, x, mo::seed{1});
    auto tape = stage.forward(weights, 0, x, y, {});
    CHECK_THROWS_AS(stage.backward_weights(tape, gradients), mo::state_error);
    stage.backward_input(weights, tape, x, dx);
    CHECK_THROWS_AS(stage.backward_input(weights, tape, x, dx), mo::state_error);
    stage.backward_weights(tape, gradients);
    CHECK_THROWS_AS(stage.backward_weights(tape, gradients), mo::state_error);
  });
  CHECK_THROWS_WITH_AS(
      held_by(2, {1, 1, 1}, mo::placement::loop),
      "a split into 3 stages does not fit a pipeline of 2 ranks: mo::placement::loop takes a multiple of that.",
      mo::config_error);
  CHECK_THROWS_WITH_AS(
      held_by(4, {1, 1}, mo::placement::loop),
      "a split into 2 stages does not fit a pipeline of 4 ranks: mo::placement::loop takes a multiple of that.",
      mo::config_error);
}
