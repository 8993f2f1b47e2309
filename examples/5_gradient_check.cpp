// SPDX-License-Identifier: Apache-2.0
// Every gradient of a spec against central differences in double, with each listed loss trained.
#include <moiety/testing.hpp>

#include <cstdint>
#include <iostream>
#include <vector>

namespace mo = moiety;

struct mine : mo::layer_spec<mo::dims{.hidden = 24, .ffn = 20, .experts = 6}> {
  using router = mo::router<mo::sigmoid, mo::top_k<3>, mo::renormalised>;
  using experts = mo::gated_mlp<mo::gelu>;
  using losses = mo::losses<mo::load_balance<mo::over::sequence>, mo::router_z>;
};

int main() {
  std::vector<std::int64_t> const sequences{0, 10, 37};
  bool good = true;
  for (auto const& check : mo::testing::check_gradients<mine>(37, {.sequences = sequences})) {
    std::cout << check.name << ": off by " << check.error << " of its norm\n";
    good = good && check.error <= mo::testing::gradient_tolerance;
  }
  return good ? 0 : 1;
}
