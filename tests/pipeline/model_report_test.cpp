// SPDX-License-Identifier: Apache-2.0
#include <moiety/pipeline/model_report.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <sstream>
#include <string>
#include <vector>

namespace mo = moiety;

namespace {

using balance = mo::load_balance<>;

struct narrow : mo::layer_spec<mo::dims{.hidden = 4, .ffn = 4, .experts = 2}> {
  using router = mo::router<mo::softmax, mo::top_k<1>>;
  using losses = mo::losses<balance>;
};
struct wide : mo::layer_spec<mo::dims{.hidden = 4, .ffn = 4, .experts = 3}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::router_z, balance>;
};
struct unused : mo::layer_spec<mo::dims{.hidden = 4, .ffn = 4, .experts = 3}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::importance<>>;
};
struct ranks : mo::deployment<mo::dynamic> {};

template <class Spec, class Loss> mo::layer_record<Spec> entry(double value, double coefficient) {
  mo::layer_record<Spec> r;
  r.template add<Loss>(1, value, coefficient);
  return r;
}

}  // namespace

TEST_CASE("losses by layer of the model, whatever its spec") {
  mo::context<> ctx;
  mo::model_ledger<narrow, wide, unused> ledger{ctx, {1, 4}, {2, 5, 7}, {}};
  ledger.record(4, entry<narrow, balance>(1.5, 0.5));
  ledger.record(1, entry<narrow, balance>(1.25, 0.5));
  ledger.record(2, entry<wide, balance>(2, 0.25));
  ledger.record(7, entry<wide, balance>(3, 0.25));
  ledger.record(7, entry<wide, balance>(5, 0.25));
  ledger.record(7, entry<wide, mo::router_z>(8, 0.125));
  mo::model_report<narrow, wide, unused> const report = ledger.reduce();
  CHECK(report.of<narrow>().per_layer<balance>() == std::vector<double>{1.25, 1.5});
  CHECK(report.of<wide>().per_layer<balance>() == std::vector<double>{2, 0, 4});
  CHECK(report.layers_of<narrow>() == std::vector<int>{1, 4});
  CHECK(report.layers_of<wide>() == std::vector<int>{2, 5, 7});
  CHECK(report.layers_of<unused>().empty());
  CHECK(report.value<balance>(4) == 1.5);
  CHECK(report.value<balance>(7) == 4);
  CHECK(report.value<mo::router_z>(7) == 8);
  CHECK(report.value<balance>() == (1.25 + 1.5 + 2 + 0 + 4) / 5);
  CHECK(report.value<mo::router_z>() == 8.0 / 3);
  CHECK(report.value<mo::importance<>>() == 0);
  CHECK(report.total() == (1.25 + 1.5) * 0.5 + (2 + 4) * 0.25 + 8 * 0.125);
  CHECK_THROWS_WITH_AS(report.value<mo::router_z>(4), "layer 4 has no loss router_z.", mo::data_error);
  CHECK_THROWS_AS(report.value<balance>(3), mo::data_error);
}

TEST_CASE("a table for each spec that has layers") {
  mo::context<> ctx;
  mo::moe_layer<narrow> const one{ctx};
  mo::moe_layer<wide> const other{ctx};
  auto x = ctx.matrix(6, 4), y = ctx.matrix(6, 4);
  mo::fill_normal(ctx, x, mo::seed{2});
  mo::model_ledger<narrow, wide, unused> ledger{ctx, {3}, {0, 2}, {}};
  ledger.record(3, one.forward(one.make_weights(mo::seed{1}), x, y));
  ledger.record(2, other.forward(other.make_weights(mo::seed{1}), x, y));
  auto const report = ledger.reduce();
  CHECK(report.of<wide>().counts(0) == std::vector<std::int64_t>{0, 0, 0});
  CHECK(report.of<wide>().counts(1) != report.of<wide>().counts(0));
  std::ostringstream text;
  text << report;
  std::string const words = text.str();
  auto const first = words.find("layer 3\nloss"), second = words.find("layers 0 2\nloss");
  REQUIRE(first == 0);
  REQUIRE(second != std::string::npos);
  CHECK(words.find("layer 3: max/mean load") < second);
  CHECK(words.find("layer 0: max/mean load") > second);
  CHECK(words.find("layer 2: max/mean load") != std::string::npos);
  CHECK(words.find("layer 1") == std::string::npos);
  CHECK(words.find("importance") == std::string::npos);
}

TEST_CASE("every rank of a pipeline gets the report of all layers") {
  double const found = mo::run<ranks>(
      [](mo::context<ranks>& ctx) {
        mo::model_ledger<narrow, wide> ledger{ctx, {0, 3}, {1, 2}};
        // Rank 0 has layers 0 and 1, rank 1 none, rank 2 layers 2 and 3.
        if (ctx.pipeline().rank() == 0)
          ledger.record(0, entry<narrow, balance>(1, 1)), ledger.record(1, entry<wide, mo::router_z>(2, 1));
        if (ctx.pipeline().rank() == 2)
          ledger.record(3, entry<narrow, balance>(4, 1)), ledger.record(2, entry<wide, mo::router_z>(8, 1));
        auto const report = ledger.reduce();
        double const mine = report.total() + 100 * report.value<balance>(3) + 10 * report.value<mo::router_z>(2);
        std::vector<double> all(3);
        ctx.pipeline().all_gather<double>({&mine, 1}, all);
        if (all != std::vector<double>(3, mine)) throw mo::state_error("ranks have different reports.");
        return mine;
      },
      {}, {.pipeline = 3});
  CHECK(found == 15 + 400 + 80);
}

TEST_CASE("layers that a ledger does not have") {
  mo::context<> ctx;
  mo::model_ledger<narrow, wide> ledger{ctx, {1}, {2}};
  CHECK_THROWS_WITH_AS(ledger.record(2, entry<narrow, balance>(1, 1)), "layer 2 is none of the ledger's 1 layers.",
                       mo::data_error);
  CHECK_THROWS_AS((mo::model_ledger<narrow, wide>{ctx, {1, 1}, {2}}), mo::config_error);
  CHECK_THROWS_AS((mo::model_ledger<narrow, wide>{ctx, {2, 1}, {}}), mo::config_error);
}
