// SPDX-License-Identifier: Apache-2.0
// Ranks that each hold all experts: nothing travels, and capacities and statistics are those of all ranks still.
#include "properties/ranks.hpp"

#include <doctest/doctest.h>

#include <ratio>
#include <vector>

namespace mo = moiety;

namespace {

using plain = ranks::small<mo::router<mo::sigmoid, mo::top_k<3>, mo::renormalised>>;
struct limited : ranks::small<ranks::softmax_2> {
  using shared = mo::shared_experts<1>;
  using capacity = mo::capacity<std::ratio<3, 4>, mo::renormalise_after_drop>;
};

std::vector<mo::layout> const layouts{{.data = 2}, {.tensor = 3}, {.data = 4}, {.data = 2, .context = 2}};

}  // namespace

TEST_CASE("dropless") { ranks::check_layouts<plain, float, mo::local>(layouts, ranks::trained<plain>()); }
TEST_CASE("with a capacity") { ranks::check_layouts<limited, float, mo::local>(layouts, ranks::trained<limited>()); }

TEST_CASE("a constant layout is the same as one given at run time") {
  auto const y_of = []<class Deployment>(Deployment, mo::layout const& shape) {
    return mo::run<Deployment>(
        [](mo::context<Deployment>& ctx) {
          auto const each = std::int64_t{48} / ctx.stage().size();
          mo::moe_layer<limited, Deployment> layer{ctx};
          auto const weights = layer.make_weights(mo::seed{3});
          auto x = ctx.matrix(each, 20), y = ctx.matrix(each, 20);
          mo::fill_normal(ctx, x, mo::seed{1}, mo::first_row{each * ctx.stage().rank()});
          layer.infer(weights, x, y);
          return mo::all_gather(ctx.stage(), y);
        },
        {}, shape, {.threads = 1});
  };
  auto const one = y_of(mo::deployment<>{}, {});
  constexpr mo::layout two{.data = 2}, four{.data = 2, .tensor = 2, .expert = 4}, halves{.data = 2, .expert_tensor = 2};
  CHECK(y_of(mo::deployment<two>{}, two) == one);
  CHECK(y_of(mo::deployment<four>{}, four) == one);
  CHECK(ranks::distance(y_of(mo::deployment<halves>{}, halves), one) < ranks::bound<float>(12));
}
