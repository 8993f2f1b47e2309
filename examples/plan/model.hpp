// SPDX-License-Identifier: Apache-2.0
// What the planner knows of a model: its blocks, and what each costs a rank.
#pragma once

#include <moiety/pipeline.hpp>
#include <moiety/presets.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace plan {

namespace mo = moiety;

/// A decoder: an embedding, `layers` of attention and MoE, a head.
struct model {
  std::string_view name;
  int layers;
  std::int64_t vocabulary;
  mo::attention_block attention;
  mo::moe_block moe;
};

/// The MoE block is the preset's; the rest is what its model card says.
template <class Spec>
constexpr model decoder(std::string_view name, int layers, std::int64_t vocabulary, std::int64_t heads,
                        std::int64_t kv_heads, std::int64_t head_size) {
  using spec = mo::spec_of<Spec>;
  return {name,
          layers,
          vocabulary,
          {.hidden = spec::hidden, .heads = heads, .kv_heads = kv_heads, .head_size = head_size},
          {.hidden = spec::hidden, .ffn = spec::ffn, .experts = spec::experts, .active = spec::slots}};
}

/// Embedding, layers, head.
constexpr std::size_t blocks_of(model const& m) { return static_cast<std::size_t>(m.layers) + 2; }

inline constexpr model models[] = {
    decoder<mo::presets::mixtral_8x7b>("mixtral_8x7b", 32, 32000, 32, 8, 128),
    decoder<mo::presets::olmoe_1b_7b>("olmoe_1b_7b", 16, 50304, 16, 16, 128),
    decoder<mo::presets::qwen3_30b_a3b>("qwen3_30b_a3b", 48, 151936, 32, 4, 128),
};

/// What the ranks are.
struct machine {
  double flops;              // a second, that products reach
  double link;               // bytes a second between ranks, each way
  std::int64_t memory;       // bytes a rank
  std::int64_t state_bytes;  // a parameter: weights, gradients, optimiser
};

/// One block on one rank, for one micro-batch. Times in nanoseconds, sizes in bytes.
struct block_load {
  mo::step_costs time;
  std::int64_t exchange = 0;     // part of the forward, and of the input gradient, that is expert exchange
  std::int64_t weights = 0;      // with gradients and optimiser state
  std::int64_t activations = 0;  // saved for backward
  std::int64_t dense_parameters = 0, expert_parameters = 0;  // on this rank

  std::int64_t total() const { return time.forward + time.input_gradient + time.weight_gradient; }
};

/// The blocks of a model where `expert` ranks share the experts of a layer; bf16 values. Times are derived from FLOPs, or
/// are those of `measured`, one a block; expert exchange comes on top of both.
inline std::vector<block_load> loads_of(model const& m, machine const& on, std::int64_t tokens, std::int64_t sequence,
                                        int expert, std::span<mo::step_costs const> measured = {}) {
  auto const nanoseconds = [&](std::int64_t flops) {
    return static_cast<std::int64_t>(static_cast<double>(flops * tokens) / on.flops * 1e9);
  };
  auto const load = [&](mo::block_cost const& cost, std::int64_t expert_parameters) {
    block_load b;
    b.time = {.forward = nanoseconds(cost.forward),
              .input_gradient = nanoseconds(cost.input_gradient),
              .weight_gradient = nanoseconds(cost.weight_gradient)};
    b.expert_parameters = expert_parameters / expert;
    b.dense_parameters = cost.parameters - expert_parameters;
    b.weights = (b.dense_parameters + b.expert_parameters) * on.state_bytes;
    b.activations = cost.saved * tokens * 2;
    return b;
  };
  mo::attention_block attention = m.attention;
  attention.sequence = sequence;
  std::int64_t const experts = m.moe.matrices * m.moe.hidden * m.moe.ffn * m.moe.experts;
  block_load layer = load(attention.cost() + m.moe.cost(), experts);
  // Dispatch and combine: each of the k rows of a token, but those that stay.
  std::int64_t const bytes = 2 * tokens * m.moe.active * m.moe.hidden * (expert - 1) / expert;
  layer.exchange = static_cast<std::int64_t>(2.0 * static_cast<double>(bytes) / on.link * 1e9);

  std::vector<block_load> blocks{load(mo::embedding_block{m.moe.hidden, m.vocabulary}.cost(), 0)};
  blocks.insert(blocks.end(), static_cast<std::size_t>(m.layers), layer);
  blocks.push_back(load(mo::head_block{m.moe.hidden, m.vocabulary}.cost(), 0));
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    if (!measured.empty()) blocks[b].time = measured[b];
    blocks[b].time.forward += blocks[b].exchange;
    blocks[b].time.input_gradient += blocks[b].exchange;
  }
  return blocks;
}

}  // namespace plan
