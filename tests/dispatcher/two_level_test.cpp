// SPDX-License-Identifier: Apache-2.0
#include <moiety/dispatcher/two_level.hpp>

#include "dispatcher/exchanges.hpp"

#include <moiety/core/errors.hpp>
#include <moiety/layer/expert_stage.hpp>
#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace {

/// Those with nodes of so many ranks.
std::vector<exchanges::shape> in_nodes_of(int ranks) {
  std::vector<exchanges::shape> some;
  for (exchanges::shape const& s : exchanges::whole_experts)
    if (s.ranks % ranks == 0) some.push_back(s);
  return some;
}

}  // namespace

TEST_CASE("nodes of one rank") { exchanges::check_exchange<mo::node_exchange<1>>(in_nodes_of(1)); }
TEST_CASE("one, two and three nodes of two ranks") {
  REQUIRE(in_nodes_of(2).size() == 4);
  exchanges::check_exchange<mo::node_exchange<2>>(in_nodes_of(2));
}
TEST_CASE("one and two nodes of three ranks") {
  REQUIRE(in_nodes_of(3).size() == 2);
  exchanges::check_exchange<mo::node_exchange<3>>(in_nodes_of(3));
}

TEST_CASE("experts that several ranks hold together are refused on every rank") {
  exchanges::choices const all = exchanges::draw(4, 6, exchanges::kind::random, 5);
  on_ranks(4, [&](mo::thread_communicator& ranks) {
    exchanges::own_rows mine(all, ranks.rank());
    mo::node_exchange<2>::links<mo::thread_communicator> through(ranks);
    auto const why =
        expect_throws<mo::config_error>([&] { mo::node_exchange<2>(through, mine.view(), 6, 2, exchanges::heap()); });
    expect(std::strstr(why.what(), "does not go with an expert_tensor axis") != nullptr);
  });
}

TEST_CASE("nodes that do not divide the ranks are refused on every rank") {
  using exchange = mo::node_exchange<2>;
  for (int const size : {1, 3})
    on_ranks(size, [](mo::thread_communicator& ranks) {
      auto const why =
          expect_throws<mo::config_error>([&] { exchange::links<mo::thread_communicator> const through(ranks); });
      expect(std::strstr(why.what(), "needs nodes of 2 to divide") != nullptr);
    });
}

TEST_CASE("what goes wrong between nodes or inside one is told with the step of the forward") {
  struct spread : mo::deployment<mo::dynamic> {
    using dispatcher = mo::two_level<2>;
  };
  struct spec : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 4}> {
    using router = mo::router<mo::softmax, mo::top_k<2>>;
  };
  using stage = mo::expert_stage<spec, spread>;
  for (bool const inside : {false, true}) {
    std::int64_t step = -1;
    auto const disagree = [&](mo::context<spread>& ctx) {
      mo::moe_layer<spec, spread> layer{ctx};
      auto const weights = layer.make_weights(mo::seed{1});
      auto x = ctx.matrix(5, 6), y = ctx.matrix(5, 6);
      auto tape = layer.forward(weights, x, y, {.step = 41});
      stage::links through(ctx.expert_group());
      through.at_step(0);
      stage::arrive(ctx, through, tape, true);
      auto& ranks = inside ? through.node : through.nodes;
      std::vector<int> values(ranks.rank() == 0 ? 1 : 2);
      ranks.all_reduce(std::span(values));
    };
    try {
      mo::run<spread>(disagree, {}, mo::layout{.data = 4, .expert = 4}, {.threads = 1});
    } catch (mo::comm_error const& e) {
      step = e.step;
    }
    CHECK(step == 41);
  }
}
