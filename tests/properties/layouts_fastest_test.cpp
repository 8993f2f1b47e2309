// SPDX-License-Identifier: Apache-2.0
// With mo::numerics::fastest a layer is that of one rank to rounding, and that of another run on the same layout to the bit.
#include "properties/ranks.hpp"

#include <moiety/dispatcher/all_gather.hpp>

#include <doctest/doctest.h>

#include <vector>

namespace mo = moiety;

namespace {

/// All that is added to what experts give: rows that do not travel, shared experts, and the map of a latent width between.
struct whole : mo::layer_spec<mo::dims{.hidden = 20, .ffn = 12, .experts = 8, .zero_experts = 2, .latent = 14}> {
  using router = mo::router<mo::softmax, mo::top_k<6>>;
  using shared = mo::shared_experts<1>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};
struct plain : ranks::small<mo::router<mo::sigmoid, mo::top_k<5>>> {
  using shared = mo::shared_experts<1>;
};
struct on_activation : ranks::small<mo::router<mo::sigmoid, mo::top_k<5>, mo::on_activation>> {
  using experts = mo::mlp<mo::gelu_tanh, mo::biased>;
};
using on_input = ranks::small<mo::router<mo::sigmoid, mo::top_k<5>, mo::on_input>>;

std::vector<mo::layout> const spread{{.data = 4, .expert = 4}, {.data = 2, .tensor = 2, .expert = 2}};
std::vector<mo::layout> const split{{.data = 4, .expert = 2, .expert_tensor = 2}};

template <class Spec, class T, class Dispatcher> ranks::outcome<T> fastest(mo::layout const& shape, ranks::share how) {
  return ranks::step_on<Spec, T, Dispatcher, mo::threads, mo::host, mo::numerics::fastest>(
      shape, {ranks::tokens_of(shape.stage(), how)}, ranks::trained<Spec>());
}

/// Even and uneven tokens, some of them on a rank that has no expert of theirs, and all on one rank.
template <class Spec, class T, class Dispatcher = mo::all_gather_tokens>
void check(std::vector<mo::layout> const& shapes) {
  auto const one = ranks::step_on<Spec, T>({}, {{64}}, ranks::trained<Spec>());
  for (mo::layout const& shape : shapes)
    for (ranks::share const how : {ranks::share::even, ranks::share::uneven, ranks::share::one_rank}) {
      INFO(mo::detail::sentence(shape), " ", static_cast<int>(how));
      auto const many = fastest<Spec, T, Dispatcher>(shape, how);
      ranks::check_close(many, one, shape);
      if (sizeof(T) > 2) CHECK_FALSE(ranks::same_bits(many.y, one.y));  // so these are other sums
      if (sizeof(T) > 2) CHECK_FALSE(ranks::same_bits(many.dx, one.dx));
      CHECK(ranks::same_bits(many.inferred, many.y));
      if (how != ranks::share::uneven) continue;
      auto const again = fastest<Spec, T, Dispatcher>(shape, how);
      CHECK(ranks::same_bits(again.y, many.y));
      CHECK(ranks::same_bits(again.dx, many.dx));
      CHECK(again.experts == many.experts);
      CHECK(again.dense == many.dense);
    }
}

}  // namespace

TEST_CASE("sums of each rank's experts, of experts split over ranks too") {
  check<whole, float>(spread);
  check<whole, float>(split);
}
TEST_CASE("sums of 16-bit rows are rounded once") {
  check<plain, mo::bf16>(spread);
  check<on_activation, mo::bf16, mo::keep_rows<mo::all_gather_tokens>>(spread);
}
TEST_CASE("weights on inputs, and dispatchers that send rows, have the bits of one rank") {
  auto const same = [&]<class Spec, class Dispatcher>(Spec, Dispatcher) {
    auto const one = ranks::step_on<Spec, float>({}, {{64}}, ranks::trained<Spec>());
    for (mo::layout const& shape : spread)
      ranks::check_same(fastest<Spec, float, Dispatcher>(shape, ranks::share::uneven), one, shape);
  };
  same(on_input{}, mo::all_gather_tokens{});
  same(on_input{}, mo::all_to_all{});
}
