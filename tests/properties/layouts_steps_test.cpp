// SPDX-License-Identifier: Apache-2.0
// Gradient accumulation, rows that are kept, experts of no power of two, and the scale of expert gradients.
#include "properties/ranks.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <ratio>
#include <span>
#include <vector>

namespace mo = moiety;

namespace {

using kept = mo::keep_rows<mo::all_to_all>;

struct six : mo::layer_spec<mo::dims{.hidden = 14, .ffn = 9, .experts = 6}> {
  using router = mo::router<mo::sigmoid, mo::top_k<3>, mo::renormalised>;
  using shared = mo::shared_experts<1>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};

}  // namespace

TEST_CASE("two micro-batches add up, in halves, on every layout; rows kept or brought again") {
  auto const options = ranks::trained<six>();
  auto const one = ranks::step_on<six, float>({}, {{64}, {41}}, options);
  struct on {
    mo::layout shape;
    std::vector<ranks::cut> micro_batches;
  };
  std::vector<on> const all{{{.data = 2, .expert = 2}, {{30, 34}, {41, 0}}},
                            {{.data = 3, .expert = 3}, {{10, 53, 1}, {0, 0, 41}}},
                            {{.data = 2, .context = 3, .expert = 6}, {{10, 10, 10, 10, 10, 14}, {0, 1, 2, 3, 0, 35}}},
                            {{.data = 4, .expert = 2}, {{20, 0, 24, 20}, {11, 10, 10, 10}}}};
  for (on const& each : all) {
    INFO(mo::detail::sentence(each.shape));
    ranks::check_same(ranks::step_on<six, float>(each.shape, each.micro_batches, options), one, each.shape);
    ranks::check_same(ranks::step_on<six, float, kept>(each.shape, each.micro_batches, options), one, each.shape);
  }
}

TEST_CASE("a step may be told of more tokens on fewer ranks, and of none at all") {
  auto const options = ranks::trained<six>();
  auto const none = ranks::step_on<six, float>({}, {{0}}, options);
  for (mo::layout const& shape :
       {mo::layout{.data = 2, .expert = 2}, mo::layout{.data = 3}, {.data = 3, .expert = 3}}) {
    ranks::cut const tokens(static_cast<std::size_t>(shape.stage()));
    auto const many = ranks::step_on<six, float>(shape, {tokens}, options);
    ranks::check_same(many, none, shape);
    for (double const loss : many.losses) CHECK(loss == 0);
    for (auto const& [name, values] : many.experts) CHECK(values == std::vector<float>(values.size()));
  }
}

namespace {

/// y = w x with w = 1: logits are 0, so an expert's weight is 1/2, times 2.
struct scalar : mo::layer_spec<mo::dims{.hidden = 1, .ffn = 1, .experts = 2}> {
  using router = mo::router<mo::softmax, mo::precomputed<1>, mo::scale<std::ratio<2>>>;
  using experts = mo::mlp<mo::identity>;
};

}  // namespace

TEST_CASE("gradients of experts are sums over tokens, whether experts are spread or not: 2.75, not 5.5") {
  // Tokens 1 and 2 on rank 0, 3 and 5 on rank 1, all to expert 0; each rank's loss is the mean of y over its tokens, and the
  // loss of the step the mean over ranks.
  using spread = ranks::spread<float>;
  for (mo::layout const& shape : {mo::layout{.data = 2}, mo::layout{.data = 2, .expert = 2}}) {
    auto const of_expert_0 = mo::run<spread>(
        [](mo::context<spread>& ctx) {
          bool const first = ctx.stage().rank() == 0;
          mo::moe_layer<scalar, spread> layer{ctx};
          auto weights = layer.make_weights(mo::seed{1});
          weights.for_each([](mo::parameter const& p, auto values) {
            for (auto& v : values) v = p.of_experts ? 1 : 0;
          });
          auto x = ctx.matrix(2, 1), y = ctx.matrix(2, 1), dy = ctx.matrix(2, 1), dx = ctx.matrix(2, 1);
          x(0, 0) = first ? 1 : 3, x(1, 0) = first ? 2 : 5;
          dy(0, 0) = dy(1, 0) = 0.5f / static_cast<float>(ctx.data().size());
          std::vector<std::int32_t> const experts{0, 0};
          auto gradients = layer.make_gradients();
          auto tape = layer.forward(weights, x, y, {.experts = experts});
          layer.backward(weights, tape, dy, dx, gradients);
          std::vector<float> whole;
          gradients.for_each([&](mo::parameter const& p, std::span<float> values) {
            if (p.name == "experts.up") whole = ranks::joined(ctx, p, values);
          });
          return whole;
        },
        {}, shape, {.threads = 1});
    CHECK(of_expert_0 == std::vector<float>{2.75f, 0});
  }
}
