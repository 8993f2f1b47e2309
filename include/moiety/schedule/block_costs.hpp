// SPDX-License-Identifier: Apache-2.0
// What the blocks of a transformer cost, for split_layers() and for the costs of a schedule.
//
// FLOPs are multiplications and additions of the products, for one token; a product with n parameters takes 2n. Saved
// values are those that backward needs, for one token, where activations are computed again from pre-activations.
//
//   attention_block   parameters  n = H d (2 heads + 2 kv_heads)
//                     forward     2n + s, s = 4 · heads · d · sequence, and half of that where a token sees only those
//                                 before it
//                     gradients   input 2n + 2s, weight 2n
//                     saved       H + d (2 heads + 2 kv_heads) + heads
//   mlp_block         parameters  n = matrices · H I (3 for a gated MLP, 2 for a plain one)
//                     forward     2n, and so each gradient                      saved  H + (matrices − 1) I
//   moe_block         parameters  matrices · H (E I + I_shared) + E H
//                     forward     2 · matrices · H (imbalance · k I + I_shared) + 2 E H, and so each gradient
//                     saved       H + E + 2k + (matrices − 1)(k I + I_shared)
//   head_block        parameters  n = V H    forward 2n, and so each gradient   saved  H
//   embedding_block   parameters  V H        no product                         saved  nothing
//
// imbalance is the largest over the mean load of the ranks that share a layer's experts; a config_error where its product with
// FLOPs is beyond 64 bits. Measured times serve as well: split_layers() takes any integers.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>

#include <cstdint>
#include <limits>

namespace moiety::inline MOIETY_ABI {

struct block_cost {
  std::int64_t forward = 0;          // FLOPs a token
  std::int64_t input_gradient = 0;   // FLOPs a token
  std::int64_t weight_gradient = 0;  // FLOPs a token
  std::int64_t parameters = 0;
  std::int64_t saved = 0;  // values a token

  constexpr std::int64_t total() const { return forward + input_gradient + weight_gradient; }

  friend constexpr block_cost operator+(block_cost const& a, block_cost const& b) {
    return {a.forward + b.forward, a.input_gradient + b.input_gradient, a.weight_gradient + b.weight_gradient,
            a.parameters + b.parameters, a.saved + b.saved};
  }
  friend constexpr bool operator==(block_cost const&, block_cost const&) = default;
};

struct attention_block {
  std::int64_t hidden;
  std::int64_t heads;
  std::int64_t kv_heads = heads;
  std::int64_t head_size = hidden / heads;
  std::int64_t sequence = 0;
  bool causal = true;

  constexpr block_cost cost() const {
    std::int64_t const n = hidden * head_size * (2 * heads + 2 * kv_heads);
    std::int64_t const scores = (causal ? 2 : 4) * heads * head_size * sequence;
    return {2 * n + scores, 2 * n + 2 * scores, 2 * n, n, hidden + head_size * (2 * heads + 2 * kv_heads) + heads};
  }
};

struct mlp_block {
  std::int64_t hidden;
  std::int64_t ffn;
  std::int64_t matrices = 3;

  constexpr block_cost cost() const {
    std::int64_t const n = matrices * hidden * ffn;
    return {2 * n, 2 * n, 2 * n, n, hidden + (matrices - 1) * ffn};
  }
};

struct moe_block {
  /// An exact fraction, at least 1.
  struct ratio {
    std::int64_t over = 1, under = 1;
  };

  std::int64_t hidden;
  std::int64_t ffn;
  std::int64_t experts;
  std::int64_t active;          // k
  std::int64_t shared_ffn = 0;  // of all shared experts together
  std::int64_t matrices = 3;
  ratio imbalance = {};

  constexpr block_cost cost() const {
    std::int64_t routed = matrices * hidden * ffn * active;
    if (__builtin_mul_overflow(routed, imbalance.over, &routed) ||
        (routed /= imbalance.under) > std::numeric_limits<std::int64_t>::max() / 16)
      throw config_error(detail::sentence("moe_block{.imbalance = {", imbalance.over, ", ", imbalance.under,
                                          "}} makes more FLOPs than have a number of 64 bits."));
    std::int64_t const shared = matrices * hidden * shared_ffn, router = experts * hidden;
    std::int64_t const flops = 2 * (routed + shared + router);
    return {flops, flops, flops, matrices * hidden * ffn * experts + shared + router,
            hidden + experts + 2 * active + (matrices - 1) * (active * ffn + shared_ffn)};
  }
};

struct head_block {
  std::int64_t hidden;
  std::int64_t vocabulary;

  constexpr block_cost cost() const {
    std::int64_t const n = hidden * vocabulary;
    return {2 * n, 2 * n, 2 * n, n, hidden};
  }
};

struct embedding_block {
  std::int64_t hidden;
  std::int64_t vocabulary;

  constexpr block_cost cost() const { return {.parameters = hidden * vocabulary}; }
};

}  // namespace moiety
