// SPDX-License-Identifier: Apache-2.0
#include <moiety/schedule/block_costs.hpp>

#include <moiety/presets.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>

namespace mo = moiety;

namespace {

template <class Spec> mo::block_cost block_of() {
  using spec = mo::spec_of<Spec>;
  return mo::moe_block{.hidden = spec::hidden, .ffn = spec::ffn, .experts = spec::experts, .active = spec::slots}
      .cost();
}

}  // namespace

TEST_CASE_TEMPLATE("an MoE block costs what its layer says", Spec, mo::presets::mixtral_8x7b, mo::presets::olmoe_1b_7b,
                   mo::presets::qwen3_30b_a3b) {
  CHECK(block_of<Spec>().parameters == mo::parameters<Spec>);
  CHECK(block_of<Spec>().forward == mo::forward_flops<Spec>(mo::tokens{1}));
  CHECK(block_of<Spec>().input_gradient + block_of<Spec>().weight_gradient == mo::backward_flops<Spec>(mo::tokens{1}));
}

TEST_CASE("attention: projections, and scores that grow with the sequence") {
  constexpr auto wide = mo::attention_block{.hidden = 1024, .heads = 16};
  static_assert(wide.cost().parameters == 4 * 1024 * 1024);
  static_assert(wide.cost().forward == 8 * 1024 * 1024);
  constexpr auto grouped = mo::attention_block{.hidden = 4096, .heads = 32, .kv_heads = 8, .sequence = 4096}.cost();
  CHECK(grouped.parameters == 4096 * (2 * 4096 + 2 * 1024));
  CHECK(grouped.forward == 2 * grouped.parameters + 2 * 4096 * 4096);  // a token sees half of the others
  CHECK(grouped.input_gradient == 2 * grouped.parameters + 4 * 4096 * 4096);
  CHECK(grouped.weight_gradient == 2 * grouped.parameters);
  CHECK(grouped.saved == 4096 + 2 * 4096 + 2 * 1024 + 32);
  auto const both_ways = mo::attention_block{.hidden = 4096, .heads = 32, .sequence = 100, .causal = false}.cost();
  CHECK(both_ways.forward == 8 * 4096 * 4096 + 4 * 4096 * 100);
}

TEST_CASE("an imbalance beyond what FLOPs have numbers for is refused, and one below it is exact") {
  mo::moe_block block{.hidden = 7168, .ffn = 2048, .experts = 256, .active = 8};
  std::int64_t const routed = std::int64_t{3} * 7168 * 2048 * 8, router = 256 * 7168;
  block.imbalance = {25'000'000'000, 24'999'999'999};
  CHECK(block.cost().forward == 2 * (routed + router));
  for (mo::moe_block::ratio const beyond : {mo::moe_block::ratio{std::int64_t{1} << 62, 1},
                                            {std::numeric_limits<std::int64_t>::max()},
                                            {25'000'000'000, 1}}) {
    block.imbalance = beyond;
    CHECK_THROWS_WITH_AS(block.cost(), doctest::Contains("makes more FLOPs than have a number of 64 bits."),
                         mo::config_error);
  }
}

TEST_CASE("MLPs, shared experts, imbalance, head and embedding") {
  CHECK(mo::mlp_block{.hidden = 10, .ffn = 20}.cost() == mo::block_cost{1200, 1200, 1200, 600, 50});
  CHECK(mo::mlp_block{.hidden = 10, .ffn = 20, .matrices = 2}.cost().forward == 800);
  mo::moe_block const even{.hidden = 10, .ffn = 20, .experts = 4, .active = 2, .shared_ffn = 5};
  CHECK(even.cost().parameters == 3 * 10 * (4 * 20 + 5) + 40);
  CHECK(even.cost().forward == 2 * (3 * 10 * (2 * 20 + 5) + 40));
  CHECK(even.cost().saved == 10 + 4 + 4 + 2 * (40 + 5));
  mo::moe_block uneven = even;
  uneven.imbalance = {3, 2};
  CHECK(uneven.cost().forward - even.cost().forward == 2 * 3 * 10 * 20);  // half of the routed part
  CHECK(uneven.cost().parameters == even.cost().parameters);
  CHECK(mo::head_block{.hidden = 10, .vocabulary = 7}.cost() == mo::block_cost{140, 140, 140, 70, 10});
  CHECK(mo::embedding_block{.hidden = 10, .vocabulary = 7}.cost() == mo::block_cost{0, 0, 0, 70, 0});
}

TEST_CASE("blocks add up to layers") {
  auto const layer =
      mo::mlp_block{.hidden = 10, .ffn = 20}.cost() + mo::head_block{.hidden = 10, .vocabulary = 7}.cost();
  CHECK(layer == mo::block_cost{1340, 1340, 1340, 670, 60});
  CHECK(layer.total() == 3 * 1340);
}
