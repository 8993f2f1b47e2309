// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/product_room.hpp>

#include <moiety/experts/fp8.hpp>
#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <ratio>

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

namespace {

/// Rows of odd lengths, and what works in a workspace before experts do.
template <class Router> struct odd : mo::layer_spec<mo::dims{.hidden = 37, .ffn = 7, .experts = 15, .latent = 9}> {
  using router = Router;
};
template <class Router> struct limited : odd<Router> {
  using capacity = mo::capacity<std::ratio<1>, mo::per::sequence>;
};

/// A router's products that want odd numbers of bytes.
struct splitting_odd {
  struct room {
    static constexpr std::int64_t logits(std::int64_t, std::int64_t) { return 1; }
    static constexpr std::int64_t input_gradient(std::int64_t tokens, std::int64_t, std::int64_t, std::int64_t) {
      return 3 * tokens + 7;
    }
    static constexpr std::int64_t weight_gradient(std::int64_t tokens, std::int64_t, std::int64_t) {
      return 5 * tokens + 9;
    }
  };
};
template <class T, class Router, class Experts> struct in : by<Experts> {
  using element = T;
  using router_products = Router;
};

template <class Spec, class D> void check_places() {
  auto const begins = [](void const* at) { return reinterpret_cast<std::uintptr_t>(at) % mo::memory_alignment == 0; };
  bool all = true;
  for (std::int64_t tokens = 0; tokens < 70; ++tokens)
    for (std::int64_t const sequences : {std::int64_t{1}, std::int64_t{2}, std::int64_t{7}, tokens + 1})
      for (std::int64_t const arrived : {-1, 0, 1, 13}) {
        mo::tokens of(tokens, sequences);
        of.arrived = arrived;
        mo::buffer const step(mo::layer_workspace<Spec, D>(of), *std::pmr::new_delete_resource()),
            inference(mo::infer_workspace<Spec, D>(of), *std::pmr::new_delete_resource());
        for (mo::layer_pass const pass : {forward, backward, weights})
          all = all && begins(mo::room_in<Spec, D>(step, of, pass));
        all = all && begins(mo::room_in<Spec, D>(inference, of, forward));
      }
  CHECK(all);
}

template <class Spec> void check_places_of() {
  check_places<Spec, in<float, splitting, mo::grouped_products>>();
  check_places<Spec, in<mo::bf16, splitting_odd, mo::grouped_products>>();
  check_places<Spec, in<mo::bf16, mo::fma_products, mo::fp8_products>>();
  check_places<Spec, in<mo::bf16, splitting_odd, mo::fp8_block_forward_products>>();
}

}  // namespace

TEST_CASE("room begins at a whole block, whatever the sizes are and whatever worked in the workspace before") {
  check_places_of<odd<mo::router<mo::softmax, mo::top_k<1>>>>();
  check_places_of<odd<mo::router<mo::softmax, mo::top_k<3>, mo::jitter<>>>>();
  check_places_of<odd<mo::router<mo::softmax, mo::token_rounding<3, 4>>>>();
  check_places_of<odd<mo::router<mo::softmax, mo::expert_choice<3>>>>();
  check_places_of<odd<mo::router<mo::softmax, mo::sinkhorn<1>>>>();
  check_places_of<limited<mo::router<mo::softmax, mo::top_k<1>, mo::jitter<>>>>();
  check_places_of<limited<mo::router<mo::softmax, mo::top_k<3>>>>();
}
