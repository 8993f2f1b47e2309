// SPDX-License-Identifier: Apache-2.0
// Reports, ledgers and steps of selection biases are the same on every rank, and those of one rank with all tokens.
#include "properties/ranks.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

namespace mo = moiety;

namespace {

using spread = ranks::spread<float>;
using global = mo::load_balance<mo::over::global_batch>;
using by_sequence = mo::load_balance<mo::over::sequence>;

struct reported : mo::layer_spec<mo::dims{.hidden = 8, .ffn = 4, .experts = 5}> {
  using router = mo::router<mo::softmax, mo::selection_bias, mo::top_k<2>>;
  using losses = mo::losses<global, mo::load_balance<>, by_sequence, mo::router_z>;
};
struct balanced : mo::layer_spec<mo::dims{.hidden = 8, .ffn = 4, .experts = 5}> {
  using router = mo::router<mo::sigmoid, mo::quantile_bias, mo::top_k<2>>;
};

/// All that a report says, with every digit.
template <class Spec> std::string words_of(mo::loss_report<Spec> const& report) {
  std::ostringstream text;
  text.precision(17);
  typename mo::spec_of<Spec>::losses_type{}.for_each([&]<class Loss>(Loss const&) {
    text << report.template value<Loss>() << ' ' << report.template weighted<Loss>() << ' ';
    for (double const v : report.template per_layer<Loss>()) text << v << ' ';
  });
  text << report.total() << ' ' << report.tokens() << ' ' << report.states().masked << ' ' << report.max_over_mean()
       << ' ' << report.entropy();
  for (std::size_t l = 0; l < report.layers(); ++l)
    for (std::int64_t const n : report.counts(l)) text << ' ' << n;
  text << '\n' << report;
  return text.str();
}

/// What every rank has, if all have the same.
template <class Context> std::string common(Context& ctx, std::string const& mine) {
  auto const all = ctx.world().template all_gather_v<char>({mine.data(), mine.size()});
  std::string expected;
  for (int r = 0; r < ctx.world().size(); ++r) expected += mine;
  return std::string(all.begin(), all.end()) == expected ? mine : "not the same on all ranks";
}

struct call {
  ranks::cut tokens;
  std::vector<std::int64_t> sequences;  // of all micro-batches' tokens together, as in ranks::tokens_of_all
};

/// The words of a ledger of two layers over these micro-batches, of which the second layer sees the first alone.
std::string ledger_of(mo::layout const& shape, std::vector<call> const& calls) {
  mo::layer_options<reported> const options{
      .losses = {global{.coefficient = 0.25f}, mo::load_balance<>{.coefficient = 1}, by_sequence{.coefficient = 0.5f},
                 mo::router_z{.coefficient = 2}}};
  ranks::tokens_of_all all;
  std::int64_t tokens = 0;
  for (call const& c : calls) {
    tokens += ranks::total(c.tokens);
    all.sequences.insert(all.sequences.end(), c.sequences.begin(), c.sequences.end());
  }
  for (std::int64_t t = 0; t < tokens; ++t) all.mask.push_back(t % 5 != 2);
  return mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        mo::moe_layer<reported, spread> layer{ctx, options};
        auto const weights = layer.make_weights(mo::seed{5}), others = layer.make_weights(mo::seed{6});
        mo::loss_ledger<reported> ledger{ctx, 2};
        std::int64_t before = 0;
        for (call const& c : calls) {
          ranks::tokens_of_all about = all;
          about.sequences = c.sequences;
          ranks::rank_tokens const mine(ctx, c.tokens, before, about);
          before += ranks::total(c.tokens);
          auto x = ctx.matrix(mine.count, 8), y = ctx.matrix(mine.count, 8);
          mo::fill_normal(ctx, x, mo::seed{1}, mo::first_row{mine.first});
          auto const tape = layer.forward(weights, x, y, mine.about(2));
          ledger.record(0, tape);
          if (&c == &calls[0]) ledger.record(1, layer.forward(others, x, y, mine.about(2)));
          if (calls.size() == 1 && words_of(layer.report(tape)) == words_of(ledger.reduce()))
            return std::string("a report of one layer says the same as two");
        }
        std::string const once = words_of(ledger.reduce());
        return common(ctx, words_of(ledger.reduce()) == once ? once : "reduced twice, it changes");
      },
      {}, shape, {.threads = 1});
}

}  // namespace

TEST_CASE("a ledger is the same on every rank and every layout: losses over sequences, batches and the step") {
  std::string const one = ledger_of({}, {{{40}, {0, 12, 12, 30, 40}}, {{25}, {40, 50, 65}}});
  CHECK(one.find("nan") == std::string::npos);
  CHECK(one.size() > 100);
  // Data ranks with sequences of their own; ranks that hold parts of one; both; a rank without tokens; pipeline stages.
  CHECK(ledger_of({.data = 2, .expert = 1}, {{{12, 28}, {0, 12, 13, 30, 40}}, {{10, 15}, {40, 50, 65}}}) ==
        ledger_of({}, {{{40}, {0, 12, 13, 30, 40}}, {{25}, {40, 50, 65}}}));
  CHECK(ledger_of({.tensor = 3}, {{{5, 0, 35}, {0, 12, 12, 30, 40}}, {{20, 5, 0}, {40, 50, 65}}}) == one);
  CHECK(ledger_of({.context = 5, .expert = 5},
                  {{{8, 8, 8, 8, 8}, {0, 12, 12, 30, 40}}, {{0, 0, 0, 25, 0}, {40, 50, 65}}}) == one);
  CHECK(ledger_of({.data = 2, .tensor = 2}, {{{6, 6, 10, 18}, {0, 12, 20, 30, 40}}, {{10, 0, 0, 15}, {40, 50, 65}}}) ==
        ledger_of({}, {{{40}, {0, 12, 20, 30, 40}}, {{25}, {40, 50, 65}}}));
}

TEST_CASE("no token anywhere is a report of no samples, without NaN, and a step that changes nothing") {
  for (mo::layout const& shape :
       {mo::layout{}, mo::layout{.data = 3}, mo::layout{.data = 2, .tensor = 2}, mo::layout{.data = 5, .expert = 5}}) {
    std::string const words = ledger_of(shape, {{ranks::cut(static_cast<std::size_t>(shape.stage())), {}}});
    CHECK(words == ledger_of({}, {{{0}, {}}}));
    CHECK(words.find("nan") == std::string::npos);
    CHECK(words.find("0 tokens") != std::string::npos);
  }
}

namespace {

/// The selection bias after steps by the counts, or the tapes, of global batches of two micro-batches.
template <class Spec> std::vector<float> bias_after(mo::layout const& shape, std::vector<ranks::cut> const& calls) {
  return mo::run<spread>(
      [&](mo::context<spread>& ctx) {
        mo::moe_layer<Spec, spread> layer{ctx};
        auto weights = layer.make_weights(mo::seed{5});
        for (int step = 0; step < 3; ++step) {
          mo::loss_ledger<Spec> ledger{ctx, 1};
          std::vector<typename mo::moe_layer<Spec, spread>::tape_type> tapes;
          std::vector<mo::matrix<float>> kept;
          std::int64_t before = 0;
          ranks::tokens_of_all const nothing;
          for (ranks::cut const& tokens : calls) {
            ranks::rank_tokens const mine(ctx, tokens, before, nothing);
            before += ranks::total(tokens);
            auto& x = kept.emplace_back(ctx.matrix(mine.count, 8));
            auto y = ctx.matrix(mine.count, 8);
            mo::fill_normal(ctx, x, mo::seed{step}, mo::first_row{mine.first});
            for (std::int64_t t = 0; t < mine.count; ++t) x(t, 0) += 2;  // a skew
            tapes.push_back(layer.forward(weights, x, y, mine.about(2)));
            ledger.record(0, tapes.back());
          }
          if constexpr (std::is_same_v<Spec, balanced>)
            layer.update_selection_bias(weights, tapes[0], tapes[1]);
          else
            layer.update_selection_bias(weights, ledger.reduce().counts());
        }
        std::vector<float> const mine(weights.selection_bias(), weights.selection_bias() + 5);
        std::vector<float> const all = ctx.world().template all_gather_v<float>(mine);
        for (std::size_t i = 0; i < all.size(); ++i)
          if (all[i] != mine[i % 5]) return std::vector<float>();
        return mine;
      },
      {}, shape, {.threads = 1});
}

template <class Spec> void check_bias() {
  auto const one = bias_after<Spec>({}, {{50}, {31}});
  CHECK(std::any_of(one.begin(), one.end(), [](float v) { return v > 0; }));
  CHECK(bias_after<Spec>({.data = 2}, {{25, 25}, {30, 1}}) == one);
  CHECK(bias_after<Spec>({.data = 5, .expert = 5}, {{10, 0, 20, 0, 20}, {0, 0, 0, 0, 31}}) == one);
  CHECK(bias_after<Spec>({.data = 2, .context = 2}, {{50, 0, 0, 0}, {7, 8, 8, 8}}) == one);
  auto const none = bias_after<Spec>({.data = 2}, {{0, 0}, {0, 0}});
  CHECK(none == bias_after<Spec>({}, {{0}, {0}}));
}

}  // namespace

TEST_CASE("a selection bias steps by the counts of all ranks") { check_bias<reported>(); }
TEST_CASE("a selection bias steps by the quantiles of the scores of all ranks") { check_bias<balanced>(); }

TEST_CASE("a weight given on some ranks alone is the batch's on all") {
  auto const weighted_by = [](mo::layout const& shape, std::vector<std::optional<double>> const& weights) {
    return mo::run<spread>(
        [&](mo::context<spread>& ctx) {
          int const rank = ctx.stage().rank();
          std::int64_t const each = 12 / ctx.stage().size();
          mo::moe_layer<reported, spread> layer{ctx, {.losses = {global{}, mo::load_balance<>{.coefficient = 1}}}};
          auto weights_here = layer.make_weights(mo::seed{5});
          auto x = ctx.matrix(each, 8), y = ctx.matrix(each, 8), dy = ctx.matrix(each, 8), dx = ctx.matrix(each, 8);
          mo::fill_normal(ctx, x, mo::seed{1}, mo::first_row{each * rank});
          auto tape = layer.forward(weights_here, x, y, {.weight = weights[static_cast<std::size_t>(rank)]});
          auto gradients = layer.make_gradients();
          layer.backward(weights_here, tape, dy, dx, gradients);
          double const weight = tape.batch_weight();
          std::vector<double> all = ctx.stage().template all_gather_v<double>({&weight, 1});
          for (float const v : mo::all_gather(ctx.stage(), dx)) all.push_back(static_cast<double>(v));
          return all;
        },
        {}, shape, {.threads = 1});
  };
  auto const one = weighted_by({}, {9.0});
  CHECK(one[0] == 9.0);
  for (auto const& given : {std::vector<std::optional<double>>{5.0, std::nullopt, 0.0},
                            {std::nullopt, 1.0, std::nullopt},
                            {3.0, 3.0, 3.0}}) {
    auto const three = weighted_by({.data = 3}, given);
    CHECK(std::vector<double>(three.begin(), three.begin() + 3) == std::vector<double>(3, 9.0));
    CHECK(std::equal(three.begin() + 3, three.end(), one.begin() + 1, one.end()));
  }
}
