// SPDX-License-Identifier: Apache-2.0
// A published model's layer made small: nothing kept for backward, and a token alone gets the bits that it gets in a batch.
#include <moiety/moiety.hpp>
#include <moiety/presets.hpp>

#include <cstring>
#include <iostream>

namespace mo = moiety;

struct tiny : mo::resized<mo::presets::qwen3_30b_a3b, mo::dims{.hidden = 64, .ffn = 24, .experts = 16}> {};
struct in_bf16 : mo::deployment<> {
  using element = mo::bf16;
};

int main() {
  std::cout << "Qwen3-30B-A3B, one layer\n" << mo::describe<mo::presets::qwen3_30b_a3b>();
  mo::context<in_bf16> ctx;
  mo::moe_layer<tiny, in_bf16> layer{ctx};
  auto const weights = layer.make_weights(mo::seed{17});
  auto x = ctx.matrix(33, 64), together = ctx.matrix(33, 64), alone = ctx.matrix(1, 64);
  mo::fill_normal(ctx, x, mo::seed{1});
  layer.infer(weights, x, together);
  for (int t = 0; t < 33; ++t) {
    layer.infer(weights, x.rows(t, 1), alone);
    if (std::memcmp(alone.data(), together.row(t), 64 * sizeof(mo::bf16)) != 0) return 1;
  }
  std::cout << "33 tokens alone have the bits that they have together\n";
}
