// SPDX-License-Identifier: Apache-2.0
#include <moiety/layer/loss_gradients.hpp>

#include <moiety/moiety.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

namespace mo = moiety;

namespace {

using by_sequence = mo::load_balance<mo::over::sequence>;
struct spec : mo::layer_spec<mo::dims{.hidden = 6, .ffn = 4, .experts = 3}> {
  using router = mo::router<mo::softmax, mo::top_k<2>>;
  using losses = mo::losses<mo::router_z, by_sequence, mo::load_balance<>>;
};

}  // namespace

TEST_CASE("each trained loss enters with its scale, coefficient, and the weight of the token's unit") {
  std::vector<std::int64_t> const sequences{0, 2, 5};
  mo::statistics_table table(3, sequences);
  mo::batch_statistics const units = table.view();
  for (std::int64_t u = 0; u < 3; ++u) units.units[u].slots = 2;
  units.units[0].tokens = 5, units.units[1].tokens = 2, units.units[2].tokens = 3;
  for (std::int64_t i = 0; i < 9; ++i) units.expert_units[i].count = i + 1;
  mo::loss_gradients<spec> const add{
      {mo::router_z{.coefficient = 0.5f}, by_sequence{.coefficient = 0.25f}}, units, 10, 4};

  std::vector<float> z{1, -2, 0.5f}, dp(3), dz(3), wanted_dp(3), wanted_dz(3);
  mo::span_row<float> const logits(z.data(), 3);
  mo::span_row<float> p(dp.data(), 3), g(dz.data(), 3), wanted_p(wanted_dp.data(), 3), wanted_g(wanted_dz.data(), 3);
  add(3, logits, p, g);
  mo::router_z{}.token_gradient(units.unit(0), 0.5f * 4 * 10, logits, wanted_p, wanted_g);
  by_sequence{}.token_gradient(units.unit(2), 0.25f * 4 * 6, logits, wanted_p, wanted_g);  // 3 of 5 tokens: weight 6
  CHECK(dp == wanted_dp);
  CHECK(dz == wanted_dz);
  CHECK(dp[0] != 0);
  CHECK(dz[0] != 0);
}
