// SPDX-License-Identifier: Apache-2.0
#include <moiety/pipeline/stack_counts.hpp>

#include <moiety/moiety.hpp>
#include <moiety/pipeline.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

using by_prefix = mo::load_balance<mo::over::global_batch, mo::counts::prefix>;
template <int Experts, class Loss> struct block : mo::layer_spec<mo::dims{.hidden = 4, .ffn = 4, .experts = Experts}> {
  using router = mo::router<mo::softmax, mo::top_k<1>>;
  using losses = mo::losses<Loss>;
};
using counting = block<3, by_prefix>;
using wider = block<5, by_prefix>;
using own = block<3, mo::load_balance<>>;
template <class Spec> using layer = mo::moe_layer<Spec>;
using recomputed = mo::recomputed<layer<wider>>;

using integers = std::vector<std::int64_t>;
integers all(mo::counts_view of, std::size_t experts) {
  integers values{of.tokens()};
  for (std::size_t e = 0; e < experts; ++e) values.push_back(of[e]);
  return values;
}

template <class Spec> mo::layer_record<Spec> record_of(integers const& counts) {
  mo::layer_record<Spec> record;
  auto const view = record.statistics.view();
  for (std::size_t e = 0; e < counts.size(); ++e) view.experts[e].count = counts[e], view.unit->tokens += counts[e];
  return record;
}

static_assert(mo::stack_counts::wanted_by<layer<own>, layer<counting>>);
static_assert(!mo::stack_counts::wanted_by<layer<own>>);
static_assert(mo::detail::keeps_counts<mo::block_stack<mo::deployment<>, layer<own>, recomputed>>);
static_assert(!mo::detail::keeps_counts<mo::block_stack<mo::deployment<>, layer<own>>>);

}  // namespace

TEST_CASE("counts are kept of the layers whose losses take them") {
  mo::context<> ctx;
  mo::stack_counts counts;
  counts.keep(1, layer<counting>{ctx});
  counts.keep(2, layer<own>{ctx});
  counts.keep(7, recomputed{ctx, layer<wider>{ctx}});
  REQUIRE(counts.of(1) != nullptr);
  CHECK(counts.of(1)->experts() == 3);
  CHECK(counts.of(2) == nullptr);
  REQUIRE(counts.of(7) != nullptr);
  CHECK(counts.of(7)->experts() == 5);
}

TEST_CASE("a step ends with what its report has of each layer, and one that failed is forgotten") {
  mo::context<> ctx;
  mo::stack_counts counts;
  counts.keep(1, layer<counting>{ctx});
  counts.keep(4, layer<counting>{ctx});
  counts.keep(5, layer<wider>{ctx});
  counts.of(1)->add(record_of<counting>({1, 1, 0}).statistics);
  counts.begin_step();
  CHECK(all(counts.of(1)->so_far(), 3) == integers{0, 0, 0, 0});
  counts.of(4)->add(record_of<counting>({2, 0, 0}).statistics);  // of one direction; the report has both
  counts.end_step(mo::model_report<counting, wider>(
      mo::loss_report<counting>({record_of<counting>({1, 2, 3}), record_of<counting>({4, 5, 6})}, {1, 4}),
      mo::loss_report<wider>({record_of<wider>({7, 0, 0, 0, 8}), record_of<wider>({9, 9, 9, 9, 9})}, {5, 6})));
  CHECK(all(counts.of(1)->last_step(), 3) == integers{6, 1, 2, 3});
  CHECK(all(counts.of(4)->last_step(), 3) == integers{15, 4, 5, 6});
  CHECK(all(counts.of(4)->so_far(), 3) == integers{0, 0, 0, 0});
  CHECK(all(counts.of(5)->last_step(), 5) == integers{15, 7, 0, 0, 0, 8});
  counts.begin_step();
  CHECK(all(counts.of(1)->last_step(), 3) == integers{6, 1, 2, 3});
}

TEST_CASE("a stack without an engine takes counts from forward to forward") {
  mo::context<> ctx;
  using stack = mo::block_stack<mo::deployment<>, layer<counting>, recomputed>;
  stack const stage{ctx, mo::split_layers(std::vector<int>(2, 1), 1), [&](int l) -> stack::any_block {
                      if (l == 0) return layer<counting>{ctx, {.losses = {by_prefix{.coefficient = 1}}}};
                      return recomputed{ctx, layer<wider>{ctx, {.losses = {by_prefix{.coefficient = 1}}}}};
                    }};
  auto const weights = stage.make_weights(mo::seed{1});
  auto counts = stage.make_counts();
  auto x = ctx.matrix(6, 4), y = ctx.matrix(6, 4);
  mo::fill_normal(ctx, x, mo::seed{2});
  for (std::int64_t const before : {0, 6}) {
    for (int const l : {0, 1}) CHECK(counts.of(l)->so_far().tokens() == before);
    stage.forward(weights, 0, std::as_const(x).view(), y, {}, &counts);
  }
  CHECK_THROWS_WITH_AS(stage.forward(weights, 0, std::as_const(x).view(), y, {}),
                       doctest::Contains("the batch brings no mo::batch{.counts}"), mo::data_error);
}
