// SPDX-License-Identifier: Apache-2.0
// Router, statistics, losses and permutation without a layer: six tokens, four experts, top 2.
#include <moiety/moiety.hpp>

#include <array>
#include <iostream>

namespace mo = moiety;

int main() {
  mo::context<> ctx;
  std::array<float, 24> const z{2, 1,  0, -1, 1.5f, .5f, 1,    -.5f,  0, 2, 1, .5f,
                                1, -1, 0, 2,  .5f,  0,   2.5f, -1.5f, 3, 0, 1, 2};
  mo::matrix_view<float const> const logits{z.data(), 6, 4};

  mo::router<mo::softmax, mo::top_k<2>, mo::renormalised> const router;
  mo::routing const routing = router.forward(ctx, logits);
  for (int t = 0; t < 6; ++t)
    std::cout << "token " << t << ": expert " << routing.expert(t, 0) << " x " << routing.weight(t, 0) << ", expert "
              << routing.expert(t, 1) << " x " << routing.weight(t, 1) << '\n';

  mo::permutation const order = mo::permute(ctx, routing);
  for (int e = 0; e < 4; ++e) {
    std::cout << "expert " << e << " works on tokens";
    for (auto row = order.offsets()[e]; row < order.offsets()[e + 1]; ++row)
      std::cout << ' ' << order.source_token(row);
    std::cout << '\n';
  }

  // Statistics are exact: those of two halves add up to those of the whole, to the last bit.
  auto const half = [&](int first) {
    auto const part = logits.rows(first, 3);
    return mo::statistics(ctx, part, router, router.forward(ctx, part));
  };
  mo::routing_statistics sum = half(0);
  sum += half(3);
  mo::routing_statistics const whole = mo::statistics(ctx, logits, router, routing);
  std::cout << "load balance " << mo::load_balance<>{}.value(whole) << ", router z " << mo::router_z{}.value(whole)
            << '\n';

  mo::matrix<float> dlogits{6, 4};
  mo::load_balance<>{}.gradient(ctx, whole, logits, router, dlogits);
  std::cout << "gradient of token 0:";
  for (int e = 0; e < 4; ++e) std::cout << ' ' << dlogits(0, e);
  std::cout << '\n';
  return sum == whole ? 0 : 1;
}
