// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/record.hpp>

#include "backend/transport/faulty.hpp"
#include "backend/transport/thread_ranks.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <optional>
#include <span>
#include <vector>

namespace {

using micro = mo::load_balance<>;
using by_sequence = mo::load_balance<mo::over::sequence>;
using global = mo::load_balance<mo::over::global_batch>;

struct spec : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 3}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<micro, by_sequence, global, mo::router_z>;
};

struct fixture {
  mo::context<> ctx;
  mo::moe_layer<spec> layer{ctx, {.losses = {micro{.coefficient = 0.5f}, global{.coefficient = 0.25f}}}};
  mo::layer_weights<spec, float> weights = layer.make_weights(mo::seed{1});

  mo::layer_record<spec> of(mo::matrix_view<float const> x, mo::batch const& about = {}) {
    auto y = ctx.matrix(x.rows(), 6);
    return mo::layer_record<spec>(layer.forward(weights, x, y, about));
  }
};

}  // namespace

TEST_CASE_FIXTURE(fixture, "one batch: every unit's loss is that of its statistics") {
  auto x = ctx.matrix(10, 6);
  mo::fill_normal(ctx, x, mo::seed{4});
  auto const record = of(x);
  CHECK(record.tokens.routed == 10);
  CHECK(record.value<micro>() == record.value<global>());
  CHECK(record.value<micro>() == record.value<by_sequence>());
  CHECK(record.weighted<micro>() == doctest::Approx(0.5 * record.value<micro>()));
  CHECK(record.weighted<global>() == doctest::Approx(0.25 * record.value<global>()));
  CHECK(record.weighted<mo::router_z>() == 0);
}

TEST_CASE_FIXTURE(fixture,
                  "several batches: micro-batch losses are averaged by weight, the global one is of all tokens") {
  auto x = ctx.matrix(12, 6);
  mo::fill_normal(ctx, x, mo::seed{4});
  auto const a = of(x.rows(0, 4)), b = of(x.rows(4, 8)), all = of(x);
  mo::layer_record<spec> ab = a, ba = b;
  ab += b;
  ba += a;
  CHECK(ab.value<global>() == all.value<global>());
  CHECK(ab.value<mo::router_z>() == doctest::Approx(all.value<mo::router_z>()));
  CHECK(ab.value<micro>() == doctest::Approx((4 * a.value<micro>() + 8 * b.value<micro>()) / 12));
  CHECK(ab.value<micro>() != all.value<micro>());
  CHECK(ab.value<micro>() == ba.value<micro>());
  CHECK(ab.statistics == ba.statistics);
  CHECK(ab.sums == ba.sums);
}

TEST_CASE_FIXTURE(fixture, "sequences: a loss over them is that of separate batches") {
  auto x = ctx.matrix(12, 6);
  mo::fill_normal(ctx, x, mo::seed{4});
  std::vector<std::int64_t> const sequences{0, 4, 12};
  auto const together = of(x, {.sequences = sequences});
  auto const a = of(x.rows(0, 4)), b = of(x.rows(4, 8));
  CHECK(together.value<by_sequence>() == doctest::Approx((4 * a.value<micro>() + 8 * b.value<micro>()) / 12));
  CHECK(together.value<micro>() == of(x).value<micro>());
}

TEST_CASE_FIXTURE(fixture, "sequences without a token that counts weigh nothing, in a batch of their own too") {
  mo::moe_layer<spec> lenient{ctx,
                              {.losses = {by_sequence{.coefficient = 0.5f}}, .non_finite = mo::non_finite::sanitise}};
  auto x = ctx.matrix(12, 6), y = ctx.matrix(12, 6);
  mo::fill_normal(ctx, x, mo::seed{4});
  std::fill_n(x.row(4), 8 * 6, std::numeric_limits<float>::quiet_NaN());
  auto const record_of = [&](std::int64_t first, std::vector<std::int64_t> const& sequences,
                             std::optional<double> weight = {}) {
    std::int64_t const count = sequences.back();
    auto const tape = lenient.forward(weights, x.rows(first, count), y.rows(first, count),
                                      {.sequences = sequences, .weight = weight});
    return mo::layer_record<spec>(tape);
  };
  auto const together = record_of(0, {0, 4, 7, 12});
  auto cut = record_of(0, {0, 4});
  cut += record_of(4, {0, 3, 8});
  cut += record_of(4, {0, 8}, 100);
  CHECK(together.tokens.routed == 4);
  CHECK(together.value<by_sequence>() > 0);
  CHECK(cut.value<by_sequence>() == doctest::Approx(together.value<by_sequence>()));
  CHECK(cut.weighted<by_sequence>() == doctest::Approx(together.weighted<by_sequence>()));
}

TEST_CASE_FIXTURE(fixture, "no token: every loss is 0, not NaN") {
  auto const none = of(ctx.matrix(0, 6));
  CHECK(none.value<micro>() == 0);
  CHECK(none.value<by_sequence>() == 0);
  CHECK(none.value<global>() == 0);
  CHECK(none.value<mo::router_z>() == 0);
  CHECK(none.weighted<micro>() == 0);
}

namespace {

struct with_loads : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 6}> {
  using router = mo::router<mo::softmax, mo::logit_noise, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<>, mo::noisy_load<>, mo::device_balance<3>>;
};

/// Numbers that tell a part of a record of a layer from all others.
template <class Spec> mo::layer_record<Spec> numbered(int layer) {
  mo::layer_record<Spec> record;
  mo::statistics_view const all = record.statistics.view();
  int next = 100 * (layer + 1);
  all.unit->tokens = next++, all.unit->chosen = next++, all.unit->lse_squared.add(next++ + 0.5);
  for (mo::expert_statistics& e : all.experts)
    e.count = next++, e.dropped = next++, e.reached = next++, e.probability.add(next++ + 0.25);
  for (mo::exact_sum& load : all.expected_loads) load.add(next++ + 0.125);
  record.tokens = {next++, next++, next++, next++};
  for (mo::loss_sum& sum : record.sums) sum.add(next, next + 1, next + 2), next += 3;
  return record;
}
template <class Spec> bool same(mo::layer_record<Spec>& a, mo::layer_record<Spec>& b) {
  mo::statistics_view const x = a.statistics.view(), y = b.statistics.view();
  bool all = *x.unit == *y.unit && a.tokens == b.tokens && a.sums == b.sums && x.experts.size() == y.experts.size() &&
             x.expected_loads.size() == y.expected_loads.size();
  for (std::size_t e = 0; all && e < x.experts.size(); ++e) all = x.experts[e] == y.experts[e];
  for (std::size_t e = 0; all && e < x.expected_loads.size(); ++e) all = x.expected_loads[e] == y.expected_loads[e];
  return all;
}

template <class Spec> void check_gathered() {
  constexpr int layers = 5, ranks = 3;
  auto const heard = thread_ranks(ranks).run([=](mo::thread_communicator& pipeline) {
    std::vector<mo::layer_record<Spec>> records(layers);
    for (int l = 0; l < layers; ++l)
      if (l % ranks == pipeline.rank()) records[static_cast<std::size_t>(l)] = numbered<Spec>(l);
    mo::gather_records<Spec>(pipeline, std::span(records));
    for (int l = 0; l < layers; ++l) {
      mo::layer_record<Spec> wanted = numbered<Spec>(l);
      expect(same(records[static_cast<std::size_t>(l)], wanted), "the record of a layer");
    }
  });
  for (auto const& outcome : heard)
    if (outcome != nullptr) std::rethrow_exception(outcome);
}

}  // namespace

TEST_CASE("every part of every layer's record is on every rank of a pipeline") {
  check_gathered<spec>();
  check_gathered<with_loads>();
}

TEST_CASE("records of many layers are gathered in as many calls as those of few, whatever they hold") {
  constexpr int ranks = 3;
  auto const calls = [&](int layers, bool empty) {
    std::vector<int> made(ranks);
    for (auto const& outcome : thread_ranks(ranks).run([&](mo::thread_communicator& pipeline) {
           std::vector<mo::layer_record<spec>> records(static_cast<std::size_t>(layers));
           if (pipeline.rank() == 1 && !empty) records[0] = numbered<spec>(1);
           faulty<mo::thread_communicator> counted(pipeline, fault_plan{});
           mo::gather_records<spec>(counted, std::span(records));
           made[static_cast<std::size_t>(pipeline.rank())] = counted.calls();
         }))
      CHECK(outcome == nullptr);
    return made;
  };
  std::vector<int> const few = calls(200, false);
  CHECK(few[0] > 0);
  CHECK(few == std::vector<int>(ranks, few[0]));
  for (int const layers : {200, 400})
    for (bool const empty : {false, true}) CHECK(calls(layers, empty) == few);
}
