// SPDX-License-Identifier: Apache-2.0
#include <moiety/pipeline/ledger.hpp>

#include "pipeline/worked_example.hpp"

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

using balance = mo::load_balance<>;
using global = mo::load_balance<mo::over::global_batch>;

struct spec : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 3}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<balance, global>;
};

mo::layer_record<spec> entry(double unweighted, double coefficient = 0.01 / 4) {
  mo::layer_record<spec> r;
  r.add<balance>(1, unweighted, coefficient);
  return r;
}

/// The entries of some replicas and layers.
mo::loss_report<spec> report_of(int replicas = 2, int first = 0, int end = 4, double coefficient = 0.01 / 4) {
  mo::context<> ctx;
  mo::loss_ledger<spec> ledger{ctx, 4};
  for (int d = 0; d < replicas; ++d)
    for (auto const& micro : worked::given[d])
      for (int l = first; l < end; ++l) ledger.record(l, entry(micro[l], coefficient));
  return ledger.reduce();
}

}  // namespace

TEST_CASE("the worked example: every layer, replica and micro-batch is counted once") {
  mo::loss_report<spec> const report = report_of();
  double const layers[4] = {1.075, 1.15, 1.225, 1.3};
  for (std::size_t l = 0; l < 4; ++l)
    CHECK(report.per_layer<balance>()[l] == doctest::Approx(layers[l]).epsilon(1e-12));
  CHECK(std::abs(report.value<balance>() - 1.1875) < 1e-12);
  CHECK(std::abs(report.total() - .011875) < 1e-12);
}

TEST_CASE("the worked example: what is left out, or weighed by the number of micro-batches, is another report") {
  auto const total = [](auto const&... entries) { return report_of(entries...).total(); };
  CHECK(std::abs(total(2, 2, 4) - .00631250) < 1e-12);
  CHECK(std::abs(total(2, 0, 2) - .00556250) < 1e-12);
  CHECK(std::abs(total(1, 0, 4) - .01275000) < 1e-12);
  CHECK(std::abs(total(2, 0, 4, 0.01 / 4 / 2) - .00593750) < 1e-12);
  CHECK(std::abs(total(2, 0, 4, 0.01 / 4 * 2) - .02375000) < 1e-12);
}

TEST_CASE("the order of entries does not matter, to the last bit") {
  mo::context<> ctx;
  mo::loss_ledger<spec> forwards{ctx, 1}, backwards{ctx, 1};
  for (int i = 0; i < 100; ++i) forwards.record(0, entry(std::sin(i) + 1.1));
  for (int i = 99; i >= 0; --i) backwards.record(0, entry(std::sin(i) + 1.1));
  CHECK(forwards.reduce().total() == backwards.reduce().total());
  CHECK(forwards.reduce().layer(0).sums == backwards.reduce().layer(0).sums);
}

TEST_CASE("tapes are recorded by layer; a global-batch loss is that of all tokens") {
  mo::context<> ctx;
  mo::moe_layer<spec> layer{ctx, {.losses = {balance{.coefficient = 0.5f}}}};
  auto const weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(30, 6), y = ctx.matrix(30, 6);
  mo::fill_normal(ctx, x, mo::seed{2});
  mo::loss_ledger<spec> ledger{ctx, 2};
  ledger.record(0, layer.forward(weights, x.rows(0, 10), y.rows(0, 10)));
  ledger.record(0, layer.forward(weights, x.rows(10, 20), y.rows(10, 20)));
  auto const whole = layer.forward(weights, x, y);
  ledger.record(1, whole);
  auto const report = ledger.reduce();
  CHECK(report.tokens() == 30);
  CHECK(report.counts(0) == report.counts(1));
  CHECK(report.per_layer<global>()[0] == report.per_layer<global>()[1]);
  CHECK(report.per_layer<balance>()[0] != report.per_layer<global>()[0]);
  CHECK(report.per_layer<balance>()[1] == report.per_layer<global>()[1]);
}

TEST_CASE("layers by their numbers in a model where others lie between them") {
  mo::context<> ctx;
  mo::loss_ledger<spec> ledger{ctx, std::vector<int>{1, 4}}, none{ctx, std::vector<int>{}};
  ledger.record(4, entry(3));
  ledger.record(1, entry(2));
  auto const report = ledger.reduce();
  CHECK(report.per_layer<balance>() == std::vector<double>{2, 3});
  CHECK(report.number(1) == 4);
  CHECK_THROWS_WITH_AS(ledger.record(0, entry(1)), "layer 0 is none of the ledger's 2 layers.", mo::data_error);
  CHECK_THROWS_AS(ledger.record(2, entry(1)), mo::data_error);
  CHECK_THROWS_AS((mo::loss_ledger<spec>{ctx, std::vector<int>{4, 1}}), mo::config_error);
  CHECK(none.reduce().layers() == 0);
  CHECK(none.reduce().total() == 0);
}

TEST_CASE("layers that do not exist, tapes that are gone") {
  mo::context<> ctx;
  CHECK_THROWS_AS((mo::loss_ledger<spec>{ctx, 0}), mo::config_error);
  mo::loss_ledger<spec> ledger{ctx, 2};
  CHECK_THROWS_WITH_AS(ledger.record(2, entry(1)), "layer 2 is none of the ledger's 2 layers.", mo::data_error);
  CHECK_THROWS_AS(ledger.record(-1, entry(1)), mo::data_error);
  CHECK(ledger.reduce().total() == 0);
  CHECK(ledger.reduce().tokens() == 0);
  mo::moe_layer<spec> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  auto x = ctx.matrix(3, 6), y = ctx.matrix(3, 6);
  auto tape = layer.forward(weights, x, y);
  auto const kept = std::move(tape);
  CHECK_THROWS_AS(ledger.record(0, tape), mo::state_error);
  CHECK_NOTHROW(ledger.record(0, kept));
}
