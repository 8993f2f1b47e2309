// SPDX-License-Identifier: Apache-2.0
// The Mixture-of-Experts block of every layer: 16 gated experts as wide as the stream, 2 a byte.
#pragma once

#include <moiety/moiety.hpp>

#include <cstdint>

namespace lm {

namespace mo = moiety;

template <std::int64_t Hidden>
struct expert_block : mo::layer_spec<mo::dims{.hidden = Hidden, .ffn = Hidden, .experts = 16}> {
  using router = mo::router<mo::softmax, mo::top_k<2>, mo::renormalised>;
  using experts = mo::gated_mlp<mo::silu>;
  using losses = mo::losses<mo::load_balance<>, mo::router_z>;
};

/// Coefficients of the two losses; a balance loss of 0 is still measured.
template <class Block> mo::layer_options<Block> expert_options(bool balance) {
  return {.losses = {mo::load_balance<>{.coefficient = balance ? 1e-2f : 0.f}, mo::router_z{.coefficient = 1e-3f}}};
}

}  // namespace lm
