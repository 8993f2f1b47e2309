// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/product_room.hpp>

#include <moiety/experts/fp8.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory_resource>

namespace mo = moiety;

namespace {

struct spec : mo::layer_spec<mo::dims{.hidden = 64, .ffn = 48, .experts = 8}> {
  using router = mo::router<mo::softmax, mo::top_k<4>>;
};
struct with_shared : spec {
  using shared = mo::shared_experts<8>;
};
template <class Products> struct by : mo::deployment<> { using expert_products = Products; };

/// Products of a router that want room.
struct splitting {
  struct room {
    static constexpr std::int64_t logits(std::int64_t hidden, std::int64_t experts) { return 64 * hidden * experts; }
    static constexpr std::int64_t input_gradient(std::int64_t tokens, std::int64_t hidden, std::int64_t experts,
                                                 std::int64_t matrices) {
      return 128 * tokens * hidden * experts * matrices;
    }
    static constexpr std::int64_t weight_gradient(std::int64_t tokens, std::int64_t hidden, std::int64_t experts) {
      return 256 * tokens * hidden * experts;
    }
  };
};
template <class Products> struct routed_by : by<Products> { using router_products = splitting; };
struct noisy : spec {
  using router = mo::router<mo::softmax, mo::top_k<4>, mo::logit_noise>;
};

constexpr mo::tokens size(10);
constexpr auto forward = mo::layer_pass::forward, backward = mo::layer_pass::backward_input,
               weights = mo::layer_pass::backward_weights;

}  // namespace

TEST_CASE("products have room for the widest rows of their passes, routed or shared") {
  using both = by<mo::fp8_products>;
  using first = by<mo::fp8_block_forward_products>;
  CHECK(mo::product_room<spec, mo::deployment<>>(size, forward) == 0);
  CHECK(mo::product_room<spec, both>(size, forward) == 40 * 96 * 2);  // dz is 2 I wide
  CHECK(mo::product_room<spec, both>(size, backward) == 40 * 96 * 2);
  CHECK(mo::product_room<spec, first>(size, forward) == 40 * 96 * 2);
  CHECK(mo::product_room<spec, first>(size, backward) == 0);
  CHECK(mo::product_room<spec, both>(size, weights) == 0);
  CHECK(mo::product_room<with_shared, both>(size, forward) == 10 * 768 * 2);
}

TEST_CASE("the router's products have the room of the experts', or more; in the weight half, too") {
  using plain = routed_by<mo::grouped_products>;
  CHECK(mo::product_room<spec, plain>(size, forward) == 64 * 64 * 8);
  CHECK(mo::product_room<spec, plain>(size, backward) == 128 * 10 * 64 * 8);
  CHECK(mo::product_room<noisy, plain>(size, backward) == 2 * 128 * 10 * 64 * 8);
  CHECK(mo::product_room<spec, plain>(size, weights) == 256 * 10 * 64 * 8);
  CHECK(mo::product_room<with_shared, routed_by<mo::fp8_products>>(mo::tokens(100), forward) == 100 * 768 * 2);
  CHECK(mo::layer_workspace<spec, plain>(size) ==
        mo::forward_plan<spec, float>(size).block.bytes() + 256 * 10 * 64 * 8);
}

TEST_CASE("room lies behind the plan of its pass, at the end of one block for both") {
  using both = by<mo::fp8_products>;
  std::int64_t const room = 40 * 96 * 2, plan = mo::forward_plan<spec, float>(size).block.bytes(),
                     other = mo::backward_plan<spec, float>(size).block.bytes();
  CHECK(mo::infer_workspace<spec, both>(size) == plan + room);
  CHECK(mo::infer_workspace<spec, mo::deployment<>>(size) == plan);
  CHECK(mo::layer_workspace<spec, both>(size) == std::max(plan, other) + room);
  CHECK(mo::layer_workspace<spec, mo::deployment<>>(size) == std::max(plan, other));
  mo::buffer const work(mo::layer_workspace<spec, both>(size), *std::pmr::new_delete_resource());
  auto const* const at = static_cast<std::byte const*>(mo::room_in<spec, both>(work, size, forward));
  CHECK(at - static_cast<std::byte const*>(work.data()) == std::max(plan, other));
  CHECK(mo::room_in<spec, mo::deployment<>>(work, size, forward) == nullptr);
}
