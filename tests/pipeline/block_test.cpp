// SPDX-License-Identifier: Apache-2.0
#include <moiety/pipeline/block.hpp>

#include "pipeline/mixed_model.hpp"

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace mixed;

struct without_infer : embedding {
  void infer() = delete;
};
struct with_other_weights : head {
  static int make_weights(mo::seed, std::string_view) { return 0; }
};
struct forgets_to_record : head {
  using spec = wide;
};
struct records_another : head {
  using spec = wide;
  static mo::layer_record<noisy> record(tape_type const&) { return {}; }
};

static_assert(mo::model_block<embedding> && mo::model_block<dense> && mo::model_block<head>);
static_assert(!mo::block_with_losses<embedding> && !mo::block_with_losses<dense>);
static_assert(mo::block_with_losses<wide_layer> && mo::block_with_losses<mo::moe_layer<wide>>);
static_assert(!mo::model_block<int> && !mo::model_block<without_infer> && !mo::model_block<with_other_weights>);
static_assert(mo::model_block<forgets_to_record> && !mo::block_with_losses<forgets_to_record>);
static_assert(!mo::block_with_losses<records_another>);

using mo::detail::spec_list;
using mo::detail::specs_of;
static_assert(std::is_same_v<specs_of<>, spec_list<>> && std::is_same_v<specs_of<dense, head>, spec_list<>>);
static_assert(std::is_same_v<specs_of<noisy_layer, dense, wide_layer, noisy_layer>, spec_list<noisy, wide>>);

mo::batch about(std::vector<std::int32_t> const& ids) { return {.ids = ids}; }

/// Σ of the elements of y by fixed factors.
double objective(mo::matrix<double> const& y, mo::matrix<double> const& factors) {
  double sum = 0;
  for (std::size_t i = 0; i < y.size(); ++i) sum += y.data()[i] * factors.data()[i];
  return sum;
}

/// Every gradient of a block against central differences.
template <class Block> void check_gradients(context& ctx, Block const& block) {
  std::int64_t const tokens = 7;
  auto const of = ids(tokens, 1);
  auto x = ctx.matrix(tokens, block.input_width()), y = ctx.matrix(tokens, block.output_width());
  auto factors = ctx.matrix(tokens, block.output_width()), dx = ctx.matrix(tokens, block.input_width());
  mo::fill_normal(ctx, factors, mo::seed{2});
  if (x.cols() > 0) mo::fill_normal(ctx, x, mo::seed{1});
  auto weights = block.make_weights(mo::seed{3}, "layers.4.");
  auto gradients = block.make_gradients();
  auto tape = block.forward(std::as_const(weights), std::as_const(x).view(), y.view(), about(of));
  double const before = objective(y, factors);
  block.backward_input(std::as_const(weights), tape, std::as_const(factors).view(), dx.view());
  block.backward_weights(tape, gradients);
  auto const loss = [&] {
    block.infer(std::as_const(weights), std::as_const(x).view(), y.view(), about(of));
    return objective(y, factors);
  };
  CHECK(loss() == before);
  auto const check = [&](double& at, double gradient) {
    double const kept = at, by = 1e-5;
    at = kept + by;
    double const up = loss();
    at = kept - by;
    double const down = loss();
    at = kept;
    CHECK(std::abs((up - down) / (2 * by) - gradient) < 1e-8 * (1 + std::abs(gradient)));
  };
  for (std::size_t i = 0; i < x.size(); ++i) check(x.data()[i], dx.data()[i]);
  int checked = 0;
  weights.for_each([&](mo::parameter const& p, std::span<double> w) {
    gradients.for_each([&](mo::parameter const& q, std::span<double> g) {
      if (p.name != q.name) return;
      for (std::size_t i = 0; i < w.size(); ++i, ++checked) check(w[i], g[i]);
    });
  });
  CHECK(checked > 60);
}

}  // namespace

TEST_CASE("gradients of blocks that a user wrote are those of finite differences") {
  alone([](context& ctx) {
    check_gradients(ctx, embedding{});
    check_gradients(ctx, dense{ctx});
    check_gradients(ctx, head{});
  });
}

TEST_CASE("an MoE layer as a block") {
  alone([](context& ctx) {
    wide_layer const layer{ctx, {.losses = {balance{.coefficient = 0.5f}}}};
    CHECK(layer.input_width() == hidden);
    CHECK(layer.output_width() == hidden);
    check_gradients(ctx, wide_layer{ctx});
    auto const weights = layer.make_weights(mo::seed{1});
    auto x = ctx.matrix(9, hidden), y = ctx.matrix(9, hidden);
    mo::fill_normal(ctx, x, mo::seed{2});
    auto const tape = layer.forward(weights, x, y);
    auto const record = layer.record(tape);
    CHECK(record.tokens.routed == 9);
    CHECK(record.value<balance>() == layer.report(tape).value<balance>());
    CHECK(record.weighted<balance>() == 0.5 * record.value<balance>());
  });
}
