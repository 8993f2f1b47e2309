// SPDX-License-Identifier: Apache-2.0
// Models of unlike layers: what a stack computes is what its blocks do one after another, and the gradient of its loss.
#include <moiety/pipeline/block_stack.hpp>

#include "counting_memory.hpp"
#include "pipeline/mixed_model.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace {

using namespace mixed;
using ledger_type = mo::model_ledger<wide, noisy>;

static_assert(mo::pipeline_stage<model>);
static_assert(
    std::is_same_v<decltype(std::declval<model const&>().make_ledger(std::declval<context&>())), ledger_type>);
using one_spec = mo::block_stack<spread, dense, wide_layer>;
static_assert(std::is_same_v<decltype(std::declval<one_spec const&>().make_ledger(std::declval<context&>())),
                             mo::loss_ledger<wide>>);
using no_spec = mo::block_stack<spread, dense>;
template <class Stack>
concept has_ledger = requires(Stack const& stack, context& ctx) {
  stack.make_ledger(ctx);
};
static_assert(has_ledger<model> && !has_ledger<no_spec> && mo::pipeline_stage<no_spec>);

/// y = x, and nothing kept.
struct passing : block {
  struct tape_type {};
  static std::int64_t input_width() { return hidden; }
  static std::int64_t output_width() { return hidden; }
  static tensors make_gradients() { return {}; }
  static tensors make_weights(mo::seed, std::string_view) { return {}; }
  static void infer(tensors const&, in x, out y, mo::batch const&) {
    for (std::int64_t t = 0; t < x.rows(); ++t) std::copy_n(x.row(t), hidden, y.row(t));
  }
  static tape_type forward(tensors const& w, in x, out y, mo::batch const& about) {
    infer(w, x, y, about);
    return {};
  }
  static void backward_input(tensors const& w, tape_type&, in dy, out dx) { infer(w, dy, dx, {}); }
  static void backward_weights(tape_type&, tensors&) {}
};

struct packed : passing {
  static void pack(tensors& weights) { weights.add("packed", 1, 1); }
};

/// A layer without a stack.
struct lone_layer {
  virtual ~lone_layer() = default;
  virtual mo::matrix<double> forward(in x, mo::batch const& about, ledger_type& ledger) = 0;
  virtual mo::matrix<double> infer(in x, mo::batch const& about) = 0;
  virtual mo::matrix<double> backward(in dy) = 0;
  virtual values gradients() = 0;
};

template <class Block> struct lone final : lone_layer {
  lone(context& with, Block of, int at)
      : ctx(&with), number(at), block(std::move(of)), weights(block.make_weights(mo::seed{3}, prefix())) {}
  mo::batch of_layer(mo::batch about) const {
    about.layer = number;
    return about;
  }
  std::string prefix() const { return "layers." + std::to_string(number) + "."; }

  mo::matrix<double> forward(in x, mo::batch const& about, ledger_type& ledger) override {
    auto y = ctx->matrix(x.rows(), block.output_width());
    tape.emplace_back(block.forward(weights, x, y, of_layer(about)));
    if constexpr (mo::block_with_losses<Block>) ledger.record(number, block.record(tape.back()));
    return y;
  }
  mo::matrix<double> infer(in x, mo::batch const& about) override {
    auto y = ctx->matrix(x.rows(), block.output_width());
    block.infer(weights, x, y, of_layer(about));
    return y;
  }
  mo::matrix<double> backward(in dy) override {
    auto dx = ctx->matrix(dy.rows(), block.input_width());
    block.backward_input(weights, tape.back(), dy, dx);
    block.backward_weights(tape.back(), sums);
    tape.clear();
    return dx;
  }
  values gradients() override {
    values all;
    for (auto& [name, v] : values_of(sums)) all[prefix() + name] = v;
    return all;
  }

  context* ctx;
  int number;
  Block block;
  typename Block::weights_type weights;
  typename Block::gradients_type sums = block.make_gradients();
  std::vector<typename Block::tape_type> tape{};
};

std::vector<std::unique_ptr<lone_layer>> lone_layers(context& ctx) {
  std::vector<std::unique_ptr<lone_layer>> all;
  for (int l = 0; l < layers; ++l)
    std::visit([&]<class Block>(Block&& b) { all.push_back(std::make_unique<lone<Block>>(ctx, std::move(b), l)); },
               make(ctx, kinds[static_cast<std::size_t>(l)]));
  return all;
}

}  // namespace

TEST_CASE("chunks of unlike layers are their blocks one after another") {
  alone([](context& ctx) {
    model const stage{ctx, split_of({3, 5}), build(ctx)};
    auto const weights = stage.make_weights(mo::seed{3});
    auto gradients = stage.make_gradients();
    CHECK(stage.chunks() == 2);
    CHECK(stage.layers() == layers);
    CHECK(stage.input_width() == 0);
    CHECK(stage.width() == hidden);
    CHECK(stage.output_width() == vocabulary);
    CHECK(stage.layers_of<wide>() == std::vector<int>{2, 5});
    CHECK(stage.layers_of<noisy>() == std::vector<int>{3, 6});
    auto blocks = lone_layers(ctx);
    auto ledger = stage.make_ledger(ctx);
    ledger_type expected{ctx, {2, 5}, {3, 6}};
    std::int64_t row = 0;
    for (std::int64_t const tokens : {9, 0, 17}) {
      auto const of = ids(tokens, static_cast<std::uint64_t>(tokens));
      std::vector<std::int64_t> const sequences{0, tokens / 3, tokens};
      mo::batch const about{.sequences = sequences, .ids = of, .first_row = row, .step = 2};
      row += tokens;
      auto const x = ctx.matrix(tokens, 0);
      auto between = ctx.matrix(tokens, hidden), y = ctx.matrix(tokens, vocabulary);
      auto first = stage.forward(weights, 0, x, between, about);
      auto second = stage.forward(weights, 1, std::as_const(between).view(), y, about);
      std::vector<mo::matrix<double>> rows;
      rows.push_back(ctx.matrix(tokens, 0));
      for (auto const& block : blocks) rows.push_back(block->forward(rows.back(), about, expected));
      CHECK(same(between, rows[3]));
      CHECK(same(y, rows[8]));
      auto again = ctx.matrix(tokens, hidden), last = ctx.matrix(tokens, vocabulary);
      stage.infer(weights, 0, x, again, about);
      stage.infer(weights, 1, std::as_const(again).view(), last, about);
      auto inferred = ctx.matrix(tokens, 0);
      for (auto const& block : blocks) inferred = block->infer(inferred, about);
      CHECK(same(last, inferred));
      stage.record(first, ledger), stage.record(second, ledger);

      auto dy = ctx.matrix(tokens, vocabulary), dx = ctx.matrix(tokens, hidden), nothing = ctx.matrix(tokens, 0);
      mo::fill_normal(ctx, dy, mo::seed{5});
      stage.backward_input(weights, second, std::as_const(dy).view(), dx);
      stage.backward_input(weights, first, std::as_const(dx).view(), nothing);
      stage.backward_weights(first, gradients), stage.backward_weights(second, gradients);
      std::vector<mo::matrix<double>> deltas;
      deltas.push_back(std::move(dy));
      for (std::size_t l = blocks.size(); l-- > 0;) deltas.push_back(blocks[l]->backward(deltas.back()));
      CHECK(same(dx, deltas[5]));
    }
    values all;
    for (auto const& block : blocks) all.merge(block->gradients());
    CHECK(values_of(gradients) == all);
    CHECK(all.size() == 1 + 2 * 3 + 2 * 4 + 2 * 5 + 1);
    for (auto const& gradient : all) {
      INFO(gradient.first);
      CHECK(std::any_of(gradient.second.begin(), gradient.second.end(), [](double v) { return v != 0; }));
    }
    auto const found = ledger.reduce(), other = expected.reduce();
    CHECK(found.total() == other.total());
    CHECK(found.total() > 0);
    for (int const l : {3, 6}) CHECK(found.value<by_sequence>(l) == other.value<by_sequence>(l));
    CHECK(found.of<noisy>().dropped(0) == other.of<noisy>().dropped(0));
  });
}

namespace {

/// Another ledger than ours: Σ coefficient · weight · value of all that was recorded.
struct sum_of_losses {
  double sum = 0;
  template <class Spec> void record(std::int64_t, mo::layer_record<Spec> const& entry) {
    for (mo::loss_sum const& s : entry.sums) sum += s.weighted.value();
  }
};

}  // namespace

TEST_CASE("gradients of a whole model, its balance losses included, are those of finite differences") {
  alone([](context& ctx) {
    model const stage{ctx, split_of({8}), build(ctx)};
    auto weights = stage.make_weights(mo::seed{3});
    auto gradients = stage.make_gradients();
    std::int64_t const tokens = 13;
    auto const of = ids(tokens, 1);
    std::vector<std::int64_t> const sequences{0, 4, tokens};
    mo::batch const about{.sequences = sequences, .ids = of, .step = 3};
    auto const x = ctx.matrix(tokens, 0);
    auto y = ctx.matrix(tokens, vocabulary), factors = ctx.matrix(tokens, vocabulary), dx = ctx.matrix(tokens, 0);
    mo::fill_normal(ctx, factors, mo::seed{2});
    auto const loss = [&] {
      auto const tape = stage.forward(weights, 0, x, y, about);
      sum_of_losses losses;
      stage.record(tape, losses);
      for (std::size_t i = 0; i < y.size(); ++i) losses.sum += y.data()[i] * factors.data()[i];
      return losses.sum;
    };
    auto tape = stage.forward(weights, 0, x, y, about);
    stage.backward_input(weights, tape, std::as_const(factors).view(), dx);
    stage.backward_weights(tape, gradients);
    int checked = 0;
    mo::for_each_parameter(weights, gradients, [&](mo::parameter const& p, auto w, auto g) {
      INFO(p.name);
      for (std::size_t i = 0; i < w.size(); i += 3, ++checked) {
        double const kept = w[i], by = 1e-5;
        w[i] = kept + by;
        double const up = loss();
        w[i] = kept - by;
        double const down = loss();
        w[i] = kept;
        CHECK(std::abs((up - down) / (2 * by) - g[i]) < 1e-7 * (1 + std::abs(g[i])));
      }
    });
    CHECK(checked > 400);
  });
}

TEST_CASE("rows between layers live as long as their tape, and infer keeps two of them at once") {
  counting hook;
  mo::run<spread>(
      [&](context& ctx) {
        std::int64_t const tokens = 200, row = tokens * hidden * std::int64_t{sizeof(double)};
        auto const held = [&] {
          ctx.memory().release();
          return hook.live;
        };
        for (int const blocks : {3, 7}) {
          mo::block_stack<spread, head, passing> const stage{ctx, split_of({blocks}), [](int) { return passing{}; }};
          auto const weights = stage.make_weights(mo::seed{1});
          auto gradients = stage.make_gradients();
          auto x = ctx.matrix(tokens, hidden), y = ctx.matrix(tokens, hidden), dx = ctx.matrix(tokens, hidden);
          std::int64_t const before = held();
          {
            auto tape = stage.forward(weights, 0, x, y, {});
            CHECK(held() == before + (blocks - 1) * row);
            stage.backward_input(weights, tape, y, dx);
            CHECK(held() == before + 2 * (blocks - 1) * row);
            stage.backward_weights(tape, gradients);
          }
          CHECK(held() == before);
          hook.most = 0;
          stage.infer(weights, 0, x, y, {});
          CHECK(hook.most == before + 2 * row);
          CHECK(held() == before);
        }
      },
      {}, mo::layout{}, mo::host{.threads = 1, .memory = &hook});
}

TEST_CASE("pack is for the blocks that have it") {
  alone([](context& ctx) {
    using stack = mo::block_stack<spread, passing, packed, mo::recomputed<packed>, mo::recomputed<passing>>;
    stack const stage{ctx, split_of({4}),
                      [&](int layer) -> std::variant<passing, packed, mo::recomputed<packed>, mo::recomputed<passing>> {
                        if (layer == 0) return passing{};
                        if (layer == 1) return packed{};
                        if (layer == 2) return mo::recomputed{ctx, packed{}};
                        return mo::recomputed{ctx, passing{}};
                      }};
    auto weights = stage.make_weights(mo::seed{1});
    CHECK(values_of(weights).empty());
    stage.pack(weights);
    CHECK(values_of(weights) == values{{"layers.1.packed", {0}}, {"layers.2.packed", {0}}});
  });
}
