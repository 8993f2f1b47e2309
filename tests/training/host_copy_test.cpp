// SPDX-License-Identifier: Apache-2.0
#include <moiety/training/host_copy.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace mo = moiety;

namespace {

struct small : mo::layer_spec<mo::dims{.hidden = 4, .ffn = 3, .experts = 2}> {
  using router = mo::router<mo::softmax, mo::top_k<1>>;
};

template <class Set> std::vector<std::pair<std::string, void const*>> places(Set&& set) {
  std::vector<std::pair<std::string, void const*>> all;
  set.for_each([&](mo::parameter const& p, auto values) { all.emplace_back(p.name, values.data()); });
  return all;
}

}  // namespace

TEST_CASE("a copy of what the host holds is the original") {
  mo::context<> ctx;
  mo::moe_layer<small> layer{ctx};
  auto weights = layer.make_weights(mo::seed{1});
  auto gradients = layer.make_gradients();
  mo::host_copy weights_here(ctx, weights);
  mo::host_copy gradients_here(ctx, gradients);
  CHECK(places(weights_here) == places(weights));
  CHECK(places(gradients_here) == places(gradients));
  gradients_here.load(), weights_here.store();
  CHECK(places(weights_here) == places(weights));
  mo::parameters_of(weights_here, gradients_here)([](auto const& t) { CHECK(t.weights.size() == t.gradients.size()); });
}

TEST_CASE("a copy of const weights is to be read") {
  mo::context<> ctx;
  mo::moe_layer<small> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{1});
  mo::host_copy const here(ctx, weights);
  here.for_each([]<class V>(mo::parameter const&, std::span<V>) { CHECK(std::is_const_v<V>); });
  CHECK(places(here) == places(weights));
}
